//! Harness of the whole-system tests: the daemon as a process, and everyone who talks to it.
//!
//! [`Daemon`] starts, kills and stops `sealblkd`; [`Guest`] is a QEMU virtual machine that runs a
//! shell script; [`Rotating`] is a daemon whose volume is rotated; [`Client`] is the third-party vhost-user client of the `blkio` crate;
//! [`RawFrontend`] is a front-end of our own that may misbehave; [`oracle`] reads what we wrote
//! with cryptsetup and qemu-img. The scenarios are in `tests/`, one file per promise.
//!
//! Invariant: every process and file made here is gone when its value is dropped, and nothing
//! waits without a deadline.

mod agent;
mod ceph;
mod client;
mod daemon;
mod frontend;
mod guest;
mod iscsi;
mod load;
mod log;
pub mod memory;
pub mod oracle;
pub mod overhead;
mod pattern;
mod process;
mod programs;
mod proxy;
mod ring;
mod rotation;
mod schema;
mod volume;
mod wait;

pub use agent::{Agent, NOBODY};
pub use ceph::{Ceph, CephDaemon, CephUser, LockOwner, Outage, RbdImage};
pub use client::{Client, ClientOptions, Completed};
pub use daemon::{Daemon, Exit};
pub use frontend::{RawFrontend, Reply};
pub use guest::{Guest, GuestBuilder, GuestImage};
pub use iscsi::{Target, TargetOptions};
pub use load::Load;
pub use log::Log;
pub use pattern::{Pattern, chi_square, shares_blocks};
pub use programs::{kat, run, sealblk, sealblk_command, sealblkd_program, unpack_kat};
pub use proxy::{Proxy, ProxyCounts};
pub use ring::{Completion, Desc, Ring, blk, flags};
pub use rotation::Rotating;
pub use schema::Document;
pub use volume::{Kind, Scratch, Storage, TestVolume};
pub use wait::{progress, until};
