//! Every crash point of every plan: the writes of the epoch since the last flush done, not done or
//! torn, at 512-byte and 4096-byte granularity.

use std::collections::HashSet;

use super::*;
use crate::{KeyAge, NewKeyslot, repair};

/// Offset and bytes.
type Write<'a> = (u64, &'a [u8]);

/// A volume with some writes on top.
struct Overlay<'a> {
    base: &'a [u8],
    writes: Vec<Write<'a>>,
}

impl ReadAt for Overlay<'_> {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut base = self.base;
        base.read_at(offset_bytes, buf)?;
        let end = offset_bytes + buf.len() as u64;
        for (at, data) in &self.writes {
            let from = (*at).max(offset_bytes);
            let to = (at + data.len() as u64).min(end);
            if from < to {
                buf[(from - offset_bytes) as usize..(to - offset_bytes) as usize]
                    .copy_from_slice(&data[(from - at) as usize..(to - at) as usize]);
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.base.len() as u64
    }
}

/// The states that a crash may leave, passed to `check`; gives how many there were and how many
/// `check` found wrong.
fn crash_states(
    base: &[u8],
    steps: &[Step],
    mut check: impl FnMut(&mut Overlay<'_>, usize) -> Result<(), String>,
) -> (usize, Vec<String>) {
    // Many cuts give the same bytes, e.g. those in the padding: each is checked once per epoch.
    let mut seen = HashSet::new();
    let mut durable: Vec<Write<'_>> = Vec::new();
    let mut failures = Vec::new();
    let mut count = 0;
    let epochs: Vec<&[Step]> = steps.split(|step| *step == Step::Flush).collect();
    for (epoch, steps) in epochs.iter().enumerate() {
        let writes: Vec<Write<'_>> = steps
            .iter()
            .map(|step| match step {
                Step::Write { offset_bytes, data } => (*offset_bytes, data.as_slice()),
                Step::Flush => unreachable!(),
            })
            .collect();
        for (name, partial) in partials(&writes) {
            let writes = durable.iter().chain(&partial).copied().collect();
            count += 1;
            let mut state = Overlay { base, writes };
            if !seen.insert((epoch, fingerprint(&mut state))) {
                continue;
            }
            if let Err(failure) = check(&mut state, epoch) {
                failures.push(format!("epoch {epoch}, {name}: {failure}"));
            }
        }
        durable.extend(&writes);
    }
    count += 1;
    if let Err(failure) = check(&mut Overlay { base, writes: durable }, epochs.len()) {
        failures.push(format!("at the end: {failure}"));
    }
    (count, failures)
}

/// Of all that these tests' headers and keyslots occupy.
fn fingerprint(io: &mut dyn ReadAt) -> [u8; 32] {
    let mut bytes = vec![0; 1 << 20];
    io.read_at(0, &mut bytes).unwrap();
    for offset in crate::luks2::HEADER_SIZES {
        let mut header = [0; 4096];
        io.read_at(offset, &mut header).unwrap();
        bytes.extend_from_slice(&header);
    }
    crate::hash::sha256(&[&bytes])
}

/// What may have reached the storage of one epoch's writes.
fn partials<'a>(writes: &[Write<'a>]) -> Vec<(String, Vec<Write<'a>>)> {
    let mut states = vec![("nothing".to_string(), Vec::new())];
    for (number, (at, data)) in writes.iter().enumerate() {
        states.push((format!("first {}", number + 1), writes[..=number].to_vec()));
        states.push((format!("only {number}"), vec![writes[number]]));
        let mut but_one = writes.to_vec();
        but_one.remove(number);
        states.push((format!("all but {number}"), but_one));
        for unit in [512, 4096] {
            let units = data.len() / unit;
            // Of long writes only some cuts: near the ends and in the middle.
            let cuts = (1..units)
                .filter(|cut| units <= 32 || *cut < 3 || *cut + 3 > units || *cut == units / 2);
            for cut in cuts.map(|cut| cut * unit) {
                let before = writes[..number].to_vec();
                let with = |torn: Write<'a>| before.iter().copied().chain([torn]).collect();
                states.push((format!("{number} cut at {cut}"), with((*at, &data[..cut]))));
                states.push((
                    format!("{number} without its first {cut}"),
                    with((at + cut as u64, &data[cut..])),
                ));
            }
        }
    }
    // Two torn at once, within the JSON if they are headers.
    let torn = |(at, data): Write<'a>| (at, &data[..data.len().min(4608)]);
    for (number, first) in writes.iter().enumerate() {
        for second in &writes[number + 1..] {
            states.push((format!("{number} and another torn"), vec![torn(*first), torn(*second)]));
        }
    }
    states
}

