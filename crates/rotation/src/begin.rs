//! The beginning of a rotation: a new volume key gets its keyslots, is proven to open, and the header
//! says that data will get it.
//!
//! Contract: the volume may be in use; nothing of its data is touched. Until this returns the volume
//! opens as before, and from the first step on each passphrase opens both keys (R2). The caller has
//! cryptsetup's locks.

use sealblk_luks::{
    Header, KdfLimits, Luks2Stay, LuksError, Policy, Rotation, RotationNotes, RotationParams,
    RotationStatus, SlotKdf, StageParams, Unlocked,
};
use sealblk_secret::SecretBytes;
use sealblk_volume::Volume;

use crate::error::RotationError;
use crate::recover::convert_back;
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
    /// A LUKS1 volume, which has to be LUKS2 for a rotation, stays it.
    pub keep_luks2: bool,
}

/// A rotation that has begun.
#[derive(Debug)]
pub struct Begun {
    /// Both keys.
    pub unlocked: Unlocked,
    /// The rotation before its first zone.
    pub rotation: Rotation,
}

/// Begins a rotation. One that was staged and went no further is taken back first. A LUKS1 volume
/// becomes LUKS2; when the rotation can't begin it becomes LUKS1 again.
///
/// # Errors
/// [`RotationError::Refused`] when one is under way; whatever the header or the storage say.
pub fn begin(
    volume: &dyn Volume,
    beginning: &Beginning<'_>,
    params: RotationParams,
) -> Result<Begun, RotationError> {
    let load = || Header::load(&mut Reader(volume), &Policy::default());
    let limits = KdfLimits::default();
    let mut header = load()?;
    match header.rotation_status()? {
        RotationStatus::None | RotationStatus::ConvertBack => {}
        RotationStatus::Staged => {
            let plan = header.abandon_rotation(&mut Reader(volume), &mut random)?;
            carry_out(volume, &plan)?;
            header = load()?;
        }
        _ => return Err(RotationError::Refused("a rotation is under way already".into())),
    }
    let unlocked = header.unlock(&mut Reader(volume), beginning.passphrase, &limits)?;
    // Before a conversion gives it another number.
    let kdf = beginning.kdf.unwrap_or_else(|| header.kdf_like(unlocked.slot()));
    if header.version() == 1 {
        let stay = if beginning.keep_luks2 { Luks2Stay::ForGood } else { Luks2Stay::UntilRotated };
        let plan = header.convert_to_luks2(&mut Reader(volume), &unlocked, stay, &mut random)?;
        carry_out(volume, &plan)?;
        header = load()?;
    } else if beginning.keep_luks2 && header.rotation_status()? == RotationStatus::ConvertBack {
        carry_out(volume, &header.keep_luks2(&mut Reader(volume), &mut random)?)?;
        header = load()?;
    }
    let begun = stage_and_start(volume, header, &unlocked, beginning, kdf, params, &load);
    if begun.is_err() {
        // The failure is what counts; what is left undone here the next beginning takes back.
        let _ = take_back(volume, &unlocked, &load);
    }
    begun
}

/// The volume is as it was before, unless the storage fails.
fn take_back(
    volume: &dyn Volume,
    unlocked: &Unlocked,
    load: &dyn Fn() -> Result<Header, LuksError>,
) -> Result<(), RotationError> {
    let header = load()?;
    if header.rotation_status()? == RotationStatus::Staged {
        carry_out(volume, &header.abandon_rotation(&mut Reader(volume), &mut random)?)?;
    }
    convert_back(volume, unlocked, None)?;
    Ok(())
}

fn stage_and_start(
    volume: &dyn Volume,
    header: Header,
    unlocked: &Unlocked,
    beginning: &Beginning<'_>,
    kdf: SlotKdf,
    params: RotationParams,
    load: &dyn Fn() -> Result<Header, LuksError>,
) -> Result<Begun, RotationError> {
    let stage = StageParams {
        passphrase: beginning.passphrase,
        new_passphrase: beginning.new_passphrase,
        kdf,
        notes: beginning.notes.clone(),
    };
    let plan = header.stage_rotation(&mut Reader(volume), unlocked, &stage, &mut random)?;
    carry_out(volume, &plan)?;
    prove_and_start(volume, &load()?, beginning, params)
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
