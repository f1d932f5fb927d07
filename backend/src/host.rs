//! A disk's queues, with what the session asked of them kept for `status`.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use sealblk_engine::{Disk, QueueStats, StoragePath};
use sealblk_virtqueue::{QueueHost, QueueSetup, StartError};

/// What the session has asked for last.
#[derive(Debug)]
pub(crate) struct Asked {
    writeback: AtomicBool,
    running: Box<[AtomicBool]>,
}

impl Asked {
    /// The write cache as the driver wants it.
    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Relaxed)
    }

    /// Whether the queue was started and not stopped since.
    pub(crate) fn running(&self, index: usize) -> bool {
        self.running.get(index).is_some_and(|running| running.load(Relaxed))
    }

    fn set_running(&self, index: u16, now: bool) {
        if let Some(running) = self.running.get(usize::from(index)) {
            running.store(now, Relaxed);
        }
    }
}

/// The queues of one disk.
pub(crate) struct Host {
    disk: Disk,
    asked: Arc<Asked>,
}

impl Host {
    pub(crate) fn new(disk: Disk) -> Self {
        let running = disk.stats().iter().map(|_| AtomicBool::new(false)).collect();
        // Virtio's default for a disk with a cache to flush (virtio 1.2 section 5.2.5.2).
        Self { disk, asked: Arc::new(Asked { writeback: AtomicBool::new(true), running }) }
    }

    pub(crate) fn asked(&self) -> Arc<Asked> {
        self.asked.clone()
    }

    pub(crate) fn path(&self) -> Arc<StoragePath> {
        self.disk.path()
    }

    pub(crate) fn stats(&self) -> Vec<Arc<QueueStats>> {
        self.disk.stats()
    }
}

impl QueueHost for Host {
    fn start(&mut self, index: u16, setup: QueueSetup) -> Result<(), StartError> {
        self.disk.start(index, setup)?;
        self.asked.set_running(index, true);
        Ok(())
    }

    fn stop(&mut self, index: u16) -> u16 {
        let base = self.disk.stop(index);
        self.asked.set_running(index, false);
        base
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        self.disk.set_call(index, call);
    }

    fn set_writeback(&mut self, writeback: bool) -> std::io::Result<()> {
        self.asked.writeback.store(writeback, Relaxed);
        self.disk.set_writeback(writeback)
    }
}
