//! The back-end's own channel (`BACKEND_REQ`): how a front-end is told that the configuration has
//! changed. The `vhost` crate takes the channel's descriptor but has no such message, so both are
//! done here.
//!
//! Contract: nothing here blocks, and nothing that a front-end does with its end of the channel
//! matters to anything else: a channel that doesn't take a message is let go.
//!
//! Deliberately absent: reading from it. We ask for no reply, so none comes.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketType, recvmsg, send,
    sockopt,
};
use vhost::vhost_user::message::{BackendReq, FrontendReq, VhostUserHeaderFlag};

/// Request, flags, size: 32 bits each (vhost-user specification, "Header").
pub(crate) const HEADER_BYTES: usize = 12;
/// The protocol's version, in the lowest two bits of the flags.
const VERSION: u32 = 1;
/// Descriptors that a message may carry (`VHOST_USER_MAX_RAM_SLOTS`), all of which are to be closed.
const FDS_MAX: usize = 32;

/// Our end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

impl Channel {
    /// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, no reply wanted. QEMU reads the configuration anew
    /// while its device is started, and ignores it otherwise.
    pub(crate) fn config_changed(&self) -> io::Result<()> {
        let message = header(BackendReq::CONFIG_CHANGE_MSG as u32, VERSION, 0);
        let sent = send(&self.0, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    for (to, word) in bytes.chunks_exact_mut(4).zip([request, flags, size]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Takes a `SET_BACKEND_REQ_FD` without payload off the socket, whose header is there already.
///
/// # Errors
/// The connection's; the inner one: it didn't carry exactly one stream socket.
pub(crate) fn receive(stream: &UnixStream) -> io::Result<Result<Channel, &'static str>> {
    let mut bytes = [0; HEADER_BYTES];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if got.bytes != HEADER_BYTES {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            fds.extend(more);
        }
    }
    let (Some(fd), true) = (fds.pop(), fds.is_empty()) else {
        return Ok(Err("it does not carry exactly one descriptor"));
    };
    if sockopt::socket_type(&fd) != Ok(SocketType::STREAM) {
        return Ok(Err("its descriptor is no stream socket"));
    }
    Ok(Ok(Channel(fd)))
}

/// Answers it, for a front-end that wants to know.
pub(crate) fn acknowledge(stream: &UnixStream, refused: bool) -> io::Result<()> {
    let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
    let head = header(FrontendReq::SET_BACKEND_REQ_FD as u32, flags, 8);
    let mut message = [0; HEADER_BYTES + 8];
    let (front, back) = message.split_at_mut(HEADER_BYTES);
    front.copy_from_slice(&head);
    back.copy_from_slice(&u64::from(refused).to_ne_bytes());
    let sent = send(stream, &message, SendFlags::NOSIGNAL)?;
    if sent == message.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}
