//! Rotation of a volume's key: drives the plans of `sealblk-luks` with real I/O, beside the guest.
//!
//! Contract: blocking, on a thread of its own; what it needs of the data path it asks through a
//! [`Gate`]. The order of writes and flushes is that of docs/on-disk.md, which `sealblk-luks` lays
//! down in its plans; here they are only carried out. An error leaves a volume that can be recovered.
//!
//! Deliberately absent: the engine. It is on the other side of the gate.

mod backup;
mod gate;
mod lock;
mod storage;

pub use backup::{BackupError, HeaderBackup, Restoration, Restored, restore};
pub use gate::{Ended, Gate, Load, NoGuests};
pub use lock::HeaderLock;
pub use storage::{Reader, carry_out, random};
