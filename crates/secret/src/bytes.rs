//! A run of secret bytes.
// UNSAFETY: the value owns its block; slices borrow from the value. Nothing else has the pointer.
#![expect(unsafe_code, reason = "views an arena block as a slice")]

use std::alloc::Layout;
use std::hint::black_box;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::{fmt, io, slice};

use zeroize::Zeroize;

use crate::{SecretError, arena};

/// Most that a key file may hold, in bytes: what `cryptsetup` allows by default (its
/// `--help` prints "Maximum keyfile size: 8192kB").
pub const KEYFILE_MAX_BYTES: usize = 8 << 20;

/// First guess for sources that don't tell their size (pipes, sockets).
const READ_GUESS_BYTES: usize = 4096;

/// Bytes in protected memory, of a length that only shrinks; wiped when dropped.
pub struct SecretBytes {
    block: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: the value owns its block, which belongs to the process; shared access is read-only.
unsafe impl Send for SecretBytes {}
// SAFETY: as above.
unsafe impl Sync for SecretBytes {}

impl SecretBytes {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`].
    pub fn zeroed(len: usize) -> Result<Self, SecretError> {
        let layout = Layout::array::<u8>(len).map_err(|_| SecretError::OutOfMemory {
            bytes: len,
            source: io::ErrorKind::OutOfMemory.into(),
        })?;
        Ok(Self { block: arena::take(layout)?, layout, len })
    }

    /// A copy; the caller wipes the original.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`].
    pub fn copy_from(bytes: &[u8]) -> Result<Self, SecretError> {
        let mut secret = Self::zeroed(bytes.len())?;
        secret.expose_mut().copy_from_slice(bytes);
        Ok(secret)
    }

    /// Another copy of the same secret.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`].
    pub fn try_clone(&self) -> Result<Self, SecretError> {
        Self::copy_from(self.expose())
    }

    /// Everything that `fd` yields up to its end, at most `max_bytes` ([`KEYFILE_MAX_BYTES`] for
    /// key files), read straight into protected memory: no copy remains in this process.
    ///
    /// # Errors
    /// [`SecretError::TooLong`], [`SecretError::Read`], [`SecretError::OutOfMemory`].
    pub fn read_from(fd: impl AsFd, max_bytes: usize) -> Result<Self, SecretError> {
        let stat = rustix::fs::fstat(&fd).map_err(|error| SecretError::Read(error.into()))?;
        let known = usize::try_from(stat.st_size).ok().filter(|size| *size > 0);
        // One byte more than allowed or expected, to see the end in the same read.
        let limit = max_bytes.saturating_add(1);
        let guess = known.map_or(READ_GUESS_BYTES, |size| size.saturating_add(1));
        let mut secret = Self::zeroed(guess.min(limit))?;
        let mut filled = 0;
        loop {
            if filled > max_bytes {
                return Err(SecretError::TooLong { max_bytes });
            }
            if filled == secret.len() {
                let mut larger = Self::zeroed(filled.saturating_mul(2).clamp(1, limit))?;
                larger.expose_mut()[..filled].copy_from_slice(secret.expose());
                secret = larger;
            }
            match rustix::io::read(&fd, &mut secret.expose_mut()[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(SecretError::Read(error.into())),
            }
        }
        secret.truncate(filled);
        Ok(secret)
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The content. Whoever copies it is responsible for the copy.
    pub fn expose(&self) -> &[u8] {
        // SAFETY: the block has at least `len` initialized bytes (arena memory starts zeroed) and
        // lives as long as `self`.
        unsafe { slice::from_raw_parts(self.block.as_ptr(), self.len) }
    }

    /// The content, to be changed.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { slice::from_raw_parts_mut(self.block.as_ptr(), self.len) }
    }

    /// Keeps the first `len` bytes and wipes the rest at once. A longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.expose_mut()[len..].zeroize();
            self.len = len;
        }
    }

    /// Whether the content equals `other`, in a time that depends on the lengths only.
    pub fn ct_eq(&self, other: &[u8]) -> bool {
        if self.len != other.len() {
            return false;
        }
        let pairs = self.expose().iter().zip(other);
        // The barrier keeps the compiler from leaving the loop at the first difference.
        pairs.fold(0u8, |difference, (a, b)| black_box(difference | (a ^ b))) == 0
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        // SAFETY: the block came from the arena with this layout and nobody else has its address.
        unsafe { arena::dealloc(self.block.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn file_of(content: &[u8]) -> std::fs::File {
        let fd = rustix::fs::memfd_create("key", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn debug_shows_the_length_and_nothing_else() {
        let secret = SecretBytes::copy_from(b"hunter2").unwrap();
        assert_eq!(format!("{secret:?}"), "SecretBytes(7 bytes)");
    }

    #[test]
    fn equality_looks_at_every_byte_and_at_the_length() {
        let secret = SecretBytes::copy_from(b"abcdef").unwrap();
        assert!(secret.ct_eq(b"abcdef"));
        assert!(secret.try_clone().unwrap().ct_eq(secret.expose()));
        assert!(!secret.ct_eq(b"abcdeF"));
        assert!(!secret.ct_eq(b"Abcdef"));
        assert!(!secret.ct_eq(b"abcde"));
        assert!(SecretBytes::zeroed(0).unwrap().ct_eq(b""));
    }

    #[test]
    fn truncation_wipes_what_it_cuts_off() {
        let mut secret = SecretBytes::copy_from(b"keep-and-cut").unwrap();
        secret.truncate(4);
        secret.truncate(9);
        assert_eq!(secret.expose(), b"keep");
        // SAFETY: the block still has the twelve bytes it was made with.
        let whole = unsafe { slice::from_raw_parts(secret.block.as_ptr(), 12) };
        assert_eq!(whole, b"keep\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn a_file_is_read_whole_and_byte_for_byte() {
        for len in [0, 1, 4095, 4096, 4097, 100_000] {
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let secret = SecretBytes::read_from(file_of(&content), KEYFILE_MAX_BYTES).unwrap();
            assert_eq!(secret.expose(), content);
        }
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        let content: Vec<u8> = (0..20_000).map(|i| (i % 253) as u8).collect();
        let expected = content.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&content));
        let secret = SecretBytes::read_from(reader, KEYFILE_MAX_BYTES).unwrap();
        feeder.join().unwrap().unwrap();
        assert_eq!(secret.expose(), expected);
    }

    #[test]
    fn one_byte_beyond_the_limit_is_refused() {
        assert_eq!(SecretBytes::read_from(file_of(&[1; 32]), 32).unwrap().len(), 32);
        let error = SecretBytes::read_from(file_of(&[1; 33]), 32).unwrap_err();
        assert!(matches!(error, SecretError::TooLong { max_bytes: 32 }), "{error}");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(&[1; 5000]).unwrap();
        drop(writer);
        assert!(matches!(SecretBytes::read_from(reader, 4999), Err(SecretError::TooLong { .. })));
    }

    #[test]
    fn an_unreadable_descriptor_is_an_error() {
        let (_reader, writer) = io::pipe().unwrap();
        assert!(matches!(SecretBytes::read_from(writer, 10), Err(SecretError::Read(_))));
    }

    #[test]
    fn an_impossible_length_is_an_error() {
        assert!(SecretBytes::zeroed(usize::MAX).is_err());
        assert!(SecretBytes::zeroed(1 << 60).is_err());
    }
}
