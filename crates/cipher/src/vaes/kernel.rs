//! XTS over runs of sectors, for vectors of any width.
//!
//! The algorithm is written once, over [`Wide`]; a width adds a dozen one-instruction functions.
//! Encryption sectors are whole batches of [`IN_FLIGHT`] vectors, so there is no remainder.
//!
//! What makes it fast: that many independent vectors keep the AES units of every CPU with VAES
//! busy (4 cycles of latency times 2 units); tweaks of a batch come from those of the batch before,
//! without touching the AES units; the tweaks of [`GROUP`] sectors are encrypted side by side; the
//! last round's key takes the final XOR.
//! Invariant: no branch and no address depends on key, tweak or data.
// UNSAFETY: vector instructions that the caller has found to be there, on memory that guests share,
// behind pointers that the caller vouches for.
#![expect(unsafe_code, reason = "vector instructions on raw memory")]

use super::schedule::{Block, Schedule};
use crate::iv_step;

/// x^128 in GF(2^128) as XTS has it: x^7 + x^2 + x + 1 (IEEE 1619 section 5.2).
pub(super) const REDUCTION: i64 = 0x87;

/// Vectors of a batch.
pub(super) const IN_FLIGHT: usize = 8;

/// Sectors whose tweaks are encrypted together.
const GROUP: usize = 8;

/// A vector of `LANES` blocks.
///
/// # Safety
/// All functions: the CPU has the instructions; pointers are good for what is read or written
/// there, at any alignment.
pub(super) trait Wide: Copy {
    /// Blocks in a vector; [`GROUP`] is a multiple.
    const LANES: usize;

    /// Reads `LANES` blocks.
    unsafe fn load(from: *const u8) -> Self;
    /// Writes `LANES` blocks.
    unsafe fn store(self, to: *mut u8);
    /// The same block in every lane.
    unsafe fn broadcast(from: *const Block) -> Self;
    /// Lane `i` is `first + i * step` as a little-endian number of 128 bits, wrapping at 64.
    unsafe fn counters(first: u64, step: u64) -> Self;
    /// Bitwise.
    unsafe fn xor(self, other: Self) -> Self;
    /// A round of encryption.
    unsafe fn encrypt_round(self, key: Self) -> Self;
    /// The last round of encryption.
    unsafe fn encrypt_last(self, key: Self) -> Self;
    /// A round of decryption.
    unsafe fn decrypt_round(self, key: Self) -> Self;
    /// The last round of decryption.
    unsafe fn decrypt_last(self, key: Self) -> Self;
    /// Tweaks of vector `index` of a sector's first batch: `tweak` times α^(index·LANES + lane).
    /// α is the polynomial x in GF(2^128) (IEEE 1619 section 5.2).
    unsafe fn spread(tweak: *const Block, index: usize) -> Self;
    /// Every lane times α^([`IN_FLIGHT`]·LANES): the same vector's tweaks in the next batch.
    unsafe fn advance(self) -> Self;
}

/// En- or decrypts whole sectors.
///
/// # Safety
/// The CPU has the width's instructions; `schedule` has keys for `ROUNDS`; `len` is a multiple of
/// `sector_bytes`, which is a multiple of 512; the rest as for [`crate::SectorCipher::encrypt`].
#[inline(always)]
pub(super) unsafe fn run<W: Wide, const ROUNDS: usize, const ENCRYPT: bool>(
    schedule: *const Schedule,
    sector_bytes: usize,
    mut iv: u64,
    src: *const u8,
    dst: *mut u8,
    len: usize,
) {
    // Keys stay behind a raw pointer on purpose: stores to `dst` might then change them as far as
    // the compiler knows, so it loads them where they are used instead of copying them to the stack.
    // SAFETY: the schedule is live.
    let keys = unsafe {
        if ENCRYPT { &raw const (*schedule).encrypt } else { &raw const (*schedule).decrypt }
    };
    let keys = keys.cast::<Block>();
    // SAFETY: as above.
    let tweak_keys = unsafe { &raw const (*schedule).tweak }.cast::<Block>();
    let step = iv_step(sector_bytes);
    let mut offset = 0;
    while offset < len {
        let mut tweaks = [[0; 16]; GROUP];
        // SAFETY: there is a round key for every round.
        unsafe { encrypt_tweaks::<W, ROUNDS>(tweak_keys, iv, step, &mut tweaks) };
        for tweak in &tweaks {
            if offset == len {
                break;
            }
            // SAFETY: a whole sector is left.
            unsafe {
                sector::<W, ROUNDS, ENCRYPT>(
                    keys,
                    tweak,
                    src.add(offset),
                    dst.add(offset),
                    sector_bytes,
                );
            }
            offset += sector_bytes;
        }
        iv = iv.wrapping_add(step.wrapping_mul(GROUP as u64));
    }
}

