//! virtio-blk (virtio 1.2 section 5.2): what a disk offers, and what its requests mean.
//!
//! Deliberately absent: doing the requests.

mod config;
mod request;

pub use config::{
    CONFIG_BYTES, CONFIG_WRITEBACK, DiskProfile, RangeLimits, SERIAL_BYTES, parse_set_config,
};
pub use request::{Refusal, Request, parse, write_id};

// Bits of section 5.2.3.

/// `VIRTIO_BLK_F_SIZE_MAX`
pub const F_SIZE_MAX: u64 = 1 << 1;
/// `VIRTIO_BLK_F_SEG_MAX`
pub const F_SEG_MAX: u64 = 1 << 2;
/// `VIRTIO_BLK_F_RO`
pub const F_RO: u64 = 1 << 5;
/// `VIRTIO_BLK_F_BLK_SIZE`
pub const F_BLK_SIZE: u64 = 1 << 6;
/// `VIRTIO_BLK_F_FLUSH`
pub const F_FLUSH: u64 = 1 << 9;
/// `VIRTIO_BLK_F_TOPOLOGY`
pub const F_TOPOLOGY: u64 = 1 << 10;
/// `VIRTIO_BLK_F_CONFIG_WCE`
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// `VIRTIO_BLK_F_MQ`
pub const F_MQ: u64 = 1 << 12;
/// `VIRTIO_BLK_F_DISCARD`
pub const F_DISCARD: u64 = 1 << 13;
/// `VIRTIO_BLK_F_WRITE_ZEROES`
pub const F_WRITE_ZEROES: u64 = 1 << 14;

// Bits of chapter 6, and one that vhost-user borrows.

/// `VIRTIO_F_INDIRECT_DESC`
pub const F_RING_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX`
pub const F_RING_EVENT_IDX: u64 = 1 << 29;
/// `VHOST_USER_F_PROTOCOL_FEATURES` (vhost-user specification): never seen by a guest.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VIRTIO_F_VERSION_1`
pub const F_VERSION_1: u64 = 1 << 32;

#[cfg(test)]
mod tests;
