//! Which key owns which extent, and where on the volume it lies.
//!
//! Contract: a map belongs to one thread and has cipher instances of its own. Segments are
//! contiguous from the guest's sector 0, so every sector below the capacity has exactly one.
//! Deliberately absent: change, but for the end of the last segment, which moves outwards when a
//! volume grows. A rotation publishes a new map.

use std::fmt;
use std::sync::Arc;

use sealblk_block::{Extent, SECTOR_BYTES};
use sealblk_secret::SecretBytes;

use crate::{
    Algorithm, CipherError, Implementation, SECTOR_BYTES_MIN, SectorCipher, checked_sector_bytes,
    sector_cipher,
};

/// A range of the guest's disk under one key (or none), as the volume's header describes it. All
/// positions are in 512-byte sectors; `start`, `sectors` and `iv_start` are multiples of the
/// encryption sector.
#[derive(Debug, Clone)]
pub struct SegmentSpec {
    /// First sector, as the guest counts.
    pub start: u64,
    /// Number of sectors, at least one.
    pub sectors: u64,
    /// Where the first sector lies on the volume.
    pub volume_start: u64,
    /// Tweak of the first sector, in 512-byte units.
    pub iv_start: u64,
    /// Encryption sector: 512, 1024, 2048 or 4096 bytes.
    pub sector_bytes: u32,
    /// How it is encrypted and with which key; `None` is plaintext.
    pub crypt: Option<(Algorithm, Arc<SecretBytes>)>,
}

impl SegmentSpec {
    /// Checks the segment by itself and against where its predecessor `end`s.
    fn check(&self, end: u64) -> Result<(), &'static str> {
        let unit = u64::from(self.sector_bytes) / SECTOR_BYTES;
        let aligned = |sectors: u64| sectors.is_multiple_of(unit);
        let overflows = |start: u64| start.checked_add(self.sectors).is_none();
        if self.start != end {
            Err("it doesn't begin where the one before ends (the first: at sector 0)")
        } else if self.sectors == 0 {
            Err("it is empty")
        } else if !aligned(self.start) || !aligned(self.sectors) {
            Err("its start or length is no multiple of its encryption sector")
        } else if !aligned(self.iv_start) {
            Err("its first tweak is no multiple of its encryption sector")
        } else if [self.start, self.volume_start, self.iv_start].into_iter().any(overflows) {
            Err("its end is beyond what a number can hold")
        } else {
            Ok(())
        }
    }
}

/// A segment and its cipher.
struct Segment {
    start: u64,
    sectors: u64,
    volume_start: u64,
    iv_start: u64,
    sector_bytes: usize,
    cipher: Option<Box<dyn SectorCipher>>,
}

impl Segment {
    fn new(spec: &SegmentSpec, which: Implementation) -> Result<Self, CipherError> {
        let cipher = match &spec.crypt {
            Some((algorithm, key)) => {
                Some(sector_cipher(*algorithm, key, spec.sector_bytes, which)?)
            }
            None => None,
        };
        Ok(Self {
            start: spec.start,
            sectors: spec.sectors,
            volume_start: spec.volume_start,
            iv_start: spec.iv_start,
            sector_bytes: checked_sector_bytes(spec.sector_bytes)?,
            cipher,
        })
    }
}

/// All segments of a volume with one thread's ciphers.
pub struct KeyMap {
    segments: Vec<Segment>,
    capacity: u64,
}

/// The first part of an extent: where it lies and what transforms it.
pub struct Route<'a> {
    /// How many sectors of the extent this covers; at least one.
    pub sectors: u64,
    /// Where they lie on the volume, in sectors.
    pub volume_sector: u64,
    /// Tweak of the first of them, in 512-byte units.
    pub iv: u64,
    /// The cipher; `None` is plaintext.
    pub cipher: Option<&'a mut dyn SectorCipher>,
}

