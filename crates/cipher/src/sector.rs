//! The interface of every cipher, and the safe way to it for memory that is nobody else's: headers,
//! key material, tests.
// UNSAFETY: a guest may write its memory at any time, so no reference to it may exist and the
// interface has to take pointers. The safe functions get both from one exclusive slice.
#![expect(unsafe_code, reason = "the interface takes raw pointers, because guests share memory")]

/// XTS under one key. One per thread; it may keep state between calls (the tweak), never data.
pub trait SectorCipher: Send {
    /// Size of an encryption sector in bytes: 512, 1024, 2048 or 4096.
    fn sector_bytes(&self) -> usize;

    /// What does the work, for the log and `status`.
    fn implementation(&self) -> &'static str;

    /// Encrypts `len` bytes from `src` to `dst`. `iv` is the first encryption sector's tweak; it
    /// grows by `sector_bytes / 512` per encryption sector. What other parties write into `src`
    /// meanwhile makes the result unpredictable, never unsound.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for `len` bytes, they are equal or disjoint, and no
    /// reference to either range is live.
    ///
    /// # Panics
    /// If `len` is no multiple of the encryption sector: the caller's arithmetic is broken.
    unsafe fn encrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize);

    /// The reverse of [`Self::encrypt`].
    ///
    /// # Safety
    /// As for [`Self::encrypt`].
    ///
    /// # Panics
    /// As for [`Self::encrypt`].
    unsafe fn decrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize);
}

/// Encrypts `buf`, whole encryption sectors, in place. `iv` as in [`SectorCipher::encrypt`].
///
/// # Panics
/// If `buf` is no multiple of the encryption sector.
pub fn encrypt_in_place(cipher: &mut dyn SectorCipher, iv: u64, buf: &mut [u8]) {
    let ptr = buf.as_mut_ptr();
    // SAFETY: `buf` is borrowed exclusively for the call and not touched but through `ptr`; equal
    // pointers are allowed.
    unsafe { cipher.encrypt(iv, ptr, ptr, buf.len()) };
}

/// Decrypts `buf`, whole encryption sectors, in place. `iv` as in [`SectorCipher::encrypt`].
///
/// # Panics
/// If `buf` is no multiple of the encryption sector.
pub fn decrypt_in_place(cipher: &mut dyn SectorCipher, iv: u64, buf: &mut [u8]) {
    let ptr = buf.as_mut_ptr();
    // SAFETY: as above.
    unsafe { cipher.decrypt(iv, ptr, ptr, buf.len()) };
}

#[cfg(test)]
mod tests;
