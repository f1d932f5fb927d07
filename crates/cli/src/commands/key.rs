//! `sealblk key add`, `key remove` and `rewrap`: which passphrases open a volume.

use anyhow::{Context, anyhow};
use sealblk_keys::Fetched;
use sealblk_luks::{
    Header, KdfLimits, KeyAge, LuksError, NewKeyslot, Plan, Policy, SlotKdf, Unlocked,
};

use super::format::slot_kdf;
use crate::args::{self, Kdf};
use crate::console::Console;
use crate::failure::Failure;
use crate::keyfile;
use crate::target::Target;
use crate::time::now;
use sealblk_rotation::random;

/// PBKDF2 iterations of a new LUKS1 keyslot: some seconds of one core.
const LUKS1_ITERATIONS: u32 = 2_000_000;

pub(crate) fn add(args: &args::KeyAdd, console: &mut Console<'_>) -> Result<(), Failure> {
    let (current, new) =
        (keyfile::fetch(&args.key, console)?, keyfile::fetch(&args.new_key, console)?);
    let target = Target::open(&args.volume, console)?;
    let header = load(&args.volume, &target)?;
    let unlocked = unlock(&args.volume, &target, &header, &current)?;
    let kdf = kdf_for(&header, args.kdf, args.iterations)?;
    let keyslot = NewKeyslot { slot: args.slot, kdf, ..Default::default() };
    let (slot, plan) = header
        .add_keyslot(&mut target.reader(), &unlocked, &new.passphrase, &keyslot, &mut random)
        .with_context(|| args.volume.clone())?;
    target.execute(plan)?;
    writeln!(console.out, "{}: keyslot {slot} opens with key {}", args.volume, args.new_key)?;
    Ok(())
}

/// How a new passphrase of this volume is stretched.
fn kdf_for(header: &Header, kdf: Option<Kdf>, iterations: Option<u32>) -> anyhow::Result<SlotKdf> {
    let (kdf, iterations) = match (header.version(), kdf) {
        // LUKS1 has no Argon2, so its passphrases need what PBKDF2 can do against guessing.
        (1, None | Some(Kdf::Pbkdf2)) => (Kdf::Pbkdf2, iterations.or(Some(LUKS1_ITERATIONS))),
        (_, kdf) => (kdf.unwrap_or_default(), iterations),
    };
    slot_kdf(kdf, iterations)
}

/// The new keyslot is made, and shown to open from the volume, before the old ones go. Whoever is
/// interrupted runs it again: at every instant at least one of both passphrases opens the volume.
pub(crate) fn rewrap(args: &args::Rewrap, console: &mut Console<'_>) -> Result<(), Failure> {
    let uri = &args.volume;
    let (current, new) =
        (keyfile::fetch(&args.key, console)?, keyfile::fetch(&args.new_key, console)?);
    if current.passphrase.ct_eq(new.passphrase.expose()) {
        return Err(Failure::Refused(format!(
            "{uri}: both keys are the same, nothing would change"
        )));
    }
    let target = Target::open(uri, console)?;
    let header = load(uri, &target)?;
    let doomed = opened_by(uri, &target, &header, &current, console)?;
    let what = format!("{uri}: key {} will open nothing any more.", args.key);
    console.confirm(&what, args.yes)?;
    match header.unlock(&mut target.reader(), &new.passphrase, &KdfLimits::default()) {
        // An earlier attempt came that far.
        Ok(unlocked) => {
            writeln!(console.out, "{uri}: keyslot {} opens with it already", unlocked.slot())?;
        }
        Err(LuksError::NoKeyslotOpens { .. }) => {
            let unlocked = unlock(uri, &target, &header, &current)?;
            let kdf = kdf_for(&header, args.kdf, args.iterations)?;
            let keyslot = NewKeyslot { kdf, ..Default::default() };
            let (slot, plan) = header
                .add_keyslot(
                    &mut target.reader(),
                    &unlocked,
                    &new.passphrase,
                    &keyslot,
                    &mut random,
                )
                .with_context(|| uri.clone())?;
            target.execute(plan)?;
            writeln!(console.out, "{uri}: keyslot {slot} opens with key {}", args.new_key)?;
        }
        Err(error) => return Err(anyhow!(error).context(uri.clone()).into()),
    }
    // What counts is what lies on the volume.
    unlock(uri, &target, &load(uri, &target)?, &new)?;
    let mut remaining = doomed.len();
    for slot in doomed {
        remaining -= 1;
        let plan =
            retire(&load(uri, &target)?, &target, slot, remaining).with_context(|| uri.clone())?;
        target.execute(plan)?;
        writeln!(console.out, "{uri}: keyslot {slot} of key {} is wiped", args.key)?;
    }
    unlock(uri, &target, &load(uri, &target)?, &new)?;
    Ok(())
}

/// Plans that a keyslot of the old secret goes, after which `remaining` more are to go. The header
/// without the last one is the one that says since when the secret is in use: an interruption leaves
/// it older rather than younger than it is.
fn retire(
    header: &Header,
    target: &Target,
    slot: u32,
    remaining: usize,
) -> Result<Plan, LuksError> {
    let mut io = target.reader();
    if remaining > 0 {
        return header.remove_keyslot(&mut io, slot, false, &mut random);
    }
    // A note that can't be understood is none; then only the secret's age is known from here on.
    let known = header.key_age().ok().flatten().unwrap_or_default();
    let age = KeyAge { secret_since: Some(now()), ..known };
    match header.retire_keyslot(&mut io, slot, age, &mut random) {
        // The secret must go in any case.
        Err(LuksError::NoRoom(_)) => header.remove_keyslot(&mut io, slot, false, &mut random),
        planned => planned,
    }
}

