//! One header, whichever version: the entry to this crate.

mod conversion;
mod repair;

pub use conversion::Luks2Stay;
pub use repair::repair;

use std::sync::Arc;

use sealblk_cipher::SegmentSpec;
use sealblk_secret::SecretBytes;

use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::{KdfLimits, SlotKdf};
use crate::luks1::Luks1;
use crate::luks2::{
    KeyAge, Luks2, NewKeyslot, Pending, Resume, Rotation, RotationNotes, RotationParams,
    StageParams,
};
use crate::probe::{self, Found};
use crate::report::Report;

/// What the caller accepts. Pin the version where it is known: storage that swaps a LUKS2 header
/// for a LUKS1 one must not get its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// LUKS1 headers are accepted.
    pub luks1: bool,
    /// LUKS2 headers are accepted.
    pub luks2: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { luks1: true, luks2: true }
    }
}

/// A valid LUKS header, as it was when loaded: load it again after executing a plan.
#[derive(Debug)]
pub struct Header(Kind);

#[derive(Debug)]
enum Kind {
    V1(Box<Luks1>),
    V2(Box<Luks2>),
}

/// A volume key and where it came from.
#[derive(Debug)]
pub struct Unlocked {
    /// The volume key.
    pub(crate) key: Arc<SecretBytes>,
    /// The keyslot that the passphrase opened.
    pub(crate) slot: u32,
    /// LUKS2: the digest the key belongs to.
    pub(crate) digest: u32,
    /// In the middle of a re-encryption `key` is the new key, and this the old one with its digest.
    pub(crate) old: Option<(u32, Arc<SecretBytes>)>,
}

/// Where a rotation is, and what to call next. Sizes in bytes from the start of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationStatus {
    /// There is none.
    None,
    /// There is none, and the volume is LUKS2 only for one: [`Header::convert_to_luks1`], or
    /// [`Header::stage_rotation`] if one is wanted, or [`Header::keep_luks2`].
    ConvertBack,
    /// A new key has keyslots: [`Header::start_rotation`] or [`Header::abandon_rotation`].
    Staged,
    /// Everything below `done_bytes` has the new key: [`Header::resume_rotation`].
    Clean {
        /// How far it is.
        done_bytes: u64,
    },
    /// A range is to be redone before the volume is served: [`Header::resume_rotation`].
    Crash {
        /// Where it begins.
        start_bytes: u64,
        /// Its length.
        len_bytes: u64,
    },
    /// All data is done, the header not: [`Header::resume_rotation`].
    Finished,
    /// The rotation has ended; [`Header::clean_up_rotation`] is still to be done.
    WipePending,
}

impl Unlocked {
    /// The keyslot that opened.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    /// The digest of the volume key, by its number in the report; LUKS1 has one, 0.
    pub fn digest(&self) -> u32 {
        self.digest
    }

    /// In the middle of a re-encryption: the digest of the old volume key.
    pub fn old_digest(&self) -> Option<u32> {
        self.old.as_ref().map(|(digest, _)| *digest)
    }

    pub(crate) fn key_of(&self, digest: u32) -> Option<&Arc<SecretBytes>> {
        if digest == self.digest {
            return Some(&self.key);
        }
        self.old.as_ref().filter(|(old, _)| *old == digest).map(|(_, key)| key)
    }
}

impl Header {
    /// Reads and validates the header. What cannot be read counts as damaged: as long as one copy
    /// is whole, that one serves, and [`Self::report`] says what is wrong with the other.
    ///
    /// # Errors
    /// [`LuksError::NotLuks`], [`LuksError::VersionNotAllowed`], [`LuksError::InvalidLuks1`],
    /// [`LuksError::BothCopiesBad`], [`LuksError::Read`].
    pub fn load(io: &mut dyn ReadAt, policy: &Policy) -> Result<Self, LuksError> {
        match probe::luks_or_other(io)? {
            Found::Luks1 if !policy.luks1 => Err(LuksError::VersionNotAllowed { found: 1 }),
            Found::Luks2 if !policy.luks2 => Err(LuksError::VersionNotAllowed { found: 2 }),
            Found::Luks1 => Ok(Self(Kind::V1(Box::new(Luks1::load(io)?)))),
            Found::Luks2 => Ok(Self(Kind::V2(Box::new(Luks2::load(io)?)))),
            other => Err(LuksError::NotLuks(other)),
        }
    }

