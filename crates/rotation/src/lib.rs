//! Rotation of a volume's key: drives the plans of `sealblk-luks` with real I/O, beside the guest.
//!
//! Contract: blocking, on a thread of its own; what it needs of the data path it asks through a
//! [`Gate`]. The order of writes and flushes is that of docs/on-disk.md, which `sealblk-luks` lays
//! down in its plans; here they are only carried out. An error leaves a volume that can be recovered.
//!
//! When a rotation begins by itself is decided in `schedule`, by pure functions; `ages` keeps what a
//! header has no place for.
//!
//! Deliberately absent: the engine. It is on the other side of the gate.

mod ages;
mod backup;
mod begin;
mod controls;
mod driver;
mod error;
mod gate;
mod lock;
mod mover;
mod pace;
mod recover;
mod schedule;
mod storage;

pub use ages::{AgeError, Ages, KnownAge, Place, after_rotation_as_luks2, is_uuid, known_age};
pub use backup::{BackupError, HeaderBackup, Restoration, Restored, restore};
pub use begin::{Beginning, Begun, begin};
pub use controls::{Controls, Phase, Progress, Watch, Wishes, ZONE_BYTES, ZONE_BYTES_MAX};
pub use driver::{Job, Outcome, run};
pub use error::RotationError;
pub use gate::{Ended, Gate, Load, NoGuests};
pub use lock::HeaderLock;
pub use recover::{TakenUp, must_be_taken_up, params, take_up, unlock};
pub use schedule::{
    ASK_AGAIN, CLOCK_SET_AFTER, Decision, Due, Oddity, Schedule, UnknownAge, Window, Windows,
    decide, parse_duration, parse_size, utc_date, utc_time,
};
pub use storage::{Reader, carry_out, random};

#[cfg(test)]
mod tests;
