//! A run of protected pages between two inaccessible ones.
//!
//! Contract: `[base, base + len)` is readable and writable, zero at first, and stays mapped until
//! the value is dropped; the page before and the page after fault on any access. Children don't
//! inherit the pages. Nothing here knows about allocations.
// UNSAFETY: mmap with MAP_FIXED replaces whatever is at its address. Only addresses inside a
// reservation that the same function just made, and that nobody else has seen, are used.
#![expect(unsafe_code, reason = "maps, protects and unmaps memory")]

use std::ffi::c_void;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::{io, ptr};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::Protection;

/// How pages are obtained; the arena tries them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backing {
    /// `memfd_secret(2)`.
    Secret,
    /// Anonymous pages under `mlock(2)`.
    Locked,
    /// Anonymous pages the kernel may swap.
    Plain,
}

/// Owner of the pages.
#[derive(Debug)]
pub(crate) struct Mapping {
    reservation: *mut c_void,
    page_bytes: usize,
    len_bytes: usize,
}

// SAFETY: the value owns its pages; they belong to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// The best protected pages this system gives, and how well that is. `len_bytes` is rounded up
    /// to whole pages.
    pub(crate) fn best(len_bytes: usize) -> io::Result<(Self, Protection)> {
        if let Ok(mapping) = Self::new(len_bytes, Backing::Secret) {
            return Ok((mapping, Protection::MemfdSecret));
        }
        let why = match Self::new(len_bytes, Backing::Locked) {
            Ok(mapping) => return Ok((mapping, Protection::Locked)),
            Err(error) => format!("mlock of {len_bytes} bytes: {error}; raise RLIMIT_MEMLOCK"),
        };
        Ok((Self::new(len_bytes, Backing::Plain)?, Protection::Unlocked(why)))
    }

    /// Pages of exactly this kind.
    pub(crate) fn new(len_bytes: usize, backing: Backing) -> io::Result<Self> {
        let page_bytes = rustix::param::page_size();
        let sizes = len_bytes
            .checked_next_multiple_of(page_bytes)
            .and_then(|len| Some((len, len.checked_add(2 * page_bytes)?)));
        let Some((len_bytes, reserved_bytes)) = sizes else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let reservation = unsafe {
            rustix::mm::mmap_anonymous(
                ptr::null_mut(),
                reserved_bytes,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        // From here on, dropping `mapping` unmaps the reservation whatever part of it was replaced.
        let mapping = Self { reservation, page_bytes, len_bytes };
        mapping.populate(backing)?;
        Ok(mapping)
    }

    /// Puts pages between the guards.
    fn populate(&self, backing: Backing) -> io::Result<()> {
        let base = self.base().cast::<c_void>();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        if backing == Backing::Secret {
            let fd = memfd_secret()?;
            rustix::fs::ftruncate(&fd, self.len_bytes as u64)?;
            // memfd_secret(2) allows MAP_SHARED only; it locks the pages and leaves them out of
            // dumps by itself.
            // SAFETY: the range lies inside this value's own reservation and nobody uses it yet.
            unsafe {
                rustix::mm::mmap(
                    base,
                    self.len_bytes,
                    prot,
                    MapFlags::SHARED | MapFlags::FIXED,
                    fd.as_fd(),
                    0,
                )?
            };
        } else {
            // SAFETY: as above.
            unsafe {
                rustix::mm::mmap_anonymous(
                    base,
                    self.len_bytes,
                    prot,
                    MapFlags::PRIVATE | MapFlags::FIXED,
                )?
            };
            // SAFETY: advice about own pages that changes neither their content nor access to them
            // in this process.
            unsafe { rustix::mm::madvise(base, self.len_bytes, Advice::LinuxDontDump)? };
        }
        // SAFETY: as above.
        unsafe { rustix::mm::madvise(base, self.len_bytes, Advice::LinuxDontFork)? };
        if backing == Backing::Locked {
            // SAFETY: locking own pages doesn't change their content.
            unsafe { rustix::mm::mlock(base, self.len_bytes)? };
        }
        Ok(())
    }

    /// The first usable byte; page aligned.
    pub(crate) fn base(&self) -> *mut u8 {
        self.reservation.cast::<u8>().wrapping_add(self.page_bytes)
    }

    /// Usable bytes.
    pub(crate) fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// How far into the pages `addr` lies, if it does.
    pub(crate) fn offset_of(&self, addr: usize) -> Option<usize> {
        addr.checked_sub(self.base().addr()).filter(|offset| *offset < self.len_bytes)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let reserved_bytes = self.len_bytes + 2 * self.page_bytes;
        // SAFETY: the value owns the whole reservation, and whoever drops it has given out no
        // pointer that is still used. Failure is impossible for a range that is mapped, and would
        // leak memory at worst.
        let _ = unsafe { rustix::mm::munmap(self.reservation, reserved_bytes) };
    }
}

/// `memfd_secret(2)`; rustix doesn't have it.
pub(crate) fn memfd_secret() -> io::Result<OwnedFd> {
    // SAFETY: the call takes flags only.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    match i32::try_from(fd) {
        // SAFETY: the kernel just returned this descriptor; nobody else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        Ok(_) => Err(io::Error::last_os_error()),
        Err(_) => Err(Errno::BADF.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `Name: value` lines of /proc/self/smaps for the mapping that contains `addr`.
    fn smaps_of(addr: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut found = String::new();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            if let Some((start, end)) = range
                && let (Ok(start), Ok(end)) =
                    (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16))
            {
                inside = (start..end).contains(&addr);
            }
            if inside {
                found.push_str(line);
                found.push('\n');
            }
        }
        found
    }

    fn flags_of(addr: usize) -> Vec<String> {
        let smaps = smaps_of(addr);
        let flags = smaps.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        flags.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn every_kind_of_page_stays_out_of_dumps_and_children() {
        for backing in [Backing::Secret, Backing::Locked, Backing::Plain] {
            let mapping = match Mapping::new(5000, backing) {
                Ok(mapping) => mapping,
                // A kernel or container without it: the arena falls back, and so does this test.
                Err(_) if backing != Backing::Plain => continue,
                Err(error) => panic!("{backing:?}: {error}"),
            };
            assert_eq!(mapping.len_bytes() % rustix::param::page_size(), 0);
            let flags = flags_of(mapping.base().addr());
            // smaps flags: dd = don't dump, dc = don't copy on fork, lo = locked (proc(5)).
            assert!(flags.contains(&"dd".to_owned()), "{backing:?}: {flags:?}");
            assert!(flags.contains(&"dc".to_owned()), "{backing:?}: {flags:?}");
            assert_eq!(flags.contains(&"lo".to_owned()), backing != Backing::Plain, "{flags:?}");
        }
    }

    #[test]
    fn the_pages_around_the_usable_ones_are_inaccessible() {
        let (mapping, _) = Mapping::best(1).unwrap();
        let base = mapping.base().addr();
        for guard in [base - 1, base + mapping.len_bytes()] {
            let smaps = smaps_of(guard);
            let rights = smaps.split_whitespace().nth(1).unwrap();
            assert!(rights.starts_with("---"), "{rights}");
        }
    }

    #[test]
    fn fresh_pages_are_zero() {
        let (mapping, _) = Mapping::best(8192).unwrap();
        // SAFETY: the mapping is readable for its whole length and nobody writes to it.
        let bytes = unsafe { std::slice::from_raw_parts(mapping.base(), mapping.len_bytes()) };
        assert!(bytes.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Mapping::best(usize::MAX - 5).is_err());
        assert!(Mapping::best(1 << 60).is_err());
    }
}
