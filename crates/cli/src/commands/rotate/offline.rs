//! `sealblk rotate --volume URI`: a rotation by ourselves, of a volume that nobody uses.

use anyhow::anyhow;
use sealblk_keys::KeySource;

use crate::args::RotateHow;
use crate::console::Console;
use crate::failure::Failure;

pub(super) fn run(
    _uri: &str,
    _key: &KeySource,
    _how: &RotateHow,
    _console: &mut Console<'_>,
) -> Result<(), Failure> {
    Err(anyhow!("not in this build").into())
}
