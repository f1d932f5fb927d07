//! The AES key schedule: round keys of one XTS key, for both directions.
//!
//! Contract: keys are computed once and lie in the order in which rounds use them, 16 bytes each;
//! the decryption keys are those of the equivalent inverse cipher (FIPS 197 section 5.3.5), which
//! is what AESDEC takes.
//! Invariant: the S-box is the CPU's (AESKEYGENASSIST); nothing depends on the key but data.
// UNSAFETY: CPU instructions that the caller has found to be there.
#![expect(unsafe_code, reason = "AES instructions")]

use std::arch::x86_64::{
    __m128i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_cvtsi128_si32, _mm_set1_epi32,
};

use sealblk_secret::{SecretBox, SecretBytes};

use crate::{Algorithm, CipherError};

/// A round key, or any block.
pub(super) type Block = [u8; 16];

/// One more than the rounds of AES-256.
const ROUND_KEYS_MAX: usize = 15;

/// Round constants (FIPS 197 section 5.2).
const RCON: [u32; 10] = [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0x1b, 0x36];

/// Rounds of AES under the halves of such a key.
pub(super) const fn rounds(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::Aes128XtsPlain64 => 10,
        Algorithm::Aes256XtsPlain64 => 14,
    }
}

/// All round keys of an XTS key. Those that the algorithm has no round for are zero.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Schedule {
    /// Data key, encryption.
    pub(super) encrypt: [Block; ROUND_KEYS_MAX],
    /// Data key, decryption.
    pub(super) decrypt: [Block; ROUND_KEYS_MAX],
    /// Tweak key; XTS only ever encrypts with it.
    pub(super) tweak: [Block; ROUND_KEYS_MAX],
}

impl Schedule {
    /// Expands `key`, both halves, into protected memory and wipes the stack.
    ///
    /// # Safety
    /// The CPU has AES instructions and SSE 4.1.
    pub(super) unsafe fn new(
        algorithm: Algorithm,
        key: &SecretBytes,
    ) -> Result<SecretBox<Self>, CipherError> {
        let (data, tweak) = key.expose().split_at(key.len() / 2);
        let rounds = rounds(algorithm);
        Ok(SecretBox::new_with(|| {
            // SAFETY: passed on from the caller.
            let (encrypt, tweak) = unsafe { (expand(data, rounds), expand(tweak, rounds)) };
            // SAFETY: as above.
            let decrypt = unsafe { invert(&encrypt, rounds) };
            Self { encrypt, decrypt, tweak }
        })?)
    }
}

/// Round keys for encryption (FIPS 197 section 5.2).
#[target_feature(enable = "aes,sse4.1")]
fn expand(key: &[u8], rounds: usize) -> [Block; ROUND_KEYS_MAX] {
    let key_words = key.len() / 4;
    let mut words = [0u32; 4 * ROUND_KEYS_MAX];
    for (word, bytes) in words.iter_mut().zip(key.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
    }
    for i in key_words..4 * (rounds + 1) {
        let mut last = words[i - 1];
        if i % key_words == 0 {
            // Words are little-endian here, so rotating the bytes left is rotating the number right.
            last = substitute(last).rotate_right(8) ^ RCON[i / key_words - 1];
        } else if key_words > 6 && i % key_words == 4 {
            last = substitute(last);
        }
        words[i] = words[i - key_words] ^ last;
    }
    let mut blocks = [[0; 16]; ROUND_KEYS_MAX];
    for (bytes, word) in blocks.as_flattened_mut().chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    blocks
}

/// The S-box on each byte.
#[target_feature(enable = "aes,sse4.1")]
fn substitute(word: u32) -> u32 {
    // The lowest dword of the result is the substituted dword 1 of the operand.
    _mm_cvtsi128_si32(_mm_aeskeygenassist_si128::<0>(_mm_set1_epi32(word.cast_signed())))
        .cast_unsigned()
}

/// Round keys for decryption from those for encryption.
#[target_feature(enable = "aes,sse4.1")]
fn invert(encrypt: &[Block; ROUND_KEYS_MAX], rounds: usize) -> [Block; ROUND_KEYS_MAX] {
    let mut decrypt = [[0; 16]; ROUND_KEYS_MAX];
    for (round, key) in decrypt.iter_mut().take(rounds + 1).enumerate() {
        *key = encrypt[rounds - round];
        if round != 0 && round != rounds {
            // SAFETY: any 16 bytes are a vector and the reverse.
            *key = unsafe {
                std::mem::transmute::<__m128i, Block>(_mm_aesimc_si128(std::mem::transmute::<
                    Block,
                    __m128i,
                >(*key)))
            };
        }
    }
    decrypt
}
