//! Hostile bytes never panic, and what is written is what is read.

use proptest::prelude::*;

use super::copies::fix;
use super::*;

/// Everything that may be asked of a header whose passphrase is not known.
fn exercise(image: &[u8]) {
    let mut io = image;
    let _ = crate::probe(&mut io);
    let _ = crate::repair(&mut io, true, &mut rng(1));
    if let Ok(header) = load(image) {
        serde_json::to_string(&header.report()).unwrap();
        let _ = header.refusals();
        let _ = header.obstacles(image.len() as u64);
        let limits = KdfLimits {
            argon2_memory_kib: 64,
            argon2_work_kib: 256,
            pbkdf2_iterations: 1000,
            ..KdfLimits::default()
        };
        let _ = header.unlock(&mut io, &secret("x"), &limits);
        let _ = header.remove_keyslot(&mut io, 0, true, &mut rng(1));
        let _ = header.rotation_status();
        let _ = header.rotation_notes();
        let _ = header.key_age();
        let _ = header.set_key_age(&mut io, crate::KeyAge::new_at(1), &mut rng(1));
        let _ = header.abandon_rotation(&mut io, &mut rng(1));
        let _ = header.clean_up_rotation(&mut io, &mut rng(1));
        let _ = header.finish_conversion(&mut io, &mut rng(1));
        let _ = header.keep_luks2(&mut io, &mut rng(1));
    }
}

fn small_volume() -> Vec<u8> {
    volume()[..512 << 10].to_vec()
}

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(|number| Value::from(number.to_string())),
        prop_oneof![Just("0"), Just("512"), Just("16777216"), Just("dynamic"), Just("luks2")]
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        Just(serde_json::json!([])),
        Just(serde_json::json!({})),
        Just(serde_json::json!(["0"])),
    ]
}

fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.into());
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| pointers(value, &format!("{at}/{key}"), into));
        }
        Value::Array(items) => {
            let each = items.iter().enumerate();
            each.for_each(|(number, value)| pointers(value, &format!("{at}/{number}"), into));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(
        changes in proptest::collection::vec((0_usize..32768, any::<u8>()), 1..20),
        checksums in any::<bool>(),
    ) {
        let mut image = small_volume();
        for (at, byte) in changes {
            image[at] = byte;
        }
        if checksums {
            fix(&mut image[..16384]);
            fix(&mut image[16384..32768]);
        }
        exercise(&image);
    }

    #[test]
    fn changed_luks1_headers_never_panic(
        changes in proptest::collection::vec((0_usize..592, any::<u8>()), 1..8),
        image_bytes in 0_usize..8192,
    ) {
        let mut image = luks1::small_header();
        for (at, byte) in changes {
            image[at] = byte;
        }
        exercise(&image);
        exercise(&image[..image_bytes]);
    }

    #[test]
    fn changed_json_never_panics(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), leaf()), 1..4),
    ) {
        let image = small_volume();
        let mut json = json_of(&image);
        for (place, value) in changes {
            let mut all = Vec::new();
            pointers(&json, "", &mut all);
            *json.pointer_mut(place.get(&all).as_str()).unwrap() = value;
        }
        exercise(&with_json(&image, &json));
    }

    #[test]
    fn what_is_written_is_what_is_read(
        seqid in any::<u64>(),
        label in "[a-z ]{0,47}",
        subsystem in "[a-z ]{0,47}",
        uuid in "[0-9a-f-]{1,39}",
        salt in any::<u8>(),
        hdr_size in prop::sample::select(&crate::luks2::HEADER_SIZES[..3]),
        secondary in any::<bool>(),
        extra in leaf(),
    ) {
        let binary = Binary {
            hdr_size,
            seqid,
            label: crate::text::field(&label).unwrap(),
            uuid: crate::text::field(&uuid).unwrap(),
            subsystem: crate::text::field(&subsystem).unwrap(),
        };
        let place = Place { offset_bytes: if secondary { hdr_size } else { 0 }, salt: [salt; 64] };
        let mut json = json_of(&small_volume());
        json["config"]["json_size"] = (hdr_size - 4096).to_string().into();
        json["config"]["keyslots_size"] = (16_711_680 - 2 * hdr_size).to_string().into();
        json["keyslots"]["0"]["area"]["offset"] = "1048576".into();
        json["extra"] = extra;
        let copy = binary.image(&place, json.to_string().as_bytes());
        prop_assert_eq!(Binary::parse(&copy, place.offset_bytes).unwrap(), (binary.clone(), place));

        let mut image = vec![0; 256 << 10];
        image[place.offset_bytes as usize..][..copy.len()].copy_from_slice(&copy);
        let read = Luks2::load(&mut image.as_slice()).unwrap();
        prop_assert_eq!(read.binary, binary);
        prop_assert_eq!(read.metadata.raw, json);
    }
}
