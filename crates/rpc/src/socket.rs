//! Listening and connecting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with, socketpair, sockopt,
};

use crate::message::{self, Message};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Who is at the other end, as the kernel noted when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; of no use for deciding anything, as it may be another's by now.
    pub pid: i32,
}

/// A socket that takes connections.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Binds and listens; the file's mode follows the umask. Nothing is removed: a file of this name
    /// is an error.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = new_socket()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Waits for the next connection. A connection whose peer went away meanwhile is passed over.
    pub fn accept(&self) -> io::Result<Connection> {
        loop {
            match accept_with(&self.0, SocketFlags::CLOEXEC) {
                Ok(socket) => return Ok(Connection(socket)),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One end of a connection. Both ends may send; one thread at a time for each direction.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Connects.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Self::connect_within(path, None)
    }

    /// Connects, and waits no longer than this, then and for [`Self::send`] and [`Self::receive`]. (A
    /// listener that accepts nothing and has its queue full makes everybody wait.) Past it,
    /// `WouldBlock`.
    pub fn connect_within(path: &Path, limit: Option<Duration>) -> io::Result<Self> {
        let socket = new_socket()?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, limit)?;
        let address = SocketAddrUnix::new(path)?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self(socket)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Two ends that are connected already, for a process and its child.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(one), Self(other)))
    }

    /// An end that somebody handed to this process.
    pub fn from_descriptor(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// How long [`Self::send`] and [`Self::receive`] wait at most; none: for ever. Past it they fail
    /// with `WouldBlock`.
    pub fn set_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, limit)?;
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Send, limit)?;
        Ok(())
    }

    /// Who is at the other end.
    pub fn peer(&self) -> io::Result<Peer> {
        let peer = sockopt::socket_peercred(&self.0)?;
        Ok(Peer {
            uid: peer.uid.as_raw(),
            gid: peer.gid.as_raw(),
            pid: peer.pid.as_raw_nonzero().get(),
        })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// It is too long, the peer is gone, or takes nothing for too long.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        message::send(&self.0, bytes, descriptors)
    }

    /// Waits for one message; none: the peer has closed.
    ///
    /// # Errors
    /// It is too long, or none came in time.
    pub fn receive(&self) -> io::Result<Option<Message>> {
        message::receive(&self.0)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Self::send`] and [`Self::receive`]; a peer that closes instead is `UnexpectedEof`.
    pub fn call(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<Message> {
        self.send(bytes, descriptors)?;
        self.receive()?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "it closed without an answer")
        })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Connection> for OwnedFd {
    fn from(connection: Connection) -> Self {
        connection.0
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;
    use crate::{MAX_DESCRIPTORS, MAX_MESSAGE};

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (one, other) = Connection::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"a key").unwrap();
        one.send(b"first", &[file.as_fd()]).unwrap();
        one.send(b"second", &[]).unwrap();
        let first = other.receive().unwrap().unwrap();
        assert_eq!((first.bytes.as_slice(), first.descriptors.len()), (&b"first"[..], 1));
        let mut came = File::from(first.descriptors.into_iter().next().unwrap());
        let mut text = String::new();
        came.rewind().unwrap();
        came.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a key");
        let second = other.receive().unwrap().unwrap();
        assert_eq!((second.bytes.as_slice(), second.descriptors.len()), (&b"second"[..], 0));
        drop(one);
        assert!(other.receive().unwrap().is_none());
    }

    #[test]
    fn the_longest_message_fits_and_a_longer_one_is_refused() {
        let (one, other) = Connection::pair().unwrap();
        one.send(&vec![7; MAX_MESSAGE], &[]).unwrap();
        assert_eq!(other.receive().unwrap().unwrap().bytes, vec![7; MAX_MESSAGE]);
        let error = one.send(&vec![7; MAX_MESSAGE + 1], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let file = tempfile::tempfile().unwrap();
        let error = one.send(b"x", &[file.as_fd(); MAX_DESCRIPTORS + 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    /// What a hostile peer may send past our own limits.
    #[test]
    fn too_much_from_the_peer_is_an_error() {
        let (one, other) = Connection::pair().unwrap();
        rustix::net::send(&one, &vec![7; MAX_MESSAGE + 2], rustix::net::SendFlags::empty())
            .unwrap();
        assert_eq!(other.receive().unwrap_err().kind(), io::ErrorKind::InvalidData);
        one.send(b"goes on", &[]).unwrap();
        assert_eq!(other.receive().unwrap().unwrap().bytes, b"goes on");
    }

    #[test]
    fn a_peer_is_known_by_its_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let client = std::thread::spawn(move || {
            let connection = Connection::connect(&path).unwrap();
            connection.call(b"who am I", &[]).unwrap().bytes
        });
        let connection = listener.accept().unwrap();
        let peer = connection.peer().unwrap();
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
        assert_eq!(peer.pid, rustix::process::getpid().as_raw_nonzero().get());
        assert_eq!(connection.receive().unwrap().unwrap().bytes, b"who am I");
        connection.send(b"you", &[]).unwrap();
        assert_eq!(client.join().unwrap(), b"you");
    }

    #[test]
    fn a_listener_that_takes_nobody_keeps_nobody_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let limit = Some(Duration::from_millis(1));
        let mut waiting = Vec::new();
        let error = loop {
            match Connection::connect_within(&path, limit) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(waiting.len() >= BACKLOG as usize);
        drop(listener);
    }

    #[test]
    fn who_waits_too_long_is_told() {
        let (one, _other) = Connection::pair().unwrap();
        one.set_timeout(Some(Duration::from_millis(1))).unwrap();
        assert_eq!(one.receive().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
