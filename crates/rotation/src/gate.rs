//! What a rotation asks of the data path, and what it learns from it.
//!
//! Contract: one zone at a time is held and served. For each the rotation calls, in this order,
//! [`Gate::watch`] (when it reads ahead), [`Gate::hold_writes`], [`Gate::serve_from`],
//! [`Gate::publish`]; after trouble it may call [`Gate::publish`] from any of these states. The next
//! zone may be watched while one is held or served, and [`Gate::publish`] forgets no watch; a new
//! watch replaces the last. A call returns once *every* queue has obeyed.
//! The data path never waits for the rotation: it parks requests, and goes on with the others.

use std::sync::Arc;

use sealblk_block::Extent;
use sealblk_cipher::SegmentSpec;
use sealblk_volume::AlignedBuf;

/// The data path has ended: nobody is left to be served, and nothing is held any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the disk is no longer served")]
pub struct Ended;

/// What guests did since the last time they were asked about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests completed.
    pub requests: u64,
    /// Requests whose time was taken.
    pub samples: u64,
    /// Sum of those times in nanoseconds.
    pub sampled_ns: u64,
}

/// The data path of one disk. Extents are in guest sectors.
pub trait Gate: Send {
    /// Returns once no write to `zone` that was begun before is in work. Writes to it that begin
    /// from now on are remembered.
    ///
    /// # Errors
    /// [`Ended`]
    fn watch(&mut self, zone: Extent) -> Result<(), Ended>;

    /// From now on writes, write-zeroes and discards that touch `zone` are parked; returns once none
    /// that was begun before is in work. Reads go on as before. Tells whether the zone was written
    /// to since [`Self::watch`] was called for this very zone; without such a call: true.
    ///
    /// # Errors
    /// [`Ended`]
    fn hold_writes(&mut self, zone: Extent) -> Result<bool, Ended>;

    /// From now on reads of the zone are served from `old_ciphertext` (the whole zone's) with the
    /// zone's old key; returns once none that was begun before is in work.
    ///
    /// # Errors
    /// [`Ended`]
    fn serve_from(&mut self, old_ciphertext: &Arc<AlignedBuf>) -> Result<(), Ended>;

    /// From now on `segments` say which key owns what, and nothing is parked or served from memory
    /// any more; returns once no queue has the old map or the zone's memory.
    ///
    /// # Errors
    /// [`Ended`], also when the segments don't make a key map (a defect, logged).
    fn publish(&mut self, segments: &[SegmentSpec]) -> Result<(), Ended>;

    /// The rotation can't go on for now and the zone is in its hands: what is parked waits, or fails,
    /// as the disk's `on_error` says, until [`Self::publish`].
    fn stuck(&mut self);

    /// Another client has taken the volume: guests are told so, whatever `on_error` says, and nothing
    /// is parked any more.
    fn fenced(&mut self);

    /// A flush of ours failed, and with it perhaps writes of guests that no later flush will report:
    /// the next flush of every queue must fail.
    fn flush_failed(&mut self);

    /// How many flushes of guests have failed so far. The system tells of what was lost only once,
    /// and perhaps told a guest: then a flush of ours that succeeds says nothing.
    fn failed_flushes(&mut self) -> u64;

    /// What guests did since the last call.
    fn load(&mut self) -> Load;
}

/// Nobody uses the disk: the gate of an offline rotation.
#[derive(Debug, Default)]
pub struct NoGuests;

impl Gate for NoGuests {
    fn watch(&mut self, _zone: Extent) -> Result<(), Ended> {
        Ok(())
    }

    fn hold_writes(&mut self, _zone: Extent) -> Result<bool, Ended> {
        // Nobody writes.
        Ok(false)
    }

    fn serve_from(&mut self, _old_ciphertext: &Arc<AlignedBuf>) -> Result<(), Ended> {
        Ok(())
    }

    fn publish(&mut self, _segments: &[SegmentSpec]) -> Result<(), Ended> {
        Ok(())
    }

    fn stuck(&mut self) {}

    fn fenced(&mut self) {}

    fn flush_failed(&mut self) {}

    fn failed_flushes(&mut self) -> u64 {
        0
    }

    fn load(&mut self) -> Load {
        Load::default()
    }
}
