//! Messages with file descriptors over a Unix socket: what the agent is asked, and what it asks its
//! daemons (docs/agent-protocol.md).
//!
//! Contract: a message is at most [`MAX_MESSAGE`] bytes and [`MAX_DESCRIPTORS`] descriptors, and
//! arrives whole or not at all (`SOCK_SEQPACKET`, unix(7)). Every call blocks, with the time limit
//! that the socket was given. What is in a message is the caller's: nothing here knows JSON.
//!
//! Invariant: no descriptor that came with a message outlives it unless the caller keeps it; all are
//! close-on-exec.

mod message;
mod socket;

pub use message::{MAX_DESCRIPTORS, MAX_MESSAGE, Message};
pub use socket::{Connection, Listener, Peer};