    /// 1 or 2.
    pub fn version(&self) -> u8 {
        match self.0 {
            Kind::V1(_) => 1,
            Kind::V2(_) => 2,
        }
    }

    /// The volume's UUID as text.
    pub fn uuid(&self) -> String {
        match &self.0 {
            Kind::V1(header) => header.uuid(),
            Kind::V2(header) => header.uuid(),
        }
    }

    /// Reasons why this build does not serve the volume; empty when there are none.
    pub fn refusals(&self) -> Vec<String> {
        match &self.0 {
            Kind::V1(header) => header.refusals(),
            Kind::V2(header) => header.refusals(),
        }
    }

    /// Reasons why a volume of `volume_bytes` with this header will not be served: the refusals,
    /// segments that don't lie on it or have no room for data, no keyslot that could be tried with
    /// the default [`KdfLimits`]. Empty when only the right passphrase is missing.
    pub fn obstacles(&self, volume_bytes: u64) -> Vec<String> {
        match &self.0 {
            Kind::V1(header) => header.obstacles(volume_bytes),
            Kind::V2(header) => header.obstacles(volume_bytes),
        }
    }

    fn check_not_refused(&self) -> Result<(), LuksError> {
        let refusals = self.refusals();
        if refusals.is_empty() { Ok(()) } else { Err(LuksError::Refused(refusals)) }
    }

    fn check_editable(&self) -> Result<(), LuksError> {
        self.check_not_refused()?;
        match &self.0 {
            Kind::V1(_) => Ok(()),
            Kind::V2(header) => {
                let refusals = header.refusals_to_edit();
                if refusals.is_empty() { Ok(()) } else { Err(LuksError::Refused(refusals)) }
            }
        }
    }

    /// Recovers the volume key. Takes as long as the keyslots' derivations do, seconds if need be.
    /// Keyslots that cannot be read, or that cost more than `limits` allow, are skipped.
    ///
    /// # Errors
    /// [`LuksError::Refused`], [`LuksError::NoKeyslotOpens`].
    pub fn unlock(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        self.unlock_any(io, passphrase, None, limits)
    }

    /// As [`Self::unlock`], with one keyslot only, whatever its priority.
    ///
    /// # Errors
    /// Also [`LuksError::NoSuchKeyslot`].
    pub fn unlock_slot(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        slot: u32,
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        self.unlock_any(io, passphrase, Some(slot), limits)
    }

    /// How a keyslot stretches its passphrase, for a further one that shall be like it: the usual way
    /// for random secrets when that is none that could be made.
    pub fn kdf_like(&self, slot: u32) -> SlotKdf {
        match &self.0 {
            Kind::V1(header) => header.kdf_like(slot).unwrap_or_default(),
            Kind::V2(header) => header.kdf_like(slot).unwrap_or_default(),
        }
    }

    /// Recovers both volume keys of a rotation that is staged, under way or interrupted, each with
    /// whichever of `passphrases` opens it, and checks that the header's re-encryption is the one
    /// that was begun with them. [`Self::unlock`] does the same with one passphrase, and only where
    /// the volume may be served.
    ///
    /// # Errors
    /// [`LuksError::Refused`], also when the header was tampered with;
    /// [`LuksError::NoKeyslotOpens`].
    pub fn unlock_rotation(
        &self,
        io: &mut dyn ReadAt,
        passphrases: &[&SecretBytes],
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        self.rotatable()?.unlock_both(io, passphrases, limits)
    }

    /// What the header says about a rotation.
    ///
    /// # Errors
    /// [`LuksError::Refused`] when it is one that this build cannot handle.
    pub fn rotation_status(&self) -> Result<RotationStatus, LuksError> {
        match &self.0 {
            Kind::V1(_) => Ok(RotationStatus::None),
            Kind::V2(header) => header.rotation_status(),
        }
    }

