//! A queue's part in the storage path: what becomes of an I/O that the volume failed, and how
//! silence is noticed.
//!
//! Silence: a queue that goes to sleep with I/O at the volume arms one timer, if none is armed.
//! When it runs out and nothing has come back since, while something is still out there, the
//! volume doesn't answer. The I/O is not touched: it may complete at any time, and its memory is
//! the volume's until then. A busy queue has at most one timer per period, an idle one none.
//!
//! Deliberately absent: flushes are never repeated, silent or failed. The system tells only once
//! of what a failed flush lost; a second one may succeed without it.
// UNSAFETY: hands the ring a pointer to the time that lives here.
#![expect(unsafe_code, reason = "a timer's time is passed by address")]

use std::sync::Arc;
use std::time::Duration;

use sealblk_block::Status;
use sealblk_ring::{Ring, Token, types::Timespec};
use sealblk_volume::FENCED;

use crate::OnError;
use crate::chunk::ChunkKind;
use crate::loss::{PathState, StoragePath, Trouble};
use crate::worker::Worker;

/// The silence timer's id; others are those of [`crate::hold`] and [`crate::throttle`].
pub(crate) const TIMER: u64 = 1;

/// What a queue knows of its path.
pub(crate) struct Path {
    shared: Arc<StoragePath>,
    queue: u16,
    /// This queue is silent, or holds: its next success means something.
    lost: bool,
    /// Nothing came back for a whole period.
    silent: bool,
    period: Duration,
    armed: bool,
    /// What had come back when the timer was armed.
    returned: u64,
    /// Boxed: the kernel reads it when the timer is submitted.
    time: Box<Timespec>,
}

impl Path {
    pub(crate) fn new(shared: Arc<StoragePath>, queue: u16, period: Duration) -> Self {
        Self {
            shared,
            queue,
            lost: false,
            silent: false,
            period,
            armed: false,
            returned: 0,
            time: Box::new(Timespec::new()),
        }
    }

    /// Whether the next success is to be told of.
    #[inline]
    pub(crate) fn awaits_answer(&self) -> bool {
        self.lost || self.shared.is_reporting()
    }

    /// Whether another client has taken the volume.
    #[inline]
    pub(crate) fn is_fenced(&self) -> bool {
        self.shared.is_fenced()
    }

    /// The queue goes to sleep; `out`: I/Os that are at the volume, `returned`: those that ever came
    /// back.
    #[inline]
    fn watch(&mut self, ring: &mut Ring, out: usize, returned: u64) {
        if out == 0 || self.armed {
            return;
        }
        *self.time = Timespec::from(self.period);
        // SAFETY: the time is boxed, and written again only after the timer has run out.
        // A ring that is full is anything but silent.
        self.armed = unsafe { ring.timer(&raw const *self.time, Token::Timer(TIMER)) }.is_ok();
        self.returned = returned;
    }

    /// How much longer failed I/O may be kept; none: it may not.
    fn patience(&self, limit: Option<Duration>) -> Option<Duration> {
        let Some(limit) = limit else { return Some(Duration::MAX) };
        limit.checked_sub(self.shared.age(self.queue)).filter(|left| !left.is_zero())
    }

    fn trouble(&mut self, state: PathState, errno: Option<i32>, waiting: usize, held: bool) {
        self.lost = state != PathState::Reporting;
        self.silent = state == PathState::Silent;
        self.shared.trouble(Trouble { queue: self.queue, state, errno, waiting, held });
    }
}

/// Whether the path may be to blame for an error. The others no path that comes back can mend.
fn is_of_the_path(errno: i32) -> bool {
    !matches!(errno, libc::EINVAL | libc::EOPNOTSUPP | libc::EFAULT | libc::EACCES)
}

impl Worker {
    /// Called before the thread sleeps.
    #[inline]
    pub(super) fn watch_path(&mut self) {
        self.path.watch(&mut self.ring, self.chunks.at_volume(), self.chunks.returned());
    }

    /// The silence timer ran out.
    pub(super) fn path_timer_ran_out(&mut self) {
        self.path.armed = false;
        let out = self.chunks.at_volume();
        if out == 0 || self.chunks.returned() != self.path.returned {
            return;
        }
        // What is held says more than that its next attempt hangs.
        if !self.path.lost || self.path.silent {
            self.path.trouble(PathState::Silent, None, self.slots.busy(), false);
        }
        self.stats.waiting.set(out.max(self.hold.waiting()) as u64);
    }

