//! A file that is replaced and destroyed with care: it opens a volume.
//!
//! Contract: mode 0600 from the first byte; a new content gets the name only when it is durable; an
//! old one is overwritten after it has lost the name. Nothing is done through a symlink that has the
//! file's name; those of its directory are the operator's.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};

use super::{AREA_BYTES_MAX, BackupError};
use crate::random;

/// Written at a time when a file is destroyed.
const NOISE_BYTES: usize = 1 << 20;

/// Longer ones are no backups.
const FILE_BYTES_MAX: u64 = AREA_BYTES_MAX + (1 << 20);

/// Where a file is, or will be.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    dir: PathBuf,
    /// New content before it has the name.
    part: PathBuf,
}

impl Place {
    pub(super) fn new(path: &Path) -> Result<Self, BackupError> {
        let Some(name) = path.file_name() else {
            let why = "is no name of a file".into();
            return Err(BackupError::Refused { path: path.to_owned(), why });
        };
        let dir = match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut part = OsString::from(".");
        part.push(name);
        part.push(".part");
        Ok(Self { path: path.to_owned(), part: dir.join(part), dir })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn refused(&self, why: &str) -> BackupError {
        BackupError::Refused { path: self.path.clone(), why: why.into() }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> BackupError + use<'_> {
        move |source| BackupError::File { path: self.path.clone(), what, source }
    }

    /// Its content; none if it isn't there.
    pub(super) fn read(&self) -> Result<Option<Vec<u8>>, BackupError> {
        let Some(file) = self.open(&self.path, false)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(self.failed("reading it"))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(self.refused("is too long for a header backup"));
        }
        Ok(Some(bytes))
    }

    /// Makes it; nothing may be there.
    pub(super) fn make(&self, bytes: &[u8]) -> Result<(), BackupError> {
        self.write_part(bytes)?;
        let made = renameat_with(CWD, &self.part, CWD, &self.path, RenameFlags::NOREPLACE);
        if let Err(error) = made {
            // What can't be made must not lie about.
            let _ = self.destroy(&self.part);
            return Err(match error {
                rustix::io::Errno::EXIST => self.refused("is there already"),
                other => self.failed("giving it its name")(other.into()),
            });
        }
        self.sync_dir()
    }

    /// Makes it, or another of it; what was there is destroyed.
    pub(super) fn replace(&self, bytes: &[u8]) -> Result<(), BackupError> {
        let old = self.open(&self.path, true)?;
        self.write_part(bytes)?;
        fs::rename(&self.part, &self.path).map_err(self.failed("giving it its name"))?;
        self.sync_dir()?;
        if let Some(old) = old {
            overwrite(old).map_err(self.failed("overwriting the one before"))?;
        }
        Ok(())
    }

    /// Overwrites and removes it, and what an interrupted change may have left.
    pub(super) fn shred(&self) -> Result<(), BackupError> {
        for path in [&self.part, &self.path] {
            self.destroy(path)?;
        }
        self.sync_dir()
    }

    fn write_part(&self, bytes: &[u8]) -> Result<(), BackupError> {
        // Left by somebody who died.
        self.destroy(&self.part)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.part)
            .map_err(self.failed("making it"))?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(|error| {
            let _ = self.destroy(&self.part);
            self.failed("writing it")(error)
        })
    }

    fn destroy(&self, path: &Path) -> Result<(), BackupError> {
        let Some(file) = self.open(path, true)? else {
            return Ok(());
        };
        overwrite(file).map_err(self.failed("overwriting it"))?;
        fs::remove_file(path).map_err(self.failed("removing it"))
    }

    /// A regular file of this name; none if there is none.
    fn open(&self, path: &Path, write: bool) -> Result<Option<File>, BackupError> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::options()
            .read(true)
            .write(write)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // ELOOP is what a symlink gives with NOFOLLOW.
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                return Err(self.refused("is a symlink"));
            }
            Err(error) => return Err(self.failed("opening it")(error)),
        };
        if !file.metadata().map_err(self.failed("looking at it"))?.is_file() {
            return Err(self.refused("is no regular file"));
        }
        Ok(Some(file))
    }

    fn sync_dir(&self) -> Result<(), BackupError> {
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(self.failed("making its name durable"))
    }
}

/// Noise over all of it, durably.
fn overwrite(mut file: File) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    let mut noise = vec![0; NOISE_BYTES];
    file.rewind()?;
    while left > 0 {
        let len = usize::try_from(left).map_or(NOISE_BYTES, |left| left.min(NOISE_BYTES));
        random(&mut noise[..len])?;
        file.write_all(&noise[..len])?;
        left -= len as u64;
    }
    file.sync_all()
}
