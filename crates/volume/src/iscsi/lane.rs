//! A lane: I/O over a session whose socket waits in the lane's ring.
//!
//! Contract: nothing blocks; [`Lane::submit`] only queues, [`Lane::push_out`] sends a turn's
//! commands; an I/O that is in flight when the connection is lost is kept and sent again, in the
//! order of submission. An idle lane waits for its socket only: it runs no timer, and notices a
//! connection that the target closes.
//!
//! Invariant: an I/O is given back only when libiscsi no longer holds its memory: its command has
//! ended, or the session was destroyed.
//!
//! Deliberately absent: a second way to wait. Each thing that a lane waits for is an entry of the
//! ring; their tokens carry the connection's number, so that what a closed socket left behind is
//! not taken for news of its successor.
// UNSAFETY: hands the submitter's memory to libiscsi, and timers to the ring.
#![expect(unsafe_code, reason = "commands and ring entries carry pointers")]

mod clock;
mod outcome;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealblk_ring::{FileSlot, Full, Ring, Token, opcode, types};

use super::control::{PAUSE_FIRST, PAUSE_LAST};
use super::library::ScsiTask;
use super::session::{Event, FIRST_TAG, PING, Session, Step};
use super::shared::Shared;
use super::slot::{Slot, Stage, State};
use super::unit::Unmap;
use crate::{Lane, LaneDone, LaneIo, LaneOp};

/// I/O that a lane takes at a time; more than any queue has.
const SLOTS_MAX: usize = 4096;
/// The tag of READ CAPACITY after the unit said that it has another size, and of the first slot.
const CAPACITY: u32 = FIRST_TAG;
const FIRST_SLOT: u32 = FIRST_TAG + 1;
/// With I/O outstanding and nothing heard for this long, the target is asked for a sign of life,
/// and has as long again to give one.
const SILENCE: Duration = Duration::from_secs(5);
/// A connection that lasted this long was a good one: the next pause is the shortest again.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);
/// The longest pause before a command that was answered "not now" goes out again, and how often.
const LATER_LAST: Duration = Duration::from_secs(1);
const TRIES_MAX: u32 = 60;

/// Kinds of ring entries, above the number in a token's low half.
const KIND_IN: u64 = 1;
const KIND_OUT: u64 = 2;
const KIND_TIMER: u64 = 3;
const KIND_WAKE: u64 = 4;

fn token(kind: u64, number: u32) -> u64 {
    kind << 32 | u64::from(number)
}

/// A session as one thread's lane.
pub(super) struct IscsiLane {
    shared: Arc<Shared>,
    session: Session,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots in each of these states.
    sent: usize,
    waiting: usize,
    held: usize,
    sequence: u64,
    /// Results on their way to the caller.
    early: Vec<LaneDone>,
    file: Option<FileSlot>,
    /// Number of the connection.
    connection: u32,
    in_armed: bool,
    out_armed: bool,
    /// What the kernel reads when a timer is submitted.
    timespec: Box<types::Timespec>,
    /// Number of the timer that counts, and when it is due.
    timer: u32,
    timer_at: Option<Instant>,
    /// Why the connection is to be given up, at the end of this turn.
    lost: Option<String>,
    /// The listener was told.
    told: bool,
    /// When to connect again, if there is no session.
    next_try: Instant,
    pause: Duration,
    /// Since when the session has been what it is: connecting, or ready.
    since: Instant,
    heard: Instant,
    pinged: Option<Instant>,
    /// Power-on news at the first login says nothing (see `Durability`).
    first: bool,
    power_on_is_usual: bool,
    /// The unit doesn't know SYNCHRONIZE CACHE(16).
    short_sync: bool,
    capacity: Vec<u8>,
    capacity_piece: Vec<libc::iovec>,
    capacity_task: *mut ScsiTask,
    /// One block, for WRITE SAME.
    zeroes: Vec<u8>,
    closed: bool,
}

