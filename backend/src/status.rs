//! What `status` tells: fixed facts gathered at the start, counters read when asked.
//!
//! Queue threads write their counters without a lock; here they are only read.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use sealblk_api::{
    Errors, QueueStatus, Requests, Resize, Rotation, RotationOrder, SessionState, Status,
    StorageState, StorageStatus, VolumeStatus,
};
use sealblk_block::SECTOR_BYTES;
use sealblk_engine::{PathState, PathView, QueueCounts, QueueStats, StoragePath};
use sealblk_session::StopHandle;

use crate::control::{Refused, Source};
use crate::growth::Growth;
use crate::host::Asked;
use crate::metrics::VolumeLatency;
use crate::rotator::Rotator;

/// All disks of this daemon.
pub(crate) struct Overview {
    started: Instant,
    draining: AtomicBool,
    disks: RwLock<Vec<Arc<View>>>,
}

/// One disk: what doesn't change, and where to look for what does.
pub(crate) struct View {
    pub(crate) fixed: VolumeStatus,
    /// None for a volume without keys.
    pub(crate) rotator: Option<Rotator>,
    pub(crate) growth: Growth,
    pub(crate) asked: Arc<Asked>,
    pub(crate) stats: Vec<Arc<QueueStats>>,
    pub(crate) path: Arc<StoragePath>,
    pub(crate) session: StopHandle,
}

impl Overview {
    pub(crate) fn new(disks: Vec<View>) -> Self {
        let disks = RwLock::new(disks.into_iter().map(Arc::new).collect());
        Self { started: Instant::now(), draining: AtomicBool::new(false), disks }
    }

    /// From now on this disk is told of, too. Whoever asks at the moment keeps the volume open until
    /// he has his answer.
    pub(crate) fn add(&self, disk: View) -> Arc<View> {
        let disk = Arc::new(disk);
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        disks.push(disk.clone());
        disk
    }

    /// It isn't there any more.
    pub(crate) fn remove(&self, volume: &str) {
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|disk| disk.fixed.name != volume);
    }

    fn disks(&self) -> Vec<Arc<View>> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those that have keys.
    pub(crate) fn rotators(&self) -> Vec<Rotator> {
        self.disks().iter().filter_map(|disk| disk.rotator.clone()).collect()
    }

    fn disk(&self, volume: &str) -> Result<Arc<View>, Refused> {
        let disk = self.disks().into_iter().find(|disk| disk.fixed.name == volume);
        disk.ok_or(Refused::NoSuchVolume)
    }

    fn rotator(&self, volume: &str) -> Result<Rotator, Refused> {
        self.disk(volume)?.rotator.clone().ok_or_else(|| {
            Refused::Conflict("it is served unencrypted, so it has no key to rotate".to_owned())
        })
    }

    /// From now on the disks are shown as stopping.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Relaxed);
    }
}

impl Source for Overview {
    fn latencies(&self) -> Vec<VolumeLatency> {
        self.disks().iter().map(|disk| disk.latency()).collect()
    }

    fn status(&self) -> Status {
        let draining = self.draining.load(Relaxed);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            secret_protection: sealblk_secret::protection().to_string(),
            volumes: self.disks().iter().map(|disk| disk.status(draining)).collect(),
        }
    }

    fn rotation(&self, volume: &str) -> Result<Rotation, Refused> {
        Ok(self.rotator(volume)?.told())
    }

    fn order(&self, volume: &str, order: RotationOrder) -> Result<Rotation, Refused> {
        self.rotator(volume)?.order(order)
    }

    fn resize(&self, volume: &str) -> Result<Resize, Refused> {
        self.disk(volume)?.growth.ask()
    }
}

impl View {
    fn latency(&self) -> VolumeLatency {
        VolumeLatency { name: self.fixed.name.clone(), queues: self.stats.clone() }
    }

    /// What is told of it now.
    pub(crate) fn status(&self, draining: bool) -> VolumeStatus {
        let queue = |(index, stats): (usize, &Arc<QueueStats>)| {
            queue_status(index, self.asked.running(index), &stats.counts())
        };
        VolumeStatus {
            state: match (draining, self.session.connected()) {
                (true, _) => SessionState::Stopping,
                (false, true) => SessionState::Connected,
                (false, false) => SessionState::Waiting,
            },
            capacity_bytes: self.growth.capacity_sectors() * SECTOR_BYTES,
            writeback: self.asked.writeback(),
            storage: storage_status(
                self.path.view(),
                self.stats.iter().map(|stats| stats.waiting.get()).sum(),
            ),
            rotation: self.rotator.as_ref().map(Rotator::told),
            key_age: self.rotator.as_ref().map(Rotator::key_age),
            queues: self.stats.iter().enumerate().map(queue).collect(),
            ..self.fixed.clone()
        }
    }
}

fn storage_status(path: PathView, waiting: u64) -> StorageStatus {
    StorageStatus {
        state: match path.state {
            PathState::Ok => StorageState::Ok,
            PathState::Silent => StorageState::Silent,
            PathState::Holding => StorageState::Holding,
            PathState::Reporting => StorageState::Reporting,
            PathState::Fenced => StorageState::Fenced,
        },
        since_seconds: path.since.map(|since| since.as_secs()),
        losses: path.losses,
        lost_seconds_total: path.lost.as_secs(),
        waiting,
    }
}

fn queue_status(index: usize, running: bool, counts: &QueueCounts) -> QueueStatus {
    QueueStatus {
        // Queues are counted in 16 bits.
        index: index as u16,
        running,
        broken: counts.broken != 0,
        requests: Requests {
            read: counts.reads,
            write: counts.writes,
            flush: counts.flushes,
            discard: counts.discards,
        },
        read_bytes: counts.read_bytes,
        written_bytes: counts.written_bytes,
        errors: Errors { volume: counts.volume_errors, guest: counts.refused },
        inflight: counts.in_flight,
        replayed: counts.replayed,
        held: counts.held,
        throttled: counts.throttled,
        throttled_us: counts.throttled_ns / 1000,
        parked: counts.parked,
        parked_now: counts.parked_now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_path_is_shown() {
        let seconds = std::time::Duration::from_secs;
        let lost = PathView {
            state: PathState::Silent,
            since: Some(seconds(7)),
            losses: 2,
            lost: seconds(9),
        };
        let expected = StorageStatus {
            state: StorageState::Silent,
            since_seconds: Some(7),
            losses: 2,
            lost_seconds_total: 9,
            waiting: 3,
        };
        assert_eq!(storage_status(lost, 3), expected);
        assert_eq!(storage_status(PathView::default(), 0), StorageStatus::default());
    }

    #[test]
    fn a_queue_shows_what_it_counted() {
        let counts = QueueCounts {
            reads: 1,
            writes: 2,
            flushes: 3,
            discards: 4,
            volume_errors: 5,
            refused: 6,
            held: 7,
            throttled: 8,
            throttled_ns: 9_999,
            broken: 1,
            ..QueueCounts::default()
        };
        let status = queue_status(9, true, &counts);
        assert_eq!(status.requests, Requests { read: 1, write: 2, flush: 3, discard: 4 });
        assert_eq!(status.errors, Errors { volume: 5, guest: 6 });
        assert_eq!((status.index, status.held, status.broken), (9, 7, true));
        assert_eq!((status.throttled, status.throttled_us), (8, 9));
    }
}
