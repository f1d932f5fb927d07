//! The stack of a thread that works with keys all its life.
//!
//! A cipher with more round keys than registers spills some of them to the stack on every call, so
//! wiping afterwards would cost each request. Such a thread's stack is protected like the arena
//! instead.
// UNSAFETY: asks pthreads for the bounds of the calling thread's own stack, and advises the kernel
// about those pages.
#![expect(
    unsafe_code,
    reason = "stack bounds come from pthreads; madvise and mlock take addresses"
)]

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::{io, ptr};

use rustix::mm::{Advice, MlockFlags, madvise, mlock_with};

use crate::SecretError;

/// Keeps the calling thread's stack out of dumps and of swap, for as long as the thread lives. What
/// is not in use yet stays untouched: pages are locked when they are first used.
///
/// # Errors
/// [`SecretError::Harden`]: usually the limit on locked memory (`RLIMIT_MEMLOCK`). The stack is
/// kept out of dumps even then.
pub fn protect_stack() -> Result<(), SecretError> {
    let fail = |what| move |source: io::Error| SecretError::Harden { what, source };
    let (addr, len) = stack_bounds().map_err(fail("asking for the stack's bounds"))?;
    // SAFETY: the range is the calling thread's stack, mapped while the thread runs. The advice
    // changes no content.
    unsafe { madvise(addr, len, Advice::LinuxDontDump) }
        .map_err(|error| fail("keeping the stack out of dumps")(error.into()))?;
    // SAFETY: as above; locking changes no content either.
    unsafe { mlock_with(addr, len, MlockFlags::ONFAULT) }
        .map_err(|error| fail("locking the stack")(error.into()))
}

/// Lowest address and length of the calling thread's stack, without its guard pages.
fn stack_bounds() -> io::Result<(*mut c_void, usize)> {
    let check = |error: i32| match error {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    };
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: writes the attributes of the calling thread, which exists, to memory for them.
    check(unsafe { libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) })?;
    let (mut addr, mut len) = (ptr::null_mut(), 0);
    // SAFETY: the call above has initialised the attributes; both results are written to locals.
    let result =
        unsafe { libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut addr, &raw mut len) };
    // SAFETY: initialised above, and not used again.
    check(unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) })?;
    check(result)?;
    Ok((addr, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `VmFlags` of the mapping that holds `addr` (proc(5), smaps).
    fn flags_of(addr: usize) -> String {
        let smaps = std::fs::read_to_string("/proc/thread-self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            if let Some((start, end)) = line.split_once(' ').and_then(|(a, _)| a.split_once('-')) {
                let parse = |text| usize::from_str_radix(text, 16);
                inside = matches!((parse(start), parse(end)),
                    (Ok(start), Ok(end)) if (start..end).contains(&addr));
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.to_owned();
            }
        }
        panic!("no mapping at {addr:#x}")
    }

    #[test]
    fn a_protected_stack_is_locked_and_not_dumped() {
        let (before, after) = std::thread::spawn(|| {
            let here = 0u8;
            let before = flags_of((&raw const here).addr());
            protect_stack().unwrap();
            (before, flags_of((&raw const here).addr()))
        })
        .join()
        .unwrap();
        for flag in [" lo", " dd"] {
            assert!(!before.contains(flag) && after.contains(flag), "{before} -> {after}");
        }
    }
}