impl IscsiLane {
    /// Begins to connect; I/O that is submitted meanwhile waits.
    pub(super) fn open(shared: Arc<Shared>, ring: &mut Ring) -> Self {
        let now = Instant::now();
        let mut lane = Self {
            session: Session::new(shared.login.clone()),
            zeroes: vec![0; shared.unit.geometry.block_bytes as usize],
            shared,
            slots: Vec::new(),
            free: Vec::new(),
            sent: 0,
            waiting: 0,
            held: 0,
            sequence: 0,
            early: Vec::new(),
            file: None,
            connection: 0,
            in_armed: false,
            out_armed: false,
            timespec: Box::new(types::Timespec::new()),
            timer: 0,
            timer_at: None,
            lost: None,
            told: false,
            next_try: now,
            pause: PAUSE_FIRST,
            since: now,
            heard: now,
            pinged: None,
            first: true,
            power_on_is_usual: false,
            short_sync: false,
            capacity: vec![0; 32],
            capacity_piece: Vec::new(),
            capacity_task: std::ptr::null_mut(),
            closed: false,
        };
        lane.turn(ring, now);
        lane
    }

    /// Goes on with everything: what has ended, what is due, what to wait for next.
    fn turn(&mut self, ring: &mut Ring, now: Instant) {
        loop {
            let events = self.session.take_events();
            let none = events.is_empty();
            for &event in &events {
                self.ended(ring, event, now);
            }
            self.session.recycle(events);
            if let Some(why) = self.lost.take() {
                self.lose(ring, &why, now);
                continue;
            }
            if none {
                break;
            }
        }
        if !self.session.up() && self.next_try <= now {
            self.start(ring, now);
        }
        if self.held > 0 && !self.session.wants_out() {
            self.release_held();
        }
        self.arm(ring, now);
    }

    fn start(&mut self, ring: &mut Ring, now: Instant) {
        self.since = now;
        match self.session.start() {
            Ok(()) => self.attach(ring),
            Err(fault) => self.lose(ring, &fault.what, now),
        }
    }

    /// Puts the session's socket into the ring.
    fn attach(&mut self, ring: &mut Ring) {
        self.detach(ring);
        // SAFETY: the socket is open until the session is destroyed, and taken out before.
        let fd = unsafe { BorrowedFd::borrow_raw(self.session.fd()) };
        self.file = Some(ring.add_file(fd));
    }

    fn detach(&mut self, ring: &mut Ring) {
        for (armed, kind) in [(self.in_armed, KIND_IN), (self.out_armed, KIND_OUT)] {
            if armed {
                // A full ring leaves the poll to the shutdown, which makes it complete.
                let _full = ring.cancel(Token::Lane(token(kind, self.connection)));
            }
        }
        (self.in_armed, self.out_armed) = (false, false);
        self.connection = self.connection.wrapping_add(1);
        if let Some(file) = self.file.take() {
            ring.remove_file(file);
        }
    }

