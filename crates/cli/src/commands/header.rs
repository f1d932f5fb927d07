//! `sealblk header backup` and `header restore`.

use anyhow::anyhow;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;

pub(crate) fn backup(
    _args: &args::HeaderBackup,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(anyhow!("not in this build").into())
}

pub(crate) fn restore(
    _args: &args::HeaderRestore,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(anyhow!("not in this build").into())
}
