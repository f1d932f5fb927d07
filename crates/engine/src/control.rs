//! How the control side speaks to a queue thread: a mailbox, and an eventfd in the thread's ring.
//! The one place where the two meet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use rustix::event::{EventfdFlags, eventfd};
use sealblk_virtqueue::{QueueSetup, StartError};

/// What a queue thread can be told.
pub(crate) enum Command {
    /// Run this queue.
    Start(Box<QueueSetup>, SyncSender<Result<(), StartError>>),
    /// Stop the queue; the answer is the index to resume at.
    Stop(SyncSender<u16>),
    /// Another call eventfd.
    SetCall(Option<OwnedFd>),
    /// Write cache on or off. Answered once it is so: a guest that was told that its cache is off
    /// relies on it with its next write.
    SetWriteback(bool, SyncSender<()>),
    /// Stop the queue and end.
    Exit,
}

/// The control side's end.
pub(crate) struct Mailbox {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
}

/// The thread's end.
pub(crate) struct Inbox {
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
}

/// The thread is gone: it died, or was told to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

pub(crate) fn mailbox() -> io::Result<(Mailbox, Inbox)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    let (send, receive) = channel();
    Ok((Mailbox { commands: send, wake: wake.clone() }, Inbox { commands: receive, wake }))
}

impl Mailbox {
    pub(crate) fn send(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).map_err(|_| Gone)?;
        // EAGAIN means that the counter is full: the thread will wake without us.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

impl Inbox {
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(crate) fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }
}