    /// The connection is no good: everything in flight waits for the next.
    fn lose(&mut self, ring: &mut Ring, why: &str, now: Instant) {
        if self.session.ready() && now.duration_since(self.since) > GOOD_CONNECTION {
            self.pause = PAUSE_FIRST;
        }
        self.detach(ring);
        self.session.abort();
        self.pinged = None;
        let task = std::mem::replace(&mut self.capacity_task, std::ptr::null_mut());
        // SAFETY: the session is destroyed; the pointer is forgotten.
        unsafe { self.session.free(task) };
        for index in 0..self.slots.len() {
            if self.slots[index].state == State::Sent {
                self.free_task(index);
                self.slots[index].state = State::Queued;
                self.sent -= 1;
            }
            self.slots[index].forget_sync();
        }
        self.release_held();
        if !self.told {
            self.told = true;
            self.shared.news.lost(why);
        }
        self.next_try = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_LAST);
    }

    /// The unit answers: everything that waits for it goes out.
    fn ready(&mut self, power_on: bool, capacity: bool, now: Instant) {
        (self.since, self.heard) = (now, now);
        let again = !std::mem::replace(&mut self.first, false);
        if !again {
            self.power_on_is_usual = power_on;
        } else if power_on && !self.power_on_is_usual {
            self.shared.durability.powered_on();
        }
        if std::mem::replace(&mut self.told, false) {
            self.shared.news.back();
        }
        // A target that was restarted doesn't say that a unit has changed meanwhile.
        if capacity || again {
            self.ask_capacity();
        }
        let mut queued: Vec<usize> =
            (0..self.slots.len()).filter(|&n| self.slots[n].state == State::Queued).collect();
        queued.sort_by_key(|&index| self.slots[index].sequence);
        for index in queued {
            self.send(index, now);
        }
    }

    fn ended(&mut self, ring: &mut Ring, event: Event, now: Instant) {
        match event.tag {
            0..PING => match self.session.step(event) {
                Step::Going => {}
                Step::Moved => self.attach(ring),
                Step::Ready { power_on, capacity } => self.ready(power_on, capacity, now),
                Step::Failed(fault) => {
                    if fault.stays() && self.told {
                        self.shared.news.stays_lost(&fault.what);
                    }
                    self.give_up(&fault.what);
                }
            },
            PING => self.pinged = None,
            CAPACITY => self.has_capacity(event.ended),
            tag => self.slot_ended((tag - FIRST_SLOT) as usize, event.ended, now),
        }
    }

    fn give_up(&mut self, why: &str) {
        if self.lost.is_none() {
            self.lost = Some(why.to_owned());
        }
    }

    /// The socket is ready.
    fn polled(&mut self, kind: u64, result: i32, now: Instant) {
        let hung_up = i32::from(libc::POLLERR | libc::POLLHUP) | POLLRDHUP;
        if result < 0 {
            return self.give_up("its socket can't be waited for");
        }
        let mut ready = result & i32::from(libc::POLLIN | libc::POLLOUT);
        if self.session.wants() & i32::from(libc::POLLIN) == 0 {
            // Still connecting: what went wrong is told as the connection's end.
            ready = result & i32::from(libc::POLLOUT | libc::POLLERR | libc::POLLHUP);
        } else if kind == KIND_IN {
            (self.heard, self.pinged) = (now, None);
        }
        if !self.session.service(ready) {
            let why = self.session.error();
            self.lost_after_events(why);
        } else if result & hung_up != 0 {
            self.lost_after_events("the target closed the connection".to_owned());
        }
    }

    /// Gives the connection up unless an event tells a better reason.
    fn lost_after_events(&mut self, why: String) {
        let events = self.session.take_events();
        let better = events.iter().find(|event| event.tag < PING).copied();
        let mut why = why;
        if let Some(event) = better
            && let Step::Failed(fault) = self.session.step(event)
        {
            why = fault.what;
        }
        // What was answered before counts; the rest is cancelled when the session ends.
        let now = Instant::now();
        for &event in events.iter().filter(|event| event.tag >= FIRST_SLOT) {
            self.slot_ended((event.tag - FIRST_SLOT) as usize, event.ended, now);
        }
        self.session.recycle(events);
        self.lost = Some(why);
    }

    /// Has the ring give a completion, so that the caller comes for results.
    fn wake(&mut self, ring: &mut Ring) -> Result<(), Full> {
        // SAFETY: a no-op points to nothing.
        unsafe { ring.push(opcode::Nop::new().build(), Token::Lane(token(KIND_WAKE, 0))) }
    }

    fn take_slot(&mut self) -> Option<usize> {
        if let Some(index) = self.free.pop() {
            return Some(index as usize);
        }
        if self.slots.len() == SLOTS_MAX {
            return None;
        }
        self.slots.push(Slot::new());
        Some(self.slots.len() - 1)
    }
}

/// Linux's number; libc has it as another type on each machine.
const POLLRDHUP: i32 = libc::POLLRDHUP as i32;

