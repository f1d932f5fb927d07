//! AES-256-XTS from AWS-LC, through its EVP interface.
//!
//! Contract: one context per direction, keyed once; per encryption sector only the tweak is set.
//! All that AWS-LC allocates, its expanded keys included, lies in the `secret` arena: its allocator
//! is replaced before its first use. That is process-wide, so nothing else in this process may use
//! AWS-LC before, and whatever uses it afterwards allocates in the arena too.
//! Deliberately absent: AES-128 (AWS-LC has no XTS for it) and any use of its error queue.
// UNSAFETY: a C library. Contexts are owned by one value and freed by it; pointers are passed on
// with the lengths that the caller vouches for.
#![expect(unsafe_code, reason = "calls AWS-LC")]

#[cfg(feature = "fips")]
use aws_lc_fips_sys as aws_lc;
#[cfg(not(feature = "fips"))]
use aws_lc_sys as aws_lc;

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use sealblk_secret::{SecretBytes, wipe_stack};

use crate::{CipherError, Implementation, SectorCipher, iv_step};

const NAME: &str = if cfg!(feature = "fips") { "AWS-LC FIPS" } else { "AWS-LC" };

/// Length of an XTS tweak in bytes (IEEE 1619 section 5.1).
const TWEAK_BYTES: usize = 16;

const fn unavailable(why: &'static str) -> CipherError {
    CipherError::Unavailable { which: Implementation::AwsLc, why }
}

/// The cipher of one key, for one thread.
pub(crate) struct AwsLc {
    encrypt: Context,
    decrypt: Context,
    sector_bytes: usize,
}

impl AwsLc {
    /// `key` has 64 bytes with different halves; `sector_bytes` is a valid size.
    pub(crate) fn new(key: &SecretBytes, sector_bytes: usize) -> Result<Self, CipherError> {
        if !use_arena() {
            return Err(unavailable("AWS-LC was used before its memory could be protected"));
        }
        let encrypt = Context::new(key, Direction::Encrypt)?;
        let decrypt = Context::new(key, Direction::Decrypt)?;
        wipe_stack();
        Ok(Self { encrypt, decrypt, sector_bytes })
    }
}

impl SectorCipher for AwsLc {
    fn sector_bytes(&self) -> usize {
        self.sector_bytes
    }

    fn implementation(&self) -> &'static str {
        NAME
    }

    unsafe fn encrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.encrypt.run(self.sector_bytes, iv, src, dst, len) };
    }

    unsafe fn decrypt(&mut self, iv: u64, src: *const u8, dst: *mut u8, len: usize) {
        // SAFETY: passed on from the caller.
        unsafe { self.decrypt.run(self.sector_bytes, iv, src, dst, len) };
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Decrypt = 0,
    Encrypt = 1,
}

/// A keyed `EVP_CIPHER_CTX`.
struct Context(NonNull<aws_lc::EVP_CIPHER_CTX>);

