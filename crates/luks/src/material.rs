//! Key material of a keyslot: a volume key, split and encrypted under the key derived from a
//! passphrase. The same in LUKS1 and LUKS2: 512-byte sectors, IV from 0.

use sealblk_cipher::{
    Algorithm, Implementation, decrypt_in_place, encrypt_in_place, sector_cipher,
};
use sealblk_secret::SecretBytes;

use crate::af;
use crate::error::LuksError;
use crate::hash::Hash;
use crate::io::{Random, ReadAt};
use crate::read_vec;

/// Keyslot areas are encrypted in sectors of 512 bytes, whatever the data's sector size.
const AREA_SECTOR_BYTES: u32 = 512;

/// Bytes that the material of a key occupies: the split key, in whole sectors.
pub(crate) fn material_bytes(key_bytes: u32) -> u64 {
    af::split_bytes(key_bytes).next_multiple_of(u64::from(AREA_SECTOR_BYTES))
}

/// The algorithm that [`ENCRYPTION`] means with keys of this length.
pub(crate) fn algorithm(key_bytes: u32) -> Option<Algorithm> {
    [Algorithm::Aes128XtsPlain64, Algorithm::Aes256XtsPlain64]
        .into_iter()
        .find(|algorithm| algorithm.key_bytes() as u64 == u64::from(key_bytes))
}

/// The one encryption we accept. The storage is not trusted, so the header may not choose: a null
/// or malleable cipher put there by the storage would hand it the data (CVE-2025-59054).
pub(crate) const ENCRYPTION: &str = "aes-xts-plain64";

/// Reads and opens the material at `offset_bytes`. A wrong `slot_key` gives a wrong key, to be told
/// by its digest.
pub(crate) fn open(
    io: &mut dyn ReadAt,
    offset_bytes: u64,
    slot_key: &SecretBytes,
    key_bytes: u32,
    af_hash: Hash,
) -> Result<SecretBytes, LuksError> {
    // Ciphertext comes by way of ordinary memory: the storage may want to read with O_DIRECT, which
    // key memory does not admit.
    let ciphertext = read_vec(io, offset_bytes, material_len(key_bytes)?)?;
    let mut split = SecretBytes::copy_from(&ciphertext)?;
    let key = decrypt_and_merge(&mut split, slot_key, key_bytes, af_hash);
    sealblk_secret::wipe_stack();
    key
}

/// In a frame of its own, which [`sealblk_secret::wipe_stack`] then overwrites.
#[inline(never)]
fn decrypt_and_merge(
    split: &mut SecretBytes,
    slot_key: &SecretBytes,
    key_bytes: u32,
    af_hash: Hash,
) -> Result<SecretBytes, LuksError> {
    let algorithm = area_algorithm(slot_key)?;
    let mut cipher = sector_cipher(algorithm, slot_key, AREA_SECTOR_BYTES, Implementation::Auto)?;
    decrypt_in_place(cipher.as_mut(), 0, split.expose_mut());
    af::merge(af_hash, split.expose(), key_bytes as usize)
}

/// Splits and encrypts `volume_key` under `slot_key`: the bytes to write into the keyslot's area.
pub(crate) fn seal(
    volume_key: &SecretBytes,
    slot_key: &SecretBytes,
    af_hash: Hash,
    random: &mut Random<'_>,
) -> Result<Vec<u8>, LuksError> {
    let mut sectors = SecretBytes::zeroed(material_len(volume_key.len() as u32)?)?;
    let sealed = split_and_encrypt(&mut sectors, volume_key, slot_key, af_hash, random);
    sealblk_secret::wipe_stack();
    sealed?;
    // Ciphertext by now.
    Ok(sectors.expose().to_vec())
}

/// In a frame of its own, as [`decrypt_and_merge`].
#[inline(never)]
fn split_and_encrypt(
    sectors: &mut SecretBytes,
    volume_key: &SecretBytes,
    slot_key: &SecretBytes,
    af_hash: Hash,
    random: &mut Random<'_>,
) -> Result<(), LuksError> {
    let algorithm = area_algorithm(slot_key)?;
    af::split(af_hash, volume_key, sectors, random)?;
    let mut cipher = sector_cipher(algorithm, slot_key, AREA_SECTOR_BYTES, Implementation::Auto)?;
    encrypt_in_place(cipher.as_mut(), 0, sectors.expose_mut());
    Ok(())
}

fn material_len(key_bytes: u32) -> Result<usize, LuksError> {
    usize::try_from(material_bytes(key_bytes))
        .map_err(|_| LuksError::Kdf("key material larger than memory".into()))
}

fn area_algorithm(slot_key: &SecretBytes) -> Result<Algorithm, LuksError> {
    u32::try_from(slot_key.expose().len())
        .ok()
        .and_then(algorithm)
        .ok_or_else(|| LuksError::Kdf("keyslot key of a length that no cipher has".into()))
}
