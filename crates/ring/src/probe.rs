//! Which of the kernel's io_uring features a ring uses, best first, with a clear way down.

use io_uring::{IoUring, opcode, register::Restriction};
use std::io;

/// How good a ring the kernel gives. Later is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No flags (before Linux 5.19).
    Plain,
    /// `COOP_TASKRUN` (Linux 5.19): completions don't interrupt the thread.
    Cooperative,
    /// `SINGLE_ISSUER | DEFER_TASKRUN` (Linux 6.1): completions run when the thread asks.
    Deferred,
}

/// What a ring was built with, for the log and for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Set-up flags.
    pub level: Level,
    /// Files are used through the ring's own table.
    pub fixed_files: bool,
    /// The bounce buffers are registered: no page pinning per I/O.
    pub fixed_buffers: bool,
    /// The ring refuses opcodes that the program doesn't use.
    pub restricted: bool,
}

/// `IORING_REGISTER_FILES_UPDATE` (include/uapi/linux/io_uring.h): kick eventfds come and go while
/// the ring runs. It is the only registration allowed once a ring is enabled.
const REGISTER_FILES_UPDATE: u8 = 6;

/// Everything a queue thread submits.
const OPCODES: [u8; 13] = [
    opcode::Nop::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::PollRemove::CODE,
    opcode::Timeout::CODE,
    opcode::AsyncCancel::CODE,
];

pub(crate) fn build(entries: u32, level: Level) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork().setup_clamp().setup_r_disabled();
    // Every entry may have a completion, and events and timers add theirs.
    builder.setup_cqsize(entries.saturating_mul(2));
    match level {
        Level::Plain => &mut builder,
        Level::Cooperative => builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag(),
        Level::Deferred => builder
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag(),
    };
    builder.build(entries)
}

/// Restricts the (still disabled) ring; false if this kernel can't (before Linux 5.10).
pub(crate) fn restrict(uring: &IoUring) -> bool {
    let mut allowed: Vec<Restriction> = OPCODES.iter().map(|&op| Restriction::sqe_op(op)).collect();
    allowed.push(Restriction::register_op(REGISTER_FILES_UPDATE));
    allowed.push(Restriction::sqe_flags_allowed(io_uring::squeue::Flags::FIXED_FILE.bits()));
    uring.submitter().register_restrictions(&mut allowed).is_ok()
}
