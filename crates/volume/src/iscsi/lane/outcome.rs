//! What becomes of an I/O: its commands one after the other, and what their answers mean for it.
//!
//! Invariant: an I/O is in one state of [`State`], and counted there.
// UNSAFETY: hands the submitter's memory to libiscsi.
#![expect(unsafe_code, reason = "commands carry pointers to their data")]

use std::time::{Duration, Instant};

use super::{CAPACITY, FIRST_SLOT, IscsiLane, LATER_LAST, TRIES_MAX};
use crate::iscsi::answer::{Answer, Ended, News};
use crate::iscsi::command::Command;
use crate::iscsi::slot::{Stage, State};
use crate::iscsi::unit::Capacity;
use crate::{LaneDone, LaneOp};

impl IscsiLane {
    /// Hands the slot's next command to libiscsi.
    pub(super) fn send(&mut self, index: usize, now: Instant) {
        if self.shared.news.is_fenced() {
            return self.give_back(index, Err(crate::FENCED));
        }
        let slot = &mut self.slots[index];
        debug_assert!(slot.state != State::Sent && slot.task.is_null(), "sent once at a time");
        let (unit, zeroes) = (&self.shared.unit, self.zeroes.as_mut_ptr());
        let size_bytes = self.shared.size.bytes();
        // SAFETY: the submitter keeps the memory until the I/O is given back, which is after the
        // command's end. Pieces and lists lie in the slot's vectors, which nobody touches before;
        // the vectors' memory stays where it is when the table grows.
        let task = unsafe {
            let (command, pieces, count) = slot.command(unit, size_bytes, self.short_sync, zeroes);
            self.session.command(FIRST_SLOT + index as u32, &command, pieces, count)
        };
        if let Some(task) = task {
            (slot.task, slot.state, slot.sent) = (task, State::Sent, now);
            self.sent += 1;
        } else {
            self.later(index, now);
        }
    }

    /// Sends it again in a while, which grows.
    pub(super) fn later(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        slot.tries += 1;
        if slot.tries > TRIES_MAX {
            return self.give_back(index, Err(libc::EIO));
        }
        let pause = Duration::from_millis(10 << slot.tries.min(7)).min(LATER_LAST);
        (slot.state, slot.due) = (State::Waiting, now + pause);
        self.waiting += 1;
    }

    pub(super) fn free_task(&mut self, index: usize) {
        let task = std::mem::replace(&mut self.slots[index].task, std::ptr::null_mut());
        // SAFETY: its end was told, or the session destroyed; the pointer is forgotten.
        unsafe { self.session.free(task) };
    }

    pub(super) fn slot_ended(&mut self, index: usize, ended: Ended, now: Instant) {
        let Some(slot) = self.slots.get(index).filter(|slot| slot.state == State::Sent) else {
            return;
        };
        let sends = slot.sends();
        let answer = ended.answer();
        if answer == Answer::Lost {
            // It stays as it is: `lose` keeps it for the next session.
            return self.give_up("the connection was lost");
        }
        self.sent -= 1;
        self.slots[index].state = State::Queued;
        match answer {
            Answer::Again(News::PowerOn) => {
                self.shared.durability.powered_on();
                self.give_up("the unit was powered on");
            }
            Answer::Again(News::Capacity) => self.ask_capacity(),
            Answer::Failed(crate::FENCED) => self.shared.news.fenced(),
            _ => {}
        }
        let unsent = sends && self.session.wants_out();
        match answer {
            Answer::Again(_) | Answer::Later if unsent => return self.hold(index, libc::EAGAIN),
            Answer::Unknown if unsent => return self.hold(index, libc::EOPNOTSUPP),
            Answer::Failed(errno) if unsent => return self.hold(index, errno),
            _ => self.free_task(index),
        }
        match answer {
            Answer::Done { missing_bytes } => self.stage_done(index, missing_bytes, now),
            Answer::Again(_) => {
                self.slots[index].tries += 1;
                if self.slots[index].tries > TRIES_MAX {
                    return self.give_back(index, Err(libc::EIO));
                }
                if self.session.ready() {
                    self.send(index, now);
                }
            }
            Answer::Later => self.later(index, now),
            Answer::Unknown => self.unknown(index, now),
            Answer::Failed(errno) => {
                let read = matches!(self.slots[index].op, LaneOp::Read { .. });
                let errno = if read && errno == libc::ENOSPC { libc::EIO } else { errno };
                self.give_back(index, Err(errno));
            }
            Answer::Lost => {}
        }
    }

