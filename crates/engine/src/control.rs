//! How the control side speaks to a queue thread: a mailbox, and an eventfd in the thread's ring.
//! The one place where the two meet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel};

use rustix::event::{EventfdFlags, eventfd};
use sealblk_block::Extent;
use sealblk_cipher::KeyMap;
use sealblk_virtqueue::{QueueSetup, StartError};
use sealblk_volume::AlignedBuf;

use crate::fence::Answer;
use crate::limiter::Limiter;

/// What a rotation tells a queue thread: see [`crate::fence`].
pub(crate) enum Order {
    /// Remember writes to the zone.
    Watch(Extent, Answer),
    /// Park writes to the zone.
    Hold(Extent, Answer),
    /// Serve reads of the zone from its old ciphertext.
    Serve(Arc<AlignedBuf>, Answer),
    /// Another key map; the zone is no longer in work.
    Publish(Box<KeyMap>, Answer),
    /// What is parked may have to wait for long.
    Delayed,
    /// The rotation can't go on for now.
    Stuck,
    /// The next flush must fail.
    FlushFailed(Answer),
    /// Take the time of requests, or don't.
    TakeTimes(bool),
}

/// What a queue thread can be told.
pub(crate) enum Command {
    /// By a rotation, on a thread of its own; all others but `Grow` and
    /// `SetLimits` come from the session.
    Rotation(Order),
    /// Run this queue.
    Start(Box<QueueSetup>, SyncSender<Result<(), StartError>>),
    /// Stop the queue; the answer is the index to resume at.
    Stop(SyncSender<u16>),
    /// Another call eventfd.
    SetCall(Option<OwnedFd>),
    /// Write cache on or off. Answered once it is so: a guest that was told that its cache is off
    /// relies on it with its next write.
    SetWriteback(bool, SyncSender<()>),
    /// The disk has so many sectors now: see [`crate::grow`].
    Grow(u64, SyncSender<()>),
    /// Other limits, shared with the disk's other queues; none: no limits.
    SetLimits(Option<Arc<Limiter>>),
    /// Stop the queue and end.
    Exit,
}

/// The control side's end; every holder speaks to the same thread.
#[derive(Clone)]
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
