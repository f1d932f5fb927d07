//! AES-XTS from the `aes` and `xts-mode` crates: every algorithm, every machine, and the oracle
//! that other implementations are tested against. Several times slower than AWS-LC.
//!
//! Each encryption sector is copied into a scratch of its own, transformed there and copied out, so
//! that no reference to the caller's memory ever exists.
// UNSAFETY: two copies per sector through raw pointers; the work is done on an owned array.
#![expect(unsafe_code, reason = "copies from and to memory that a guest shares")]

use aes::cipher::consts::U16;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, Key, KeyInit};
use aes::{Aes128, Aes256};
use sealblk_secret::{SecretBox, SecretBytes};
use xts_mode::{Array, Xts128, get_tweak_default};

use crate::{Algorithm, CipherError, Implementation, SECTOR_BYTES_MAX, SectorCipher, iv_step};

/// The cipher of one key, for one thread.
struct Portable<C> {
    xts: SecretBox<Xts128<C>>,
    scratch: [u8; SECTOR_BYTES_MAX],
    sector_bytes: usize,
}

/// `key` has the algorithm's length; `sector_bytes` is a valid size.
pub(crate) fn new(
    algorithm: Algorithm,
    key: &SecretBytes,
    sector_bytes: usize,
) -> Result<Box<dyn SectorCipher>, CipherError> {
    Ok(match algorithm {
        Algorithm::Aes128XtsPlain64 => Box::new(Portable::<Aes128>::new(key, sector_bytes)?),
        Algorithm::Aes256XtsPlain64 => Box::new(Portable::<Aes256>::new(key, sector_bytes)?),
    })
}

impl<C> Portable<C>
where
    C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + KeyInit,
{
    fn new(key: &SecretBytes, sector_bytes: usize) -> Result<Self, CipherError> {
        let (first, second) = key.expose().split_at(key.len() / 2);
        let wrong = |_| CipherError::Unavailable {
            which: Implementation::Portable,
            why: "the key has the wrong length",
        };
        // SecretBox wipes the stack that the schedules were made on.
        let (data, tweak) = (<&Key<C>>::try_from(first), <&Key<C>>::try_from(second));
        let (data, tweak) = (data.map_err(wrong)?, tweak.map_err(wrong)?);
        let xts = SecretBox::new_with(|| Xts128::new(C::new(data), C::new(tweak)))?;
        Ok(Self { xts, scratch: [0; SECTOR_BYTES_MAX], sector_bytes })
    }

    /// Runs `transform` over every sector.
    ///
    /// # Safety
    /// As for [`SectorCipher::encrypt`].
    unsafe fn run(
        &mut self,
        mut iv: u64,
        src: *const u8,
        dst: *mut u8,
        len: usize,
        transform: impl Fn(&Xts128<C>, &mut [u8], Array<u8, U16>),
    ) {
        let bytes = self.sector_bytes;
        assert!(len.is_multiple_of(bytes), "{len} bytes are no whole encryption sectors");
        let sector = &mut self.scratch[..bytes];
        for offset in (0..len).step_by(bytes) {
            // SAFETY: `offset + bytes <= len`, within what the caller vouches for; the scratch is
            // our own. The guest may write the source meanwhile: it lies outside of what the
            // compiler knows, is read once, and any byte is a valid value.
            unsafe { src.add(offset).copy_to_nonoverlapping(sector.as_mut_ptr(), bytes) };
            transform(&self.xts, sector, get_tweak_default(iv.into()));
            // SAFETY: as above, to the destination.
            unsafe { dst.add(offset).copy_from_nonoverlapping(sector.as_ptr(), bytes) };
            iv = iv.wrapping_add(iv_step(bytes));
        }
    }
}

impl<C> SectorCipher for Portable<C>
where
    C: BlockSizeUser<BlockSize = U16> + BlockCipherEncrypt + BlockCipherDecrypt + KeyInit + Send,
{
    fn sector_bytes(&self) -> usize {
        self.sector_bytes
    }

    fn implementation(&self) -> &'static str {
        "portable (aes, xts-mode)"
    }

    unsafe fn encrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(iv, src, dst, len, Xts128::encrypt_sector) };
    }

    unsafe fn decrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.run(iv, src, dst, len, Xts128::decrypt_sector) };
    }
}
