//! The age of keys where the header has no place for it: LUKS1, and volumes that we may not write.
//! One small JSON file for each volume, by its UUID, in the daemon's state directory.
//!
//! Contract: a file is replaced as a whole and is durable when [`Ages::write`] returns. What can't be
//! understood is an unknown age with a reason, never more. A UUID becomes a file name only when it
//! is one ([`is_uuid`]): it comes from a header.
//! Deliberately absent: locks. Who writes a volume's age holds the volume.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sealblk_luks::{Header, KeyAge};
use sealblk_volume::make_state_dir;
use serde::{Deserialize, Serialize};

/// No file of ours is longer.
const FILE_BYTES_MAX: u64 = 4096;

/// The form of the files that is written here.
const VERSION: u32 = 1;

/// Whether it is a UUID as text (RFC 9562 section 4).
pub fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// An age could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    /// The header's UUID can't be a file's name.
    #[error("{0:?} is no UUID, so the age of the volume's keys can't be kept by it")]
    NotUuid(String),
    /// The file or its directory.
    #[error("{}: keeping the age of a volume's keys", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Ages {
    directory: PathBuf,
}

/// What a file holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    uuid: String,
    volume_key_since: Option<u64>,
    secret_since: Option<u64>,
    rotations: u64,
}

impl Ages {
    /// The directory need not exist yet; that in which it lies must.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What is known of the volume with this UUID; `None`: nothing was ever written.
    ///
    /// # Errors
    /// Why what is there is of no use: the age is unknown.
    pub fn read(&self, uuid: &str) -> Result<Option<KeyAge>, String> {
        let Ok(path) = self.path(uuid) else { return Ok(None) };
        let trouble = |what: String| format!("{}: {what}", path.display());
        let text = match read_file(&path) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(None),
            Err(error) => return Err(trouble(error.to_string())),
        };
        let stored: Stored =
            serde_json::from_slice(&text).map_err(|error| trouble(error.to_string()))?;
        if stored.version != VERSION {
            return Err(trouble(format!("is of version {}, not {VERSION}", stored.version)));
        }
        if !stored.uuid.eq_ignore_ascii_case(uuid) {
            return Err(trouble(format!("is about another volume, {:?}", stored.uuid)));
        }
        Ok(Some(KeyAge {
            volume_key_since: stored.volume_key_since,
            secret_since: stored.secret_since,
            rotations: stored.rotations,
        }))
    }

    /// Keeps an age, in place of the one before. It is durable afterwards; after a crash there is the
    /// one or the other.
    ///
    /// # Errors
    /// The age is as it was before, or, when only the last sync failed, perhaps the new one.
    pub fn write(&self, uuid: &str, age: &KeyAge) -> Result<(), AgeError> {
        let path = self.path(uuid)?;
        let stored = Stored {
            version: VERSION,
            uuid: uuid.to_ascii_lowercase(),
            volume_key_since: age.volume_key_since,
            secret_since: age.secret_since,
            rotations: age.rotations,
        };
        replace(&self.directory, &path, &stored)
            .map_err(|source| AgeError::Io { path: path.clone(), source })
    }

    fn path(&self, uuid: &str) -> Result<PathBuf, AgeError> {
        if is_uuid(uuid) {
            Ok(self.directory.join(format!("{}.json", uuid.to_ascii_lowercase())))
        } else {
            Err(AgeError::NotUuid(uuid.to_owned()))
        }
    }
}

/// The file's content. Not through a link, and nothing that would block us.
fn read_file(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags as i32).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Some(text))
}

fn replace(directory: &Path, path: &Path, stored: &Stored) -> io::Result<()> {
    make_state_dir(directory)?;
    let temporary = path.with_extension("json.new");
    // A leftover of somebody who died here; whatever it is, it isn't written through.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let mut text = serde_json::to_vec(stored)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()
}

/// Where the age of a volume's keys is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In its header, by [`Header::set_key_age`].
    Header,
    /// In the state directory, by [`Ages::write`].
    Directory,
}

/// How old the keys of a volume are, as far as anybody noted it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownAge {
    /// Everything unknown when nobody did.
    pub age: KeyAge,
    /// Where it is to be noted next.
    pub place: Place,
    /// Notes that are of no use, and why; for the log.
    pub trouble: Vec<String>,
}

/// Looks where the age of a volume's keys may be noted: the header, then the state directory.
/// `read_only`: we may not write the volume.
pub fn known_age(header: &Header, read_only: bool, ages: &Ages) -> KnownAge {
    let has_place = header.version() == 2 && !read_only;
    let place = if has_place { Place::Header } else { Place::Directory };
    let mut trouble = Vec::new();
    let mut useful = |noted: Result<Option<KeyAge>, String>| {
        noted.unwrap_or_else(|reason| {
            trouble.push(reason);
            None
        })
    };
    let mut age = useful(header.key_age()).unwrap_or_default();
    if (age.volume_key_since.is_none() || age.secret_since.is_none())
        && let Some(kept) = useful(ages.read(&header.uuid()))
    {
        age.volume_key_since = age.volume_key_since.or(kept.volume_key_since);
        age.secret_since = age.secret_since.or(kept.secret_since);
        age.rotations = age.rotations.max(kept.rotations);
    }
    KnownAge { age, place, trouble }
}

/// What to keep of a LUKS1 volume whose rotation has ended, before it becomes LUKS1 again: `kept` is
/// from before the rotation, `noted` by the header that ended it, which as LUKS2 knew of no other
/// time. The same again when it was kept already.
pub fn after_rotation_as_luks2(kept: KeyAge, noted: KeyAge) -> KeyAge {
    if kept.volume_key_since.is_some() && kept.volume_key_since == noted.volume_key_since {
        return kept;
    }
    KeyAge {
        volume_key_since: noted.volume_key_since.or(kept.volume_key_since),
        secret_since: noted.secret_since.or(kept.secret_since),
        rotations: kept.rotations.saturating_add(noted.rotations),
    }
}

#[cfg(test)]
mod tests;
