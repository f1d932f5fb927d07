//! The kernel on 256-bit vectors: VAES without AVX-512 (Zen 3, Alder Lake and their kin).
//!
//! Contract: [`kernels`] may be called on a CPU with [`available`] only.
// UNSAFETY: vector instructions; whoever calls them has found them to be there.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m256i, _mm_loadu_si128, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_bslli_epi128,
    _mm256_bsrli_epi128, _mm256_clmulepi64_epi128, _mm256_load_si256, _mm256_loadu_si256,
    _mm256_set_epi64x, _mm256_set1_epi64x, _mm256_shuffle_epi32, _mm256_sllv_epi64,
    _mm256_srlv_epi64, _mm256_storeu_si256, _mm256_sub_epi64, _mm256_xor_si256,
};

use super::Run;
use super::kernel::{IN_FLIGHT, REDUCTION, Wide, run};
use super::schedule::{Block, Schedule};

/// Whether the CPU (and the system, which must save the registers) has all it takes.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// Two blocks.
#[derive(Clone, Copy)]
pub(super) struct Wide256(__m256i);

/// How far each half of each lane is shifted in [`Wide::spread`].
#[repr(align(32))]
struct Counts([[i64; 4]; IN_FLIGHT]);

static COUNTS: Counts = {
    let mut counts = [[0; 4]; IN_FLIGHT];
    let mut half = 0;
    while half < 4 * IN_FLIGHT {
        counts[half / 4][half % 4] = (half / 2) as i64;
        half += 1;
    }
    Counts(counts)
};

impl Wide for Wide256 {
    const LANES: usize = 2;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: as the trait says.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const Block) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn counters(first: u64, step: u64) -> Self {
        let second = first.wrapping_add(step);
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_set_epi64x(0, second.cast_signed(), 0, first.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn encrypt_round(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_aesenc_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_aesenclast_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn decrypt_round(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_aesdec_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm256_aesdeclast_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn spread(tweak: *const Block, index: usize) -> Self {
        // SAFETY: as the trait says; the counts are aligned.
        unsafe {
            let tweak = _mm256_broadcastsi128_si256(_mm_loadu_si128(tweak.cast()));
            let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(tweak);
            let left = _mm256_load_si256((&raw const COUNTS.0[index]).cast());
            let right = _mm256_sub_epi64(_mm256_set1_epi64x(64), left);
            // A shift by 64 gives 0. What leaves the lower half moves into the upper one, what
            // leaves the upper half is reduced into the lower one.
            let out = _mm256_srlv_epi64(swapped, right);
            let moved = _mm256_and_si256(out, _mm256_set_epi64x(-1, 0, -1, 0));
            let reduced = _mm256_clmulepi64_epi128::<0>(out, _mm256_set1_epi64x(REDUCTION));
            let shifted = _mm256_xor_si256(_mm256_sllv_epi64(tweak, left), moved);
            Self(_mm256_xor_si256(shifted, reduced))
        }
    }

    #[inline(always)]
    unsafe fn advance(self) -> Self {
        // SAFETY: as the trait says.
        unsafe {
            // 16 bits move up, and the 16 bits that leave the lane are reduced.
            let out = _mm256_bsrli_epi128::<14>(self.0);
            let reduced = _mm256_clmulepi64_epi128::<0>(out, _mm256_set1_epi64x(REDUCTION));
            Self(_mm256_xor_si256(_mm256_bslli_epi128::<2>(self.0), reduced))
        }
    }
}

/// [`run`] compiled for these instructions.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx2,aes,vaes,vpclmulqdq")]
unsafe fn compiled<const ROUNDS: usize, const ENCRYPT: bool>(
    schedule: *const Schedule,
    sector_bytes: usize,
    iv: u64,
    src: *const u8,
    dst: *mut u8,
    len: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Wide256, ROUNDS, ENCRYPT>(schedule, sector_bytes, iv, src, dst, len) };
}

/// The kernels for a number of rounds, 10 or 14: encryption, decryption.
pub(super) fn kernels(rounds: usize) -> (Run, Run) {
    match rounds {
        10 => (compiled::<10, true>, compiled::<10, false>),
        _ => (compiled::<14, true>, compiled::<14, false>),
    }
}
