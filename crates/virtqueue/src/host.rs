//! What a vhost-user session can do to a data plane: the one place where the two meet.
//!
//! Invariant: nothing else crosses. The session never sees a request; the data plane never sees a
//! vhost-user message.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::{GuestMemory, InflightQueue};

/// Where a ring lies, as the front-end's virtual addresses (vhost-user `SET_VRING_ADDR`), and how
/// it is to be run.
#[derive(Debug)]
pub struct QueueSetup {
    /// Number of descriptors: a power of two, at most 32768 (virtio 1.2 section 2.7).
    pub size: u16,
    /// Front-end virtual address of the descriptor table.
    pub desc_addr: u64,
    /// Front-end virtual address of the available ring.
    pub avail_addr: u64,
    /// Front-end virtual address of the used ring.
    pub used_addr: u64,
    /// Index to resume at in the available ring (`SET_VRING_BASE`); ignored when `inflight` is
    /// there, which knows better.
    pub base: u16,
    /// The features that the driver acknowledged.
    pub features: u64,
    /// Guest memory as it is now. A change of it while the queue runs is a stop and a start.
    pub memory: Arc<GuestMemory>,
    /// The queue's part of the in-flight region, where it was negotiated.
    pub inflight: Option<InflightQueue>,
    /// Written by the guest when there are new buffers.
    pub kick: OwnedFd,
    /// Written by us when there are used buffers. None: the guest polls.
    pub call: Option<OwnedFd>,
}

/// A queue could not be started; the reason is for the log.
#[derive(Debug, thiserror::Error)]
#[error("queue {index}: {reason}")]
pub struct StartError {
    /// The queue.
    pub index: u16,
    /// Why.
    pub reason: String,
}

/// A data plane.
pub trait QueueHost: Send {
    /// Starts a stopped queue; replays what its in-flight region holds, then looks once at the
    /// available ring before it waits for a kick.
    fn start(&mut self, index: u16, setup: QueueSetup) -> Result<(), StartError>;

    /// Stops a queue: takes no new request, waits for those at the volume, and gives the index to
    /// resume at. Requests held back (a volume that does not answer) stay in the in-flight region.
    /// On a queue that isn't running: the index of its last stop, 0 at first.
    fn stop(&mut self, index: u16) -> u16;

    /// Another call eventfd, while the queue runs.
    fn set_call(&mut self, index: u16, call: Option<OwnedFd>);

    /// The write cache as the driver wants it (`VIRTIO_BLK_F_CONFIG_WCE`): false makes every write
    /// durable before it is acknowledged. For all queues; when it returns, what was acknowledged
    /// before is durable, too. An error: it may not be, and the guest must not be told so.
    fn set_writeback(&mut self, writeback: bool) -> io::Result<()>;
}
