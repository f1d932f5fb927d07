//! LUKS1 volumes that are LUKS2 for the time of a rotation, or for good.
//!
//! Contract: as for every plan, a crash at any point leaves a volume that opens with each of its
//! passphrases, as the one or as the other; which is for [`Header::version`] to say. The order of
//! calls: [`Header::convert_to_luks2`], a rotation from [`Header::stage_rotation`] to its wiping,
//! [`Header::convert_to_luks1`], the header loaded again after each. After a restart
//! [`Header::finish_conversion`] and [`Header::rotation_status`] say what is left to do.

use super::{Header, Kind, Unlocked};
use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::luks2::Luks2;

/// How long a volume that is converted to LUKS2 stays it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Luks2Stay {
    /// Until its rotation has ended: the header says so ([`crate::RotationStatus::ConvertBack`]),
    /// and the new keyslot is made such that LUKS1 can take it over.
    UntilRotated,
    /// For good.
    ForGood,
}

impl Header {
    /// Plans to make LUKS2 of a LUKS1 volume, in place: same data, key, passphrases and UUID. QEMU's
    /// own LUKS does not open it then. `unlocked` opens it afterwards, too; load the header again.
    ///
    /// # Errors
    /// [`LuksError::NoRoom`] when keyslot 0 is in use and no other is free, or none for the new key
    /// of the rotation; [`LuksError::Refused`], [`LuksError::ForeignKey`];
    /// [`LuksError::Conversion`] for LUKS2.
    pub fn convert_to_luks2(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        stay: Luks2Stay,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_not_refused()?;
        match &self.0 {
            Kind::V1(header) => header.convert_to_luks2(io, unlocked, stay, random),
            Kind::V2(_) => Err(LuksError::Conversion("the volume is LUKS2 already".into())),
        }
    }

    /// Plans the way back of a volume in [`crate::RotationStatus::ConvertBack`], with the key that
    /// it has now. Both header copies must be good: [`crate::repair()`] first.
    ///
    /// # Errors
    /// [`LuksError::Refused`] when something lies in the header that LUKS1 has no place for;
    /// [`LuksError::ForeignKey`]; [`LuksError::Conversion`] in any other state.
    pub fn convert_to_luks1(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.converted()?.convert_to_luks1(io, unlocked, random)
    }

    /// Plans to forget that the volume began as LUKS1; in [`crate::RotationStatus::ConvertBack`] only.
    ///
    /// # Errors
    /// [`LuksError::Conversion`] in any other state.
    pub fn keep_luks2(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.converted()?.keep_luks2(io, random)
    }

    /// Plans to remove what an interrupted conversion left behind a LUKS1 header; an empty plan when
    /// there is nothing. To be called whenever a LUKS1 volume is opened for writing. (What is left
    /// to do behind a LUKS2 header is [`crate::repair()`]'s.)
    ///
    /// # Errors
    /// [`LuksError::Changed`], [`LuksError::Random`]; [`LuksError::Read`] of what is in use.
    pub fn finish_conversion(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        match &self.0 {
            Kind::V1(header) => header.finish_conversion(io, random),
            Kind::V2(_) => Ok(Plan::default()),
        }
    }

    /// Whether it is LUKS2 only for the time of a rotation: it was LUKS1 and will be again.
    pub fn is_luks1_for_now_luks2(&self) -> bool {
        match &self.0 {
            Kind::V1(_) => false,
            Kind::V2(header) => header.has_origin_token(),
        }
    }

    /// The LUKS2 header of a volume that began as LUKS1.
    fn converted(&self) -> Result<&Luks2, LuksError> {
        match &self.0 {
            Kind::V1(_) => Err(LuksError::Conversion("the volume is LUKS1 already".into())),
            Kind::V2(_) => self.rotatable(),
        }
    }
}
