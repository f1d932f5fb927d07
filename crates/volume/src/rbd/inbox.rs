//! Where librbd's threads leave what is finished, and an eventfd that tells a lane of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// Results of one lane, by I/O id: what librbd returned.
pub(super) struct Inbox {
    finished: Mutex<Vec<(u32, isize)>>,
    event: OwnedFd,
}

impl Inbox {
    pub(super) fn new() -> rustix::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { finished: Mutex::new(Vec::new()), event })
    }

    /// Readable when something is there.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Leaves a result. Only the first since the lane last looked rings: one wake-up for many.
    pub(super) fn put(&self, id: u32, result: isize) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        let first = finished.is_empty();
        finished.push((id, result));
        drop(finished);
        if first {
            // It can't be full: it is read before what it rang for is taken.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    /// Takes what is there in exchange for an empty list.
    pub(super) fn take(&self, list: &mut Vec<(u32, isize)>) {
        list.clear();
        // Before the list is taken: what comes after that rings anew.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *finished, list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(inbox: &Inbox) -> bool {
        let mut fds = [rustix::event::PollFd::new(&inbox.event, rustix::event::PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&zero)).unwrap() == 1
    }

    #[test]
    fn it_rings_for_the_first_of_many_and_again_after_a_look() {
        let inbox = Inbox::new().unwrap();
        let mut list = Vec::new();
        assert!(!rings(&inbox));
        for round in 0..3 {
            inbox.put(round, 5);
            inbox.put(round + 10, -5);
            assert!(rings(&inbox));
            inbox.take(&mut list);
            assert_eq!(list, [(round, 5), (round + 10, -5)]);
            assert!(!rings(&inbox));
        }
        inbox.take(&mut list);
        assert!(list.is_empty());
    }
}