    /// The target has ended a command before it had all its data. What is left of it may be in
    /// libiscsi's queue, and points to the task and through it to the I/O's memory: both stay until
    /// the queue is empty. (`EAGAIN`: it is sent again then.)
    fn hold(&mut self, index: usize, errno: i32) {
        self.slots[index].state = State::Held(errno);
        self.held += 1;
    }

    pub(super) fn release_held(&mut self) {
        for index in 0..self.slots.len() {
            let State::Held(errno) = self.slots[index].state else { continue };
            self.free_task(index);
            self.held -= 1;
            self.slots[index].state = State::Queued;
            if errno != libc::EAGAIN {
                self.give_back(index, Err(errno));
            } else if self.session.ready() {
                self.later(index, Instant::now());
            }
        }
    }

    fn unknown(&mut self, index: usize, now: Instant) {
        let slot = &mut self.slots[index];
        match (slot.op, slot.stage) {
            (LaneOp::Flush, _) | (_, Stage::Sync) if !self.short_sync => {
                self.short_sync = true;
                self.send(index, now);
            }
            // A unit without the command has no cache.
            (LaneOp::Flush, _) | (_, Stage::Sync) => self.stage_done(index, 0, now),
            _ => self.give_back(index, Err(libc::EOPNOTSUPP)),
        }
    }

    fn stage_done(&mut self, index: usize, missing_bytes: u32, now: Instant) {
        let block = u64::from(self.shared.unit.geometry.block_bytes);
        let unit = &self.shared.unit;
        let slot = &mut self.slots[index];
        // Whole blocks only.
        let moved = slot.step_bytes.saturating_sub(missing_bytes.into()) / block * block;
        let result =
            if moved == 0 && slot.step_bytes > 0 { Err(libc::EIO) } else { Ok(moved as u32) };
        match (slot.op, slot.stage) {
            (LaneOp::Flush, _) => {
                let kept = self.shared.durability.flushed(slot.mark);
                self.give_back(index, if kept { Ok(0) } else { Err(libc::EIO) });
            }
            (_, Stage::Sync) => {
                let moved = slot.done_bytes as u32;
                self.give_back(index, Ok(moved));
            }
            (LaneOp::Read { .. }, _) => self.give_back(index, result),
            (LaneOp::Write { durable, .. }, _) => {
                let cached = unit.cache && !(durable && unit.fua);
                if cached {
                    self.shared.durability.wrote();
                }
                if cached && durable && result.is_ok() {
                    (slot.stage, slot.done_bytes) = (Stage::Sync, moved);
                    self.send(index, now);
                } else {
                    self.give_back(index, result);
                }
            }
            (LaneOp::Discard { len_bytes, .. }, _) => {
                slot.done_bytes += slot.step_bytes;
                if slot.done_bytes < len_bytes && slot.step_bytes > 0 {
                    self.send(index, now);
                } else {
                    self.give_back(index, Ok(0));
                }
            }
        }
    }

    /// The I/O goes back to the caller; its slot is in no counted state.
    pub(super) fn give_back(&mut self, index: usize, result: Result<u32, i32>) {
        let slot = &mut self.slots[index];
        slot.state = State::Free;
        self.early.push(LaneDone { id: slot.id, result });
        self.free.push(index as u32);
    }

    pub(super) fn ask_capacity(&mut self) {
        if !self.capacity_task.is_null() {
            return;
        }
        self.capacity_piece.clear();
        let (iov_base, iov_len) = (self.capacity.as_mut_ptr().cast(), self.capacity.len());
        self.capacity_piece.push(libc::iovec { iov_base, iov_len });
        let piece = self.capacity_piece.as_mut_ptr();
        // SAFETY: both vectors live as long as the lane and are not touched before the end.
        let task =
            unsafe { self.session.command(CAPACITY, &Command::read_capacity_16(), piece, 1) };
        self.capacity_task = task.unwrap_or(std::ptr::null_mut());
    }

    pub(super) fn has_capacity(&mut self, ended: Ended) {
        let task = std::mem::replace(&mut self.capacity_task, std::ptr::null_mut());
        // SAFETY: its end was told; the pointer is forgotten.
        unsafe { self.session.free(task) };
        match ended.answer() {
            Answer::Done { missing_bytes: 0 } => {
                if let Ok(data) = <&[u8; 32]>::try_from(self.capacity.as_slice()) {
                    let Capacity { blocks, block_bytes, .. } = Capacity::parse(data);
                    self.shared.news.resized(blocks.saturating_mul(block_bytes.into()));
                }
            }
            Answer::Again(_) => self.ask_capacity(),
            Answer::Lost => self.give_up("the connection was lost"),
            _ => {}
        }
    }
}
