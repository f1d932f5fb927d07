//! Passphrases from their sources, with the source's warning for the operator.

use sealblk_keys::{Fetched, KeyManagers, KeySource};

use crate::console::Console;
use crate::failure::Failure;

/// Gets a passphrase.
pub(crate) fn fetch(source: &KeySource, console: &mut Console<'_>) -> Result<Fetched, Failure> {
    let fetched = managers(source, console)?.fetch(source)?;
    if let Some(warning) = &fetched.warning {
        console.note(&format!("warning: {warning}"))?;
    }
    Ok(fetched)
}

/// The key managers, if this source needs one: their configuration is in nobody else's way.
pub(crate) fn managers(
    source: &KeySource,
    console: &mut Console<'_>,
) -> Result<KeyManagers, Failure> {
    if !source.needs_key_manager() {
        return Ok(KeyManagers::none());
    }
    let managers = KeyManagers::load(console.key_managers.as_deref())?;
    for warning in managers.warnings() {
        console.note(&format!("warning: {warning}"))?;
    }
    Ok(managers)
}
