//! From the old key to the new one, in place.

use sealblk_cipher::{
    Implementation, SectorCipher, decrypt_in_place, encrypt_in_place, sector_cipher,
};
use sealblk_secret::SecretBytes;

use super::state::Reencryption;
use crate::error::LuksError;
use crate::material;

/// Both ciphers go over a piece of this size while it is in the processor's cache; no more plaintext
/// than this lies in memory at a time.
const PIECE_BYTES: usize = 4096;

/// Ciphers of the old and the new key. One per thread.
pub struct Recryptor {
    old: Box<dyn SectorCipher>,
    new: Box<dyn SectorCipher>,
    old_iv: u64,
    new_iv: u64,
}

impl std::fmt::Debug for Recryptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recryptor")
    }
}

impl Recryptor {
    pub(super) fn new(
        found: &Reencryption,
        old: &SecretBytes,
        new: &SecretBytes,
        which: Implementation,
    ) -> Result<Self, LuksError> {
        let cipher = |key: &SecretBytes| {
            let bytes = u32::try_from(key.len()).unwrap_or(0);
            let algorithm = material::algorithm(bytes).ok_or(LuksError::ForeignKey)?;
            Ok::<_, LuksError>(sector_cipher(algorithm, key, found.sector_bytes, which)?)
        };
        Ok(Self {
            old: cipher(old)?,
            new: cipher(new)?,
            old_iv: found.old.iv_tweak,
            new_iv: found.new.iv_tweak,
        })
    }

    /// Turns old ciphertext into new. `offset_bytes` is from the start of the data; both it and the
    /// length are whole encryption sectors.
    ///
    /// # Panics
    /// If they aren't: the caller's arithmetic is broken.
    pub fn recrypt(&mut self, offset_bytes: u64, buf: &mut [u8]) {
        assert!(
            offset_bytes.is_multiple_of(self.old.sector_bytes() as u64),
            "offset {offset_bytes} cuts an encryption sector"
        );
        let mut sector = offset_bytes / 512;
        for piece in buf.chunks_mut(PIECE_BYTES) {
            decrypt_in_place(self.old.as_mut(), self.old_iv + sector, piece);
            encrypt_in_place(self.new.as_mut(), self.new_iv + sector, piece);
            sector += piece.len() as u64 / 512;
        }
    }
}
