//! What a conversion refuses, and what it leaves alone.

use super::super::world::Dice;
use super::*;
use crate::{NewKeyslot, StageParams};

fn stay(image: &[u8], stay: Luks2Stay) -> Result<Plan, LuksError> {
    let unlocked = unlock(image, OLD).unwrap();
    load(image)?.convert_to_luks2(&mut { image }, &unlocked, stay, &mut rng(1))
}

#[test]
fn a_volume_may_stay_luks2() {
    let volume = SMALL.volume();
    let key = unlock(&volume, OLD).unwrap();
    let converted = after(&volume, &to_luks2(&volume));
    let plan =
        load(&converted).unwrap().keep_luks2(&mut converted.as_slice(), &mut rng(1)).unwrap();
    let kept = after(&converted, &plan);
    let at_once = after(&volume, &stay(&volume, Luks2Stay::ForGood).unwrap());
    for image in [&kept, &at_once] {
        let header = load(image).unwrap();
        assert_eq!(header.rotation_status().unwrap(), RotationStatus::None);
        assert!(unlock(image, OLD).unwrap().key.ct_eq(key.key.expose()));
        assert_eq!(header.report().tokens, []);
        let error = header.convert_to_luks1(&mut image.as_slice(), &key, &mut rng(1));
        assert!(message(error).contains("nothing says that this volume began as LUKS1"));
        // An ordinary volume: keyslots may change.
        let new = NewKeyslot::default();
        header.add_keyslot(&mut image.as_slice(), &key, &secret(NEW), &new, &mut rng(1)).unwrap();
    }
}

#[test]
fn without_a_rotation_the_way_back_gives_the_volume_that_it_was() {
    for layout in [CRYPTSETUP, QEMU, SHARED] {
        let volume = layout.volume();
        let converted = after(&volume, &to_luks2(&volume));
        let back = after(&converted, &to_luks1(&converted, OLD));
        for (_, passphrase) in layout.slots {
            let (then, now) =
                (unlock(&volume, passphrase).unwrap(), unlock(&back, passphrase).unwrap());
            assert!(then.key.ct_eq(now.key.expose()));
        }
        assert_eq!(load(&back).unwrap().report().keyslots.len(), layout.slots.len());
        // Also from a rotation that was staged and abandoned.
        let shape = layout.shape(layout.slots.len() == 1);
        let mut abandoned = staged(&shape, &converted);
        let plan = load(&abandoned)
            .unwrap()
            .abandon_rotation(&mut abandoned.as_slice(), &mut rng(1))
            .unwrap();
        execute(&mut abandoned, &plan);
        assert_eq!(json_of(&abandoned), json_of(&converted));
        after(&abandoned, &to_luks1(&abandoned, OLD));
    }
}

#[test]
fn what_has_no_place_is_refused_before_anything_is_written() {
    const CROWDED: Layout = Layout {
        slots: &[(0, OLD), (1, NEW), (2, NEW), (3, NEW), (4, NEW), (5, NEW), (6, NEW), (7, NEW)],
        ..SMALL
    };
    let full = message(stay(&CROWDED.volume(), Luks2Stay::UntilRotated));
    assert!(full.contains("keyslot 0 lies where the LUKS2 headers go"), "{full}");

    // The rotation would fail: nowhere to put its new key. As LUKS2 for good there is room.
    let full = message(stay(&FULL.volume(), Luks2Stay::UntilRotated));
    assert!(full.contains("the new volume key's keyslot, which must lie where LUKS1 has one"));
    stay(&FULL.volume(), Luks2Stay::ForGood).unwrap();

    // A LUKS2 header of earlier times, in a keyslot's place and in the data.
    for at in [0x4_0000, 0x8_0000] {
        let mut volume = SMALL.volume();
        volume[at..at + 6].copy_from_slice(b"SKUL\xba\xbe");
        let error = message(stay(&volume, Luks2Stay::UntilRotated));
        assert!(
            error.contains(&format!("a LUKS2 header of earlier times lies at {at}")),
            "{error}"
        );
    }
    // Where the headers go, or keyslot 0 was, it is overwritten.
    for at in [0x4000, 0x8000, 0x1_0000] {
        let layout = Layout { slots: &[(1, OLD)], ..SMALL };
        let mut image = layout.volume();
        image[at..at + 8].copy_from_slice(b"SKUL\xba\xbe\0\x02");
        let converted = after(&image, &to_luks2(&image));
        assert!(at == 0x4000 || converted[at..at + 6] != image[at..at + 6], "{at:#x}");
    }

    // Another key; a header that changed.
    let volume = SMALL.volume();
    let foreign = unlock(&super::super::super::volume(), OLD).unwrap();
    let header = load(&volume).unwrap();
    let error = header.convert_to_luks2(
        &mut volume.as_slice(),
        &foreign,
        Luks2Stay::UntilRotated,
        &mut rng(1),
    );
    assert!(matches!(error, Err(LuksError::ForeignKey)));
    let converted = after(&volume, &to_luks2(&volume));
    let unlocked = unlock(&volume, OLD).unwrap();
    let error = header.convert_to_luks2(
        &mut converted.as_slice(),
        &unlocked,
        Luks2Stay::UntilRotated,
        &mut rng(1),
    );
    assert!(error.is_err());
    assert!(message(stay(&converted, Luks2Stay::ForGood)).contains("LUKS2 already"));
}

