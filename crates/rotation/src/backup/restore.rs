//! Putting a header back, where that can't destroy a volume.
//!
//! The danger is not what is written but what it says: a header that gives a sector another key than
//! the sector has. So a backup goes back if the volume's own header, whole, says the same of every
//! sector (then it only brings keyslots back); or if nothing is left of that header, and the backup
//! says that no data had moved when it was made. In the second case nobody can know whether data has
//! moved since, so what was there is kept in a file, and the operator is told to look before anything
//! writes.

use std::fmt;
use std::path::{Path, PathBuf};

use sealblk_luks::{Found, Header, LuksError, Policy, ReadAt, Report, RotationStatus, probe};
use sealblk_volume::Volume;

use super::file::Place;
use super::record::{Record, State};
use super::{AREA_BYTES_MAX, BackupError, read};
use crate::storage::Reader;

/// A backup that may be put back.
pub struct Restoration {
    area: Vec<u8>,
    uuid: String,
    second_copy_bytes: Option<u64>,
    /// The volume's own header is lost.
    lost: Option<String>,
    path: PathBuf,
}

// Keyslots don't belong into logs.
impl fmt::Debug for Restoration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Restoration").field("uuid", &self.uuid).finish_non_exhaustive()
    }
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The volume's UUID.
    pub uuid: String,
    /// Where what was there before is, if it was not a whole header.
    pub before: Option<PathBuf>,
}

impl Restoration {
    /// Reads a backup and decides whether it may go back on `volume`. `overwrite` goes on although
    /// something else's signature lies there.
    ///
    /// # Errors
    /// [`BackupError::Refused`] says why not.
    pub fn of(path: &Path, volume: &dyn Volume, overwrite: bool) -> Result<Self, BackupError> {
        let place = Place::new(path)?;
        let Some(file) = place.read()? else {
            return Err(place.refused("is not there"));
        };
        let (recorded, area) = match Record::of(&file) {
            Some((Record { state: State::Moving, .. }, _)) => {
                return Err(place.refused(
                    "data has moved to another key since it was made: to put it back would destroy \
                     the volume",
                ));
            }
            Some((_, area)) => (true, area),
            // cryptsetup's.
            None => (false, file),
        };
        let backup = Header::load(&mut &area[..], &Policy::default())
            .map_err(|error| place.refused(&format!("holds no whole header: {error}")))?;
        let report = backup.report();
        if report.copies.iter().any(|copy| copy.damage.is_some()) {
            return Err(place.refused("one of its copies of the header is damaged"));
        }
        let end = report.segments.iter().map(|segment| segment.offset_bytes).min().unwrap_or(0);
        if area.len() as u64 > end.min(AREA_BYTES_MAX) {
            return Err(place.refused("is longer than the header: it would overwrite data"));
        }
        let keyslots = report.keyslots.iter().filter_map(|slot| {
            Some(slot.offset_bytes?.saturating_add(slot.size_bytes.unwrap_or(0)))
        });
        if keyslots.max().is_some_and(|end| end > area.len() as u64) {
            return Err(place.refused("is cut off: keyslots are missing"));
        }
        if volume.geometry().size_bytes <= end {
            return Err(place.refused("is of a larger volume: this one has no room for its data"));
        }
        let mut restoration = Self {
            area,
            uuid: report.uuid.clone(),
            second_copy_bytes: report.copies.get(1).map(|copy| copy.offset_bytes),
            lost: None,
            path: path.to_owned(),
        };
        match Header::load(&mut Reader(volume), &Policy::default()) {
            Ok(own) => {
                if let Some(why) = difference(&own, &backup)? {
                    return Err(place.refused(&why));
                }
            }
            Err(LuksError::Read { offset_bytes, len_bytes, source }) => {
                return Err(LuksError::Read { offset_bytes, len_bytes, source }.into());
            }
            Err(error) => {
                let what = lost(volume, &error);
                if !recorded {
                    return Err(place.refused(&format!(
                        "{what}, and whether data has moved since this backup was made it does not \
                         say, as `sealblk` did not make it: if you know, `cryptsetup \
                         luksHeaderRestore` takes it"
                    )));
                }
                let foreign = foreign(volume)?;
                if let Some(found) = foreign.filter(|_| !overwrite) {
                    return Err(place.refused(&format!(
                        "the volume holds {found}: is it the right one? --overwrite-signature \
                         destroys it"
                    )));
                }
                restoration.lost = Some(what);
            }
        }
        Ok(restoration)
    }

