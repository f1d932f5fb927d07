//! A disk: its queue threads, and the handle by which a session starts and stops them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use sealblk_cipher::{CipherError, Implementation, KeyMap, SegmentSpec};
use sealblk_secret::{protect_stack, wipe_stack};
use sealblk_virtqueue::blk::DiskProfile;
use sealblk_virtqueue::{QueueHost, QueueSetup, StartError};
use sealblk_volume::Volume;

use crate::control::{Command, Mailbox, mailbox};
use crate::grow::Grower;
use crate::key_switch::Switchboard;
use crate::limiter::Limiter;
use crate::loss::StoragePath;
use crate::stats::QueueStats;
use crate::worker::Worker;
use crate::{EngineConfig, Limits, broken};

/// Stack of a queue thread: several times what it uses. It counts as locked memory.
const STACK_BYTES: usize = 512 << 10;

/// A disk can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The keys don't make a map.
    #[error("disk {disk}: {source}")]
    Keys {
        /// Name of the disk.
        disk: String,
        /// Why.
        source: CipherError,
    },
    /// The system has no room for another queue.
    #[error("disk {disk}, queue {queue}: {what}: {source}")]
    Queue {
        /// Name of the disk.
        disk: String,
        /// Index of the queue.
        queue: u16,
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A volume, its keys, and a thread for each queue. Dropping it stops the queues and joins the
/// threads.
pub struct Disk {
    volume: Arc<dyn Volume>,
    writeback: bool,
    implementation: Implementation,
    path: Arc<StoragePath>,
    threads: Vec<Thread>,
}

struct Thread {
    mailbox: Mailbox,
    stats: Arc<QueueStats>,
    ring: sealblk_ring::Features,
    handle: Option<JoinHandle<()>>,
}

impl Disk {
    /// Starts the threads, with no queue running on them yet. Each thread gets cipher state of its
    /// own; the keys in `segments` are needed only until this returns.
    pub fn new(
        volume: &Arc<dyn Volume>,
        segments: &[SegmentSpec],
        profile: &DiskProfile,
        config: &EngineConfig,
    ) -> Result<Self, DiskError> {
        let path = Arc::new(StoragePath::new(&config.name, config.queues));
        let limiter = Limiter::new(&config.limits).map(Arc::new);
        let threads = (0..config.queues)
            .map(|index| Thread::spawn(index, volume, segments, profile, (config, &path, &limiter)))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            volume: volume.clone(),
            writeback: true,
            implementation: config.implementation,
            path,
            threads,
        })
    }

    /// The counters of each queue; they outlive the disk.
    pub fn stats(&self) -> Vec<Arc<QueueStats>> {
        self.threads.iter().map(|thread| thread.stats.clone()).collect()
    }

    /// Whether the volume answers; it outlives the disk.
    pub fn path(&self) -> Arc<StoragePath> {
        self.path.clone()
    }

    /// What the queues' rings were built with; the same for all.
    pub fn ring_features(&self) -> Option<sealblk_ring::Features> {
        self.threads.first().map(|thread| thread.ring)
    }

    /// Where a rotation gets its hand on the queues.
    pub fn switchboard(&self) -> Switchboard {
        let queues = self.threads.iter().map(|one| (one.mailbox.clone(), one.stats.clone()));
        Switchboard::new(queues.collect(), self.path.clone(), self.implementation)
    }

    /// What makes the disk larger.
    pub fn grower(&self) -> Grower {
        Grower::new(self.threads.iter().map(|one| one.mailbox.clone()).collect())
    }

    /// Gives the disk other limits; what waits for the present ones is charged anew, by the new. Each
    /// queue takes them when it comes to it.
    pub fn set_limits(&self, limits: &Limits) {
        let limiter = Limiter::new(limits).map(Arc::new);
        for thread in &self.threads {
            // Gone only while the process ends.
            let _ = thread.mailbox.send(Command::SetLimits(limiter.clone()));
        }
    }

    fn thread(&self, index: u16) -> Option<&Thread> {
        self.threads.get(usize::from(index))
    }
}

