//! The header of a volume in a file, from before its key was rotated.
//!
//! Contract: as long as the file is *true*, that is: putting it back can't give any sector another key
//! than it has, `cryptsetup luksHeaderRestore` takes it as it is. Before the first range is in work
//! [`HeaderBackup::data_moves`] makes it one that neither cryptsetup nor [`restore`] takes, durably:
//! from then on the header changes with each range, and whoever put back an older one would have
//! everything in between decrypted with the wrong key.
//! Invariant: under the file's name there is at any instant one whole content, old or new.
//! Deliberately absent: encryption. The file opens the volume with the passphrases that opened it.

mod file;
mod record;
mod restore;

use std::path::{Path, PathBuf};

use sealblk_luks::{Header, LuksError, Policy, ReadAt, RotationStatus};
use sha2::{Digest, Sha256};

use file::Place;
use record::{Record, State};
pub use restore::{Restoration, Restored, restore};

/// The largest header area: both copies at most 4 MiB and the keyslots 128 MiB (LUKS2 specification
/// 1.1, sections 2 and 3.4). Data may begin later.
const AREA_BYTES_MAX: u64 = (2 * 4 + 128) << 20;

/// A header backup can't be made, or not be put back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The file, or its directory.
    #[error("header backup {}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// It would do harm, or it is none; nothing was changed.
    #[error("header backup {}: {why}", path.display())]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The volume's header.
    #[error(transparent)]
    Luks(#[from] LuksError),
    /// The volume.
    #[error(transparent)]
    Volume(#[from] sealblk_block::VolumeError),
}

/// A header backup that is kept in step with a rotation.
#[derive(Debug)]
pub struct HeaderBackup {
    place: Place,
    uuid: String,
}

impl HeaderBackup {
    /// Where it is unless an operator wants it elsewhere: `UUID.luks-header` in `dir`.
    pub fn default_path(dir: &Path, uuid: &str) -> PathBuf {
        // A header names its UUID, so it may hold anything.
        let safe = |c: char| if c.is_ascii_hexdigit() || c == '-' { c } else { '_' };
        dir.join(format!("{}.luks-header", uuid.chars().map(safe).collect::<String>()))
    }

    /// Makes it, before the first change of a header. An older backup of the same volume is replaced
    /// and destroyed; anything else of that name is left alone.
    ///
    /// # Errors
    /// [`BackupError`]; also when a rotation is under way.
    pub fn create(path: &Path, volume: &mut dyn ReadAt) -> Result<Self, BackupError> {
        let place = Place::new(path)?;
        let copy = HeaderCopy::of(path, volume)?;
        if let Some(old) = place.read()? {
            let ours = Record::of(&old).is_some_and(|(record, _)| record.uuid == copy.record.uuid);
            if !ours {
                return Err(place.refused("is there already, and is no backup of this volume"));
            }
        }
        place.replace(&copy.into_bytes())?;
        Ok(Self { uuid: uuid_of(volume)?, place })
    }

    /// As [`Self::create`], but nothing may be there.
    ///
    /// # Errors
    /// [`BackupError`]; also when a rotation is under way.
    pub fn create_new(path: &Path, volume: &mut dyn ReadAt) -> Result<Self, BackupError> {
        let place = Place::new(path)?;
        let copy = HeaderCopy::of(path, volume)?;
        place.make(&copy.into_bytes())?;
        Ok(Self { uuid: uuid_of(volume)?, place })
    }

    /// Takes up the one that an earlier process made for the volume `uuid`; none if it is not there.
    ///
    /// # Errors
    /// [`BackupError`], also when something else has its name.
    pub fn adopt(path: &Path, uuid: &str) -> Result<Option<Self>, BackupError> {
        let place = Place::new(path)?;
        let Some(bytes) = place.read()? else {
            return Ok(None);
        };
        match Record::of(&bytes) {
            Some((record, _)) if record.uuid == uuid => {
                Ok(Some(Self { place, uuid: uuid.to_owned() }))
            }
            _ => Err(place.refused("is no backup of this volume's header")),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Makes a fresh copy: after each change of the header that moves no data (staged, begun), and
    /// where a rotation rests between two ranges. The copy before is destroyed.
    ///
    /// # Errors
    /// [`BackupError`]; a range is in work, or it is another volume.
    pub fn refresh(&self, volume: &mut dyn ReadAt) -> Result<(), BackupError> {
        let copy = HeaderCopy::resting(self.path(), volume)?;
        if copy.record.uuid != self.uuid {
            return Err(self.place.refused("is the backup of another volume"));
        }
        self.place.replace(&copy.into_bytes())
    }

    /// Data is about to move: from here on the file must not be put back. To be called, and to have
    /// succeeded, before the first range after [`Self::create`] or [`Self::refresh`] is in work. The
    /// file keeps both keys' keyslots, for who must save a volume by hand (docs/operations.md).
    ///
    /// # Errors
    /// [`BackupError`]: then nothing may move.
    pub fn data_moves(&self) -> Result<(), BackupError> {
        let Some(bytes) = self.place.read()? else {
            // Nothing there, nothing that could be put back.
            return Ok(());
        };
        let Some((record, area)) = Record::of(&bytes) else {
            return Err(self.place.refused("is no longer the backup that was made"));
        };
        if record.state == State::Moving {
            return Ok(());
        }
        let copy =
            HeaderCopy { area: area.to_vec(), record: Record { state: State::Moving, ..record } };
        self.place.replace(&copy.into_bytes())
    }

    /// The rotation is over: the file is overwritten and removed, or, to be kept, stays as
    /// [`Self::data_moves`] made it.
    ///
    /// # Errors
    /// [`BackupError::File`]; the file may still be there, with the old key.
    pub fn finish(self, keep: bool) -> Result<(), BackupError> {
        if keep { self.data_moves() } else { self.shred() }
    }

    /// Overwrites and removes it. What that can't promise: that no older copy of the blocks is left,
    /// on an SSD, on a file system that copies on write, in a snapshot or a backup of the directory.
    ///
    /// # Errors
    /// [`BackupError::File`]
    pub fn shred(self) -> Result<(), BackupError> {
        self.place.shred()
    }
}

fn uuid_of(volume: &mut dyn ReadAt) -> Result<String, BackupError> {
    Ok(Header::load(volume, &Policy::default())?.uuid())
}

/// A header area with what there is to know about it.
struct HeaderCopy {
    area: Vec<u8>,
    record: Record,
}

impl HeaderCopy {
    /// Of a volume whose data has one key.
    fn of(path: &Path, volume: &mut dyn ReadAt) -> Result<Self, BackupError> {
        let header = Header::load(volume, &Policy::default())?;
        if matches!(header.rotation_status()?, RotationStatus::Clean { done_bytes } if done_bytes > 0)
        {
            return Err(BackupError::Refused {
                path: path.to_owned(),
                why:
                    "a rotation is under way: the header changes with each range, and a backup of \
                      it would be wrong a moment later"
                        .into(),
            });
        }
        Self::resting(path, volume)
    }

    /// Of a volume of which nothing is in work.
    fn resting(path: &Path, volume: &mut dyn ReadAt) -> Result<Self, BackupError> {
        let refused = |why: &str| BackupError::Refused { path: path.to_owned(), why: why.into() };
        let header = Header::load(volume, &Policy::default())?;
        match header.rotation_status()? {
            RotationStatus::Crash { .. } | RotationStatus::Finished => {
                return Err(refused("a rotation was interrupted: it must be taken up first"));
            }
            _ => {}
        }
        let report = header.report();
        // One that is damaged would be mended first, with another sequence number.
        if let Some(damage) = report.copies.iter().find_map(|copy| copy.damage.as_ref()) {
            return Err(refused(&format!(
                "a copy of the volume's header is damaged ({damage}): `sealblk repair` first"
            )));
        }
        let len = report.segments.iter().map(|segment| segment.offset_bytes).min().unwrap_or(0);
        let len = len.min(AREA_BYTES_MAX).min(volume.size_bytes());
        let area = read(volume, len)?;
        // Who serves the volume may have changed it meanwhile.
        if area != read(volume, len)? {
            return Err(refused("the header changes at the moment: try again"));
        }
        let second = report.copies.get(1).map(|copy| copy.offset_bytes);
        let record = Record {
            state: State::True,
            uuid: report.uuid,
            luks_version: report.version,
            seqid: report.seqid,
            second_copy_bytes: second,
            sha256: hex(&Sha256::digest(&area)),
        };
        Ok(Self { area, record })
    }

    /// As it is in the file.
    fn into_bytes(self) -> Vec<u8> {
        self.record.append_to(self.area)
    }
}

fn read(volume: &mut dyn ReadAt, len: u64) -> Result<Vec<u8>, BackupError> {
    let len_bytes = usize::try_from(len).unwrap_or(0);
    let mut bytes = vec![0; len_bytes];
    volume.read_at(0, &mut bytes).map_err(|source| LuksError::Read {
        offset_bytes: 0,
        len_bytes,
        source,
    })?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