    /// What must be agreed to.
    pub fn question(&self) -> String {
        let keys = "Passphrases that were removed since the backup was made open the volume again, \
                    those that were added don't";
        match &self.lost {
            None => format!(
                "The header of volume {} is replaced by the backup {}. {keys}.",
                self.uuid,
                self.path.display()
            ),
            Some(what) => format!(
                "{what}. The header of volume {} takes its place. {keys}. If the volume's key was \
                 rotated since the backup was made, all data will look like noise: serve it \
                 read-only and look, before anything writes. What lies there now is kept in {}.",
                self.uuid,
                self.before().display()
            ),
        }
    }

    fn before(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".before-restore");
        self.path.with_file_name(name)
    }
}

/// Puts it back. Whoever is interrupted does it again.
///
/// # Errors
/// The volume, or the file for what was there.
pub fn restore(volume: &dyn Volume, restoration: &Restoration) -> Result<Restored, BackupError> {
    let area = &restoration.area[..];
    let mut before = None;
    if restoration.lost.is_some() {
        let path = restoration.before();
        let place = Place::new(&path)?;
        // One that is there is of an attempt before: that is what must not be lost.
        if place.read()?.is_none() {
            place.make(&read(&mut Reader(volume), area.len() as u64)?)?;
        }
        before = Some(path);
    }
    // The primary last, and never both copies unflushed (R1).
    let first = restoration.second_copy_bytes.and_then(|at| usize::try_from(at).ok());
    let (head, rest) = area.split_at_checked(first.unwrap_or(area.len())).unwrap_or((area, &[]));
    volume.flush()?;
    if !rest.is_empty() {
        volume.write_at(head.len() as u64, rest)?;
        volume.flush()?;
    }
    volume.write_at(0, head)?;
    volume.flush()?;
    Header::load(&mut Reader(volume), &Policy::default())?;
    Ok(Restored { uuid: restoration.uuid.clone(), before })
}

/// Why the backup says something else than the volume's own, whole header of the volume or of any
/// sector; none if it doesn't.
fn difference(own: &Header, backup: &Header) -> Result<Option<String>, BackupError> {
    let (ours, theirs) = (own.report(), backup.report());
    if ours.uuid != theirs.uuid {
        return Ok(Some(format!(
            "is of another volume: its UUID is {}, the volume's {}",
            theirs.uuid, ours.uuid
        )));
    }
    for (status, whose) in
        [(own.rotation_status()?, "volume"), (backup.rotation_status()?, "backup")]
    {
        if matches!(status, RotationStatus::Crash { .. } | RotationStatus::Finished) {
            return Ok(Some(format!("the {whose}'s header has a rotation that was interrupted")));
        }
    }
    if ours.version != theirs.version {
        return Ok(Some(format!(
            "is a LUKS{} header, and the volume has LUKS{} now",
            theirs.version, ours.version
        )));
    }
    if ours.segments != theirs.segments || owners(&ours) != owners(&theirs) {
        return Ok(Some(
            "the volume's data has another key now than the backup says, at least in part: to put it \
             back would destroy that"
                .into(),
        ));
    }
    Ok(None)
}

/// Which key owns which segment, keys by their digest.
fn owners(report: &Report) -> Vec<(u32, &str, &str)> {
    let each = report.digests.iter().flat_map(|digest| {
        let owner = |&id| (id, digest.kind.as_str(), digest.fingerprint.as_str());
        digest.segments.iter().map(owner)
    });
    let mut owners: Vec<_> = each.collect();
    owners.sort_unstable();
    owners
}

/// In words: the volume's header is lost.
fn lost(volume: &dyn Volume, error: &LuksError) -> String {
    format!("{} has no usable header ({error})", volume.uri())
}

/// What else lies there.
fn foreign(volume: &dyn Volume) -> Result<Option<String>, BackupError> {
    let found = probe(&mut Reader(volume) as &mut dyn ReadAt)?;
    Ok(match found {
        Found::Nothing | Found::Luks1 | Found::Luks2 => None,
        other => Some(other.to_string()),
    })
}
