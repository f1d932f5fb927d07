//! The vhost-user session: what QEMU says on the socket, turned into calls on a `QueueHost`.
//!
//! [`Session::bind`] makes the socket of one disk, [`Session::run`] serves it on the calling thread,
//! for ever: when the front-end goes, the queues are drained and the next one is accepted. Which
//! messages and features are spoken, and why they are answered as they are, is told in
//! `docs/vhost-user.md`.
//!
//! Contract: a front-end may send anything in any order. It gets an answer, an error or a closed
//! connection; it never ends the session.
//!
//! Invariant: nothing here touches a request. The data plane is reached through
//! [`sealblk_virtqueue::QueueHost`] alone, and only `handler.rs` names the `vhost` crate's traits.
//!
//! Deliberately absent: `unsafe`, dirty logging, packed rings, a second front-end at the same time.

mod capacity;
mod channel;
mod connection;
mod event;
mod fuzz;
mod handler;
mod rings;
mod session;
mod socket;

pub use capacity::CapacityHandle;
pub use event::{Event, Observer};
#[doc(hidden)]
pub use fuzz::fuzz_messages;
pub use session::{Session, SocketConfig, StopHandle};
pub use socket::SocketError;