impl Lane for IscsiLane {
    unsafe fn submit(&mut self, ring: &mut Ring, io: LaneIo) -> Result<(), Full> {
        let unsupported =
            matches!(io.op, LaneOp::Discard { .. }) && self.shared.unit.unmap == Unmap::No;
        let errno = if self.shared.news.is_fenced() {
            Some(crate::FENCED)
        } else if unsupported {
            Some(libc::EOPNOTSUPP)
        } else if self.shared.unit.geometry.read_only && matches!(io.op, LaneOp::Write { .. }) {
            Some(libc::EROFS)
        } else {
            None
        };
        if let Some(errno) = errno {
            self.wake(ring)?;
            self.early.push(LaneDone { id: io.id, result: Err(errno) });
            return Ok(());
        }
        let index = self.take_slot().ok_or(Full)?;
        let now = Instant::now();
        self.sequence += 1;
        let slot = &mut self.slots[index];
        (slot.id, slot.op, slot.state, slot.stage) = (io.id, io.op, State::Queued, Stage::Main);
        (slot.sequence, slot.submitted, slot.tries, slot.done_bytes) = (self.sequence, now, 0, 0);
        slot.mark = self.shared.durability.mark();
        if self.session.ready() {
            if self.sent == 0 {
                // Silence counts from here.
                (self.heard, self.pinged) = (now, None);
            }
            self.send(index, now);
        }
        Ok(())
    }

    fn push_out(&mut self, ring: &mut Ring) {
        if !self.out_armed && self.session.ready() && self.session.wants_out() {
            if !self.session.service(libc::POLLOUT.into()) {
                let why = self.session.error();
                self.lost_after_events(why);
            }
            self.turn(ring, Instant::now());
        } else if self.timer_at.is_none() {
            self.arm(ring, Instant::now());
        }
        if !self.early.is_empty() {
            // If the ring is full there are completions, and one of them may be ours.
            let _full = self.wake(ring);
        }
    }

    fn complete(&mut self, ring: &mut Ring, token: u64, result: i32, done: &mut Vec<LaneDone>) {
        let (kind, number) = (token >> 32, token as u32);
        let now = Instant::now();
        match kind {
            KIND_IN | KIND_OUT if number == self.connection && self.session.up() => {
                if kind == KIND_IN {
                    self.in_armed = false;
                } else {
                    self.out_armed = false;
                }
                self.polled(kind, result, now);
            }
            KIND_TIMER => {
                if number == self.timer {
                    self.timer_at = None;
                }
                self.tick(now);
                self.expire(ring, now);
            }
            _ => {}
        }
        self.turn(ring, now);
        // An answer may have asked for data.
        if !self.out_armed && self.session.ready() && self.session.wants_out() {
            if !self.session.service(libc::POLLOUT.into()) {
                let why = self.session.error();
                self.lost_after_events(why);
            }
            self.turn(ring, now);
        }
        done.append(&mut self.early);
    }

    fn close(&mut self, ring: &mut Ring) {
        self.closed = true;
        self.detach(ring);
        if self.timer_at.take().is_some() {
            let _full = ring.cancel(Token::Lane(token(KIND_TIMER, self.timer)));
        }
        self.session.destroy();
        if std::mem::replace(&mut self.told, false) {
            self.shared.news.left();
        }
        // The polls are to be gone now, and the kernel has read the timer's time afterwards.
        let _failed = ring.submit();
    }
}

impl Drop for IscsiLane {
    fn drop(&mut self) {
        self.session.destroy();
        for index in 0..self.slots.len() {
            self.free_task(index);
        }
        let task = self.capacity_task;
        // SAFETY: the session is destroyed; nobody uses the pointer again.
        unsafe { self.session.free(task) };
        if self.told {
            self.shared.news.left();
        }
        if !self.closed {
            // The ring may not have been submitted: its entry points to the time.
            std::mem::forget(std::mem::take(&mut self.timespec));
        }
    }
}