fn opens(io: &mut dyn ReadAt, passphrase: &str) -> Result<u32, String> {
    let header = Header::load(io, &Policy::default()).map_err(|error| error.to_string())?;
    header
        .unlock(io, &secret(passphrase), &KdfLimits::default())
        .map(|unlocked| unlocked.slot())
        .map_err(|error| error.to_string())
}

fn assert_survives(name: &str, states: usize, failures: &[String], least: usize) {
    assert!(failures.is_empty(), "{name}: {} of {states} states: {failures:#?}", failures.len());
    assert!(states >= least, "{name}: only {states} states");
}

fn add(image: &[u8]) -> (u32, Plan) {
    let mut io = image;
    let header = load(image).unwrap();
    let unlocked = unlock(image, OLD).unwrap();
    header
        .add_keyslot(&mut io, &unlocked, &secret(NEW), &NewKeyslot::default(), &mut rng(2))
        .unwrap()
}

/// The volume in every state of its two copies from which a change may start.
fn starting_points() -> Vec<(&'static str, Vec<u8>)> {
    let good = volume();
    let mut no_primary = good.clone();
    no_primary[5000] ^= 1;
    let mut no_secondary = good.clone();
    no_secondary[16384 + 5000] ^= 1;
    let (_, plan) = add(&good);
    let mut changed = good.clone();
    execute(&mut changed, &plan);
    let mut secondary_owed = changed.clone();
    secondary_owed[16384..32768].copy_from_slice(&good[16384..32768]);
    let mut primary_stale = changed.clone();
    primary_stale[..16384].copy_from_slice(&good[..16384]);
    vec![
        ("both good", good),
        ("primary damaged", no_primary),
        ("secondary damaged", no_secondary),
        ("secondary stale", secondary_owed),
        ("primary stale", primary_stale),
    ]
}

#[test]
fn adding_a_keyslot_survives_every_crash() {
    for (name, image) in starting_points() {
        let (slot, plan) = add(&image);
        let (states, failures) = crash_states(&image, plan.steps(), |io, epoch| {
            opens(io, OLD)?;
            let header = Header::load(io, &Policy::default()).unwrap();
            let named = header.report().keyslots.iter().any(|keyslot| keyslot.id == slot);
            if named {
                header.unlock_slot(io, &secret(NEW), slot, &KdfLimits::default()).map_err(
                    |error| format!("the header names a slot that does not open: {error}"),
                )?;
            }
            // Material, one copy, the other: after the first copy is durable the slot is there.
            if epoch >= 2 && !named {
                return Err("a durable keyslot is gone".into());
            }
            Ok(())
        });
        assert_survives(name, states, &failures, 100);
    }
}

/// Another secret for the same volume key: the new keyslot first, then the old one goes.
#[test]
fn changing_the_secret_leaves_one_of_both_that_opens_at_every_crash() {
    let base = volume();
    let (slot, adding) = add(&base);
    let mut image = base.clone();
    execute(&mut image, &adding);
    let header = load(&image).unwrap();
    // The age of the new secret is noted by the very header that no longer has the old one.
    let age = KeyAge::new_at(2_000_000_000);
    let removing = header.retire_keyslot(&mut image.as_slice(), 0, age, &mut rng(3)).unwrap();
    execute(&mut image, &removing);
    let steps: Vec<Step> = adding.steps().iter().chain(removing.steps()).cloned().collect();
    let key = unlock(&base, OLD).unwrap();
    let (states, failures) = crash_states(&base, &steps, |io, _| {
        let opened = opens(io, OLD).or_else(|_| opens(io, NEW))?;
        let header = Header::load(io, &Policy::default()).unwrap();
        let limits = KdfLimits::default();
        let passphrase = if opened == slot { NEW } else { OLD };
        let unlocked = header.unlock_slot(io, &secret(passphrase), opened, &limits).unwrap();
        let noted = header.key_age()? == Some(age);
        if noted == header.report().keyslots.iter().any(|keyslot| keyslot.id == 0) {
            return Err("the age is noted at the wrong moment".into());
        }
        let same = unlocked.key.ct_eq(key.key.expose());
        if same { Ok(()) } else { Err("another volume key".into()) }
    });
    assert_survives("rewrap", states, &failures, 150);
    assert!(unlock(&image, OLD).is_err());
    assert_eq!(unlock(&image, NEW).unwrap().slot(), slot);
}

