//! Exclusive access to a file while it is open.
// UNSAFETY: fcntl(F_OFD_SETLK) has no safe wrapper in rustix.
#![expect(unsafe_code, reason = "fcntl for open-file-description locks")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// How often a held lock is tried again. The kernel can wait for a lock, but not for a limited time.
const RETRY: Duration = Duration::from_millis(20);

/// Locks the whole file for this open file description (`F_OFD_SETLK`, fcntl(2)): exclusively, or
/// shared with other readers. The lock goes when the last reference to the description goes, which
/// for a killed process is after the kernel has finished the I/O it had in flight: a successor that
/// gets the lock sees no late write of its predecessor.
pub(crate) fn lock_file(fd: BorrowedFd<'_>, shared: bool, wait: Duration) -> io::Result<()> {
    retry(wait, || try_lock(fd, shared))
}

fn try_lock(fd: BorrowedFd<'_>, shared: bool) -> io::Result<()> {
    let kind = if shared { libc::F_RDLCK } else { libc::F_WRLCK };
    let lock = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads a flock that lives until the call returns; the descriptor is open.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        0 => Ok(()),
        // "EACCES or EAGAIN" when it is held (fcntl(2)): one word for both.
        _ => Err(match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EACCES) => {
                io::Error::from_raw_os_error(libc::EAGAIN)
            }
            error => error,
        }),
    }
}

/// Calls `attempt` until it succeeds, fails for another reason than being busy, or time is up.
pub(crate) fn retry<T>(
    wait: Duration,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    let deadline = Instant::now() + wait;
    loop {
        match attempt() {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                    && Instant::now() < deadline =>
            {
                #[expect(
                    clippy::disallowed_methods,
                    reason = "no event tells that a lock is free"
                )]
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}
