//! AES-XTS of our own for CPUs with VAES, because libraries leave much of these CPUs unused:
//! AWS-LC uses VAES with AVX-512 only, and sets up its context again for every sector.
//!
//! The key schedule is in `schedule`, the algorithm in `kernel`, one file for each width of vectors
//! holds its instructions, `self_test` decides whether a width may be used at all.
//!
//! Contract: AES-128 and AES-256, whole encryption sectors, any alignment, source and destination
//! equal or disjoint. Nothing runs before [`usable`] has said yes in this process.
//! Invariant: constant time; round keys lie in protected memory (and in registers and on the stack
//! while a call lasts, as with every cipher).
//! Deliberately absent: CPUs without VAES (AWS-LC is good there), ciphertext stealing.
// UNSAFETY: calls code for instructions that `usable` has found, with pointers that the caller
// vouches for.
#![expect(unsafe_code, reason = "calls the kernels")]

mod kernel;
mod schedule;
mod self_test;
#[cfg(test)]
mod tests;
mod wide256;
mod wide512;

use std::sync::OnceLock;

use sealblk_secret::{SecretBox, SecretBytes};

use crate::{Algorithm, CipherError, SectorCipher};
use schedule::Schedule;

/// [`kernel::run`] for one width, number of rounds, and direction.
type Run = unsafe fn(*const Schedule, usize, u64, *const u8, *mut u8, usize);

/// Bits of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// AVX2.
    Bits256,
    /// AVX-512.
    Bits512,
}

impl Width {
    const fn name(self) -> &'static str {
        match self {
            Self::Bits256 => "VAES-256 (sealblk)",
            Self::Bits512 => "VAES-512 (sealblk)",
        }
    }

    fn available(self) -> bool {
        match self {
            Self::Bits256 => wide256::available(),
            Self::Bits512 => wide512::available(),
        }
    }

    /// The width's self-test, which is run once in a process. Only for a width that is available.
    fn tested(self) -> Result<(), &'static str> {
        static BITS_256: OnceLock<Result<(), &'static str>> = OnceLock::new();
        static BITS_512: OnceLock<Result<(), &'static str>> = OnceLock::new();
        let result = match self {
            Self::Bits256 => &BITS_256,
            Self::Bits512 => &BITS_512,
        };
        *result.get_or_init(|| {
            self_test::run(&|algorithm, key, sector_bytes| {
                Ok(Box::new(Vaes::new(self, algorithm, key, sector_bytes)?))
            })
        })
    }
}

/// Whether [`new`] may be called, or why not.
pub(crate) fn usable(width: Width) -> Result<(), &'static str> {
    if !width.available() {
        return Err(match width {
            Width::Bits256 => "this CPU lacks VAES, VPCLMULQDQ or AVX2",
            Width::Bits512 => "this CPU lacks VAES, VPCLMULQDQ or AVX-512",
        });
    }
    width.tested()
}

/// Widths that the CPU has and that failed their self-test, in words.
pub(crate) fn failures() -> Vec<String> {
    let available = [Width::Bits512, Width::Bits256].into_iter().filter(|width| width.available());
    let failed = available.filter_map(|width| width.tested().err().map(|why| (width, why)));
    failed.map(|(width, why)| format!("the cipher {} is not used: {why}", width.name())).collect()
}

/// A cipher of a width that is [`usable`]. `key` has the algorithm's length; `sector_bytes` is a
/// valid size.
pub(crate) fn new(
    width: Width,
    algorithm: Algorithm,
    key: &SecretBytes,
    sector_bytes: usize,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    assert!(usable(width).is_ok(), "{width:?} was never checked");
    Ok(Box::new(Vaes::new(width, algorithm, key, sector_bytes)?))
}

/// The cipher of one key.
struct Vaes {
    schedule: SecretBox<Schedule>,
    encrypt: Run,
    decrypt: Run,
    name: &'static str,
    sector_bytes: usize,
}

impl Vaes {
    fn new(
        width: Width,
        algorithm: Algorithm,
        key: &SecretBytes,
        sector_bytes: usize,
    ) -> Result<Self, CipherError> {
        assert!(width.available(), "{width:?} on a CPU without");
        // SAFETY: the CPU has the width's instructions, AES among them.
        let schedule = unsafe { Schedule::new(algorithm, key)? };
        let rounds = schedule::rounds(algorithm);
        let (encrypt, decrypt) = match width {
            Width::Bits256 => wide256::kernels(rounds),
            Width::Bits512 => wide512::kernels(rounds),
        };
        Ok(Self { schedule, encrypt, decrypt, name: width.name(), sector_bytes })
    }

    /// Runs one of the kernels.
    ///
    /// # Safety
    /// `kernel` is one of the two; the rest as for [`SectorCipher::encrypt`].
    unsafe fn run(&self, kernel: Run, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        let sector_bytes = self.sector_bytes;
        assert!(len.is_multiple_of(sector_bytes), "{len} bytes are no whole encryption sectors");
        // SAFETY: `new` has chosen kernels for this CPU and schedule; `len` is whole sectors of a
        // valid size; the memory is the caller's word.
        unsafe { kernel(&raw const *self.schedule, sector_bytes, iv, src, dst, len) };
    }
}

impl SectorCipher for Vaes {
    fn sector_bytes(&self) -> usize {
        self.sector_bytes
    }

    fn implementation(&self) -> &'static str {
        self.name
    }

    unsafe fn encrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(self.encrypt, iv, src, dst, len) };
    }

    unsafe fn decrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(self.decrypt, iv, src, dst, len) };
    }
}
