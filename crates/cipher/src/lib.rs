//! AES-XTS over whole encryption sectors, and the map that says which key owns which extent.
//!
//! [`sector_cipher`] makes a cipher for one key; [`seal`] and [`open`] run it between a guest's
//! scattered memory and a contiguous bounce buffer, which is the only copy the data path makes;
//! [`KeyMap`] finds the cipher and the place on the volume for a guest's extent.
//!
//! Contract: the tweak is `plain64`: a little-endian counter of **512-byte** units, whatever the
//! encryption sector is (dm-crypt without `iv_large_sectors`, which is all that LUKS2 knows).
//! Ciphers are per thread: `Send`, not shared.
//! Invariant: no lock, allocation or formatting per request; no reference to guest memory, ever.
//! Deliberately absent: authentication (XTS has none), partial sectors, other modes.
//!
//! Implementations: our own on VAES, 256 or 512 bits wide; AWS-LC for AES-256 (feature `aws-lc`,
//! default); `aes` + `xts-mode` for everything. [`implementations`] says which can be used here.
//! Feature `fips` replaces AWS-LC by its FIPS module (AWS-LC-FIPS 3.0) and prefers it: `cargo build
//! -p sealblk-backend --features sealblk-cipher/fips`; building it takes Go, CMake and a C compiler,
//! so CI leaves it out. AWS-LC has no AES-128-XTS.

#[cfg(any(feature = "aws-lc", feature = "fips"))]
mod aws_lc;
mod implementation;
mod keymap;
mod portable;
mod sector;
mod spans;
#[cfg(target_arch = "x86_64")]
mod vaes;

pub use implementation::{Implementation, UnknownImplementation, implementations, warnings};
pub use keymap::{KeyMap, Route, SegmentSpec};
pub use sector::{SectorCipher, decrypt_in_place, encrypt_in_place};
pub use spans::{copy_in, copy_out, open, seal};

use std::fmt;

use sealblk_block::SECTOR_BYTES;
use sealblk_secret::{SecretBytes, SecretError};

/// The smallest encryption sector, in bytes.
pub const SECTOR_BYTES_MIN: usize = 512;

/// The largest encryption sector, in bytes (LUKS2 specification, `sector_size` of a segment).
pub const SECTOR_BYTES_MAX: usize = 4096;

/// What encrypts a segment. The names are dm-crypt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// `aes-xts-plain64` with a 256-bit key (two of 128).
    Aes128XtsPlain64,
    /// `aes-xts-plain64` with a 512-bit key (two of 256).
    Aes256XtsPlain64,
}

impl Algorithm {
    /// Length of the key, both halves together.
    pub const fn key_bytes(self) -> usize {
        match self {
            Self::Aes128XtsPlain64 => 32,
            Self::Aes256XtsPlain64 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128XtsPlain64 => "aes-128-xts-plain64",
            Self::Aes256XtsPlain64 => "aes-256-xts-plain64",
        })
    }
}

/// Why there is no cipher or map.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CipherError {
    /// The key doesn't fit the algorithm.
    #[error("{algorithm} takes a key of {} bytes, not {got_bytes}", .algorithm.key_bytes())]
    KeyLength {
        /// What was asked for.
        algorithm: Algorithm,
        /// The key's length.
        got_bytes: usize,
    },
    /// XTS with equal halves is not secure, and FIPS 140 forbids it (implementation guidance A.9).
    #[error("the two halves of the XTS key are equal; such a key is not safe to use")]
    EqualKeyHalves,
    /// Not a power of two from 512 to 4096.
    #[error("encryption sectors of {0} bytes: only 512, 1024, 2048 and 4096 are supported")]
    SectorSize(u32),
    /// The implementation asked for can't do it.
    #[error("cipher implementation {which} can't be used: {why}; configure auto or portable")]
    Unavailable {
        /// What was asked for.
        which: Implementation,
        /// What stands in the way.
        why: &'static str,
    },
    /// A segment contradicts itself or its neighbours.
    #[error("segment {index}: {what}")]
    Segment {
        /// Position in the list.
        index: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// No protected memory for the key schedule.
    #[error("no protected memory for the cipher's key schedule: {0}")]
    Memory(#[from] SecretError),
}

/// How far the tweak advances per encryption sector (see the crate's contract).
fn iv_step(sector_bytes: usize) -> u64 {
    sector_bytes as u64 / SECTOR_BYTES
}

/// A cipher for `key`, whose expanded form lies in protected memory; `key` isn't needed afterwards.
///
/// # Errors
/// A key of the wrong length or with equal halves, an impossible `sector_bytes`, an implementation
/// that isn't there, no protected memory.
pub fn sector_cipher(
    algorithm: Algorithm,
    key: &SecretBytes,
    sector_bytes: u32,
    which: Implementation,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    if key.len() != algorithm.key_bytes() {
        return Err(CipherError::KeyLength { algorithm, got_bytes: key.len() });
    }
    let (first, second) = key.expose().split_at(key.len() / 2);
    if SecretBytes::copy_from(first)?.ct_eq(second) {
        return Err(CipherError::EqualKeyHalves);
    }
    let sector_bytes = checked_sector_bytes(sector_bytes)?;
    implementation::make(which, algorithm, key, sector_bytes)
}

/// The size as the rest of the crate takes it, if LUKS allows it.
fn checked_sector_bytes(sector_bytes: u32) -> Result<usize, CipherError> {
    match sector_bytes {
        512 | 1024 | 2048 | 4096 => Ok(sector_bytes as usize),
        _ => Err(CipherError::SectorSize(sector_bytes)),
    }
}
