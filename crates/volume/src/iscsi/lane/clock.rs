//! Time: what is late, and until when the ring is to wait.
//!
//! Contract: there is a timer only while something is outstanding: I/O, a connection that is being
//! made, or the next attempt to make one. A timer that comes early or late changes nothing: each
//! looks at everything.
// UNSAFETY: hands a timer's time to the ring.
#![expect(unsafe_code, reason = "ring entries carry pointers")]

use std::time::{Duration, Instant};

use sealblk_ring::{Ring, Token, types};

use super::{IscsiLane, KIND_IN, KIND_OUT, KIND_TIMER, POLLRDHUP, SILENCE, token};
use crate::iscsi::control::{COMMAND_LIMIT, LOGIN_LIMIT};
use crate::iscsi::slot::{Slot, State};

/// Whether libiscsi or the target still has something of it.
fn at_target(slot: &Slot) -> bool {
    matches!(slot.state, State::Sent | State::Held(_))
}

impl IscsiLane {
    /// Time has passed.
    pub(super) fn tick(&mut self, now: Instant) {
        if self.waiting > 0 {
            for index in 0..self.slots.len() {
                if self.slots[index].state == State::Waiting && self.slots[index].due <= now {
                    self.waiting -= 1;
                    self.slots[index].state = State::Queued;
                    if self.session.ready() {
                        self.send(index, now);
                    }
                }
            }
        }
        if self.session.up() && !self.session.ready() {
            if now >= self.since + LOGIN_LIMIT {
                self.give_up("the target doesn't answer");
            }
        } else if self.session.ready() && self.sent + self.held > 0 {
            let oldest = self.slots.iter().filter(|slot| at_target(slot));
            let oldest = oldest.map(|slot| slot.sent).min();
            if oldest.is_some_and(|sent| now >= sent + COMMAND_LIMIT) {
                self.give_up("a command was not answered");
            } else if let Some(pinged) = self.pinged {
                if now >= pinged + SILENCE {
                    self.give_up("the target gave no sign of life");
                }
            } else if now >= self.heard + SILENCE {
                if self.session.ping() {
                    self.pinged = Some(now);
                } else {
                    self.give_up("no memory for a sign of life");
                }
            }
        }
    }

    /// Fails I/O that has waited too long. What the target may still be at is taken from it first.
    pub(super) fn expire(&mut self, ring: &mut Ring, now: Instant) {
        let Some(limit) = self.shared.io_timeout else { return };
        let late = |slot: &Slot| slot.state != State::Free && now >= slot.submitted + limit;
        if self.slots.iter().any(|slot| late(slot) && at_target(slot)) {
            self.lose(ring, "an I/O was not answered in time", now);
        }
        for index in 0..self.slots.len() {
            if late(&self.slots[index]) {
                match self.slots[index].state {
                    State::Waiting => self.waiting -= 1,
                    State::Queued => {}
                    State::Free | State::Sent | State::Held(_) => continue,
                }
                self.give_back(index, Err(libc::ETIMEDOUT));
            }
        }
    }

    /// When there is something to do even if nothing happens.
    fn deadline(&self, now: Instant) -> Option<Instant> {
        let mut deadline: Option<Instant> = None;
        let mut sooner = |at: Instant| deadline = Some(deadline.map_or(at, |other| other.min(at)));
        if !self.session.up() {
            sooner(self.next_try);
        } else if !self.session.ready() {
            sooner(self.since + LOGIN_LIMIT);
        } else if self.sent + self.held > 0 {
            sooner(self.pinged.unwrap_or(self.heard) + SILENCE);
        }
        if self.waiting > 0 {
            let waiting = self.slots.iter().filter(|slot| slot.state == State::Waiting);
            waiting.for_each(|slot| sooner(slot.due));
        }
        if let Some(limit) = self.shared.io_timeout
            && self.free.len() < self.slots.len()
            // A timer that is armed looks again when it comes.
            && self.timer_at.is_none_or(|at| at > now + limit)
        {
            let used = self.slots.iter().filter(|slot| slot.state != State::Free);
            used.for_each(|slot| sooner(slot.submitted + limit));
        }
        deadline
    }

    /// Has the ring wait for what there is to wait for.
    pub(super) fn arm(&mut self, ring: &mut Ring, now: Instant) {
        if let Some(file) = self.file {
            let wants = self.session.wants();
            for (event, more, kind) in [
                (i32::from(libc::POLLIN), POLLRDHUP, KIND_IN),
                (i32::from(libc::POLLOUT), 0, KIND_OUT),
            ] {
                let armed = if kind == KIND_IN { &mut self.in_armed } else { &mut self.out_armed };
                if wants & event != 0 && !*armed {
                    let token = Token::Lane(token(kind, self.connection));
                    // A full ring: the next turn comes by here again.
                    *armed = ring.poll(file, (event | more) as u32, token).is_ok();
                }
            }
        }
        let Some(at) = self.deadline(now) else { return };
        if self.timer_at.is_none_or(|armed| at < armed) {
            // A little late, so that what is due is due when it comes.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            // Two timers of one turn share this; both then come at the time of the second.
            *self.timespec = left.into();
            let number = self.timer.wrapping_add(1);
            let timespec: *const types::Timespec = &raw const *self.timespec;
            // SAFETY: the time is boxed and lives until `close`, which submits, or is leaked.
            if unsafe { ring.timer(timespec, Token::Lane(token(KIND_TIMER, number))) }.is_ok() {
                (self.timer, self.timer_at) = (number, Some(at));
            }
        }
    }
}
