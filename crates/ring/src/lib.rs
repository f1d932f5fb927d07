//! One io_uring per thread: the only wait point of a queue thread.
//!
//! Contract: a [`Ring`] is made, used and dropped on one thread. Everything that thread waits for
//! (kicks, control, data) is an entry in this ring, so one `io_uring_enter` both submits and
//! sleeps. A ring is born disabled, gets its files and buffers, is restricted to the opcodes that
//! the program uses, and only then enabled: a process that holds keys should not be able to ask
//! the kernel for more than it needs.
//!
//! Invariant: what a submitted entry points to stays where it is until its completion is reaped.
//! [`Ring::push`] is unsafe for that reason; [`Ring::watch`] is not, the ring owns that memory.
//!
//! Deliberately absent: SQPOLL (burns a core per queue) and IOPOLL (needs polled devices).

mod files;
mod probe;
mod ring;
mod token;

pub use files::FileSlot;
pub use io_uring::{opcode, squeue::Entry, types};
pub use probe::{Features, Level};
pub use ring::{Completion, Full, Ring, RingError, RingOptions};
pub use token::Token;
