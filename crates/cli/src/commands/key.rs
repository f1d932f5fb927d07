//! `sealblk key add` and `sealblk key remove`: which passphrases open a volume.

use anyhow::{Context, anyhow};
use sealblk_keys::Fetched;
use sealblk_luks::{Header, KdfLimits, LuksError, NewKeyslot, Policy, Unlocked};

use super::format::slot_kdf;
use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::keyfile;
use crate::random::random;
use crate::target::Target;

pub(crate) fn add(args: &args::KeyAdd, console: &mut Console<'_>) -> Result<(), Failure> {
    let (current, new) =
        (keyfile::fetch(&args.key, console)?, keyfile::fetch(&args.new_key, console)?);
    let target = Target::open(&args.volume, console)?;
    let header = load(&args.volume, &target)?;
    let unlocked = unlock(&args.volume, &target, &header, &current)?;
    let keyslot = NewKeyslot { slot: args.slot, kdf: slot_kdf(args.kdf), ..Default::default() };
    let (slot, plan) = header
        .add_keyslot(&mut target.reader(), &unlocked, &new.passphrase, &keyslot, &mut random)
        .with_context(|| args.volume.clone())?;
    target.execute(plan)?;
    writeln!(console.out, "{}: keyslot {slot} opens with key {}", args.volume, args.new_key)?;
    Ok(())
}

pub(crate) fn remove(args: &args::KeyRemove, console: &mut Console<'_>) -> Result<(), Failure> {
    let fetched =
        args.which.key.as_ref().map(|source| keyfile::fetch(source, console)).transpose()?;
    let target = Target::open(&args.volume, console)?;
    let header = load(&args.volume, &target)?;
    let slot = match (args.which.slot, &fetched) {
        (Some(slot), _) => slot,
        (None, Some(key)) => unlock(&args.volume, &target, &header, key)?.slot(),
        (None, None) => return Err(anyhow!("which keyslot? --slot or --key says so").into()),
    };
    let plan = header.remove_keyslot(&mut target.reader(), slot, false, &mut random);
    let plan = plan.map_err(|error| match error {
        LuksError::LastKeyslot(slot) => Failure::Refused(format!(
            "{}: keyslot {slot} is the last that opens the volume; without it the data is lost. \
             Add another first",
            args.volume
        )),
        error => Failure::Failed(anyhow!(error).context(args.volume.clone())),
    })?;
    let what = format!("Keyslot {slot} of {} will not open it any more.", args.volume);
    console.confirm(&what, args.yes)?;
    target.execute(plan)?;
    writeln!(console.out, "{}: keyslot {slot} is removed", args.volume)?;
    Ok(())
}

fn load(uri: &str, target: &Target) -> anyhow::Result<Header> {
    Header::load(&mut target.reader(), &Policy::default()).with_context(|| uri.to_owned())
}

fn unlock(uri: &str, target: &Target, header: &Header, key: &Fetched) -> anyhow::Result<Unlocked> {
    let unlocked = header.unlock(&mut target.reader(), &key.passphrase, &KdfLimits::default());
    unlocked.map_err(|error| {
        let hint = key.hint().filter(|_| matches!(error, LuksError::NoKeyslotOpens { .. }));
        let error = anyhow!(error).context(uri.to_owned());
        match hint {
            Some(hint) => anyhow!("{error:#}; {hint}"),
            None => error,
        }
    })
}
