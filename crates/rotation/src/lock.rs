//! cryptsetup's locks: on a header, so that its command and ours never write one at the same time, and
//! on a re-encryption, so that one program only drives it.
//!
//! The convention (cryptsetup, `lib/utils_device_locking.c`; facts/luks.md): `flock` on the image
//! file itself, or for a block device on `/run/cryptsetup/L_MAJOR:MINOR`. Whoever lets go of the
//! latter last removes it, so a lock counts only while the name still leads to the locked file. A
//! re-encryption is locked by `/run/cryptsetup/LN_LUKS2-reencryption-UUID`. All of that holds on one
//! host only.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use sealblk_volume::Uri;

/// Where cryptsetup keeps its lock files, unless it was built otherwise (`--with-luks2-lock-path`).
const LOCK_DIR: &str = "/run/cryptsetup";

/// The lock; dropping it lets go.
#[derive(Debug)]
pub struct HeaderLock {
    /// None where the volume's own claim keeps others away.
    _file: Option<File>,
    /// Lock file to remove first, for block devices.
    path: Option<PathBuf>,
}

impl HeaderLock {
    /// Takes the lock for writing. Calls `waiting` once if somebody else has it, then waits.
    pub fn take(uri: &str, waiting: &mut dyn FnMut()) -> anyhow::Result<Self> {
        Self::take_as(uri, &mut Wait::Told(waiting))
    }

    /// Takes the lock for writing, if nobody else has it for longer than `limit`: guests wait.
    ///
    /// # Errors
    /// Also when somebody has it.
    pub fn take_within(uri: &str, limit: Duration) -> anyhow::Result<Self> {
        Self::take_as(uri, &mut Wait::Within(limit))
    }

    fn take_as(uri: &str, wait: &mut Wait<'_>) -> anyhow::Result<Self> {
        let taken = match Uri::parse(uri)? {
            Uri::File(path) => lock_image(&path, wait),
            Uri::Device(path) => lock_device(&path, Path::new(LOCK_DIR), wait),
            // cryptsetup can't open these by itself, and whoever maps one as a block device has to
            // take it from us first: the volume's own claim does what the lock is for.
            Uri::Rbd(_) | Uri::Iscsi(_) => return Ok(Self { _file: None, path: None }),
        };
        taken.with_context(|| format!("{uri}: taking cryptsetup's lock on the header"))
    }
}

/// The lock on a volume's re-encryption, for as long as it is driven; dropping it lets go.
#[derive(Debug)]
pub(crate) struct RotationLock(#[expect(dead_code, reason = "held, not looked at")] HeaderLock);

impl RotationLock {
    /// Takes it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when somebody has it; otherwise it can't be had at all, as for a
    /// user who is not root.
    pub(crate) fn take(uuid: &str) -> io::Result<Self> {
        let name = format!("LN_LUKS2-reencryption-{uuid}");
        let wait = &mut Wait::Within(Duration::ZERO);
        lock_resource(Path::new(LOCK_DIR), &name, wait).map(Self)
    }
}

/// What to do when somebody else has a lock.
enum Wait<'a> {
    /// Say so, and wait.
    Told(&'a mut dyn FnMut()),
    /// Wait, but not longer.
    Within(Duration),
}

impl Drop for HeaderLock {
    fn drop(&mut self) {
        // While we hold it: whoever waits for the removed file sees that and starts anew.
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn lock_image(path: &Path, wait: &mut Wait<'_>) -> io::Result<HeaderLock> {
    let file = File::open(path)?;
    exclusive(&file, wait)?;
    Ok(HeaderLock { _file: Some(file), path: None })
}

fn lock_device(device: &Path, dir: &Path, wait: &mut Wait<'_>) -> io::Result<HeaderLock> {
    let rdev = fs::metadata(device)?.rdev();
    let name = format!("L_{}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    lock_resource(dir, &name, wait)
}

fn lock_resource(dir: &Path, name: &str, wait: &mut Wait<'_>) -> io::Result<HeaderLock> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let path = dir.join(name);
    loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)?;
        exclusive(&file, wait)?;
        let locked = file.metadata()?;
        let named = fs::symlink_metadata(&path);
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (locked.dev(), locked.ino())) {
            return Ok(HeaderLock { _file: Some(file), path: Some(path) });
        }
    }
}

fn exclusive(file: &File, wait: &mut Wait<'_>) -> io::Result<()> {
    /// How often a lock is tried.
    const AGAIN: Duration = Duration::from_millis(2);
    let attempt = || flock(file, FlockOperation::NonBlockingLockExclusive);
    match (attempt(), wait) {
        (Err(rustix::io::Errno::WOULDBLOCK), Wait::Told(waiting)) => {
            waiting();
            rustix::io::retry_on_intr(|| flock(file, FlockOperation::LockExclusive))?;
        }
        (Err(rustix::io::Errno::WOULDBLOCK), Wait::Within(limit)) => {
            let end = Instant::now() + *limit;
            loop {
                if Instant::now() >= end {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                #[expect(
                    clippy::disallowed_methods,
                    reason = "the kernel can't wait for a lock for a limited time"
                )]
                std::thread::sleep(AGAIN);
                match attempt() {
                    Err(rustix::io::Errno::WOULDBLOCK) => {}
                    result => return Ok(result?),
                }
            }
        }
        (result, _) => result?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn an_image_is_locked_while_the_lock_lives() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let uri = format!("file:{}", image.path().display());
        let other = File::open(image.path()).unwrap();
        let lock = HeaderLock::take(&uri, &mut || panic!("nobody else has it")).unwrap();
        let attempt = || flock(&other, FlockOperation::NonBlockingLockShared);
        assert_eq!(attempt(), Err(rustix::io::Errno::WOULDBLOCK));
        drop(lock);
        attempt().unwrap();
    }

    #[test]
    fn whoever_comes_second_is_told_and_waits() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        let first = lock_resource(&locks, "L_7:0", &mut Wait::Within(Duration::ZERO)).unwrap();
        let refused = lock_resource(&locks, "L_7:0", &mut Wait::Within(Duration::from_millis(5)));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let (told, tells) = mpsc::channel();
        let second = std::thread::spawn({
            let locks = locks.clone();
            move || {
                let mut tell = || told.send(()).unwrap();
                lock_resource(&locks, "L_7:0", &mut Wait::Told(&mut tell)).unwrap()
            }
        });
        tells.recv().unwrap();
        assert!(!second.is_finished());
        drop(first);
        // The first removed its file: the second must hold the one that has the name now.
        let second = second.join().unwrap();
        let named = fs::metadata(locks.join("L_7:0")).unwrap();
        assert_eq!(named.ino(), second._file.as_ref().unwrap().metadata().unwrap().ino());
        drop(second);
        assert!(!locks.join("L_7:0").exists());
    }
}
