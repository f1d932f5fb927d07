//! A damaged header copy is rewritten from the good one before the volume is served: the next
//! damage may hit the other one.
//!
//! Contract: called after a passphrase has opened the volume, so the copy that is trusted is the
//! one whose keys were just proven. A copy that can't be mended (a worn-out sector, something
//! else's signature where the header was) is a warning and no more: the good one serves.

use sealblk_block::in_one_line;
use sealblk_luks::{Header, ReadAt, repair};
use sealblk_rotation::{carry_out, random};
use sealblk_volume::Volume;

use crate::audit;

/// Mends what is damaged. `io` reads `volume`.
pub(crate) fn mend_header(volume: &dyn Volume, io: &mut dyn ReadAt, header: &Header, disk: &str) {
    for copy in &header.report().copies {
        if let Some(damage) = &copy.damage {
            let offset = copy.offset_bytes;
            tracing::warn!(disk, offset, "one header copy is damaged: {damage}; the other serves");
        }
    }
    if volume.geometry().read_only || header.version() != 2 {
        return;
    }
    match try_mend(volume, io) {
        Ok(repairs) => {
            for repair in repairs {
                tracing::warn!(disk, "header copy rewritten from the good one: {repair}");
                audit::record(&audit::Event::HeaderChanged { volume: disk, change: &repair });
            }
        }
        Err(error) => {
            let error = in_one_line(error.as_ref());
            tracing::warn!(disk, error, "the damaged header copy stays; see `sealblk repair`");
        }
    }
}

/// What was rewritten, a line each.
fn try_mend(volume: &dyn Volume, io: &mut dyn ReadAt) -> anyhow::Result<Vec<String>> {
    let (report, plan) = repair(io, false, &mut random)?;
    carry_out(volume, &plan)?;
    Ok(report.repairs)
}
