//! A disk over a volume in memory, and what must lie on it.

use std::sync::Arc;

use sealblk_cipher::{Algorithm, Implementation, SegmentSpec, encrypt_in_place, sector_cipher};
use sealblk_engine::{Disk, EngineConfig};
use sealblk_secret::SecretBytes;
use sealblk_virtqueue::blk::{DiskProfile, RangeLimits};
use sealblk_volume::{MemoryVolume, Volume};

use super::QUEUE_SIZE;

pub(crate) const CAPACITY: u64 = 64 << 10;
pub(crate) const HEADER_SECTORS: u64 = 2048;
pub(crate) const KEY: [u8; 64] =
    *b"0123456789abcdefFEDCBA9876543210the other half of the key 64 byt";

pub(crate) fn volume(block_bytes: u32) -> Arc<dyn Volume> {
    Arc::new(MemoryVolume::new((HEADER_SECTORS + CAPACITY) * 512, block_bytes).unwrap())
}

pub(crate) fn segment(sector_bytes: u32, encrypted: bool) -> SegmentSpec {
    let key = || Arc::new(SecretBytes::copy_from(&KEY).unwrap());
    SegmentSpec {
        start: 0,
        sectors: CAPACITY,
        volume_start: HEADER_SECTORS,
        iv_start: 0,
        sector_bytes,
        crypt: encrypted.then(|| (Algorithm::Aes256XtsPlain64, key())),
    }
}

pub(crate) fn profile(block_bytes: u32) -> DiskProfile {
    let limits = Some(RangeLimits { sectors_max: 1 << 16, ranges_max: 8 });
    DiskProfile {
        capacity_sectors: CAPACITY,
        block_bytes,
        physical_block_bytes: 4096,
        queues: 1,
        seg_max: 62,
        size_max_bytes: 16 << 20,
        read_only: false,
        discard: limits,
        discard_alignment_sectors: 8,
        write_zeroes: limits,
        write_zeroes_may_unmap: false,
        serial: *b"a-serial-of-20-bytes",
    }
}

pub(crate) fn config() -> EngineConfig {
    EngineConfig { queue_size_max: QUEUE_SIZE, ..EngineConfig::default() }
}

pub(crate) fn disk(volume: &Arc<dyn Volume>, sector_bytes: u32, config: &EngineConfig) -> Disk {
    Disk::new(volume, &[segment(sector_bytes, true)], &profile(sector_bytes), config).unwrap()
}

pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 7) as u8).collect()
}

/// What must lie on the volume for `plain` at `sector`, by another implementation.
pub(crate) fn sealed(plain: &[u8], sector: u64, sector_bytes: u32) -> Vec<u8> {
    let key = SecretBytes::copy_from(&KEY).unwrap();
    let mut cipher =
        sector_cipher(Algorithm::Aes256XtsPlain64, &key, sector_bytes, Implementation::Portable)
            .unwrap();
    let mut bytes = plain.to_vec();
    encrypt_in_place(cipher.as_mut(), sector, &mut bytes);
    bytes
}

pub(crate) fn on_volume(volume: &Arc<dyn Volume>, sector: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    volume.read_at((HEADER_SECTORS + sector) * 512, &mut bytes).unwrap();
    bytes
}
