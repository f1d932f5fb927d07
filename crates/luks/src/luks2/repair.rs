//! Rewriting a damaged header copy from the good one.
//!
//! A flush goes first: the good copy may have been written by somebody who died before he flushed
//! it, and unflushed writes to both copies may tear both.

use serde::Serialize;

use super::{CopyState, Luks2};
use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::probe;

/// What [`crate::repair()`] found and plans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// One line per copy that will be rewritten: where and why. Empty: nothing to do.
    pub repairs: Vec<String>,
}

/// Plans the rewrite; see [`crate::repair()`].
pub(crate) fn repair(
    io: &mut dyn ReadAt,
    force: bool,
    random: &mut Random<'_>,
) -> Result<(RepairReport, Plan), LuksError> {
    let header = Luks2::load(io)?;
    let mut report = RepairReport { repairs: Vec::new() };
    let mut plan = Plan::default();
    let json = header.metadata.to_text();
    for copy in &header.copies {
        let offset_bytes = copy.offset_bytes();
        let why = match copy {
            CopyState::Good(_) => continue,
            CopyState::Stale { seqid, .. } => {
                format!(
                    "differs from the other: seqid {seqid}, that one has {}",
                    header.binary.seqid
                )
            }
            CopyState::Damaged { reason, .. } => reason.clone(),
        };
        if offset_bytes == 0
            && !force
            && let Some(name) = probe::foreign(io)
        {
            return Err(LuksError::CannotRepair(format!(
                "the primary header was overwritten by something else: {name} lies at offset 0. \
                 If that is unwanted, force the repair"
            )));
        }
        let place = header.place_of(copy, random)?;
        if json.len() as u64 >= header.metadata.config.json_size {
            return Err(LuksError::NoRoom("the JSON in its compact form".into()));
        }
        if plan.is_empty() {
            plan.flush();
        }
        plan.write(offset_bytes, header.binary.image(&place, &json));
        plan.flush();
        report.repairs.push(format!("header copy at offset {offset_bytes}: {why}"));
    }
    Ok((report, plan))
}
