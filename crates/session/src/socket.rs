//! The listening socket's place in the file system.
//!
//! Contract: the file has its final mode and group before the first client can connect; a file that
//! a dead daemon left is replaced, one that somebody listens on never; at the end only our own file
//! is removed (a successor may have put its own there already).
//!
//! Deliberately absent: a lock. Two daemons that start at the same moment on the same path are told
//! apart by the volume's lock, taken earlier.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, chmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};

/// Clients that may wait while another one is served.
const BACKLOG: i32 = 8;

/// The socket can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves this path.
    #[error(
        "socket {path}: another process listens on it; stop that one first, or choose another path"
    )]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something that isn't a socket lies there.
    #[error("socket {path}: the path is taken by something that is not a socket; remove it")]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("socket {path}: cannot {what}: {source}")]
    System {
        /// The socket's path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// A listening Unix socket and its file.
#[derive(Debug)]
pub(crate) struct Listener {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file that we made.
    file: (u64, u64),
}

impl Listener {
    /// Listens on `path`, whose file gets `mode` and, if given, the group.
    pub(crate) fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, SocketError> {
        let failed = |what| {
            move |source: io::Error| SocketError::System { path: path.to_owned(), what, source }
        };
        let system = |what| move |errno: Errno| failed(what)(errno.into());
        let address =
            SocketAddrUnix::new(path).map_err(system("use this path (108 bytes at most)"))?;
        let fd = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            .map_err(system("make a socket"))?;
        match bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&fd, &address).map_err(system("bind after removing a stale socket"))?;
            }
            other => other.map_err(system("bind"))?,
        }
        let metadata = fs::symlink_metadata(path).map_err(failed("look at it"))?;
        let this = Self { fd, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) };
        // From here on the file goes when `this` does.
        if group.is_some() {
            chown(path, None, group).map_err(failed("set its group"))?;
        }
        chmod(path, Mode::from_raw_mode(mode)).map_err(system("set its mode"))?;
        listen(&this.fd, BACKLOG).map_err(system("listen"))?;
        Ok(this)
    }

    /// The next client, if one waits.
    pub(crate) fn accept(&self) -> io::Result<OwnedFd> {
        Ok(accept_with(&self.fd, SocketFlags::CLOEXEC)?)
    }

    /// To wait for clients.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.file);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn unix_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let failed =
        |what| move |source: io::Error| SocketError::System { path: path.to_owned(), what, source };
    let metadata = fs::symlink_metadata(path).map_err(failed("look at what is there"))?;
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket { path: path.to_owned() });
    }
    // Non-blocking: a listener whose backlog is full answers EAGAIN, and is alive.
    let probe = unix_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        .map_err(|errno| failed("make a socket")(errno.into()))?;
    match connect(&probe, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(failed("remove the stale socket")),
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            Err(SocketError::InUse { path: path.to_owned() })
        }
        Err(errno) => Err(failed("find out whether somebody listens on it")(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn the_file_has_its_mode_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = Listener::bind(&path, 0o660, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_by_a_dead_daemon_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file");
        let _listener = Listener::bind(&path, 0o660, None).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_socket_that_somebody_listens_on_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let _other = UnixListener::bind(&path).unwrap();
        let error = Listener::bind(&path, 0o660, None).unwrap_err();
        assert!(matches!(error, SocketError::InUse { .. }), "{error}");
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, 0o660, None).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_successors_socket_survives_our_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.sock");
        let listener = Listener::bind(&path, 0o660, None).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _successor = UnixListener::bind(&path).unwrap();
        drop(listener);
        UnixStream::connect(&path).unwrap();
    }
}