pub(crate) fn remove(args: &args::KeyRemove, console: &mut Console<'_>) -> Result<(), Failure> {
    let uri = &args.volume;
    let key = args.key.as_ref().map(|source| keyfile::fetch(source, console)).transpose()?;
    let target = Target::open(uri, console)?;
    let header = load(uri, &target)?;
    let opened = key.map(|key| opened_by(uri, &target, &header, &key, console)).transpose()?;
    let doomed = args.slot.map_or_else(|| opened.clone().unwrap_or_default(), |slot| vec![slot]);
    let mut remaining = opening(&header);
    remaining.retain(|slot| !doomed.contains(slot));
    let named = keyslots(&doomed);
    if remaining.is_empty() {
        return Err(Failure::Refused(format!(
            "{uri}: {named} would be the last that opens the volume; without it the data is lost. \
             Add another first"
        )));
    }
    if args.slot.is_some()
        && let Some(opened) = &opened
        && !opened.iter().any(|slot| remaining.contains(slot))
    {
        return Err(Failure::Refused(format!(
            "{uri}: the key opens {named} only, which is to go; show one that opens what remains \
             ({}), or say --unproven",
            keyslots(&remaining)
        )));
    }
    // What can't be planned fails here, before anything has changed.
    for slot in &doomed {
        header
            .remove_keyslot(&mut target.reader(), *slot, false, &mut random)
            .with_context(|| uri.clone())?;
    }
    let what = format!("{uri}: {named} will be wiped; what remains: {}.", keyslots(&remaining));
    console.confirm(&what, args.yes)?;
    for slot in &doomed {
        // Each plan starts from the header that the one before has left.
        let plan = load(uri, &target)?
            .remove_keyslot(&mut target.reader(), *slot, false, &mut random)
            .with_context(|| uri.clone())?;
        target.execute(plan)?;
        writeln!(console.out, "{uri}: keyslot {slot} is removed")?;
    }
    writeln!(console.out, "{uri}: what remains: {}", keyslots(&remaining))?;
    Ok(())
}

/// Keyslots that may open the volume's data: usable, and for its key.
fn opening(header: &Header) -> Vec<u32> {
    let report = header.report();
    let bound = |slot: u32| {
        report.digests.iter().any(|d| d.segments.contains(&0) && d.keyslots.contains(&slot))
    };
    let usable = report.keyslots.iter().filter(|slot| slot.unusable.is_none());
    usable.map(|slot| slot.id).filter(|&slot| bound(slot)).collect()
}

/// Every keyslot that the passphrase opens: one passphrase may have several.
fn opened_by(
    uri: &str,
    target: &Target,
    header: &Header,
    key: &Fetched,
    console: &mut Console<'_>,
) -> Result<Vec<u32>, Failure> {
    let (mut opened, mut all_tried, mut all_skipped) = (Vec::new(), 0, Vec::new());
    for slot in header.report().keyslots.iter().map(|slot| slot.id) {
        let limits = KdfLimits::default();
        match header.unlock_slot(&mut target.reader(), &key.passphrase, slot, &limits) {
            Ok(unlocked) => opened.push(unlocked.slot()),
            Err(LuksError::NoKeyslotOpens { tried, mut skipped }) => {
                all_tried += tried;
                all_skipped.append(&mut skipped);
            }
            Err(error) => return Err(anyhow!(error).context(uri.to_owned()).into()),
        }
    }
    if opened.is_empty() {
        let error = LuksError::NoKeyslotOpens { tried: all_tried, skipped: all_skipped };
        return Err(explain(uri, error, key).into());
    }
    for skip in &all_skipped {
        console.note(&format!("{uri}: keyslot {} was not tried: {}", skip.slot, skip.reason))?;
    }
    Ok(opened)
}

/// `keyslot 1`, `keyslots 1, 2`.
fn keyslots(slots: &[u32]) -> String {
    let list: Vec<_> = slots.iter().map(u32::to_string).collect();
    format!("keyslot{} {}", if slots.len() == 1 { "" } else { "s" }, list.join(", "))
}

fn load(uri: &str, target: &Target) -> anyhow::Result<Header> {
    Header::load(&mut target.reader(), &Policy::default()).with_context(|| uri.to_owned())
}

fn unlock(uri: &str, target: &Target, header: &Header, key: &Fetched) -> anyhow::Result<Unlocked> {
    let unlocked = header.unlock(&mut target.reader(), &key.passphrase, &KdfLimits::default());
    unlocked.map_err(|error| explain(uri, error, key))
}

/// The error, with what the key looks like if that may be the reason.
fn explain(uri: &str, error: LuksError, key: &Fetched) -> anyhow::Error {
    let hint = key.hint().filter(|_| matches!(error, LuksError::NoKeyslotOpens { .. }));
    match hint {
        Some(hint) => anyhow!("{uri}: {error}; {hint}"),
        None => anyhow!(error).context(uri.to_owned()),
    }
}
