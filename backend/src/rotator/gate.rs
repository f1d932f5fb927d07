//! The engine's side of a rotation's gate.

use std::sync::Arc;

use sealblk_block::Extent;
use sealblk_cipher::SegmentSpec;
use sealblk_engine::{KeySwitch, SwitchError};
use sealblk_rotation::{Ended, Gate, Load};
use sealblk_volume::AlignedBuf;

/// A disk's queues behind the gate.
pub(super) struct DiskGate(pub(super) KeySwitch);

/// The queues are gone, or what they were told makes no sense, which is a defect.
fn ended(error: SwitchError) -> Ended {
    if !matches!(error, SwitchError::Ended) {
        let error = sealblk_block::in_one_line(&error);
        tracing::error!(error, "a rotation has segments that can't be served");
    }
    Ended
}

impl Gate for DiskGate {
    fn watch(&mut self, zone: Extent) -> Result<(), Ended> {
        self.0.watch(zone).map_err(ended)
    }

    fn hold_writes(&mut self, zone: Extent) -> Result<bool, Ended> {
        self.0.hold_writes(zone).map_err(ended)
    }

    fn serve_from(&mut self, old_ciphertext: &Arc<AlignedBuf>) -> Result<(), Ended> {
        self.0.serve_from(old_ciphertext).map_err(ended)
    }

    fn publish(&mut self, segments: &[SegmentSpec]) -> Result<(), Ended> {
        self.0.publish(segments).map_err(ended)
    }

    fn stuck(&mut self) {
        self.0.stuck();
    }

    fn fenced(&mut self) {
        self.0.fenced();
    }

    fn flush_failed(&mut self) {
        self.0.flush_failed();
    }

    fn failed_flushes(&mut self) -> u64 {
        self.0.failed_flushes()
    }

    fn load(&mut self) -> Load {
        let load = self.0.load();
        Load { requests: load.requests, samples: load.timed, sampled_ns: load.timed_ns }
    }
}