#[test]
fn removing_a_keyslot_survives_every_crash() {
    for (name, mut image) in starting_points() {
        let (slot, plan) = add(&image);
        execute(&mut image, &plan);
        // Damage one copy again: adding repaired it.
        match name {
            "primary damaged" => image[5000] ^= 1,
            "secondary damaged" => image[16384 + 5000] ^= 1,
            _ => {}
        }
        let header = load(&image).unwrap();
        let plan = header.remove_keyslot(&mut image.as_slice(), 0, false, &mut rng(3)).unwrap();
        let (states, failures) = crash_states(&image, plan.steps(), |io, epoch| {
            let header = Header::load(io, &Policy::default()).map_err(|e| e.to_string())?;
            header
                .unlock_slot(io, &secret(NEW), slot, &KdfLimits::default())
                .map_err(|error| error.to_string())?;
            match opens(io, OLD) {
                Ok(_) if epoch >= 2 => Err("the removed keyslot still opens".into()),
                _ => Ok(()),
            }
        });
        assert_survives(name, states, &failures, 100);
        execute(&mut image, &plan);
        let area = &header.report().keyslots[0];
        let at = area.offset_bytes.unwrap() as usize;
        let before = &volume()[at..at + 256_000];
        assert!(image[at..].chunks(512).zip(before.chunks(512)).all(|(now, old)| now != old));
    }
}

/// Who changed the header died before the last flush (or the first): the next change, made from what
/// the cache shows, must not put the other copy at risk as well.
#[test]
fn a_change_after_one_that_died_before_its_flush_survives_every_crash() {
    let base = volume();
    let (_, before) = add(&base);
    let steps = before.steps();
    for undone in [1, 3] {
        // The write whose flush did not happen is still in the cache.
        let (durable, cached) = steps.split_at(steps.len() - undone - 1);
        let mut disk = base.clone();
        let as_plan = |steps: &[Step]| {
            let mut plan = Plan::default();
            for step in steps {
                if let Step::Write { offset_bytes, data } = step {
                    plan.write(*offset_bytes, data.clone());
                }
            }
            plan
        };
        execute(&mut disk, &as_plan(durable));
        let mut seen = disk.clone();
        execute(&mut seen, &as_plan(&cached[..1]));
        let next = match undone {
            1 => load(&seen).unwrap().remove_keyslot(&mut seen.as_slice(), 1, false, &mut rng(3)),
            _ => repair(&mut seen.as_slice(), false, &mut rng(3)).map(|(_, plan)| plan),
        };
        let next = next.unwrap();
        assert!(!next.is_empty());
        let all: Vec<Step> = cached[..1].iter().chain(next.steps()).cloned().collect();
        let (states, failures) = crash_states(&disk, &all, |io, _| opens(io, OLD).map(drop));
        assert_survives(&format!("{undone} steps undone"), states, &failures, 100);
        // The control: without the leading flush both copies are torn in some state.
        let all: Vec<Step> = cached[..1].iter().chain(&next.steps()[1..]).cloned().collect();
        let (_, failures) = crash_states(&disk, &all, |io, _| opens(io, OLD).map(drop));
        let both_torn = !failures.is_empty();
        assert!(next.steps()[0] == Step::Flush && both_torn, "{undone}: {failures:?}");
    }
}

