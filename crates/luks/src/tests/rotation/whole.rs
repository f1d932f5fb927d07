//! Rotations that nothing disturbs.

use super::super::*;
use super::driver::{Driver, keys_of, staged, unlock_rotation};
use super::world::{History, Shape};
use crate::{Release, RotationStatus};

fn shapes() -> Vec<Shape> {
    let mut shapes = Vec::new();
    for sector_bytes in [512, 4096] {
        for journal in [false, true] {
            for new_secret in [false, true] {
                shapes.push(Shape { new_secret, ..Shape::new(sector_bytes, journal) });
            }
        }
    }
    shapes
}

#[test]
fn a_whole_rotation_leaves_the_guests_data_under_the_new_key_and_nothing_of_the_old() {
    for shape in shapes() {
        let mut driver = Driver::new(shape, 7);
        let before = driver.world.image.clone();
        let keys = keys_of(&before);
        driver.run();
        let image = &driver.world.image;
        let opens = if shape.new_secret { NEW } else { OLD };
        let unlocked = unlock(image, opens).unwrap();
        assert!(unlocked.key.ct_eq(keys.new.expose()), "{shape:?}");
        if shape.new_secret {
            assert!(unlock(image, OLD).is_err(), "{shape:?}: the old secret opens it");
        }
        let specs = load(image).unwrap().segments(&unlocked, image.len() as u64).unwrap();
        History::after(&driver.world.log).check(&shape, &plaintext(image, &specs)).unwrap();

        // The header is one of an ordinary volume again, with what others had put there.
        let json = json_of(image);
        assert_eq!(json["config"].get("requirements"), None, "{shape:?}");
        assert_eq!(json["keyslots"].as_object().unwrap().len(), 1, "{shape:?}: {json}");
        assert_eq!(json["digests"].as_object().unwrap().len(), 1, "{shape:?}: {json}");
        assert_eq!(json["segments"]["0"]["future"], "kept", "{shape:?}: {json}");
        assert_eq!(json["tokens"]["7"], json_of(&before)["tokens"]["7"], "{shape:?}");
        let tokens = load(image).unwrap().report().tokens;
        let kms: Vec<_> = tokens.iter().filter_map(|token| token.key_id.as_deref()).collect();
        assert_eq!(kms, [if shape.new_secret { "secret/8" } else { "secret/7" }], "{shape:?}");
        assert_eq!(load(image).unwrap().rotation_status().unwrap(), RotationStatus::None);

        // No sector of the old keyslots is what it was.
        for slot in load(&before).unwrap().report().keyslots {
            let json = json_of(image);
            let kept = json["keyslots"].as_object().unwrap().contains_key(&slot.id.to_string());
            let at = slot.offset_bytes.unwrap() as usize;
            let area = at..at + slot.size_bytes.unwrap() as usize;
            let same = image[area.clone()]
                .chunks(512)
                .zip(before[area].chunks(512))
                .any(|(now, then)| now == then);
            assert_eq!(same, kept, "{shape:?}: keyslot {}", slot.id);
        }
    }
}

#[test]
fn at_every_flush_each_secret_opens_both_keys_and_the_header_says_how_far_it_is() {
    for shape in shapes() {
        let mut driver = Driver::new(shape, 8);
        let secrets: &[&str] = if shape.new_secret { &[OLD, NEW] } else { &[OLD] };
        let both_open = |image: &[u8]| {
            for passphrase in secrets {
                unlock_rotation(image, passphrase).unwrap();
            }
        };
        assert_eq!(
            load(&driver.world.image).unwrap().rotation_status().unwrap(),
            RotationStatus::Staged
        );
        both_open(&driver.world.image);
        let mut rotation = driver.begin();
        assert_eq!(rotation.total_bytes(), shape.data_bytes);
        let mut zones = 0;
        loop {
            both_open(&driver.world.image);
            let header = load(&driver.world.image).unwrap();
            let done_bytes = rotation.done_bytes();
            assert_eq!(header.rotation_status().unwrap(), RotationStatus::Clean { done_bytes });
            assert_eq!(done_bytes, zones * shape.zone_bytes);
            let notes = header.rotation_notes().unwrap().unwrap();
            assert_eq!((notes.started_at, notes.generation), (1_700_000_000, 3));
            // What the daemon would serve is what the rotation says.
            let unlocked = unlock(&driver.world.image, OLD).unwrap();
            let served = header.segments(&unlocked, driver.world.image.len() as u64).unwrap();
            let places = |specs: &[SegmentSpec]| -> Vec<_> {
                specs.iter().map(|s| (s.start, s.sectors, s.volume_start, s.iv_start)).collect()
            };
            assert_eq!(places(&served), places(&rotation.segments().unwrap()));
            zones += 1;
            match driver.zone(rotation) {
                crate::Progress::More(next) => rotation = next,
                crate::Progress::Done(_) => break,
            }
        }
        assert_eq!(zones, 3);
    }
}

