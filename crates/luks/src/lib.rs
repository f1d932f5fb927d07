//! LUKS1 and LUKS2: bytes to structs and back, keyslots, header updates as write plans.
//!
//! Contract: the volume is hostile input. A [`Header`] is valid (every length, offset, overlap,
//! reference and cost was checked) but may still be one that we refuse to serve:
//! [`Header::refusals`] says why. Volume keys and derived keys live in `sealblk_secret` memory only.
//! Invariant: a crash at any point of a [`Plan`] leaves the volume as before or as after it.
//! Deliberately absent: files, sockets, locks, clocks, the random generator (all the caller's);
//! detached headers.

mod af;
mod error;
mod hash;
mod header;
mod io;
mod kdf;
mod luks1;
mod luks2;
mod material;
mod probe;
mod report;
mod signatures;
mod text;

pub use error::{Flaw, LuksError, Skipped};
pub use header::{Header, Luks2Stay, Policy, RotationStatus, Unlocked, repair};
pub use io::{Plan, Random, ReadAt, Step};
pub use kdf::{KdfLimits, SlotKdf};
pub use luks2::{
    Armed, Finished, FormatParams, KeyAge, KmsToken, NewKeyslot, Pending, Progress, Protection,
    Protector, Recovery, RecoveryStep, Recryptor, Release, RepairReport, Resume, Rotation,
    RotationNotes, RotationParams, StageParams, Zone, format,
};
pub use probe::{Found, PROBED_TAIL_BYTES, probe};
pub use report::{CopyReport, DigestReport, KeyslotReport, Report, SegmentReport, TokenReport};

fn read_vec(io: &mut dyn ReadAt, offset_bytes: u64, len: usize) -> Result<Vec<u8>, LuksError> {
    let mut bytes = vec![0; len];
    io.read_at(offset_bytes, &mut bytes).map_err(|source| LuksError::Read {
        offset_bytes,
        len_bytes: len,
        source,
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