#[test]
fn repairing_survives_every_crash_and_leaves_two_equal_copies() {
    for (name, mut image) in starting_points() {
        let (report, plan) = repair(&mut image.as_slice(), false, &mut rng(4)).unwrap();
        assert_eq!(report.repairs.is_empty(), name == "both good", "{name}: {report:?}");
        let (states, failures) =
            crash_states(&image, plan.steps(), |io, _| opens(io, OLD).map(drop));
        assert_survives(name, states, &failures, if plan.is_empty() { 2 } else { 60 });
        execute(&mut image, &plan);
        let report = load(&image).unwrap().report();
        assert!(report.copies.iter().all(|copy| copy.damage.is_none()), "{name}: {report:?}");
        let (again, _) = repair(&mut image.as_slice(), false, &mut rng(4)).unwrap();
        assert_eq!(again.repairs, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn a_repaired_copy_gets_a_salt_of_its_own() {
    let mut image = volume();
    let primary_salt = image[104..168].to_vec();
    let old_salt = image[16384 + 104..16384 + 168].to_vec();
    image[16384..32768].fill(0);
    let (_, plan) = repair(&mut image.as_slice(), false, &mut rng(4)).unwrap();
    execute(&mut image, &plan);
    assert_ne!(image[16384 + 104..16384 + 168], primary_salt);
    assert_ne!(image[16384 + 104..16384 + 168], old_salt);
}

#[test]
fn formatting_leaves_the_old_volume_or_nothing_or_the_new_one() {
    let mut old = volume();
    // Leftovers of an older format, which must not come back to life.
    for offset in crate::luks2::HEADER_SIZES {
        let at = offset as usize;
        if offset > 32768 + 258_048 {
            old[at..at + 8].copy_from_slice(b"SKUL\xba\xbe\x00\x02");
        }
    }
    let mut luks1 = kat("l1-cs-k512.img.xz");
    luks1.resize(VOLUME_BYTES as usize, 0x5a);
    for (name, base) in [("over LUKS2", old), ("over LUKS1", luks1)] {
        let old_passphrase = if name == "over LUKS2" { OLD } else { "passphrase" };
        let plan = format(&params(base.len() as u64), &secret(NEW), &mut rng(5)).unwrap();
        // Ten old headers, the rest, the material; then the secondary.
        let secondary_done = 13;
        let mut outcomes = [0; 3];
        let (states, failures) = crash_states(&base, plan.steps(), |io, epoch| {
            if Header::load(io, &Policy::default()).is_err() {
                outcomes[0] += 1;
                return if epoch >= secondary_done {
                    Err("the new volume is gone".into())
                } else {
                    Ok(())
                };
            }
            if opens(io, NEW).is_ok() {
                outcomes[1] += 1;
                return if epoch + 1 >= secondary_done {
                    Ok(())
                } else {
                    Err("valid too early".into())
                };
            }
            opens(io, old_passphrase)?;
            outcomes[2] += 1;
            if epoch <= 1 { Ok(()) } else { Err("the old volume came back".into()) }
        });
        assert_survives(name, states, &failures, 100);
        assert!(outcomes.iter().all(|count| *count > 0), "{name}: {outcomes:?}");
        let mut after = base.clone();
        execute(&mut after, &plan);
        let leftovers = crate::luks2::HEADER_SIZES
            .iter()
            .filter(|offset| after[**offset as usize..].starts_with(b"SKUL\xba\xbe"));
        assert_eq!(leftovers.collect::<Vec<_>>(), [&16384], "{name}");
    }
}

/// Without these, a pass of the tests above would prove little.
#[test]
fn wrong_orders_are_caught() {
    let image = volume();
    let (slot, plan) = add(&image);
    let mut material_last = plan.steps().to_vec();
    material_last.rotate_left(2);
    let (_, failures) = crash_states(&image, &material_last, |io, _| {
        let header = Header::load(io, &Policy::default()).map_err(|e| e.to_string())?;
        let named = header.report().keyslots.iter().any(|keyslot| keyslot.id == slot);
        if named { opens(io, NEW).map(drop) } else { Ok(()) }
    });
    assert!(!failures.is_empty(), "a header that names unwritten material must be noticed");

    let (_, damaged) = starting_points().swap_remove(1);
    let (_, plan) = add(&damaged);
    let mut good_copy_first = plan.steps().to_vec();
    good_copy_first.swap(2, 4);
    let (_, failures) = crash_states(&damaged, &good_copy_first, |io, _| opens(io, OLD).map(drop));
    assert!(!failures.is_empty(), "overwriting the only good copy must be noticed");

    let without_flush: Vec<_> =
        plan.steps().iter().filter(|step| **step != Step::Flush).cloned().collect();
    let (_, failures) = crash_states(&image, &without_flush, |io, _| {
        let header = Header::load(io, &Policy::default()).map_err(|e| e.to_string())?;
        let named = header.report().keyslots.iter().any(|keyslot| keyslot.id == slot);
        if named { opens(io, NEW).map(drop) } else { Ok(()) }
    });
    assert!(!failures.is_empty(), "a missing flush must be noticed");
}
