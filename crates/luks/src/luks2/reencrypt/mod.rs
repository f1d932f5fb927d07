//! Re-encryption of a volume from one volume key to another, as LUKS2 notes it on the volume.
//!
//! Contract: pure, as the whole crate. What lies on the volume is read into a [`Reencryption`]; every
//! step of a rotation is a plan; what happens between two plans (reading the old ciphertext, writing
//! the new, holding guests off) is the caller's. docs/on-disk.md has the protocol with its numbered
//! invariants (R1, R2, …), which code here names.
//! Deliberately absent: LUKS1 (which is converted before, [`crate::luks1`]), other directions, shifts of data, changes of the sector size.

mod binding;
mod forms;
mod recover;
mod recrypt;
mod resilience;
mod rotation;
mod stage;
mod state;
mod token;
mod wipe;

pub(crate) use binding::KeyPair;
pub use recover::{Recovery, RecoveryStep};
pub use recrypt::Recryptor;
pub use resilience::{Release, RotationParams};
pub use rotation::{
    Armed, Finished, Pending, Progress, Protection, Protector, Resume, Rotation, Zone,
};
pub use stage::StageParams;
pub(crate) use state::{Reencryption, State};
pub use token::RotationNotes;
