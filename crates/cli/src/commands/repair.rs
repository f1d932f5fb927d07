//! `sealblk repair`: a damaged header copy from the good one.

use anyhow::Context;
use sealblk_luks::LuksError;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::target::Target;
use sealblk_rotation::random;

pub(crate) fn run(args: &args::Repair, console: &mut Console<'_>) -> Result<(), Failure> {
    let target = Target::open(&args.volume, console)?;
    let repair = |force| sealblk_luks::repair(&mut target.reader(), force, &mut random);
    let (report, plan) = match repair(args.overwrite_signature) {
        // Whatever force would change was refused to save what lies there.
        Err(LuksError::CannotRepair(why)) if repair(true).is_ok() => {
            return Err(Failure::Refused(format!(
                "{}: {why}; --overwrite-signature does",
                args.volume
            )));
        }
        result => result.with_context(|| args.volume.clone())?,
    };
    if plan.is_empty() {
        writeln!(console.out, "{}: both header copies are good, nothing to repair", args.volume)?;
        return Ok(());
    }
    for repair in &report.repairs {
        console.note(&format!("{}: {repair}", args.volume))?;
    }
    let what = format!("The above will be rewritten on {} from the good copy.", args.volume);
    console.confirm(&what, args.yes)?;
    target.execute(plan)?;
    writeln!(console.out, "{}: repaired", args.volume)?;
    Ok(())
}
