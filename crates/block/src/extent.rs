//! A range of sectors.

/// Bytes in a sector, virtio's unit whatever the disk's block size (virtio 1.2 section 5.2.6).
pub const SECTOR_BYTES: u64 = 512;

/// A range of 512-byte sectors. `start + sectors` may exceed `u64`: it comes from a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub sectors: u64,
}

impl Extent {
    /// A range of `sectors` from `start`.
    pub const fn new(start: u64, sectors: u64) -> Self {
        Self { start, sectors }
    }

    /// One past the last sector, unless that is no number.
    pub const fn end(&self) -> Option<u64> {
        self.start.checked_add(self.sectors)
    }

    /// Length in bytes, unless that is no number.
    pub const fn bytes(&self) -> Option<u64> {
        self.sectors.checked_mul(SECTOR_BYTES)
    }

    /// Whether the whole range lies below `capacity` (in sectors).
    pub fn fits(&self, capacity: u64) -> bool {
        self.end().is_some_and(|end| end <= capacity)
    }

    /// Whether the two ranges share a sector.
    pub fn overlaps(&self, other: &Self) -> bool {
        let before = |a: &Self, b: &Self| a.end().is_some_and(|end| end <= b.start);
        self.sectors > 0 && other.sectors > 0 && !before(self, other) && !before(other, self)
    }
}

/// `bytes` in sectors, if it is a whole number of them.
pub const fn sectors_of(bytes: u64) -> Option<u64> {
    if bytes.is_multiple_of(SECTOR_BYTES) { Some(bytes / SECTOR_BYTES) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_at_the_end_of_the_number_line_never_fits() {
        assert!(Extent::new(8, 8).fits(16));
        assert!(!Extent::new(9, 8).fits(16));
        assert!(!Extent::new(u64::MAX, 1).fits(u64::MAX));
        assert!(!Extent::new(u64::MAX, 2).fits(u64::MAX));
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(!Extent::new(0, 8).overlaps(&Extent::new(8, 8)));
        assert!(Extent::new(0, 9).overlaps(&Extent::new(8, 8)));
        assert!(!Extent::new(4, 0).overlaps(&Extent::new(0, 8)));
        assert!(Extent::new(u64::MAX, 2).overlaps(&Extent::new(u64::MAX, 1)));
    }
}