#[test]
fn a_volume_that_is_to_be_luks1_again_takes_nothing_that_luks1_does_not_know() {
    let volume = SMALL.volume();
    let converted = after(&volume, &to_luks2(&volume));
    let unlocked = unlock(&converted, OLD).unwrap();
    let header = load(&converted).unwrap();
    let new = NewKeyslot::default();
    let mut io = converted.as_slice();
    let error = header.add_keyslot(&mut io, &unlocked, &secret(NEW), &new, &mut rng(1));
    assert!(message(error).contains("LUKS2 only for the time of a rotation"));
    let error = header.remove_keyslot(&mut io, 1, true, &mut rng(1));
    assert!(message(error).contains("LUKS2 only for the time of a rotation"));
    let params = StageParams {
        passphrase: &secret(OLD),
        new_passphrase: None,
        kdf: SlotKdf::Argon2id { passes: 4, memory_kib: 32, lanes: 1 },
        notes: crate::RotationNotes::default(),
    };
    let error = header.stage_rotation(&mut io, &unlocked, &params, &mut rng(1));
    assert!(message(error).contains("knows no Argon2"));

    // What others have put there is not dropped silently.
    let back = |json: &Value| {
        let image = with_json(&converted, json);
        let unlocked = unlock(&image, OLD)?;
        load(&image)?.convert_to_luks1(&mut image.as_slice(), &unlocked, &mut rng(1))
    };
    let json = json_of(&converted);
    back(&json).unwrap();
    let slot = &json["keyslots"]["1"];
    let area: u64 = slot["area"]["offset"].as_str().unwrap().parse().unwrap();
    let changed = |pointer: &str, value: Value| {
        let mut json = json.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        message(back(&json))
    };
    let mut token = json.clone();
    token["tokens"]["5"] = serde_json::json!({"type": "systemd-tpm2", "keyslots": ["1"]});
    assert!(message(back(&token)).contains("\"systemd-tpm2\") would be lost"));
    let mut more = json.clone();
    more["keyslots"]["4"] = slot.clone();
    more["keyslots"]["4"]["area"]["offset"] = Value::from((area + 131_072 + 4096).to_string());
    more["digests"]["0"]["keyslots"] = serde_json::json!(["1", "4"]);
    assert!(message(back(&more)).contains("keyslot 4 does not lie where LUKS1 has one"));
    let hash = |pointer: &str| changed(pointer, Value::from("sha512"));
    // With another hash the passphrase does not open any more: nothing is planned either way.
    assert!(hash("/keyslots/1/kdf/hash").contains("no keyslot opens"));
    assert!(hash("/keyslots/1/af/hash").contains("no keyslot opens"));
    assert!(hash("/tokens/0/hash").contains("keyslot 1 is not made as LUKS1 makes them"));
    assert!(changed("/tokens/0/hash", Value::from("md5")).contains("lacks a known hash"));
    assert!(changed("/tokens/0/grid", serde_json::json!(["8"])).contains("eight places"));
    assert!(changed("/tokens/0/grid/1", Value::from("9")).contains("does not lie where LUKS1"));
    let sector = changed("/segments/0/iv_tweak", Value::from("8"));
    assert!(sector.contains("its segment is none that LUKS1 knows"), "{sector}");
}

