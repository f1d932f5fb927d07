//! How large the disk is now: set by whoever lets it grow, read by the session.
//!
//! Contract: [`CapacityHandle::grown_to`] comes after the data plane takes requests up to the new end,
//! never before. It returns at once; the front-end hears of it on the session's thread.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// A disk's size.
#[derive(Debug)]
pub(crate) struct Capacity {
    sectors: AtomicU64,
    /// Wakes the connection's loop.
    news: OwnedFd,
}

impl Capacity {
    pub(crate) fn new(sectors: u64) -> io::Result<Self> {
        let news = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { sectors: AtomicU64::new(sectors), news })
    }

    /// In 512-byte sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Readable when there may be news.
    pub(crate) fn news(&self) -> &OwnedFd {
        &self.news
    }

    /// The news are known: before [`Self::sectors`] is read.
    pub(crate) fn heard(&self) {
        // Nothing to read: somebody else was woken by it, which can't be.
        let _ = rustix::io::read(&self.news, &mut [0; 8]);
    }
}

/// Tells a session that its disk has grown.
#[derive(Debug, Clone)]
pub struct CapacityHandle(pub(crate) Arc<Capacity>);

impl CapacityHandle {
    /// The disk has this many 512-byte sectors from now on: what `GET_CONFIG` answers. A front-end
    /// with a channel for it is told to look; others see it when they connect next. A smaller size
    /// has no effect.
    pub fn grown_to(&self, sectors: u64) {
        self.0.sectors.fetch_max(sectors, Ordering::AcqRel);
        // Fails only when the counter is full, and then the session is awake.
        let _ = rustix::io::write(&self.0.news, &1u64.to_ne_bytes());
    }
}
