//! A secret that another process can be handed: in memory behind a descriptor.
//!
//! Contract: the content never changes once it is made. `memfd_secret(2)` where it exists; else a
//! memfd that every holder maps and locks, for the kernel could swap its pages otherwise. Whoever has
//! the descriptor has the secret.
// UNSAFETY: the pages are mapped by hand, as memfd_secret(2) knows no read(2).
#![expect(unsafe_code, reason = "maps, reads and unmaps memory")]

use std::ffi::c_void;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::{fmt, io, ptr, slice};

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::mapping::memfd_secret;
use crate::{SecretBytes, SecretError};

/// A secret behind a descriptor; its memory goes with the last descriptor and mapping.
pub struct SharedSecret {
    descriptor: OwnedFd,
    map: Map,
    len: usize,
}

impl SharedSecret {
    /// A copy of `secret`, which must not be empty.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`].
    pub fn new(secret: &SecretBytes) -> Result<Self, SecretError> {
        let len = secret.len();
        let fail = |source| SecretError::OutOfMemory { bytes: len, source };
        let descriptor = match memfd_secret() {
            Ok(descriptor) => descriptor,
            Err(_) => rustix::fs::memfd_create("sealblk-secret", MemfdFlags::CLOEXEC)
                .map_err(|errno| fail(errno.into()))?,
        };
        rustix::fs::ftruncate(&descriptor, len as u64).map_err(|errno| fail(errno.into()))?;
        let map = Map::new(descriptor.as_fd(), len).map_err(fail)?;
        // SAFETY: the map is writable, `len` bytes long, and nobody else knows of it yet.
        unsafe { ptr::copy_nonoverlapping(secret.expose().as_ptr(), map.start.cast(), len) };
        Ok(Self { descriptor, map, len })
    }

    /// What another process made by [`Self::new`] and handed over.
    ///
    /// # Errors
    /// It is empty, longer than `max_bytes`, or can't be mapped.
    pub fn from_descriptor(descriptor: OwnedFd, max_bytes: usize) -> Result<Self, SecretError> {
        let stat =
            rustix::fs::fstat(&descriptor).map_err(|errno| SecretError::Read(errno.into()))?;
        let len = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
        if len > max_bytes {
            return Err(SecretError::TooLong { max_bytes });
        }
        if len == 0 {
            return Err(SecretError::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        let map = Map::new(descriptor.as_fd(), len).map_err(SecretError::Read)?;
        Ok(Self { descriptor, map, len })
    }

    /// A copy in this process's own protected memory.
    ///
    /// # Errors
    /// [`SecretError::OutOfMemory`].
    pub fn read(&self) -> Result<SecretBytes, SecretError> {
        // SAFETY: the map is readable, `len` bytes long and lives as long as `self`. Its content
        // changes only if a process that was trusted with the secret breaks its word: the bytes are
        // then others, and still bytes.
        SecretBytes::copy_from(unsafe { slice::from_raw_parts(self.map.start.cast(), self.len) })
    }
}

impl AsFd for SharedSecret {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl fmt::Debug for SharedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedSecret({} bytes)", self.len)
    }
}

/// A shared mapping of a descriptor's pages.
struct Map {
    start: *mut c_void,
    len: usize,
}

// SAFETY: the value owns its mapping, which belongs to the process; after `new` it is only read.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(descriptor: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, descriptor, 0)?
        };
        let map = Self { start, len };
        for advice in [Advice::LinuxDontDump, Advice::LinuxDontFork] {
            // SAFETY: advice about own pages that changes neither their content nor access to them.
            unsafe { rustix::mm::madvise(start, len, advice)? };
        }
        // memfd_secret's pages are locked already. Where the limit forbids the lock, the arena has
        // said so (`protection`), and a guest that gets no disk is worse.
        // SAFETY: locking own pages doesn't change their content.
        let _ = unsafe { rustix::mm::mlock(start, len) };
        Ok(map)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the value owns the mapping, and references to it don't outlive the value.
        let _ = unsafe { rustix::mm::munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_the_descriptor_reads_the_secret() {
        for len in [1, 64, 4096, 5000] {
            let secret = SecretBytes::copy_from(&vec![7; len]).unwrap();
            let shared = SharedSecret::new(&secret).unwrap();
            let handed = shared.as_fd().try_clone_to_owned().unwrap();
            drop(shared);
            let other = SharedSecret::from_descriptor(handed, 5000).unwrap();
            assert!(other.read().unwrap().ct_eq(secret.expose()));
            assert_eq!(format!("{other:?}"), format!("SharedSecret({len} bytes)"));
        }
    }

    #[test]
    fn what_is_no_secret_of_ours_is_refused() {
        let secret = SecretBytes::copy_from(&[7; 65]).unwrap();
        let shared = SharedSecret::new(&secret).unwrap();
        let handed = shared.as_fd().try_clone_to_owned().unwrap();
        let error = SharedSecret::from_descriptor(handed, 64).unwrap_err();
        assert!(matches!(error, SecretError::TooLong { max_bytes: 64 }));
        let empty = rustix::fs::memfd_create("empty", MemfdFlags::CLOEXEC).unwrap();
        assert!(SharedSecret::from_descriptor(empty, 64).is_err());
        let (reader, _writer) = io::pipe().unwrap();
        assert!(SharedSecret::from_descriptor(reader.into(), 64).is_err());
    }
}
