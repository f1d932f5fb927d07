//! Taking up what a volume's header says of a rotation: mending, redoing an interrupted zone, cleaning
//! up. Before a volume is served, and again whenever the storage failed in the middle.
//!
//! Contract: when this returns the volume may be served by the segments that it gives. It can be
//! interrupted anywhere and done again (docs/on-disk.md, R9). Nobody else reads or writes the zone
//! meanwhile.

use sealblk_block::in_one_line;
use sealblk_cipher::SegmentSpec;
use sealblk_luks::{
    Header, KdfLimits, LuksError, Policy, Progress, Recovery, RecoveryStep, Resume, Rotation,
    RotationParams, RotationStatus, Unlocked, repair,
};
use sealblk_secret::SecretBytes;
use sealblk_volume::Volume;

use crate::ages::{Ages, after_rotation_as_luks2};
use crate::error::{RotationError, Trouble};
use crate::storage::{Reader, carry_out_or_trouble, random};

/// A volume that may be served.
#[derive(Debug)]
pub struct TakenUp {
    /// The header as it is now.
    pub header: Header,
    /// Which key owns what.
    pub segments: Vec<SegmentSpec>,
    /// What there is to go on with; none when no data waits for another key.
    pub rotation: Option<Rotation>,
    /// What was done, a line each, for the log.
    pub done: Vec<String>,
}

/// What a rotation assumes of a volume, with zones of this length.
pub fn params(volume: &dyn Volume, zone_bytes: u64) -> RotationParams {
    let geometry = volume.geometry();
    RotationParams {
        volume_bytes: geometry.size_bytes,
        block_bytes: geometry.block_bytes,
        atomic_write_bytes: geometry.atomic_write_bytes,
        zone_bytes,
    }
}

/// Recovers the keys that serving the volume takes: both while a rotation is under way, each with
/// whichever of `passphrases` opens it.
///
/// # Errors
/// As [`Header::unlock`] and [`Header::unlock_rotation`].
pub fn unlock(
    volume: &dyn Volume,
    header: &Header,
    passphrases: &[&SecretBytes],
) -> Result<Unlocked, LuksError> {
    let limits = KdfLimits::default();
    let mut io = Reader(volume);
    match header.rotation_status()? {
        RotationStatus::Clean { .. } | RotationStatus::Crash { .. } | RotationStatus::Finished => {
            header.unlock_rotation(&mut io, passphrases, &limits)
        }
        RotationStatus::None
        | RotationStatus::ConvertBack
        | RotationStatus::Staged
        | RotationStatus::WipePending => {
            let mut last = LuksError::NoKeyslotOpens { tried: 0, skipped: Vec::new() };
            for passphrase in passphrases {
                match header.unlock(&mut io, passphrase, &limits) {
                    Err(error @ LuksError::NoKeyslotOpens { .. }) => last = error,
                    result => return result,
                }
            }
            Err(last)
        }
    }
}

/// Takes up the rotation of a volume whose keys are `unlocked` (both, as
/// [`Header::unlock_rotation`] gives them, while one is under way). What is LUKS2 only for a rotation
/// that is over becomes LUKS1 again, its keys' age noted in `ages`.
///
/// # Errors
/// [`RotationError::Volume`] and [`LuksError::Read`] when the storage fails: try again; others are
/// for an operator.
pub fn take_up(
    volume: &dyn Volume,
    unlocked: &Unlocked,
    params: RotationParams,
    ages: Option<&Ages>,
) -> Result<TakenUp, RotationError> {
    try_take_up(volume, unlocked, params, ages).map_err(RotationError::from)
}

