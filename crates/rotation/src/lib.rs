//! Rotation of a volume's key: drives the plans of `sealblk-luks` with real I/O, beside the guest.
//!
//! Contract: blocking, on a thread of its own; what it needs of the data path it asks through a
//! [`Gate`]. The order of writes and flushes is that of docs/on-disk.md, which `sealblk-luks` lays
//! down in its plans; here they are only carried out. An error leaves a volume that can be recovered.
//!
//! Deliberately absent: the engine. It is on the other side of the gate.

mod begin;
mod controls;
mod driver;
mod error;
mod gate;
mod lock;
mod mover;
mod pace;
mod recover;
mod storage;

pub use begin::{Beginning, Begun, begin};
pub use controls::{Controls, Phase, Progress, Watch, Wishes, ZONE_BYTES, ZONE_BYTES_MAX};
pub use driver::{Job, Outcome, run};
pub use error::RotationError;
pub use gate::{Ended, Gate, Load, NoGuests};
pub use lock::HeaderLock;
pub use recover::{TakenUp, must_be_taken_up, params, take_up, unlock};
pub use storage::{Reader, carry_out, random};

#[cfg(test)]
mod tests;
