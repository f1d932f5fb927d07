//! Mending the copy of a header that is damaged, from the one that is not.

use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::luks2::{self, RepairReport};
use crate::probe::{self, Found};

/// Plans to rewrite a damaged or outdated LUKS2 header copy from the good one, with a salt of its
/// own. Nothing to do gives an empty plan. `force` goes ahead although a foreign signature lies
/// where the primary was.
///
/// # Errors
/// [`LuksError::BothCopiesBad`]; [`LuksError::CannotRepair`] for LUKS1, which has no second copy,
/// and for overwritten primaries; [`LuksError::NotLuks`].
pub fn repair(
    io: &mut dyn ReadAt,
    force: bool,
    random: &mut Random<'_>,
) -> Result<(RepairReport, Plan), LuksError> {
    match probe::luks_or_other(io)? {
        Found::Luks2 => luks2::repair(io, force, random),
        Found::Luks1 => Err(LuksError::CannotRepair(
            "LUKS1 has one header and no copy of it: there is nothing to repair from but a backup"
                .into(),
        )),
        other => Err(LuksError::NotLuks(other)),
    }
}
