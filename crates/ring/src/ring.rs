//! The ring itself.
// UNSAFETY: submitting an entry hands the kernel a pointer; registering a buffer pins memory. Both
// are the caller's promise, except for the eventfd counters, which live here.
#![expect(unsafe_code, reason = "io_uring entries carry raw pointers")]

use std::cell::UnsafeCell;
use std::io;
use std::os::fd::BorrowedFd;

use io_uring::{IoUring, opcode, squeue, types};

use crate::files::{FileTable, TABLE_LEN};
use crate::{Features, FileSlot, Level, Token, on_file, probe};

/// The ring can't be had.
#[derive(Debug, thiserror::Error)]
#[error("io_uring with {entries} entries: {what}")]
pub struct RingError {
    /// Entries asked for.
    pub entries: u32,
    /// What failed and what to do.
    pub what: &'static str,
    /// The kernel's reason.
    #[source]
    pub source: io::Error,
}

/// The submission queue is full: submit, reap, and come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// How to build a ring.
#[derive(Debug, Clone, Copy)]
pub struct RingOptions {
    /// Entries that can be submitted at once; a power of two, at most 32768.
    pub entries: u32,
    /// The best level to try; lower than [`Level::Deferred`] only in tests of the way down.
    pub best: Level,
}

/// One finished entry.
#[derive(Debug, Clone, Copy)]
pub struct Completion {
    /// Whose.
    pub token: Token,
    /// The result as the system call would give it: a count, or a negative errno.
    pub result: i32,
}

/// `IORING_ENTER_GETEVENTS` (include/uapi/linux/io_uring.h)
const ENTER_GETEVENTS: u32 = 1;

/// Eventfds that may be watched at the same time.
const WATCHES_MAX: usize = 8;

/// One thread's io_uring. Neither `Send` nor `Sync`: it lives and dies on the thread that enabled it.
pub struct Ring {
    uring: IoUring,
    files: FileTable,
    features: Features,
    /// Where reads of watched eventfds put the counter. Boxed, so that the address stays when the
    /// ring moves; nobody reads the values.
    counters: Box<[UnsafeCell<u64>; WATCHES_MAX]>,
    enabled: bool,
}

impl Ring {
    /// A disabled ring: add files and buffers, then [`Self::enable`] it on the thread that uses it.
    pub fn new(options: RingOptions) -> Result<Self, RingError> {
        let fail = |what, source| RingError { entries: options.entries, what, source };
        let levels = [Level::Deferred, Level::Cooperative, Level::Plain];
        let mut last = io::Error::from_raw_os_error(libc::EINVAL);
        for level in levels.into_iter().filter(|level| *level <= options.best) {
            match probe::build(options.entries, level) {
                Ok(uring) => {
                    let fixed_files = uring.submitter().register_files_sparse(TABLE_LEN).is_ok();
                    return Ok(Self {
                        uring,
                        files: FileTable::new(fixed_files),
                        features: Features {
                            level,
                            fixed_files,
                            fixed_buffers: false,
                            restricted: false,
                        },
                        counters: Box::new([const { UnsafeCell::new(0) }; WATCHES_MAX]),
                        enabled: false,
                    });
                }
                // EINVAL: a flag this kernel does not know.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
                Err(error) => {
                    let what = match error.raw_os_error() {
                        Some(libc::EPERM) => {
                            "the kernel forbids it: set sysctl kernel.io_uring_disabled=0 or allow io_uring in the sandbox"
                        }
                        Some(libc::ENOMEM) => "out of locked memory: raise LimitMEMLOCK",
                        _ => "the kernel refused",
                    };
                    return Err(fail(what, error));
                }
            }
        }
        Err(fail("this kernel is too old: Linux 5.10 or newer is needed", last))
    }

    /// Registers one buffer, so that its pages are pinned once and not per I/O. Gives its index, or
    /// none where the kernel or the limit on locked memory refuses: then use plain reads and writes.
    ///
    /// # Safety
    /// `len` bytes at `addr` stay mapped until the ring is dropped.
    pub unsafe fn register_buffer(&mut self, addr: *mut u8, len: usize) -> Option<u16> {
        debug_assert!(!self.enabled, "buffers are registered before the ring is enabled");
        let iovec = libc::iovec { iov_base: addr.cast(), iov_len: len };
        // SAFETY: the caller keeps the memory mapped for as long as the ring lives.
        let registered = unsafe { self.uring.submitter().register_buffers(&[iovec]) }.is_ok();
        self.features.fixed_buffers = registered;
        registered.then_some(0)
    }

