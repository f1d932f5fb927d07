//! The baseline of the benchmark: an encrypting vhost-user-blk server as a competent person writes
//! it in a day from what crates.io offers: `vhost-user-backend`, `virtio-queue`, `xts-mode`.
//!
//! One epoll thread per queue; each request is carried out where it is taken: read the
//! descriptors, pread or pwrite with O_DIRECT through one aligned buffer, AES-256-XTS in place,
//! used ring, signal if the driver wants one. The whole volume is the disk: no header, no key
//! derivation, tweak plain64.
//!
//! Nothing here is crippled and nothing is tuned: it is there to be compared with. Deliberately
//! absent: protection of the key in memory, requests in flight across a restart, discard. Don't
//! serve anybody's data with it.

mod disk;
mod queue;
mod server;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::disk::Disk;

/// Serves a volume, encrypted with AES-256-XTS, the obvious way. A baseline for benchmarks.
#[derive(Debug, Parser)]
#[command(name = "sealblk-textbook", version)]
struct Args {
    /// File or block device; all of it is the disk
    #[arg(long, value_name = "PATH")]
    volume: PathBuf,

    /// File with the 64-byte key as 128 hexadecimal digits
    #[arg(long, value_name = "FILE")]
    key_hex_file: PathBuf,

    /// Encryption sector in bytes, and the disk's logical block
    #[arg(long, value_name = "N", default_value_t = 4096)]
    sector_size: u32,

    /// Where to serve
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// Queues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    queues: u16,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(matches!(args.sector_size, 512 | 1024 | 2048 | 4096), "--sector-size: 512 to 4096");
    ensure!((1..=64).contains(&args.queues), "--queues: 1 to 64");
    let hex = std::fs::read_to_string(&args.key_hex_file)
        .with_context(|| args.key_hex_file.display().to_string())?;
    let key = parse_key(hex.trim()).context("the key is not 128 hexadecimal digits")?;
    let disk = Disk::open(&args.volume, &key, args.sector_size)
        .with_context(|| args.volume.display().to_string())?;
    server::serve(disk, args.queues, &args.socket)
}

fn parse_key(hex: &str) -> Option<[u8; 64]> {
    let mut key = [0; 64];
    if hex.len() != 2 * key.len() {
        return None;
    }
    for (index, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::parse_key;

    #[test]
    fn a_key_is_128_digits() {
        let key = parse_key(&"0fA5".repeat(32)).unwrap();
        assert_eq!((key[0], key[1], key[63]), (0x0f, 0xa5, 0xa5));
        assert_eq!(parse_key(&"0f".repeat(63)), None);
        assert_eq!(parse_key(&"0g".repeat(64)), None);
    }
}
