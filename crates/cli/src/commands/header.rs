//! `sealblk header backup` and `header restore`.

use sealblk_rotation::{BackupError, HeaderBackup, Restoration, restore as put_back};

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::target::{Glance, Target};

/// Takes no lock: a header that changes meanwhile is noticed.
pub(crate) fn backup(args: &args::HeaderBackup, console: &mut Console<'_>) -> Result<(), Failure> {
    let mut volume = Glance::open(&args.volume)?;
    HeaderBackup::create_new(&args.file, &mut volume).map_err(refusal)?;
    writeln!(
        console.out,
        "{}: its header is in {}, which opens the volume with each of its passphrases",
        args.volume,
        args.file.display()
    )?;
    Ok(())
}

pub(crate) fn restore(
    args: &args::HeaderRestore,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let target = Target::open(&args.volume, console)?;
    let restoration =
        Restoration::of(&args.file, target.volume(), args.overwrite_signature).map_err(refusal)?;
    console.confirm(&restoration.question(), args.yes)?;
    let restored = put_back(target.volume(), &restoration)?;
    let (volume, file) = (&args.volume, args.file.display());
    writeln!(console.out, "{volume}: has the header of {file} again, UUID {}", restored.uuid)?;
    if let Some(before) = restored.before {
        console.note(&format!("what was there before is in {}", before.display()))?;
    }
    Ok(())
}

/// Refusals change nothing, and have an exit status of their own.
pub(super) fn refusal(error: BackupError) -> Failure {
    match error {
        BackupError::Refused { .. } => Failure::Refused(error.to_string()),
        other => other.into(),
    }
}
