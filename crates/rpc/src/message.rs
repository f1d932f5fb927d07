//! One message.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Longest message, in bytes. It has to fit into the socket's send buffer, of which the kernel's
/// default (`net.core.wmem_default`) is 208 KiB with its own overhead counted.
pub const MAX_MESSAGE: usize = 128 << 10;

/// Most descriptors with one message: a key and a device, and one to spare.
pub const MAX_DESCRIPTORS: usize = 3;

/// What came: the bytes, and the descriptors in the order of the sender.
#[derive(Debug)]
pub struct Message {
    /// The content.
    pub bytes: Vec<u8>,
    /// What came along.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one message.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        let what = "the message is longer than the protocol allows";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let iov = [IoSlice::new(bytes)];
    let sent = retry(|| sendmsg(&socket, &iov, &mut control, SendFlags::NOSIGNAL))?;
    if sent != bytes.len() {
        return Err(io::Error::other("a message was cut off while it was sent"));
    }
    Ok(())
}

/// Waits for one message; none: the peer has closed the connection.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<Message>> {
    // One byte more, so that what is too long shows.
    let mut bytes = vec![0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let got = retry(|| recvmsg(&socket, &mut iov, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    if got.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    if got.bytes > MAX_MESSAGE || got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let what = "the peer's message is longer than the protocol allows";
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    bytes.truncate(got.bytes);
    Ok(Some(Message { bytes, descriptors }))
}

/// A signal is no reason to give up. What was handed to the kernel wasn't taken then.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
