//! The control handle's session: one command at a time, waited for with poll(2).
//!
//! Contract: a call returns when its command has ended for good or time is up; a lost connection is
//! made again meanwhile. Deliberately absent: watching an idle session. It is closed when a lane is
//! opened, and made again when the next header is read or written.
// UNSAFETY: hands memory to libiscsi for the length of a call.
#![expect(unsafe_code, reason = "commands carry pointers to their data")]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::answer::{Answer, Ended};
use super::command::Command;
use super::library::{Direction, ScsiTask};
use super::login::{Fault, Login};
use super::session::{ATTENTIONS_MAX, FIRST_TAG, PING, Session, Step};

/// How long a target may take to connect and log in, and to answer a command before the
/// connection counts as lost.
pub(super) const LOGIN_LIMIT: Duration = Duration::from_secs(10);
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// Between attempts: the first pause, doubled up to the last.
pub(super) const PAUSE_FIRST: Duration = Duration::from_millis(100);
pub(super) const PAUSE_LAST: Duration = Duration::from_secs(5);

/// A blocking session.
pub(super) struct Control {
    session: Session,
}

/// A command that ended.
pub(super) enum Outcome {
    /// Done, but for this many bytes.
    Done { missing_bytes: u32 },
    /// The unit doesn't know it.
    Unknown,
    /// It failed for good.
    Failed(i32),
}

impl Control {
    pub(super) fn new(login: Arc<Login>) -> Self {
        Self { session: Session::new(login) }
    }

    /// Connects and logs in, once.
    pub(super) fn connect(&mut self) -> Result<(), Fault> {
        if self.session.ready() {
            return Ok(());
        }
        let deadline = Instant::now() + LOGIN_LIMIT;
        let result = self.session.start().and_then(|()| self.until_ready(deadline));
        if result.is_err() {
            self.session.destroy();
        }
        result
    }

    fn until_ready(&mut self, deadline: Instant) -> Result<(), Fault> {
        loop {
            if !self.wait(deadline) {
                let error = self.session.error();
                let why = if error.is_empty() { "it doesn't answer".to_owned() } else { error };
                return Err(Fault::connect(why));
            }
            let events = self.session.take_events();
            for &event in &events {
                if event.tag >= PING {
                    continue;
                }
                match self.session.step(event) {
                    Step::Going | Step::Moved => {}
                    Step::Ready { .. } => {
                        self.session.recycle(events);
                        return Ok(());
                    }
                    Step::Failed(fault) => return Err(fault),
                }
            }
            self.session.recycle(events);
        }
    }

    /// Waits for the socket and does what it is ready for; false: lost, or time is up.
    fn wait(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let fd = self.session.fd();
        if fd < 0 || left.is_zero() {
            return false;
        }
        let wants = PollFlags::from_bits_truncate(self.session.wants() as u16);
        // SAFETY: the descriptor is the live session's.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut polled = [PollFd::from_borrowed_fd(fd, wants)];
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => false,
            Ok(_) => {
                // What a target says before it hangs up comes first: why it refuses, for one.
                let revents = polled[0].revents();
                let data = revents & (PollFlags::IN | PollFlags::OUT);
                let ready = if revents.contains(PollFlags::IN) { data } else { revents }.bits();
                // A failure that was told as an event is told better.
                self.session.service(i32::from(ready)) || self.session.has_events()
            }
            Err(error) => error == rustix::io::Errno::INTR,
        }
    }

    /// Carries out a command and waits for its end; makes the connection again while it is lost,
    /// until `deadline` (none: for ever).
    pub(super) fn run(
        &mut self,
        command: &Command,
        data: &mut [u8],
        deadline: Option<Instant>,
    ) -> Result<Outcome, Fault> {
        let mut pause = PAUSE_FIRST;
        let mut attentions = 0;
        loop {
            let fault = match self.connect() {
                Ok(()) => match self.attempt(command, data) {
                    Answer::Done { missing_bytes } => return Ok(Outcome::Done { missing_bytes }),
                    Answer::Failed(errno) => return Ok(Outcome::Failed(errno)),
                    Answer::Unknown => return Ok(Outcome::Unknown),
                    Answer::Again(_) if attentions < ATTENTIONS_MAX => {
                        attentions += 1;
                        continue;
                    }
                    Answer::Again(_) => Fault::connect("the unit is never ready".to_owned()),
                    Answer::Later => Fault::connect("the unit is busy or not ready".to_owned()),
                    Answer::Lost => Fault::connect("the connection was lost".to_owned()),
                },
                Err(fault) => fault,
            };
            if deadline.is_some_and(|deadline| Instant::now() + pause > deadline) {
                return Err(fault);
            }
            #[expect(clippy::disallowed_methods, reason = "no event tells that a target is back")]
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_LAST);
        }
    }

    fn attempt(&mut self, command: &Command, data: &mut [u8]) -> Answer {
        debug_assert!(data.len() == command.data_bytes as usize, "as much data as it says");
        let mut piece = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
        // SAFETY: piece and data outlive the command: this function returns only after its end, or
        // after the session was destroyed.
        let Some(task) = (unsafe { self.session.command(FIRST_TAG, command, &raw mut piece, 1) })
        else {
            self.session.destroy();
            return Answer::Lost;
        };
        let answer = match self.until_ended(Instant::now() + COMMAND_LIMIT) {
            Some(ended) => ended.answer(),
            None => Answer::Lost,
        };
        // A write that failed may still have data in libiscsi's queue.
        let unsent = command.direction == Direction::Out && self.session.wants_out();
        if answer == Answer::Lost || unsent {
            self.session.abort();
        }
        self.free(task);
        answer
    }

    fn free(&mut self, task: *mut ScsiTask) {
        // SAFETY: it has ended, or the session was destroyed; the caller forgets it.
        unsafe { self.session.free(task) };
    }

    fn until_ended(&mut self, deadline: Instant) -> Option<Ended> {
        loop {
            let alive = self.wait(deadline);
            let events = self.session.take_events();
            let ended = events.iter().find(|event| event.tag == FIRST_TAG).map(|event| event.ended);
            self.session.recycle(events);
            if ended.is_some() || !alive {
                return ended;
            }
        }
    }

    /// Ends the session; the next command makes another.
    pub(super) fn disconnect(&mut self) {
        self.session.destroy();
    }
}

/// The error of a command that failed with `errno`.
pub(super) fn failure(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