    /// What a rotation wants to remember, if one is staged, under way or not yet cleaned up.
    ///
    /// # Errors
    /// [`LuksError::Refused`] when the token is mangled.
    pub fn rotation_notes(&self) -> Result<Option<RotationNotes>, LuksError> {
        match &self.0 {
            Kind::V1(_) => Ok(None),
            Kind::V2(header) => header.rotation_notes(),
        }
    }

    /// Plans a new volume key with its keyslots; the data keeps its key. Load the header again after
    /// it, and prove by [`Self::unlock_rotation`] that each passphrase opens both keys.
    ///
    /// # Errors
    /// [`LuksError::Rotation`], [`LuksError::NoRoom`], [`LuksError::Refused`],
    /// [`LuksError::ForeignKey`].
    pub fn stage_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: &StageParams<'_>,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        let header = self.rotatable()?;
        match header.rotation_status()? {
            RotationStatus::None | RotationStatus::ConvertBack => {
                header.stage_rotation(io, unlocked, params, random)
            }
            _ => Err(LuksError::Refused(header.refusals_to_edit())),
        }
    }

    /// Plans the way back from [`Self::stage_rotation`], as long as no data has the new key.
    ///
    /// # Errors
    /// [`LuksError::Rotation`] when none is staged.
    pub fn abandon_rotation(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.rotatable()?.abandon_rotation(io, random)
    }

    /// Plans the header with which a staged rotation begins. `unlocked` is from
    /// [`Self::unlock_rotation`].
    ///
    /// # Errors
    /// [`LuksError::Rotation`], [`LuksError::NoRoom`], [`LuksError::SegmentOutside`],
    /// [`LuksError::ForeignKey`].
    pub fn start_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: RotationParams,
        random: &mut Random<'_>,
    ) -> Result<Pending<Rotation>, LuksError> {
        self.rotatable()?.start_rotation(io, unlocked, params, random)
    }

    /// Takes up a rotation that is under way, whoever began it. Both header copies must be good:
    /// [`repair()`] first.
    ///
    /// # Errors
    /// As for [`Self::start_rotation`].
    pub fn resume_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: RotationParams,
        random: &mut Random<'_>,
    ) -> Result<Resume, LuksError> {
        self.rotatable()?.resume_rotation(io, unlocked, params, random)
    }

    /// Plans what is left when all data has the new key; see [`RotationStatus::WipePending`].
    ///
    /// # Errors
    /// [`LuksError::Rotation`] when nothing is left.
    pub fn clean_up_rotation(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.rotatable()?.clean_up_rotation(io, random)
    }

    /// Plans to write everything before the data again, as it reads: after a flush that failed,
    /// before anything relies on it. LUKS1: nothing, its header is not written in a rotation.
    ///
    /// # Errors
    /// [`LuksError::Read`].
    pub fn renew(&self, io: &mut dyn ReadAt) -> Result<Plan, LuksError> {
        match &self.0 {
            Kind::V1(_) => Ok(Plan::default()),
            Kind::V2(header) => header.renew(io),
        }
    }

    /// The LUKS2 header, if nothing forbids to rotate its key.
    fn rotatable(&self) -> Result<&Luks2, LuksError> {
        let Kind::V2(header) = &self.0 else {
            return Err(LuksError::Rotation(
                "LUKS1 knows no re-encryption: the volume must be LUKS2 for the time of it".into(),
            ));
        };
        let refusals = header.refusals_of_any_kind();
        if refusals.is_empty() { Ok(header) } else { Err(LuksError::Refused(refusals)) }
    }

    fn unlock_any(
        &self,
        io: &mut dyn ReadAt,
        passphrase: &SecretBytes,
        slot: Option<u32>,
        limits: &KdfLimits,
    ) -> Result<Unlocked, LuksError> {
        self.check_not_refused()?;
        match &self.0 {
            Kind::V1(header) => header.unlock(io, passphrase, slot, limits),
            Kind::V2(header) => header.unlock(io, passphrase, slot, limits),
        }
    }

    /// The guest's disk on a volume of `volume_bytes`: contiguous segments from guest sector 0.
    ///
    /// # Errors
    /// [`LuksError::SegmentOutside`] when the volume is too small, [`LuksError::Refused`].
    pub fn segments(
        &self,
        unlocked: &Unlocked,
        volume_bytes: u64,
    ) -> Result<Vec<SegmentSpec>, LuksError> {
        match &self.0 {
            Kind::V1(header) => header.segments(unlocked, volume_bytes),
            Kind::V2(header) => header.segments(unlocked, volume_bytes),
        }
    }

    /// Everything about the header that is public.
    pub fn report(&self) -> Report {
        match &self.0 {
            Kind::V1(header) => header.report(),
            Kind::V2(header) => header.report(),
        }
    }

    /// Plans a further keyslot for the unlocked volume key; gives its number and the plan.
    ///
    /// # Errors
    /// [`LuksError::KeyslotInUse`], [`LuksError::NoRoom`], [`LuksError::BadParameter`],
    /// [`LuksError::Refused`], [`LuksError::ForeignKey`].
    pub fn add_keyslot(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        passphrase: &SecretBytes,
        new: &NewKeyslot,
        random: &mut Random<'_>,
    ) -> Result<(u32, Plan), LuksError> {
        self.check_editable()?;
        match &self.0 {
            Kind::V1(header) => header.add_keyslot(io, unlocked, passphrase, new, random),
            Kind::V2(header) => header.add_keyslot(io, unlocked, passphrase, new, random),
        }
    }

    /// Plans the removal of a keyslot and the destruction of its material. `force` admits the last
    /// one that opens the volume.
    ///
    /// # Errors
    /// [`LuksError::NoSuchKeyslot`], [`LuksError::LastKeyslot`], [`LuksError::Refused`].
    pub fn remove_keyslot(
        &self,
        io: &mut dyn ReadAt,
        slot: u32,
        force: bool,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_editable()?;
        match &self.0 {
            Kind::V1(header) => header.remove_keyslot(io, slot, force, random),
            Kind::V2(header) => header.remove_keyslot(io, slot, force, None, random),
        }
    }

    /// As [`Self::remove_keyslot`], never the last one; the header without the keyslot is the one
    /// that notes `age`. (LUKS1 has no place for it.)
    ///
    /// # Errors
    /// As for [`Self::remove_keyslot`]; [`LuksError::NoRoom`].
    pub fn retire_keyslot(
        &self,
        io: &mut dyn ReadAt,
        slot: u32,
        age: KeyAge,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_editable()?;
        match &self.0 {
            Kind::V1(header) => header.remove_keyslot(io, slot, false, random),
            Kind::V2(header) => header.remove_keyslot(io, slot, false, Some(age), random),
        }
    }

    /// How old the header says that the volume's keys are; `None` when it says nothing, as LUKS1
    /// always does. Storage can lie about it.
    ///
    /// # Errors
    /// Why what it says can't be understood: the age is unknown.
    pub fn key_age(&self) -> Result<Option<KeyAge>, String> {
        match &self.0 {
            Kind::V1(_) => Ok(None),
            Kind::V2(header) => header.key_age(),
        }
    }

    /// Plans a header that says that the keys are of this age, in place of whatever it says now.
    ///
    /// # Errors
    /// [`LuksError::BadParameter`] for LUKS1, [`LuksError::NoRoom`], [`LuksError::Refused`] (also
    /// while a rotation is under way, whose end notes the age by itself).
    pub fn set_key_age(
        &self,
        io: &mut dyn ReadAt,
        age: KeyAge,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_editable()?;
        match &self.0 {
            Kind::V1(_) => {
                Err(LuksError::BadParameter("LUKS1 has no place for the age of its keys".into()))
            }
            Kind::V2(header) => header.set_key_age(io, age, random),
        }
    }
}