impl Thread {
    fn spawn(
        index: u16,
        volume: &Arc<dyn Volume>,
        segments: &[SegmentSpec],
        profile: &DiskProfile,
        (config, path, limiter): (&EngineConfig, &Arc<StoragePath>, &Option<Arc<Limiter>>),
    ) -> Result<Self, DiskError> {
        let fail = |what, source| DiskError::Queue {
            disk: config.name.clone(),
            queue: index,
            what,
            source,
        };
        let keys = KeyMap::new(segments, config.implementation)
            .map_err(|source| DiskError::Keys { disk: config.name.clone(), source })?;
        let (mailbox, inbox) =
            mailbox().map_err(|error| fail("making its control eventfd", error))?;
        let stats = Arc::new(QueueStats::default());
        let (ready, is_ready) = sync_channel(1);
        let handle = std::thread::Builder::new()
            .name(format!("queue-{index}"))
            .stack_size(STACK_BYTES)
            .spawn({
                let volume = volume.clone();
                let shared = (stats.clone(), path.clone(), limiter.clone());
                let (profile, config) = (profile.clone(), config.clone());
                move || {
                    if let Err(error) = protect_stack() {
                        tracing::warn!(disk = config.name, queue = index, %error,
                            "parts of the key may be swapped out: raise LimitMEMLOCK");
                    }
                    let worker = Worker::new(index, config, profile, &*volume, keys, inbox, shared);
                    match worker {
                        Ok(worker) => {
                            let _ = ready.send(Ok(worker.ring_features()));
                            worker.run();
                            // The stack's memory may serve another thread next.
                            wipe_stack();
                        }
                        Err(error) => {
                            let _ = ready.send(Err(error));
                        }
                    }
                }
            })
            .map_err(|error| fail("starting its thread", error))?;
        let ring = is_ready
            .recv()
            .unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
            .map_err(|error| fail("setting it up", error))?;
        Ok(Self { mailbox, stats, ring, handle: Some(handle) })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for thread in &self.threads {
            // A thread that is gone needs no telling.
            let _ = thread.mailbox.send(Command::Exit);
        }
        for thread in &mut self.threads {
            if let Some(handle) = thread.handle.take()
                && handle.join().is_err()
            {
                broken("a queue thread panicked");
            }
        }
    }
}

impl QueueHost for Disk {
    fn start(&mut self, index: u16, setup: QueueSetup) -> Result<(), StartError> {
        let fail = |reason: &str| StartError { index, reason: reason.to_owned() };
        let thread = self.thread(index).ok_or_else(|| fail("there is no such queue"))?;
        let (answer, answered) = sync_channel(1);
        thread
            .mailbox
            .send(Command::Start(Box::new(setup), answer))
            .map_err(|_| fail("its thread is gone"))?;
        answered.recv().unwrap_or_else(|_| Err(fail("its thread is gone")))
    }

    fn stop(&mut self, index: u16) -> u16 {
        let Some(thread) = self.thread(index) else { return 0 };
        let (answer, answered) = sync_channel(1);
        if thread.mailbox.send(Command::Stop(answer)).is_err() {
            broken("a queue thread is gone");
        }
        answered.recv().unwrap_or_else(|_| broken("a queue thread is gone"))
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        if let Some(thread) = self.thread(index) {
            // Gone only while the process ends.
            let _ = thread.mailbox.send(Command::SetCall(call));
        }
    }

    fn set_writeback(&mut self, writeback: bool) -> io::Result<()> {
        for thread in &self.threads {
            let (answer, answered) = sync_channel(1);
            // Gone only while the process ends; then there is no answer to wait for, either.
            let _ = thread.mailbox.send(Command::SetWriteback(writeback, answer));
            let _ = answered.recv();
        }
        // What the guest wrote before relied on a flush that will not come any more.
        if std::mem::replace(&mut self.writeback, writeback) && !writeback {
            self.volume.flush().map_err(io::Error::other)?;
        }
        Ok(())
    }
}
