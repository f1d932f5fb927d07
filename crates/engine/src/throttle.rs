//! Requests over the disk's limit, as one queue thread sees them: where they wait, and for how long.
//!
//! Contract: a request that may not go yet is parked. It is in work (marked in the in-flight region,
//! its slot taken) and has not begun: no chunk, no part in what a rotation waits for. Each direction
//! has its line; the first in it is charged and has its time, the others behind it are charged when
//! they become the first. So reads pass writes that wait for a limit of writes, flushes pass
//! everything, and a queue's place among the others is that of its first. One timer per direction in
//! the thread's ring, none while nothing waits.
//! Invariant: what is parked fits the lines, for a queue has no more requests than descriptors.
//! Deliberately absent: waiting when the queue stops. What is parked goes at once then, and is
//! charged: the guest owes it after its reset.
// UNSAFETY: hands the ring a pointer to the time that lives here.
#![expect(unsafe_code, reason = "a timer's time is passed by address")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealblk_block::Op;
use sealblk_ring::{Ring, Token, types::Timespec};

use crate::broken;
use crate::limiter::{Direction, Limiter, until};
use crate::worker::Worker;

/// Ids of the timers here begin with this; those below are [`crate::hold`]'s and [`crate::path`]'s.
/// Each timer has an id of its own, so that one that was overtaken by an earlier is told apart.
pub(crate) const TIMERS: u64 = 2;

/// Longest time of a timer: one that was overtaken is gone after it.
const TIMER_MAX: Duration = Duration::from_secs(10);

/// A request that waits.
#[derive(Debug, Clone, Copy)]
struct Parked {
    head: u16,
    bytes: u64,
    since: Instant,
}

/// Those of one direction.
struct Line {
    direction: Direction,
    parked: VecDeque<Parked>,
    /// When the first may go; it is charged.
    due: u64,
    /// The timer that is under way, and when it runs out.
    armed: Option<(u64, u64)>,
    /// Boxed: the kernel reads it when the timer is submitted.
    time: Box<Timespec>,
}

/// What a queue knows of the limits.
pub(crate) struct Throttle {
    limiter: Option<Arc<Limiter>>,
    lines: [Line; 2],
    /// How many are parked in all.
    parked: usize,
    next_timer: u64,
}

impl Throttle {
    pub(crate) fn new(limiter: Option<Arc<Limiter>>, requests: u16) -> Self {
        let line = |direction| Line {
            direction,
            parked: VecDeque::with_capacity(usize::from(requests)),
            due: 0,
            armed: None,
            time: Box::new(Timespec::new()),
        };
        Self {
            limiter,
            lines: [Direction::Read, Direction::Write].map(line),
            parked: 0,
            next_timer: TIMERS,
        }
    }

    /// Whether somebody waits.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.parked > 0
    }

    /// Charges a request, or puts it in line; whether it may go.
    fn admit(&mut self, direction: Direction, request: Parked, now: Instant) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        let line = &mut self.lines[direction as usize];
        if line.parked.is_empty() {
            let now = limiter.at(now);
            line.due = limiter.reserve(direction, request.bytes, now);
            if line.due <= now {
                return true;
            }
        }
        line.parked.push_back(request);
        self.parked += 1;
        false
    }

    /// The next request of a direction that may go, or that has to (`lifted`).
    fn next(&mut self, direction: Direction, now: Instant, lifted: bool) -> Option<Parked> {
        let limiter = self.limiter.as_ref()?;
        let line = &mut self.lines[direction as usize];
        let now = limiter.at(now);
        let request = *line.parked.front().filter(|_| lifted || line.due <= now)?;
        line.parked.pop_front();
        self.parked -= 1;
        if let Some(first) = line.parked.front() {
            line.due = limiter.reserve(line.direction, first.bytes, now);
        }
        Some(request)
    }

    /// Makes the ring wake the thread when the first of a line may go.
    fn arm(&mut self, ring: &mut Ring, now: Instant) {
        let Some(limiter) = &self.limiter else { return };
        let now = limiter.at(now);
        for line in self.lines.iter_mut().filter(|line| !line.parked.is_empty()) {
            if line.armed.is_some_and(|(_, at)| at <= line.due) {
                continue;
            }
            let id = self.next_timer;
            *line.time = Timespec::from(until(line.due, now).min(TIMER_MAX));
            // SAFETY: the time is boxed and lives as long as the ring. A timer that was not submitted
            // yet may find the later one's time; it is overtaken then, and nobody waits for it. A
            // ring that is full has completions that wake the thread, and it comes here again.
            if unsafe { ring.timer(&raw const *line.time, Token::Timer(id)) }.is_ok() {
                line.armed = Some((id, line.due));
                self.next_timer += 1;
            }
        }
    }

    pub(crate) fn timer_ran_out(&mut self, id: u64) {
        for line in &mut self.lines {
            line.armed.take_if(|(armed, _)| *armed == id);
        }
    }
}

