//! The kernel's unbound workers on one processor: so that what they do for a server is done, and
//! paid for, on the server's processor, and not now here, now there.
//!
//! The mask is the whole machine's and outlives us; a note in /run holds what it was, so that a
//! later run puts back what a killed one left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Documentation/core-api/workqueue.rst, "Affinity Scopes"; hexadecimal, a bit per processor.
const MASK: &str = "/sys/devices/virtual/workqueue/cpumask";
const NOTE: &str = "/run/sealblk-bench-workqueue";

/// Workers stay where they were sent until this is dropped.
pub(crate) struct Confined(());

impl Confined {
    /// Sends the workers to `processor`.
    pub(crate) fn to(processor: usize) -> Result<Self> {
        let before = fs::read_to_string(MASK).context("no mask of workqueues")?;
        if !Path::new(NOTE).exists() {
            fs::write(NOTE, before)?;
        }
        fs::write(MASK, format!("{:x}", 1_u64 << processor))
            .context("can't keep kernel workers on one processor (needs root)")?;
        Ok(Self(()))
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the mask back that was there before a run of ours, this one or a killed one.
pub(crate) fn restore() {
    if let Ok(before) = fs::read_to_string(NOTE)
        && fs::write(MASK, before.trim()).is_ok()
    {
        let _ = fs::remove_file(NOTE);
    }
}
