//! Unix sockets with an owner, gone when we are.
//!
//! Invariant: nobody connects before group and mode are set: sockets come into being with mode
//! 0600 (the process's umask, set once at its start: it makes no other files) and are opened up
//! afterwards. A socket that a killed daemon left behind is replaced; one that answers is not.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use rustix::fs::{Mode, OFlags};

/// A socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("socket {}: {what}", path.display())]
pub(crate) struct SocketError {
    path: PathBuf,
    what: String,
    source: Option<io::Error>,
}

impl SocketError {
    /// An error with the system's own, if there is one, as its source and not in its text.
    pub(crate) fn new(
        path: &Path,
        what: impl Into<String>,
        source: impl Into<Option<io::Error>>,
    ) -> Self {
        Self { path: path.to_owned(), what: what.into(), source: source.into() }
    }
}

/// Makes the umask what the invariant needs. Once, at the start.
pub(crate) fn private_umask() {
    rustix::process::umask(Mode::from_raw_mode(0o177));
}

/// The name of a listening socket; removes it when dropped, unless somebody replaced it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Keeps the inode, so that its number tells our socket from a successor's.
    inode: File,
}

impl SocketFile {
    /// The socket that was bound at `path` this moment.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inode = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { path: path.to_owned(), inode: inode.into() })
    }

    fn is_ours(&self) -> io::Result<bool> {
        let (ours, named) = (self.inode.metadata()?, fs::symlink_metadata(&self.path)?);
        Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = self.is_ours().unwrap_or(false);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Binds and listens.
///
/// # Errors
/// The path can't be used, somebody listens there already, there is no such group, or we may not
/// give the socket to it.
pub(crate) fn bind(
    path: &Path,
    group: Option<&str>,
    mode: u32,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let gid = group.map(|name| find_group(path, name)).transpose()?;
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(|e| {
        let what = match e.kind() {
            io::ErrorKind::NotFound => "its directory does not exist",
            io::ErrorKind::PermissionDenied => "not allowed to make it there",
            _ => "cannot bind",
        };
        SocketError::new(path, what, e)
    })?;
    let file =
        SocketFile::of(path).map_err(|e| SocketError::new(path, "gone before it was used", e))?;
    if let Some(gid) = gid {
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(|e| {
            let what = format!("cannot give it to group {:?}", group.unwrap_or_default());
            SocketError::new(path, what, e)
        })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| SocketError::new(path, "cannot set its mode", e))?;
    Ok((listener, file))
}

/// Removes what a killed daemon left. Anything but a socket that nobody answers stays.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let refuse = |what: &str| Err(SocketError::new(path, what, None));
    if !found.file_type().is_socket() {
        return refuse("something else has this name; remove it");
    }
    match UnixStream::connect(path) {
        Ok(_) => refuse("another process serves it"),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|e| SocketError::new(path, "cannot remove the old one", e)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(SocketError::new(path, "cannot tell whether it is in use", e)),
    }
}

/// A group by name or number.
pub(crate) fn find_group(path: &Path, name: &str) -> Result<u32, SocketError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => {
            let what = format!("there is no group {name:?}");
            Err(SocketError::new(path, what, None))
        }
        Err(e) => {
            Err(SocketError::new(path, format!("looking for group {name:?}"), io::Error::from(e)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        (dir, path)
    }

    #[test]
    fn a_socket_has_the_mode_asked_for_and_goes_with_its_file() {
        let (_dir, path) = here();
        let (listener, file) = bind(&path, None, 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        UnixStream::connect(&path).unwrap();
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_can_be_given_to_a_group() {
        let (_dir, path) = here();
        let gid = rustix::process::getgid().as_raw();
        let name = Group::from_gid(gid.into()).unwrap().unwrap().name;
        for group in [name, gid.to_string()] {
            let _socket = bind(&path, Some(&group), 0o660).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().gid(), gid);
        }
        let error = bind(&path, Some("no such group"), 0o660).unwrap_err().to_string();
        assert!(error.contains("no such group") && !path.exists(), "{error}");
    }

    #[test]
    fn what_a_killed_daemon_left_is_replaced() {
        let (_dir, path) = here();
        let (listener, file) = bind(&path, None, 0o600).unwrap();
        drop(listener);
        assert!(path.exists());
        let (_listener, newer) = bind(&path, None, 0o600).unwrap();
        drop(file);
        assert!(path.exists(), "the old owner removed the new one's socket");
        drop(newer);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_in_use_or_no_socket_stays() {
        let (dir, path) = here();
        let _socket = bind(&path, None, 0o600).unwrap();
        let error = bind(&path, None, 0o600).unwrap_err().to_string();
        assert!(error.contains("another process serves it"), "{error}");
        UnixStream::connect(&path).unwrap();

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let error = bind(&file, None, 0o600).unwrap_err().to_string();
        assert!(error.contains("something else") && file.exists(), "{error}");

        let error = bind(&dir.path().join("no/a.sock"), None, 0o600).unwrap_err().to_string();
        assert!(error.contains("directory does not exist"), "{error}");
    }
}
