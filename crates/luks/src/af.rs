//! The anti-forensic splitter of LUKS (LUKS1 specification 1.2.3 section 2.4): a key blown up to
//! `stripes` times its size, of which every bit is needed to get it back.
//!
//! Contract: the split form is as secret as the key (it *is* the key, unkeyed): callers keep it in
//! key memory, and encrypt and decrypt it in place there.

use sealblk_secret::SecretBytes;
use zeroize::Zeroizing;

use crate::error::LuksError;
use crate::hash::Hash;
use crate::io::Random;

/// The one stripe count in use, of LUKS1 and LUKS2 alike.
pub(crate) const STRIPES: u32 = 4000;

/// Bytes of a split key.
pub(crate) fn split_bytes(key_bytes: u32) -> u64 {
    u64::from(key_bytes) * u64::from(STRIPES)
}

/// Replaces `block` by its diffusion: each digest-sized chunk by H(be32(chunk number) || chunk),
/// the last one cut to fit.
fn diffuse(hash: Hash, block: &mut [u8]) {
    let mut copy = Zeroizing::new([0_u8; 64]);
    for (number, chunk) in (0_u32..).zip(block.chunks_mut(hash.bytes())) {
        let before = &mut copy[..chunk.len()];
        before.copy_from_slice(chunk);
        hash.digest_into(&[&number.to_be_bytes(), before], chunk);
    }
}

fn xor_into(into: &mut [u8], with: &[u8]) {
    into.iter_mut().zip(with).for_each(|(byte, other)| *byte ^= other);
}

/// The key from its split form; `split` holds `STRIPES` times `key_bytes`, what follows is ignored.
pub(crate) fn merge(hash: Hash, split: &[u8], key_bytes: usize) -> Result<SecretBytes, LuksError> {
    assert!(split.len() as u64 >= split_bytes(key_bytes as u32), "a whole split key");
    let mut state = SecretBytes::zeroed(key_bytes)?;
    for (number, stripe) in split.chunks_exact(key_bytes).take(STRIPES as usize).enumerate() {
        xor_into(state.expose_mut(), stripe);
        if number + 1 < STRIPES as usize {
            diffuse(hash, state.expose_mut());
        }
    }
    Ok(state)
}

/// Splits `key` into the first `STRIPES` times its length of `split`: all stripes but the last are
/// random, the last completes them.
pub(crate) fn split(
    hash: Hash,
    key: &SecretBytes,
    split: &mut SecretBytes,
    random: &mut Random<'_>,
) -> Result<(), LuksError> {
    let key_bytes = key.expose().len();
    assert!(split.len() as u64 >= split_bytes(key_bytes as u32), "room for a whole split key");
    let (stripes, last) = split.expose_mut().split_at_mut(key_bytes * (STRIPES as usize - 1));
    let last = &mut last[..key_bytes];
    random(stripes).map_err(LuksError::Random)?;
    let mut state = SecretBytes::zeroed(key_bytes)?;
    for stripe in stripes.chunks_exact(key_bytes) {
        xor_into(state.expose_mut(), stripe);
        diffuse(hash, state.expose_mut());
    }
    last.copy_from_slice(state.expose());
    xor_into(last, key.expose());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_a_split_key_gives_it_back_for_every_hash_and_size() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            for key_bytes in [32_usize, 64] {
                let key: Vec<u8> = (0..key_bytes as u8).map(|byte| byte.wrapping_mul(37)).collect();
                let key = SecretBytes::copy_from(&key).unwrap();
                let mut random = |buf: &mut [u8]| {
                    getrandom::fill(buf).unwrap();
                    Ok(())
                };
                let mut parts = SecretBytes::zeroed(key_bytes * STRIPES as usize).unwrap();
                split(hash, &key, &mut parts, &mut random).unwrap();
                assert!(merge(hash, parts.expose(), key_bytes).unwrap().ct_eq(key.expose()));
                parts.expose_mut()[5000] ^= 1;
                assert!(!merge(hash, parts.expose(), key_bytes).unwrap().ct_eq(key.expose()));
            }
        }
    }
}