/// Whose limits a request counts for; none: it is never limited.
fn direction(op: Op) -> Option<Direction> {
    match op {
        Op::Read => Some(Direction::Read),
        Op::Write | Op::WriteZeroes { .. } | Op::Discard => Some(Direction::Write),
        Op::Flush | Op::GetId => None,
    }
}

impl Worker {
    /// Whether a request that begins has to wait for a limit.
    #[inline]
    pub(super) fn throttles(&mut self, head: u16, op: Op) -> bool {
        self.throttle.limiter.is_some() && self.parks(head, op)
    }

    // Out of the way of disks without limits.
    #[cold]
    fn parks(&mut self, head: u16, op: Op) -> bool {
        let Some(direction) = direction(op) else { return false };
        // It ends without any I/O.
        if self.path.is_fenced() {
            return false;
        }
        let now = Instant::now();
        let slot = self.slots.get_mut(head);
        let request = Parked { head, bytes: slot.moved_bytes(op), since: now };
        if self.throttle.admit(direction, request, now) {
            return false;
        }
        slot.parked = true;
        slot.waits = true;
        self.stats.throttled.add(1);
        self.throttle.arm(&mut self.ring, now);
        true
    }

    /// Goes on with what waited for a limit and may go, or with all of it (`lifted`); whether there
    /// was something.
    #[cold]
    pub(super) fn go_on_throttled(&mut self, lifted: bool) -> bool {
        let now = Instant::now();
        let lifted = lifted || self.path.is_fenced();
        let mut any = false;
        for direction in [Direction::Read, Direction::Write] {
            while let Some(request) = self.throttle.next(direction, now, lifted) {
                any = true;
                self.unthrottle(request, now);
            }
        }
        self.throttle.arm(&mut self.ring, now);
        any
    }

    #[cold]
    fn unthrottle(&mut self, request: Parked, now: Instant) {
        let waited = now.saturating_duration_since(request.since).as_nanos();
        self.stats.throttled_ns.add(u64::try_from(waited).unwrap_or(u64::MAX));
        let slot = self.slots.get_mut(request.head);
        slot.parked = false;
        slot.waits = false;
        let Some(begun) = slot.request else { broken("a request that waited for a limit is gone") };
        self.proceed(request.head, begun.op);
    }

    /// Other limits: what waits is charged anew, by them.
    pub(super) fn set_limits(&mut self, limiter: Option<Arc<Limiter>>) {
        let now = Instant::now();
        self.throttle.limiter = limiter;
        self.throttle.parked = 0;
        for direction in [Direction::Read, Direction::Write] {
            let line = &mut self.throttle.lines[direction as usize];
            // Its time was counted by the other limits.
            line.armed = None;
            let parked: Vec<Parked> = line.parked.drain(..).collect();
            for request in parked {
                if self.throttle.admit(direction, request, now) {
                    self.unthrottle(request, now);
                }
            }
        }
        self.throttle.arm(&mut self.ring, now);
    }
}