    /// The volume answered, and [`Path::awaits_answer`].
    #[cold]
    pub(super) fn volume_answers(&mut self) {
        let held = self.hold.waiting();
        self.stats.waiting.set(held as u64);
        if held > 0 && !self.path.silent && !self.path.shared.is_reporting() {
            return;
        }
        self.path.shared.answered(self.path.queue, held > 0);
        self.path.lost = held > 0;
        self.path.silent = false;
    }

    /// The queue has stopped: nothing of it waits.
    pub(super) fn leave_path(&mut self) {
        self.path.shared.left(self.path.queue);
        self.path.lost = false;
        self.path.silent = false;
        self.stats.waiting.set(0);
    }

    /// An I/O failed: it is kept, or its request ends.
    #[cold]
    pub(super) fn chunk_failed(&mut self, id: u32, errno: i32) {
        let kind = self.chunks.get_mut(id).kind;
        if errno == FENCED {
            self.path.shared.fence();
        } else if !is_of_the_path(errno) {
            if self.path.awaits_answer() {
                self.volume_answers();
            }
        } else if !self.path.is_fenced() && self.keeps(id, kind, errno) {
            return;
        }
        if kind == ChunkKind::Flush {
            self.stats.failed_flushes.add(1);
        }
        let status = match (kind, errno) {
            (ChunkKind::Discard, libc::EOPNOTSUPP) => Status::Unsupported,
            _ => Status::IoErr,
        };
        self.end_chunk(id, Some(status));
        self.stats.waiting.set(self.hold.waiting() as u64);
    }

    /// Tells of a failure; whether the I/O is kept.
    fn keeps(&mut self, id: u32, kind: ChunkKind, errno: i32) -> bool {
        let patience = match self.config.on_error {
            OnError::Hold => self.path.patience(self.config.hold_limit),
            OnError::Report => None,
        };
        let kept = kind != ChunkKind::Flush
            && patience.is_some_and(|left| self.hold.keep(&mut self.ring, id, left).is_ok());
        let state = if patience.is_some() { PathState::Holding } else { PathState::Reporting };
        self.path.trouble(state, Some(errno), self.slots.busy(), kept);
        if kept {
            let chunk = self.chunks.get_mut(id);
            if !std::mem::replace(&mut chunk.held, true) {
                self.hold.begins_to_wait();
            }
            self.stats.held.add(1);
            self.stats.waiting.set(self.hold.waiting() as u64);
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use sealblk_ring::{Level, RingOptions};

    use super::*;

    #[test]
    fn only_a_queue_with_io_at_the_volume_has_a_timer_and_never_two() {
        let mut ring = Ring::new(RingOptions { entries: 8, best: Level::Plain }).unwrap();
        ring.enable().unwrap();
        let shared = Arc::new(StoragePath::new("a", 1));
        let mut path = Path::new(shared, 0, Duration::from_micros(1));
        path.watch(&mut ring, 0, 7);
        assert!(!path.armed && !ring.wants_enter(), "idle: nothing is submitted");
        for _ in 0..3 {
            path.watch(&mut ring, 2, 7);
        }
        assert!(path.armed);
        ring.submit_and_wait().unwrap();
        assert_eq!(ring.reap().unwrap().token, Token::Timer(TIMER));
        assert!(ring.reap().is_none() && !ring.wants_enter(), "there was one");
    }

    #[test]
    fn patience_ends_with_the_limit() {
        let shared = Arc::new(StoragePath::new("a", 1));
        let mut path = Path::new(shared.clone(), 0, Duration::ZERO);
        assert_eq!(path.patience(None), Some(Duration::MAX));
        let limit = Duration::from_secs(3600);
        assert_eq!(path.patience(Some(limit)), Some(limit), "nothing has failed yet");
        path.trouble(PathState::Holding, Some(libc::EIO), 1, true);
        assert!(path.patience(Some(limit)).is_some_and(|left| left < limit));
        assert_eq!(path.patience(Some(Duration::from_nanos(1))), None);
        shared.answered(0, false);
        assert_eq!(path.patience(Some(limit)), Some(limit), "it starts afresh");
    }
}