impl KeyMap {
    /// A map with ciphers of its own.
    ///
    /// # Errors
    /// No segments, or segments that contradict themselves or each other; whatever
    /// [`sector_cipher`] returns.
    pub fn new(specs: &[SegmentSpec], which: Implementation) -> Result<Self, CipherError> {
        if specs.is_empty() {
            return Err(CipherError::Segment { index: 0, what: "there is none" });
        }
        let mut segments = Vec::with_capacity(specs.len());
        let mut capacity = 0;
        for (index, spec) in specs.iter().enumerate() {
            checked_sector_bytes(spec.sector_bytes)?;
            spec.check(capacity).map_err(|what| CipherError::Segment { index, what })?;
            segments.push(Segment::new(spec, which)?);
            capacity = spec.start + spec.sectors;
        }
        Ok(Self { segments, capacity })
    }

    /// Size of the guest's disk in sectors.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Moves the end of the last segment outwards, to a disk of `capacity` sectors. No key is
    /// needed, and no sector that was there before gets another place, tweak or key.
    ///
    /// # Errors
    /// A capacity that is smaller than the present one, not whole encryption sectors, or beyond what
    /// a number can hold; the map is then as it was.
    pub fn grow(&mut self, capacity: u64) -> Result<(), CipherError> {
        let index = self.segments.len().saturating_sub(1);
        let fail = |what| CipherError::Segment { index, what };
        let last = self.segments.last_mut().ok_or_else(|| fail("there is none"))?;
        let more = capacity.checked_sub(self.capacity).ok_or_else(|| fail("it would shrink"))?;
        let sectors = last.sectors.checked_add(more).ok_or_else(|| fail("it is too long"))?;
        if !sectors.is_multiple_of(last.sector_bytes as u64 / SECTOR_BYTES) {
            return Err(fail("its length is no multiple of its encryption sector"));
        }
        let overflows = |start: u64| start.checked_add(sectors).is_none();
        if [last.start, last.volume_start, last.iv_start].into_iter().any(overflows) {
            return Err(fail("its end is beyond what a number can hold"));
        }
        (last.sectors, self.capacity) = (sectors, capacity);
        Ok(())
    }

    /// The largest encryption sector in the map, in bytes: requests must be aligned to it.
    pub fn sector_bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.sector_bytes).fold(SECTOR_BYTES_MIN, usize::max)
    }

    /// Whether nothing on the disk is encrypted.
    pub fn is_plain(&self) -> bool {
        self.segments.iter().all(|segment| segment.cipher.is_none())
    }

    /// What does the work, for the log and `status`: the first segment's, or "none".
    pub fn implementation(&self) -> &'static str {
        let mut ciphers = self.segments.iter().filter_map(|segment| segment.cipher.as_ref());
        ciphers.next().map_or("none", |cipher| cipher.implementation())
    }

    /// The part of `extent` that starts where it starts and lies in one segment. Call again with
    /// the rest. `None` for an empty extent, or one that starts past the capacity.
    ///
    /// # Panics
    /// If the part isn't whole encryption sectors: the caller refuses requests that aren't aligned
    /// to [`Self::sector_bytes`].
    pub fn route(&mut self, extent: Extent) -> Option<Route<'_>> {
        if extent.sectors == 0 || extent.start >= self.capacity {
            return None;
        }
        let after = self.segments.partition_point(|segment| segment.start <= extent.start);
        let segment = self.segments.get_mut(after.checked_sub(1)?)?;
        let offset = extent.start - segment.start;
        let sectors = extent.sectors.min(segment.sectors - offset);
        let unit = segment.sector_bytes as u64 / SECTOR_BYTES;
        assert!(
            offset.is_multiple_of(unit) && sectors.is_multiple_of(unit),
            "sectors {}+{sectors} cut an encryption sector of {unit}",
            extent.start,
        );
        Some(Route {
            sectors,
            volume_sector: segment.volume_start + offset,
            iv: segment.iv_start + offset,
            // The reborrow shortens the trait object's lifetime, which a plain as_deref_mut can't.
            cipher: segment.cipher.as_mut().map(|cipher| &mut **cipher as &mut dyn SectorCipher),
        })
    }
}

impl fmt::Debug for KeyMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyMap")
            .field("segments", &self.segments.len())
            .field("capacity", &self.capacity)
            .field("implementation", &self.implementation())
            .finish()
    }
}

#[cfg(test)]
mod tests;