    /// Restricts the ring to what the program uses and starts it. Only the calling thread may
    /// submit from here on.
    pub fn enable(&mut self) -> Result<(), RingError> {
        self.features.restricted = probe::restrict(&self.uring);
        self.uring.submitter().register_enable_rings().map_err(|source| RingError {
            entries: self.uring.params().sq_entries(),
            what: "enabling it",
            source,
        })?;
        self.enabled = true;
        Ok(())
    }

    /// What the ring was built with.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Puts a file into the ring's table. The caller keeps it open until [`Self::remove_file`].
    pub fn add_file(&mut self, fd: BorrowedFd<'_>) -> FileSlot {
        self.files.add(&self.uring, fd)
    }

    /// Takes a file out of the table. Entries in flight on it keep their own reference.
    pub fn remove_file(&mut self, slot: FileSlot) {
        self.files.remove(&self.uring, slot);
    }

    /// Queues an entry; nothing is submitted before [`Self::submit`], [`Self::submit_and_wait`], or
    /// a queue that runs full.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid, and is not touched in a way that conflicts with
    /// the operation, until its completion is reaped.
    #[inline]
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: Token) -> Result<(), Full> {
        let entry = entry.user_data(token.pack());
        // SAFETY: the caller's promise.
        if unsafe { self.uring.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.submit().map_err(|_| Full)?;
        // SAFETY: the caller's promise.
        unsafe { self.uring.submission().push(&entry) }.map_err(|_| Full)
    }

    /// Completes with `Token::Event(watch)` once the eventfd is readable, its counter taken.
    /// `watch` is below 8, and each value is armed at most once at a time. A result of `-EAGAIN`
    /// means that this kernel doesn't wait in a read of a non-blocking eventfd: use
    /// [`Self::watch_by_poll`] then.
    pub fn watch(&mut self, slot: FileSlot, watch: usize) -> Result<(), Full> {
        let counter = self.counters[watch].get().cast::<u8>();
        let entry = on_file!(slot, |file| opcode::Read::new(file, counter, 8).build());
        // SAFETY: the counter is boxed and lives as long as the ring; nobody else touches it.
        unsafe { self.push(entry, Token::Event(watch as u64)) }
    }

    /// Like [`Self::watch`], but leaves the counter to the caller.
    pub fn watch_by_poll(&mut self, slot: FileSlot, watch: usize) -> Result<(), Full> {
        self.poll(slot, libc::POLLIN as u32, Token::Event(watch as u64))
    }

    /// Ends a watch; the watched event completes with `-ECANCELED` (or, just then, as usual).
    pub fn unwatch(&mut self, watch: usize) -> Result<(), Full> {
        self.cancel(Token::Event(watch as u64))
    }

    /// Completes with `token` once the file is ready for one of `events` (`POLLIN`, `POLLOUT`; an
    /// error or a hang-up counts always); the result tells which.
    pub fn poll(&mut self, slot: FileSlot, events: u32, token: Token) -> Result<(), Full> {
        let entry = on_file!(slot, |file| opcode::PollAdd::new(file, events).build());
        // SAFETY: a poll points to nothing.
        unsafe { self.push(entry, token) }
    }

    /// Ends whatever was submitted under `token`: it completes with `-ECANCELED` (or, just then, as
    /// usual).
    pub fn cancel(&mut self, token: Token) -> Result<(), Full> {
        let entry = opcode::AsyncCancel::new(token.pack()).build();
        // SAFETY: a cancellation points to nothing.
        unsafe { self.push(entry, Token::Ignored) }
    }

    /// Completes with `token` and `-ETIME` when `timeout` has passed.
    ///
    /// # Safety
    /// `timeout` stays valid until the ring has been submitted.
    pub unsafe fn timer(
        &mut self,
        timeout: *const types::Timespec,
        token: Token,
    ) -> Result<(), Full> {
        let entry = opcode::Timeout::new(timeout).build();
        // SAFETY: the kernel copies the time when the entry is submitted; the caller's promise.
        unsafe { self.push(entry, token) }
    }

    /// Submits what is queued and runs deferred completions, those of what it has just submitted
    /// included, without waiting.
    pub fn submit(&mut self) -> io::Result<()> {
        self.enter(0)
    }

    /// Submits what is queued and sleeps until at least one completion is there.
    pub fn submit_and_wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    fn enter(&mut self, want: u32) -> io::Result<()> {
        let entries = self.uring.submission().len() as u32;
        // The io-uring crate's submit() asks for events only if some waited before. Asking always
        // makes I/O that the kernel completes while it is submitted come back from this same enter
        // (DEFER_TASKRUN completes nothing outside of one that asks), and costs nothing otherwise.
        // SAFETY: no argument is passed.
        let result = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(entries, want, ENTER_GETEVENTS, None)
        };
        match result {
            Ok(_) => Ok(()),
            // A signal, or completions that must be reaped first (EBUSY, EAGAIN): the caller's loop
            // reaps and comes again, nothing was lost.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Whether a submission or deferred completions wait for an enter: cheap, no system call.
    #[inline]
    pub fn wants_enter(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// The next completion, if one is there.
    #[inline]
    pub fn reap(&mut self) -> Option<Completion> {
        let entry = self.uring.completion().next()?;
        Some(Completion { token: Token::unpack(entry.user_data()), result: entry.result() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap()
    }

    fn ring(best: Level) -> Ring {
        Ring::new(RingOptions { entries: 8, best }).unwrap()
    }

    fn wait(ring: &mut Ring) -> Completion {
        loop {
            if let Some(completion) = ring.reap() {
                return completion;
            }
            ring.submit_and_wait().unwrap();
        }
    }

    #[test]
    fn a_kick_wakes_the_ring_at_every_level() {
        for best in [Level::Plain, Level::Cooperative, Level::Deferred] {
            let (mut ring, event) = (ring(best), eventfd());
            ring.enable().unwrap();
            assert!(ring.features().level <= best);
            let slot = ring.add_file(event.as_fd());
            for _ in 0..3 {
                ring.watch(slot, 1).unwrap();
                ring.submit().unwrap();
                assert!(ring.reap().is_none(), "woken without a kick");
                rustix::io::write(&event, &1u64.to_ne_bytes()).unwrap();
                let completion = wait(&mut ring);
                assert_eq!(completion.token, Token::Event(1));
                assert_eq!(completion.result, 8);
            }
            ring.remove_file(slot);
        }
    }

    #[test]
    fn a_watch_that_ends_leaves_nothing_behind() {
        let (mut ring, event) = (ring(Level::Deferred), eventfd());
        ring.enable().unwrap();
        let slot = ring.add_file(event.as_fd());
        ring.watch(slot, 0).unwrap();
        ring.unwatch(0).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let completion = wait(&mut ring);
            seen.push((completion.token, completion.result));
        }
        assert!(seen.contains(&(Token::Event(0), -libc::ECANCELED)));
    }

    #[test]
    fn an_opcode_outside_the_list_is_refused() {
        let (mut ring, event) = (ring(Level::Deferred), eventfd());
        ring.enable().unwrap();
        assert!(ring.features().restricted, "this kernel has restrictions");
        let slot = ring.add_file(event.as_fd());
        let FileSlot::Fixed(index) = slot else { panic!("no fixed file") };
        let entry = opcode::Shutdown::new(types::Fixed(index), 0).build();
        // SAFETY: a shutdown points to nothing.
        unsafe { ring.push(entry, Token::Ignored) }.unwrap();
        assert_eq!(wait(&mut ring).result, -libc::EACCES);
    }

    #[test]
    fn more_entries_than_the_queue_holds_are_submitted_on_the_way() {
        let mut ring = ring(Level::Deferred);
        ring.enable().unwrap();
        for id in 0..12 {
            // SAFETY: a no-op points to nothing.
            unsafe { ring.push(opcode::Nop::new().build(), Token::Lane(id)) }.unwrap();
        }
        let mut ids: Vec<_> = (0..12).map(|_| wait(&mut ring).token).collect();
        ids.sort_by_key(|token| token.pack());
        assert_eq!(ids, (0..12).map(Token::Lane).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_file_table_falls_back_to_descriptors() {
        let mut ring = ring(Level::Deferred);
        ring.enable().unwrap();
        let events: Vec<_> = (0..TABLE_LEN + 1).map(|_| eventfd()).collect();
        let slots: Vec<_> = events.iter().map(|event| ring.add_file(event.as_fd())).collect();
        assert!(matches!(slots[TABLE_LEN as usize - 1], FileSlot::Fixed(_)));
        assert!(matches!(slots[TABLE_LEN as usize], FileSlot::Raw(_)));
        ring.remove_file(slots[3]);
        assert_eq!(ring.add_file(events[0].as_fd()), FileSlot::Fixed(3));
    }
}
