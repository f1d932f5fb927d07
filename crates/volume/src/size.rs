//! The size of an open volume, which may grow.
//!
//! Contract: a driver has one, shared by its handle and its lanes. What the storage has become is
//! [`Volume::measure_size`](crate::Volume::measure_size)'s to tell; this is how much of it is in
//! use, and changes when the owner of the volume says so and not before. It never shrinks.

use std::sync::atomic::{AtomicU64, Ordering};

use sealblk_block::{ErrorKind, VolumeError};

/// Whether `len` bytes at an offset lie within the volume's `size_bytes`.
///
/// # Errors
/// That they don't.
pub(crate) fn check_range(
    uri: &str,
    offset_bytes: u64,
    len: usize,
    size_bytes: u64,
) -> Result<(), VolumeError> {
    match offset_bytes.checked_add(len as u64) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => {
            let what = format!("{len} bytes at {offset_bytes} lie past its end at {size_bytes}");
            Err(VolumeError::new(ErrorKind::Invalid, uri, what))
        }
    }
}

/// How much of a volume is in use, in bytes: readable from any thread.
#[derive(Debug)]
pub struct Size(AtomicU64);

impl Size {
    /// The size at open.
    pub fn new(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// The size now.
    pub fn bytes(&self) -> u64 {
        // Acquire: who sees a size also sees what its owner did before he set it.
        self.0.load(Ordering::Acquire)
    }

    /// Sets a larger one; a smaller one has no effect.
    pub fn grow_to(&self, bytes: u64) {
        self.0.fetch_max(bytes, Ordering::AcqRel);
    }
}