#[test]
fn a_staged_rotation_can_be_abandoned() {
    for shape in shapes() {
        let before = shape.volume();
        let mut image = staged(&shape, &before);
        let plan =
            load(&image).unwrap().abandon_rotation(&mut image.as_slice(), &mut rng(1)).unwrap();
        let staged = image.clone();
        execute(&mut image, &plan);
        assert_eq!(json_of(&image), json_of(&before), "{shape:?}");
        unlock(&image, OLD).unwrap();
        let new = json_of(&staged)["keyslots"]["1"]["area"]["offset"].to_string();
        let at: usize = new.trim_matches('"').parse().unwrap();
        assert_ne!(image[at..at + 512], staged[at..at + 512], "{shape:?}: not wiped");
        assert!(
            load(&image).unwrap().abandon_rotation(&mut image.as_slice(), &mut rng(1)).is_err()
        );
    }
}

#[test]
fn resilience_follows_what_the_storage_keeps_whole() {
    for (sector_bytes, block_bytes, atomic_write_bytes, expected) in [
        (512, 512, 512, Release::Written),
        (512, 512, 0, Release::Committed),
        (512, 4096, 512, Release::Committed),
        (512, 4096, 4096, Release::Written),
        (4096, 512, 512, Release::Committed),
        (4096, 512, 4096, Release::Written),
        (4096, 4096, 65536, Release::Written),
        (4096, 8192, 65536, Release::Committed),
    ] {
        let shape = Shape::new(sector_bytes, false);
        let image = staged(&shape, &shape.volume());
        let params = crate::RotationParams { block_bytes, atomic_write_bytes, ..shape.params() };
        let unlocked = unlock_rotation(&image, OLD).unwrap();
        let rotation = load(&image)
            .unwrap()
            .start_rotation(&mut image.as_slice(), &unlocked, params, &mut rng(1))
            .unwrap()
            .carried_out();
        let zone = rotation.zone().unwrap();
        let armed = rotation.arm(&vec![0; zone.len_bytes as usize]).unwrap().carried_out();
        assert_eq!(armed.release(), expected, "{sector_bytes} {block_bytes} {atomic_write_bytes}");
    }
}

#[test]
fn what_cannot_be_rotated_is_refused_before_anything_is_written() {
    let shape = Shape::new(512, false);
    let image = staged(&shape, &shape.volume());
    let unlocked = unlock_rotation(&image, OLD).unwrap();
    let start = |image: &[u8], params| {
        let mut io = image;
        load(image)?.start_rotation(&mut io, &unlocked, params, &mut rng(1)).map(drop)
    };
    start(&image, shape.params()).unwrap();
    let small = crate::RotationParams { volume_bytes: 1000, ..shape.params() };
    assert!(matches!(start(&image, small), Err(LuksError::SegmentOutside { .. })));
    let odd = crate::RotationParams { block_bytes: 1 << 20, ..shape.params() };
    assert!(matches!(start(&image, odd), Err(LuksError::SegmentOutside { .. })));
    let none = crate::RotationParams { zone_bytes: 0, ..shape.params() };
    assert!(matches!(start(&image, none), Err(LuksError::Rotation(_))));
    let mut damaged = image.clone();
    damaged[5000] ^= 1;
    assert!(message(start(&damaged, shape.params())).contains("repair it first"));

    // A JSON area that is nearly full: the headers to come would not fit.
    let mut json = json_of(&image);
    let room = 12288 - json.to_string().len();
    json["config"]["padding"] = Value::from("x".repeat(room - 300));
    let full = with_json(&image, &json);
    assert!(matches!(start(&full, shape.params()), Err(LuksError::NoRoom(_))));

    // Not staged; staged twice; other keys.
    let plain = shape.volume();
    let error = start(&plain, shape.params());
    assert!(message(error).contains("none is staged"));
    let params = crate::StageParams {
        passphrase: &secret(OLD),
        new_passphrase: None,
        kdf: SlotKdf::default(),
        notes: crate::RotationNotes::default(),
    };
    let old = unlock(&image, OLD).unwrap();
    let again =
        load(&image).unwrap().stage_rotation(&mut image.as_slice(), &old, &params, &mut rng(1));
    assert!(message(again).contains("a re-encryption is under way"));
    let other = staged(&Shape::new(512, true), &Shape::new(512, true).volume());
    let foreign = Unlocked {
        key: std::sync::Arc::new(SecretBytes::copy_from(&[9; 32]).unwrap()),
        slot: 0,
        digest: 1,
        old: unlock_rotation(&other, OLD).unwrap().old,
    };
    let error = load(&image).unwrap().start_rotation(
        &mut image.as_slice(),
        &foreign,
        shape.params(),
        &mut rng(1),
    );
    assert!(matches!(error, Err(LuksError::ForeignKey)));
}