/// The first tweaks of [`GROUP`] sectors.
///
/// # Safety
/// The CPU has the width's instructions; there are `ROUNDS + 1` keys.
#[inline(always)]
unsafe fn encrypt_tweaks<W: Wide, const ROUNDS: usize>(
    keys: *const Block,
    iv: u64,
    step: u64,
    tweaks: &mut [Block; GROUP],
) {
    // SAFETY: the loops stay within keys and tweaks.
    unsafe {
        let vectors = GROUP / W::LANES;
        let first = W::broadcast(keys);
        let mut x = [first; GROUP];
        for (i, x) in x.iter_mut().enumerate().take(vectors) {
            let iv = iv.wrapping_add(step.wrapping_mul((i * W::LANES) as u64));
            *x = W::counters(iv, step).xor(first);
        }
        for round in 1..ROUNDS {
            let key = W::broadcast(keys.add(round));
            for x in x.iter_mut().take(vectors) {
                *x = x.encrypt_round(key);
            }
        }
        let last = W::broadcast(keys.add(ROUNDS));
        for (i, x) in x.iter().enumerate().take(vectors) {
            x.encrypt_last(last).store(tweaks.as_mut_ptr().add(i * W::LANES).cast());
        }
    }
}

/// One sector.
///
/// # Safety
/// As for [`run`].
#[inline(always)]
unsafe fn sector<W: Wide, const ROUNDS: usize, const ENCRYPT: bool>(
    keys: *const Block,
    tweak: *const Block,
    src: *const u8,
    dst: *mut u8,
    sector_bytes: usize,
) {
    let vector_bytes = W::LANES * size_of::<Block>();
    // SAFETY: `at` stays below the sector's end, which is a multiple of the batch.
    unsafe {
        let mut tweaks = [W::spread(tweak, 0); IN_FLIGHT];
        for (i, tweak_vector) in tweaks.iter_mut().enumerate() {
            *tweak_vector = W::spread(tweak, i);
        }
        let mut at = 0;
        loop {
            let mut x = tweaks;
            let first = W::broadcast(keys);
            for i in 0..IN_FLIGHT {
                x[i] = W::load(src.add(at + i * vector_bytes)).xor(tweaks[i]).xor(first);
            }
            for round in 1..ROUNDS {
                let key = W::broadcast(keys.add(round));
                for x in &mut x {
                    *x = if ENCRYPT { x.encrypt_round(key) } else { x.decrypt_round(key) };
                }
            }
            let last = W::broadcast(keys.add(ROUNDS));
            for i in 0..IN_FLIGHT {
                let key = last.xor(tweaks[i]);
                let x = if ENCRYPT { x[i].encrypt_last(key) } else { x[i].decrypt_last(key) };
                x.store(dst.add(at + i * vector_bytes));
            }
            at += IN_FLIGHT * vector_bytes;
            if at >= sector_bytes {
                break;
            }
            for tweak in &mut tweaks {
                *tweak = tweak.advance();
            }
        }
    }
}