// SAFETY: AWS-LC binds contexts to no thread; `&mut self` keeps two from using one at a time.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &SecretBytes, direction: Direction) -> Result<Self, CipherError> {
        const NO_MEMORY: CipherError = unavailable("it found no memory for its keys");
        // SAFETY: takes nothing.
        let context = unsafe { aws_lc::EVP_CIPHER_CTX_new() };
        let context = Self(NonNull::new(context).ok_or(NO_MEMORY)?);
        // SAFETY: takes nothing; returns a constant.
        let cipher = unsafe { aws_lc::EVP_aes_256_xts() };
        // SAFETY: takes a constant.
        let wanted_bytes = unsafe { aws_lc::EVP_CIPHER_key_length(cipher) } as usize;
        assert!(key.len() == wanted_bytes, "AES-256-XTS takes {wanted_bytes} bytes of key");
        // SAFETY: the context is live and ours; the key has the length that the cipher reads; no
        // engine and (yet) no tweak are allowed to be null.
        let ok = unsafe {
            aws_lc::EVP_CipherInit_ex(
                context.0.as_ptr(),
                cipher,
                ptr::null_mut(),
                key.expose().as_ptr(),
                ptr::null(),
                direction as c_int,
            )
        };
        if ok == 1 { Ok(context) } else { Err(NO_MEMORY) }
    }

    /// One direction of [`SectorCipher`].
    ///
    /// # Safety
    /// As for [`SectorCipher::encrypt`].
    unsafe fn run(
        &mut self,
        sector_bytes: usize,
        mut iv: u64,
        src: *const u8,
        dst: *mut u8,
        len: usize,
    ) {
        assert!(len.is_multiple_of(sector_bytes), "{len} bytes are no whole encryption sectors");
        let step = iv_step(sector_bytes);
        let mut tweak = [0u8; TWEAK_BYTES];
        for offset in (0..len).step_by(sector_bytes) {
            tweak[..8].copy_from_slice(&iv.to_le_bytes());
            // SAFETY: the context is keyed, so cipher and key may be null and stay as they are (as
            // the direction does for -1); the tweak has the 16 bytes that XTS copies.
            let tweaked = unsafe {
                aws_lc::EVP_CipherInit_ex(
                    self.0.as_ptr(),
                    ptr::null(),
                    ptr::null_mut(),
                    ptr::null(),
                    tweak.as_ptr(),
                    -1,
                )
            };
            // EVP_Cipher is the leanest call: EVP_EncryptUpdate adds only bookkeeping for partial
            // blocks around the same function.
            // SAFETY: `offset + sector_bytes <= len`, so both ranges lie within what the caller
            // vouches for, equal or disjoint; XTS handles both. AWS-LC takes raw pointers and a
            // concurrent writer of `src` changes data only, never an address or a length.
            let done = unsafe {
                aws_lc::EVP_Cipher(self.0.as_ptr(), dst.add(offset), src.add(offset), sector_bytes)
            };
            // Neither call can fail on a keyed context. If one did, going on would write plaintext.
            assert!(tweaked == 1 && done == 1, "AWS-LC refused a sector");
            iv = iv.wrapping_add(step);
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the value owns the context; its memory is wiped as the arena takes it back.
        unsafe { aws_lc::EVP_CIPHER_CTX_free(self.0.as_ptr()) };
    }
}

/// Directs AWS-LC's allocations into the arena, once; false if somebody set an allocator before.
fn use_arena() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| {
        // SAFETY: the functions are malloc, realloc and free as C has them; they call no AWS-LC
        // and never unwind. What was allocated before, if anything, is left alone by `release`.
        let set = unsafe {
            aws_lc::CRYPTO_set_mem_functions(Some(allocate), Some(reallocate), Some(release))
        };
        set == 1
    })
}

unsafe extern "C" fn allocate(bytes: usize, _: *const c_char, _: c_int) -> *mut c_void {
    sealblk_secret::c_alloc(bytes).cast()
}

unsafe extern "C" fn reallocate(
    old: *mut c_void,
    bytes: usize,
    _: *const c_char,
    _: c_int,
) -> *mut c_void {
    // SAFETY: AWS-LC passes what `allocate` or `reallocate` returned and drops it on success.
    unsafe { sealblk_secret::c_realloc(old.cast(), bytes) }.cast()
}

unsafe extern "C" fn release(old: *mut c_void, _: *const c_char, _: c_int) {
    // SAFETY: AWS-LC passes what `allocate` or `reallocate` returned and doesn't use it again.
    unsafe { sealblk_secret::c_free(old.cast()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags in /proc/self/smaps of the mapping that `addr` lies in.
    fn flags_of(addr: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&addr);
            } else if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                return flags.to_owned();
            }
        }
        panic!("{addr:#x} is not mapped");
    }

    #[test]
    fn expanded_keys_lie_in_protected_memory() {
        let bytes: Vec<u8> = (0..64).collect();
        let cipher = AwsLc::new(&SecretBytes::copy_from(&bytes).unwrap(), 512).unwrap();
        for context in [&cipher.encrypt, &cipher.decrypt] {
            // SAFETY: the context is live and nobody changes it.
            let schedule = unsafe { context.0.as_ref() }.cipher_data.addr();
            for addr in [context.0.as_ptr().addr(), schedule] {
                // smaps flags: dd = don't dump, dc = don't copy on fork (proc(5)); no ordinary
                // heap has either.
                let flags = flags_of(addr);
                assert!(flags.contains(" dd") && flags.contains(" dc"), "{flags}");
            }
        }
        let heap = Box::new(1);
        assert!(!flags_of((&raw const *heap).addr()).contains(" dd"));
    }
}