pub(crate) fn try_take_up(
    volume: &dyn Volume,
    unlocked: &Unlocked,
    params: RotationParams,
    ages: Option<&Ages>,
) -> Result<TakenUp, Trouble> {
    let mut done = Vec::new();
    let load = || Ok::<_, Trouble>(Header::load(&mut Reader(volume), &Policy::default())?);
    let mut header = load()?;
    if header.version() == 1 {
        let plan = header.finish_conversion(&mut Reader(volume), &mut random)?;
        if !plan.is_empty() {
            carry_out_or_trouble(volume, &plan)?;
            done.push("what an interrupted conversion to or from LUKS2 left is removed".into());
            header = load()?;
        }
    }
    if header.version() != 2 || header.rotation_status()? == RotationStatus::None {
        let segments = header.segments(unlocked, params.volume_bytes)?;
        return Ok(TakenUp { header, segments, rotation: None, done });
    }
    // What follows relies on both copies.
    if header.report().copies.iter().any(|copy| copy.damage.is_some()) {
        let (report, plan) = repair(&mut Reader(volume), false, &mut random)?;
        carry_out_or_trouble(volume, &plan)?;
        done.extend(
            report.repairs.into_iter().map(|line| format!("header copy rewritten: {line}")),
        );
        header = load()?;
    }
    let rotation = match header.rotation_status()? {
        RotationStatus::None | RotationStatus::ConvertBack | RotationStatus::Staged => None,
        RotationStatus::WipePending => {
            let plan = header.clean_up_rotation(&mut Reader(volume), &mut random)?;
            carry_out_or_trouble(volume, &plan)?;
            done.push("the old key's keyslots are wiped".into());
            None
        }
        RotationStatus::Clean { .. } | RotationStatus::Crash { .. } | RotationStatus::Finished => {
            go_on(volume, &header, unlocked, params, &mut done)?
        }
    };
    if rotation.is_none() && convert_back(volume, unlocked, ages)? {
        done.push("the volume is LUKS1 again".into());
    }
    let header = load()?;
    let segments = match &rotation {
        Some(rotation) => rotation.segments()?,
        None => header.segments(unlocked, params.volume_bytes)?,
    };
    Ok(TakenUp { header, segments, rotation, done })
}

fn go_on(
    volume: &dyn Volume,
    header: &Header,
    unlocked: &Unlocked,
    params: RotationParams,
    done: &mut Vec<String>,
) -> Result<Option<Rotation>, Trouble> {
    let resume = header.resume_rotation(&mut Reader(volume), unlocked, params, &mut random)?;
    let progress = match resume {
        Resume::Clean(pending) => {
            carry_out_or_trouble(volume, pending.plan())?;
            return Ok(Some(pending.carried_out()));
        }
        Resume::Finished(pending) => {
            carry_out_or_trouble(volume, pending.plan())?;
            Progress::Done(pending.carried_out())
        }
        Resume::Crash(recovery) => {
            let progress = redo(volume, *recovery)?;
            done.push("the zone that was interrupted is re-encrypted".into());
            progress
        }
    };
    match progress {
        Progress::More(rotation) => Ok(Some(rotation)),
        Progress::Done(finished) => {
            carry_out_or_trouble(volume, &finished.wipe(&mut random)?)?;
            done.push("the rotation is complete, the old key's keyslots are wiped".into());
            Ok(None)
        }
    }
}

fn redo(volume: &dyn Volume, mut recovery: Recovery) -> Result<Progress, Trouble> {
    loop {
        match recovery.step(&mut Reader(volume))? {
            RecoveryStep::Redo(pending) => {
                carry_out_or_trouble(volume, pending.plan())?;
                recovery = pending.carried_out();
            }
            RecoveryStep::Commit(pending) => {
                carry_out_or_trouble(volume, pending.plan())?;
                return Ok(pending.carried_out());
            }
        }
    }
}

/// Makes LUKS1 again what is LUKS2 only for a rotation that is over; whether there was that to do.
/// LUKS1 has no place for the age of keys, so that is noted elsewhere first.
pub(crate) fn convert_back(
    volume: &dyn Volume,
    unlocked: &Unlocked,
    ages: Option<&Ages>,
) -> Result<bool, Trouble> {
    let header = Header::load(&mut Reader(volume), &Policy::default())?;
    if header.rotation_status()? != RotationStatus::ConvertBack {
        return Ok(false);
    }
    if let Some(ages) = ages {
        let uuid = header.uuid();
        let kept = ages.read(&uuid).ok().flatten().unwrap_or_default();
        let noted = header.key_age().ok().flatten().unwrap_or_default();
        if let Err(error) = ages.write(&uuid, &after_rotation_as_luks2(kept, noted)) {
            let error = in_one_line(&error);
            tracing::warn!(volume = volume.uri(), error, "the keys will seem older than they are");
        }
    }
    let plan = header.convert_to_luks1(&mut Reader(volume), unlocked, &mut random)?;
    carry_out_or_trouble(volume, &plan)?;
    Ok(true)
}

/// Whether a header of this status must be taken up before the volume is served, and so can't be
/// served read-only.
///
/// # Errors
/// [`LuksError::Refused`] when the status is one that this build doesn't understand.
pub fn must_be_taken_up(header: &Header) -> Result<bool, LuksError> {
    Ok(matches!(header.rotation_status()?, RotationStatus::Crash { .. }))
}
