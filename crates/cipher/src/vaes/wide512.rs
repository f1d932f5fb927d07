//! The kernel on 512-bit vectors: VAES with AVX-512 (Ice Lake, Zen 4 and newer).
//!
//! Contract: [`kernels`] may be called on a CPU with [`available`] only.
// UNSAFETY: vector instructions; whoever calls them has found them to be there.
#![expect(unsafe_code, reason = "vector instructions")]

use std::arch::x86_64::{
    __m512i, _mm_loadu_si128, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128, _mm512_aesenc_epi128,
    _mm512_aesenclast_epi128, _mm512_and_si512, _mm512_broadcast_i32x4, _mm512_bslli_epi128,
    _mm512_bsrli_epi128, _mm512_clmulepi64_epi128, _mm512_load_si512, _mm512_loadu_si512,
    _mm512_set_epi64, _mm512_set1_epi64, _mm512_shuffle_epi32, _mm512_sllv_epi64,
    _mm512_srlv_epi64, _mm512_storeu_si512, _mm512_sub_epi64, _mm512_xor_si512,
};

use super::Run;
use super::kernel::{IN_FLIGHT, REDUCTION, Wide, run};
use super::schedule::{Block, Schedule};

/// Whether the CPU (and the system, which must save the registers) has all it takes.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
}

/// Four blocks.
#[derive(Clone, Copy)]
pub(super) struct Wide512(__m512i);

/// How far each half of each lane is shifted in [`Wide::spread`].
#[repr(align(64))]
struct Counts([[i64; 8]; IN_FLIGHT]);

static COUNTS: Counts = {
    let mut counts = [[0; 8]; IN_FLIGHT];
    let mut half = 0;
    while half < 8 * IN_FLIGHT {
        counts[half / 8][half % 8] = (half / 2) as i64;
        half += 1;
    }
    Counts(counts)
};

impl Wide for Wide512 {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: as the trait says.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn broadcast(from: *const Block) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn counters(first: u64, step: u64) -> Self {
        let second = first.wrapping_add(step).cast_signed();
        let third = first.wrapping_add(step.wrapping_mul(2)).cast_signed();
        let fourth = first.wrapping_add(step.wrapping_mul(3)).cast_signed();
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_set_epi64(0, fourth, 0, third, 0, second, 0, first.cast_signed()) })
    }

    #[inline(always)]
    unsafe fn xor(self, other: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_xor_si512(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn encrypt_round(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_aesenc_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn encrypt_last(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_aesenclast_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn decrypt_round(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_aesdec_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn decrypt_last(self, key: Self) -> Self {
        // SAFETY: as the trait says.
        Self(unsafe { _mm512_aesdeclast_epi128(self.0, key.0) })
    }

    #[inline(always)]
    unsafe fn spread(tweak: *const Block, index: usize) -> Self {
        // SAFETY: as the trait says; the counts are aligned.
        unsafe {
            let tweak = _mm512_broadcast_i32x4(_mm_loadu_si128(tweak.cast()));
            let swapped = _mm512_shuffle_epi32::<0b01_00_11_10>(tweak);
            let left = _mm512_load_si512((&raw const COUNTS.0[index]).cast());
            let right = _mm512_sub_epi64(_mm512_set1_epi64(64), left);
            // A shift by 64 gives 0. What leaves the lower half moves into the upper one, what
            // leaves the upper half is reduced into the lower one.
            let out = _mm512_srlv_epi64(swapped, right);
            let moved = _mm512_and_si512(out, _mm512_set_epi64(-1, 0, -1, 0, -1, 0, -1, 0));
            let reduced = _mm512_clmulepi64_epi128::<0>(out, _mm512_set1_epi64(REDUCTION));
            let shifted = _mm512_xor_si512(_mm512_sllv_epi64(tweak, left), moved);
            Self(_mm512_xor_si512(shifted, reduced))
        }
    }

    #[inline(always)]
    unsafe fn advance(self) -> Self {
        // SAFETY: as the trait says.
        unsafe {
            // 32 bits move up, and the 32 bits that leave the lane are reduced.
            let out = _mm512_bsrli_epi128::<12>(self.0);
            let reduced = _mm512_clmulepi64_epi128::<0>(out, _mm512_set1_epi64(REDUCTION));
            Self(_mm512_xor_si512(_mm512_bslli_epi128::<4>(self.0), reduced))
        }
    }
}

/// [`run`] compiled for these instructions.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,aes,vaes,vpclmulqdq")]
unsafe fn compiled<const ROUNDS: usize, const ENCRYPT: bool>(
    schedule: *const Schedule,
    sector_bytes: usize,
    iv: u64,
    src: *const u8,
    dst: *mut u8,
    len: usize,
) {
    // SAFETY: passed on from the caller.
    unsafe { run::<Wide512, ROUNDS, ENCRYPT>(schedule, sector_bytes, iv, src, dst, len) };
}

/// The kernels for a number of rounds, 10 or 14: encryption, decryption.
pub(super) fn kernels(rounds: usize) -> (Run, Run) {
    match rounds {
        10 => (compiled::<10, true>, compiled::<10, false>),
        _ => (compiled::<14, true>, compiled::<14, false>),
    }
}
