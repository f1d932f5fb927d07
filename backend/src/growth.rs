//! A volume that grows while it is served: asked how large it is, and its disk made as large.
//!
//! Contract: the order is volume, queues, session, so whoever learns of the new size can use it. A disk
//! never shrinks under its guest. While a rotation is under way nothing grows: the rotation computes
//! with the size that it began with, and when it ends the volume is asked again
//! (docs/decisions/0018). What grows is the last segment, if the header lets it reach to the
//! volume's end ("dynamic"; LUKS1 always).
//! Deliberately absent: keys. The queues have those of the last segment.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use sealblk_api::Resize;
use sealblk_block::{SECTOR_BYTES, in_one_line};
use sealblk_cipher::SegmentSpec;
use sealblk_engine::Grower;
use sealblk_luks::Header;
use sealblk_session::CapacityHandle;
use sealblk_volume::{Volume, VolumeEvent};

use crate::control::Refused;
use crate::rotator::{Busy, Rotator};

/// Where the end of the data is, by the volume's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// First sector of the last segment, as the guest counts.
    start: u64,
    /// Where it lies on the volume, in sectors.
    volume_start: u64,
    /// Sectors of the disk's block.
    block_sectors: u64,
    /// The last segment reaches to the volume's end.
    dynamic: bool,
}

impl Layout {
    /// The layout of segments that are served with blocks of `block_bytes`.
    pub(crate) fn new(segments: &[SegmentSpec], block_bytes: u32, dynamic: bool) -> Self {
        let (start, volume_start) =
            segments.last().map_or((0, 0), |last| (last.start, last.volume_start));
        let block_sectors = (u64::from(block_bytes) / SECTOR_BYTES).max(1);
        Self { start, volume_start, block_sectors, dynamic }
    }

    /// Sectors of the disk on a volume of `size_bytes`; none if that is too short for any.
    fn capacity(&self, size_bytes: u64) -> Option<u64> {
        let room = (size_bytes / SECTOR_BYTES).checked_sub(self.volume_start)?;
        Some((self.start.checked_add(room)?) / self.block_sectors * self.block_sectors)
    }
}

/// Whether the data of a volume reaches to its end, whatever its size.
pub(crate) fn is_dynamic(header: &Header) -> bool {
    header.report().segments.iter().any(|segment| segment.size_bytes.is_none())
}

/// Lets one disk grow.
#[derive(Clone)]
pub(crate) struct Growth(Arc<Inner>);

struct Inner {
    name: String,
    volume: Arc<dyn Volume>,
    grower: Grower,
    layout: Layout,
    rotator: Option<Rotator>,
    /// Of the disk, in sectors.
    capacity: AtomicU64,
    session: OnceLock<CapacityHandle>,
    /// One at a time.
    asking: Mutex<()>,
    /// Somebody is about to ask.
    soon: AtomicBool,
}

impl Growth {
    pub(crate) fn new(
        name: &str,
        volume: &Arc<dyn Volume>,
        grower: Grower,
        layout: Layout,
        rotator: Option<Rotator>,
        capacity_sectors: u64,
    ) -> Self {
        let growth = Self(Arc::new(Inner {
            name: name.to_owned(),
            volume: volume.clone(),
            grower,
            layout,
            rotator,
            capacity: AtomicU64::new(capacity_sectors),
            session: OnceLock::new(),
            asking: Mutex::new(()),
            soon: AtomicBool::new(false),
        }));
        if let Some(rotator) = &growth.0.rotator {
            // Whoever is asked holds the rotator, so he must not be held by it.
            let weak = Arc::downgrade(&growth.0);
            rotator.when_ended(Box::new(move || {
                if let Some(inner) = weak.upgrade() {
                    Self(inner).ask_soon();
                }
            }));
        }
        growth
    }

    /// What a volume's news mean to its size; to be called by its listener, on any thread. Does not
    /// keep the volume open.
    pub(crate) fn ear(&self) -> impl Fn(&VolumeEvent) + Send + Sync + use<> {
        let weak = Arc::downgrade(&self.0);
        move |event| {
            if let (VolumeEvent::Resized { .. }, Some(inner)) = (event, weak.upgrade()) {
                Self(inner).ask_soon();
            }
        }
    }