#[test]
fn remains_of_luks2_never_count_and_are_removed() {
    let volume = SMALL.volume();
    let base = after(&volume, &to_luks2(&volume));
    let plan = to_luks1(&base, OLD);
    // Up to the switch, and nothing after.
    let switch =
        plan.steps().iter().position(|step| matches!(step, Step::Write { offset_bytes: 0, .. }));
    let mut image = base.clone();
    for step in &plan.steps()[..=switch.unwrap()] {
        if let Step::Write { offset_bytes, data } = step {
            image[*offset_bytes as usize..][..data.len()].copy_from_slice(data);
        }
    }
    let header = load(&image).unwrap();
    assert_eq!(header.version(), 1);
    assert!(Luks2::load(&mut image.as_slice()).is_ok(), "the secondary is still whole");
    let error = repair(&mut image.as_slice(), true, &mut rng(1));
    assert!(message(error.map(drop)).contains("LUKS1 has one header"));
    let plan = header.finish_conversion(&mut image.as_slice(), &mut rng(1)).unwrap();
    execute(&mut image, &plan);
    assert!(Luks2::load(&mut image.as_slice()).is_err());
    assert!(image[1024..32768].iter().all(|byte| *byte == 0));
    unlock(&image, OLD).unwrap();

    // Nothing is there to be removed from a volume that was never converted.
    for layout in [CRYPTSETUP, QEMU, SHARED, FULL] {
        let volume = layout.volume();
        let plan = load(&volume).unwrap().finish_conversion(&mut volume.as_slice(), &mut rng(1));
        assert!(plan.unwrap().is_empty(), "{}", layout.name);
    }
}

/// What a rotation has room for in the smallest layout, with the bridges of a new secret.
#[test]
fn the_smallest_layout_leaves_room_for_long_ranges() {
    let shape = SMALL.shape(true);
    let volume = SMALL.volume();
    let image = staged(&shape, &after(&volume, &to_luks2(&volume)));
    let unlocked = super::super::driver::unlock_rotation(&image, OLD).unwrap();
    for (atomic_write_bytes, least) in [(512, 6 << 20), (0, 384 << 10)] {
        let params = crate::RotationParams {
            atomic_write_bytes,
            volume_bytes: 64 << 20,
            zone_bytes: 32 << 20,
            ..shape.params()
        };
        let rotation = load(&image)
            .unwrap()
            .start_rotation(&mut image.as_slice(), &unlocked, params, &mut rng(1))
            .unwrap()
            .carried_out();
        assert_eq!(rotation.zone().unwrap().len_bytes, least);
    }
}

/// Headers that nobody makes: keyslots anywhere. What is accepted opens afterwards and on the way
/// back, with every keyslot and the data.
#[test]
fn with_keyslots_in_odd_places_a_conversion_is_refused_or_loses_nothing() {
    let (mut accepted, mut refused, mut invalid) = (0, 0, 0);
    for seed in 0..150 {
        let mut dice = Dice::new(seed);
        let layout =
            Layout { slots: [&[(0, OLD)][..], &[(2, OLD), (5, NEW)]][dice.below(2)], ..SMALL };
        let whole = layout.volume();
        let mut image = whole.clone();
        for slot in 0..8 {
            let offset_at = 208 + 48 * slot + 40;
            let from = layout.grid()[slot] as usize;
            let to = match dice.below(8) {
                0 => 8 * dice.below(230),
                1 => 2 + dice.below(1880),
                2 => layout.grid()[dice.below(8)] as usize,
                3 => 64 + 8 * dice.below(24),
                _ => from,
            };
            image[offset_at..offset_at + 4].copy_from_slice(&(to as u32).to_be_bytes());
            if layout.slots.iter().any(|(number, _)| *number as usize == slot) {
                let material = &whole[from * 512..from * 512 + 128_000];
                image[to * 512..to * 512 + 128_000].copy_from_slice(material);
            }
        }
        let Ok(unlocked) = unlock(&image, OLD) else {
            invalid += 1;
            continue;
        };
        let also = unlock(&image, NEW).is_ok();
        let data = &image[layout.payload_sectors as usize * 512..];
        let Ok(plan) = stay(&image, Luks2Stay::UntilRotated) else {
            refused += 1;
            continue;
        };
        accepted += 1;
        let check = |image: &[u8]| {
            assert!(unlock(image, OLD).unwrap().key.ct_eq(unlocked.key.expose()), "{seed}");
            assert!(unlock(image, NEW).is_ok() == also, "{seed}");
            assert!(image.ends_with(data), "{seed}");
        };
        let mut converted = image.clone();
        for step in plan.steps() {
            if let Step::Write { offset_bytes, data } = step {
                converted[*offset_bytes as usize..][..data.len()].copy_from_slice(data);
                if seed % 4 == 0 {
                    check(&converted);
                }
            }
        }
        assert_eq!(load(&converted).unwrap().version(), 2);
        check(&converted);
        let back = after(&converted, &to_luks1(&converted, OLD));
        assert_eq!(load(&back).unwrap().version(), 1);
        check(&back);
        let plan = load(&image).unwrap().finish_conversion(&mut image.as_slice(), &mut rng(1));
        let finished = after(&image, &plan.unwrap());
        assert!(unlock(&finished, OLD).is_ok() && unlock(&finished, NEW).is_ok() == also);
    }
    println!("{accepted} accepted, {refused} refused, {invalid} invalid");
    assert!(accepted >= 20 && refused >= 10 && invalid >= 5);
}
