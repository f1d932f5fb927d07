//! The beginning of a rotation: a new volume key gets its keyslots, is proven to open, and the header
//! says that data will get it.
//!
//! Contract: the volume may be in use; nothing of its data is touched. Until this returns the volume
//! opens as before, and from the first step on each passphrase opens both keys (R2). The caller has
//! cryptsetup's locks.

use sealblk_luks::{
    Header, KdfLimits, LuksError, Policy, Rotation, RotationNotes, RotationParams, RotationStatus,
    SlotKdf, StageParams, Unlocked,
};
use sealblk_secret::SecretBytes;
use sealblk_volume::Volume;

use crate::error::RotationError;
use crate::storage::{Reader, carry_out, random};

/// What a rotation begins with.
#[derive(Debug)]
pub struct Beginning<'a> {
    /// Opens the volume now.
    pub passphrase: &'a SecretBytes,
    /// Opens it afterwards; none: the secret stays.
    pub new_passphrase: Option<&'a SecretBytes>,
    /// How new keyslots stretch their passphrases; none: as the one does that opens now.
    pub kdf: Option<SlotKdf>,
    /// What to remember.
    pub notes: RotationNotes,
}

/// A rotation that has begun.
#[derive(Debug)]
pub struct Begun {
    /// Both keys.
    pub unlocked: Unlocked,
    /// The rotation before its first zone.
    pub rotation: Rotation,
}

/// Begins a rotation. One that was staged and went no further is taken back first.
///
/// # Errors
/// [`RotationError::Refused`] when one is under way; whatever the header or the storage say.
pub fn begin(
    volume: &dyn Volume,
    policy: &Policy,
    beginning: &Beginning<'_>,
    params: RotationParams,
) -> Result<Begun, RotationError> {
    let load = || Header::load(&mut Reader(volume), policy);
    let limits = KdfLimits::default();
    let mut header = load()?;
    match header.rotation_status()? {
        RotationStatus::None => {}
        RotationStatus::Staged => {
            let plan = header.abandon_rotation(&mut Reader(volume), &mut random)?;
            carry_out(volume, &plan)?;
            header = load()?;
        }
        _ => return Err(RotationError::Refused("a rotation is under way already".into())),
    }
    let unlocked = header.unlock(&mut Reader(volume), beginning.passphrase, &limits)?;
    let stage = StageParams {
        passphrase: beginning.passphrase,
        new_passphrase: beginning.new_passphrase,
        kdf: beginning.kdf.unwrap_or_else(|| header.kdf_like(unlocked.slot())),
        notes: beginning.notes.clone(),
    };
    let plan = header.stage_rotation(&mut Reader(volume), &unlocked, &stage, &mut random)?;
    drop(unlocked);
    carry_out(volume, &plan)?;
    let begun = prove_and_start(volume, &load()?, beginning, params);
    if begun.is_err()
        && let Ok(header) = load()
        && header.rotation_status().is_ok_and(|status| status == RotationStatus::Staged)
        && let Ok(plan) = header.abandon_rotation(&mut Reader(volume), &mut random)
    {
        // The failure is what counts; what is left staged here the next beginning takes back.
        let _ = carry_out(volume, &plan);
    }
    begun
}

/// Each passphrase alone must open both keys, from what lies on the volume now: only then data may
/// get the new one.
fn prove_and_start(
    volume: &dyn Volume,
    header: &Header,
    beginning: &Beginning<'_>,
    params: RotationParams,
) -> Result<Begun, RotationError> {
    let limits = KdfLimits::default();
    let mut unlocked = None;
    for passphrase in [Some(beginning.passphrase), beginning.new_passphrase].into_iter().flatten() {
        let opened = header.unlock_rotation(&mut Reader(volume), &[passphrase], &limits);
        unlocked = Some(opened?);
    }
    let Some(unlocked) = unlocked else {
        return Err(LuksError::ForeignKey.into());
    };
    let pending = header.start_rotation(&mut Reader(volume), &unlocked, params, &mut random)?;
    carry_out(volume, pending.plan())?;
    Ok(Begun { rotation: pending.carried_out(), unlocked })
}