    /// Asks the volume on a thread of its own, unless somebody is about to.
    pub(crate) fn ask_soon(&self) {
        if self.0.soon.swap(true, Ordering::AcqRel) {
            return;
        }
        let growth = self.clone();
        let asked = std::thread::Builder::new().name("growth".to_owned()).spawn(move || {
            // Refusals are in the log.
            let _ = growth.ask();
        });
        if let Err(error) = asked {
            self.0.soon.store(false, Ordering::Release);
            tracing::error!(disk = self.0.name, %error, "no thread to ask for the volume's size");
        }
    }

    /// Who tells the front-end, once there is a session.
    pub(crate) fn told_by(&self, session: CapacityHandle) {
        let session = self.0.session.get_or_init(|| session);
        session.grown_to(self.capacity_sectors());
    }

    /// Size of the disk, in 512-byte sectors.
    pub(crate) fn capacity_sectors(&self) -> u64 {
        self.0.capacity.load(Ordering::Acquire)
    }

    /// Asks the volume for its size and lets the disk follow; blocks.
    pub(crate) fn ask(&self) -> Result<Resize, Refused> {
        let inner = &*self.0;
        let _one = inner.asking.lock().unwrap_or_else(PoisonError::into_inner);
        // What is heard from now on may not be seen by what follows.
        inner.soon.store(false, Ordering::Release);
        let outcome = self.follow();
        if let Err(Refused::Conflict(why)) = &outcome {
            tracing::error!(disk = inner.name, why, "the disk stays as large as it is");
        }
        outcome
    }

    fn follow(&self) -> Result<Resize, Refused> {
        let inner = &*self.0;
        let conflict = |why: String| Err(Refused::Conflict(why));
        let (known, now) = (inner.volume.geometry().size_bytes, self.capacity_sectors());
        let size_bytes = match inner.volume.measure_size() {
            Ok(size_bytes) => size_bytes,
            Err(error) => return conflict(format!("asking its size: {}", in_one_line(&error))),
        };
        let room = inner.layout.capacity(size_bytes).unwrap_or(0);
        if room < now {
            return conflict(format!(
                "the volume has shrunk to {size_bytes} bytes, and the guest's disk needs {} more: \
                 what lies there is lost to the guest, whose I/O there fails. A disk does not shrink \
                 under its guest: make the volume large again, or shut the guest down and restart \
                 this daemon",
                (now - room) * SECTOR_BYTES,
            ));
        }
        let mut told = Resize {
            volume_bytes: size_bytes,
            capacity_bytes: now * SECTOR_BYTES,
            waits_for_rotation: false,
        };
        if size_bytes <= known {
            return Ok(told);
        }
        let reserved = inner.rotator.as_ref().map(Rotator::reserve).transpose();
        let _reserved = match reserved {
            Ok(reserved) => reserved,
            Err(Busy::UnderWay) => {
                tracing::info!(
                    disk = inner.name,
                    size_bytes,
                    "the volume has grown: the disk follows when the rotation that is under way has \
                     ended, or after a restart"
                );
                told.waits_for_rotation = true;
                return Ok(told);
            }
            Err(Busy::Failed) => {
                return conflict(
                    "the volume has grown, and its rotation has failed: the disk follows when this \
                     daemon is restarted"
                        .to_owned(),
                );
            }
        };
        inner.volume.grow_to(size_bytes);
        if inner.volume.geometry().size_bytes < size_bytes {
            return conflict("this kind of volume can't grow while it is served".to_owned());
        }
        if !inner.layout.dynamic || room == now {
            tracing::info!(
                disk = inner.name,
                size_bytes,
                dynamic = inner.layout.dynamic,
                "the volume has grown, and the disk stays as it is"
            );
            return Ok(told);
        }
        if let Err(error) = inner.grower.grow(room) {
            return conflict(in_one_line(&error));
        }
        inner.capacity.store(room, Ordering::Release);
        if let Some(session) = inner.session.get() {
            session.grown_to(room);
        }
        told.capacity_bytes = room * SECTOR_BYTES;
        tracing::info!(
            disk = inner.name,
            size_bytes,
            capacity_bytes = told.capacity_bytes,
            "the disk has grown with its volume"
        );
        Ok(told)
    }
}

#[cfg(test)]
mod tests;
