//! Passphrases from their sources, with the source's warning for the operator.

use sealblk_keys::{Fetched, KeySource};

use crate::console::Console;
use crate::failure::Failure;

/// Gets a passphrase.
pub(crate) fn fetch(source: &KeySource, console: &mut Console<'_>) -> Result<Fetched, Failure> {
    let fetched = source.fetch()?;
    if let Some(warning) = &fetched.warning {
        console.note(&format!("warning: {warning}"))?;
    }
    Ok(fetched)
}
