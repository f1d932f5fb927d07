//! Keeping rotations from beginning while something else must not meet one.
//!
//! Contract: what holds a [`Reserved`] may take its time; nobody waits for it, a rotation that is
//! ordered meanwhile is refused.

use sealblk_api::RotationState;

use super::Rotator;

/// The whole disk has one key, and no rotation begins while this lives.
pub(crate) struct Reserved<'a>(&'a Rotator);

/// Why a rotation is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// It is under way, or the daemon ends.
    UnderWay,
    /// It failed in the middle: what the header says of the last zone and what the queues have may
    /// differ, until a restart takes it up.
    Failed,
}

impl Rotator {
    /// Keeps rotations from beginning, unless one is under way or has failed.
    pub(crate) fn reserve(&self) -> Result<Reserved<'_>, Busy> {
        let mut state = self.0.lock();
        if state.running || state.stopping || state.reserved {
            return Err(Busy::UnderWay);
        }
        if state.told.state == RotationState::Failed {
            return Err(Busy::Failed);
        }
        state.reserved = true;
        Ok(Reserved(self))
    }

    /// Has `tell` called whenever a rotation has ended, stopped or failed, on its thread, which must
    /// not be held up; once only.
    pub(crate) fn when_ended(&self, tell: Box<dyn Fn() + Send + Sync>) {
        // The first one stays.
        let _ = self.0.when_ended.set(tell);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.0.0.lock().reserved = false;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sealblk_cipher::SegmentSpec;
    use sealblk_engine::{Disk, EngineConfig};
    use sealblk_luks::KeyAge;
    use sealblk_rotation::Ages;
    use sealblk_virtqueue::blk::{DiskProfile, SERIAL_BYTES};
    use sealblk_volume::{MemoryVolume, Volume};

    use super::*;
    use crate::aging::Aging;
    use crate::config::RotationPolicy;
    use crate::rotator::Parts;

    fn rotator(dir: &tempfile::TempDir) -> (Rotator, Disk) {
        let volume: Arc<dyn Volume> = Arc::new(MemoryVolume::new(1 << 20, 512).unwrap());
        let segment = SegmentSpec {
            start: 0,
            sectors: 2048,
            volume_start: 0,
            iv_start: 0,
            sector_bytes: 512,
            crypt: None,
        };
        let profile = DiskProfile {
            capacity_sectors: 2048,
            block_bytes: 512,
            physical_block_bytes: 512,
            queues: 1,
            seg_max: 30,
            size_max_bytes: 1 << 20,
            read_only: false,
            discard: None,
            discard_alignment_sectors: 8,
            write_zeroes: None,
            write_zeroes_may_unmap: false,
            serial: [0; SERIAL_BYTES],
        };
        let disk = Disk::new(&volume, &[segment], &profile, &EngineConfig::default()).unwrap();
        let rotator = Rotator::new(Parts {
            name: "a".to_owned(),
            volume,
            board: disk.switchboard(),
            key: "file:/nowhere".parse().unwrap(),
            key_managers: Arc::new(sealblk_keys::KeyManagers::none()),
            policy: RotationPolicy::default(),
            ages: Ages::new(dir.path()),
            state_dir: dir.path().to_owned(),
            uuid: String::new(),
            aging: Aging {
                age: KeyAge::default(),
                schedule: sealblk_rotation::Schedule::default(),
                under_way: false,
            },
        });
        (rotator, disk)
    }

    #[test]
    fn a_rotation_and_a_reservation_keep_each_other_away() {
        let dir = tempfile::tempdir().unwrap();
        let (rotator, _disk) = rotator(&dir);
        let reserved = rotator.reserve().unwrap();
        assert_eq!(rotator.reserve().err(), Some(Busy::UnderWay), "one at a time");
        let refused = rotator.start(None, None, false).unwrap_err();
        assert!(refused.contains("about to grow"), "{refused}");
        drop(reserved);
        // Now it gets as far as its key, which isn't there.
        let refused = rotator.start(None, None, false).unwrap_err();
        assert!(refused.contains("/nowhere"), "{refused}");
        rotator.0.lock().running = true;
        assert_eq!(rotator.reserve().err(), Some(Busy::UnderWay));
        rotator.0.lock().running = false;
        rotator.0.lock().told.state = RotationState::Failed;
        assert_eq!(rotator.reserve().err(), Some(Busy::Failed));
        rotator.stop();
    }

    #[test]
    fn the_end_of_a_rotation_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (rotator, _disk) = rotator(&dir);
        let (tell, told) = std::sync::mpsc::channel();
        rotator.when_ended(Box::new(move || tell.send(()).unwrap()));
        rotator.start(None, None, false).unwrap_err();
        told.recv().unwrap();
        assert!(rotator.reserve().is_ok());
        rotator.stop();
    }
}
