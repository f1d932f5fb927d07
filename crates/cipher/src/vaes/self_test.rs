//! What a kernel must get right, once in a process, before it may touch data: published vectors,
//! and the same results as the portable implementation.
//!
//! Contract: takes well under a millisecond. Both algorithms, both directions, the smallest and the
//! largest sector, more sectors than the kernel takes at a time, counters that carry and wrap.
//! Deliberately absent: proof. The tests compare far more; this catches a CPU or a hypervisor that
//! doesn't do what the tests' machine did.

use sealblk_secret::SecretBytes;

use crate::{
    Algorithm, CipherError, SECTOR_BYTES_MAX, SectorCipher, decrypt_in_place, encrypt_in_place,
    portable,
};

/// Makes the cipher under test.
pub(super) type Make<'a> =
    &'a dyn Fn(Algorithm, &SecretBytes, usize) -> Result<Box<dyn SectorCipher>, CipherError>;

/// Why a kernel may not be used.
const WRONG_ANSWER: &str = "it failed its self-test: a published vector came out wrong";
const DISAGREES: &str = "it failed its self-test: it and the portable implementation disagree";
const NOT_RUN: &str = "its self-test could not be run";

/// A published vector: the first two blocks of a data unit that counts up from 0.
struct Known {
    algorithm: Algorithm,
    key: [u128; 4],
    iv: u64,
    sealed: [u128; 2],
}

/// IEEE Std 1619-2007 annex B, vectors 4 and 14. Blocks are written as they are printed there.
const KNOWN: [Known; 2] = [
    Known {
        algorithm: Algorithm::Aes128XtsPlain64,
        key: [0x2718281828459045_2353602874713526, 0x3141592653589793_2384626433832795, 0, 0],
        iv: 0,
        sealed: [0x27a7479befa1d476_489f308cd4cfa6e2, 0xa96e4bbe3208ff25_287dd3819616e89c],
    },
    Known {
        algorithm: Algorithm::Aes256XtsPlain64,
        key: [
            0x2718281828459045_2353602874713526,
            0x6249775724709369_9959574966967627,
            0x3141592653589793_2384626433832795,
            0x0288419716939937_5105820974944592,
        ],
        iv: 0xff_ffff_ffff,
        sealed: [0x64497e5a831e4a93_2c09be3e5393376d, 0xaa599548b816031d_224bbf50a818ed23],
    },
];

/// Encryption sector, sectors, first tweak: more sectors than a group, past 2^32, past the wrap.
const RUNS: [(usize, usize, u64); 3] =
    [(512, 11, (1 << 32) - 5), (SECTOR_BYTES_MAX, 1, u64::MAX - 7), (1024, 2, u64::MAX - 1)];

/// Whether the ciphers that `make` makes are right, or why they aren't.
pub(super) fn run(make: Make<'_>) -> Result<(), &'static str> {
    for known in &KNOWN {
        let bytes: Vec<u8> = known.key.iter().flat_map(|block| block.to_be_bytes()).collect();
        let bytes = &bytes[..known.algorithm.key_bytes()];
        let key = SecretBytes::copy_from(bytes).map_err(|_| NOT_RUN)?;
        known_answer(make, known, &key)?;
        for (sector_bytes, sectors, iv) in RUNS {
            let mut ours = make(known.algorithm, &key, sector_bytes).map_err(|_| NOT_RUN)?;
            let mut oracle =
                portable::new(known.algorithm, &key, sector_bytes).map_err(|_| NOT_RUN)?;
            compare(&mut *ours, &mut *oracle, iv, sectors * sector_bytes)?;
        }
    }
    Ok(())
}

fn known_answer(make: Make<'_>, known: &Known, key: &SecretBytes) -> Result<(), &'static str> {
    let mut cipher = make(known.algorithm, key, 512).map_err(|_| NOT_RUN)?;
    let plain: Vec<u8> = (0..=255).chain(0..=255).collect();
    let sealed: Vec<u8> = known.sealed.iter().flat_map(|block| block.to_be_bytes()).collect();
    let mut sector = plain.clone();
    encrypt_in_place(&mut *cipher, known.iv, &mut sector);
    if !sector.starts_with(&sealed) {
        return Err(WRONG_ANSWER);
    }
    decrypt_in_place(&mut *cipher, known.iv, &mut sector);
    if sector == plain { Ok(()) } else { Err(WRONG_ANSWER) }
}

fn compare(
    ours: &mut dyn SectorCipher,
    oracle: &mut dyn SectorCipher,
    iv: u64,
    len: usize,
) -> Result<(), &'static str> {
    // Any data without a short period will do.
    let data: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(i).wrapping_add(i) >> 5) as u8).collect();
    for transform in [encrypt_in_place, decrypt_in_place] {
        let (mut got, mut expected) = (data.clone(), data.clone());
        transform(ours, iv, &mut got);
        transform(oracle, iv, &mut expected);
        if got != expected {
            return Err(DISAGREES);
        }
    }
    Ok(())
}
