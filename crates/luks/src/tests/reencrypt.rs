//! Rules of a header in the middle of a re-encryption, on a real one.

use serde_json::json;

use super::rules::Change;
use super::*;

fn rejected(change: impl Fn(&mut Value)) -> String {
    let image = kat("mid-checksum-clean.img.xz");
    let mut json = json_of(&image);
    Metadata::from_json(json.clone(), 16384).unwrap();
    change(&mut json);
    Metadata::from_json(json, 16384).map_or_else(|flaw| flaw.to_string(), |_| "accepted".into())
}

#[test]
fn flag_keyslot_and_backup_segments_come_together() {
    let no_flag =
        rejected(|json| json["config"]["requirements"]["mandatory"] = Value::Array(vec![]));
    assert!(no_flag.contains("0 online-reencrypt flags for 1 reencrypt keyslots"), "{no_flag}");
    let two_flags = rejected(|json| {
        json["config"]["requirements"]["mandatory"] =
            serde_json::json!(["online-reencrypt-v2", "online-reencrypt"]);
    });
    assert!(two_flags.contains("has 2 online-reencrypt flags"), "{two_flags}");
    let foreign = rejected(|json| json["segments"]["0"]["encryption"] = "aes-cbc-plain64".into());
    assert!(foreign.contains("segments.0: matches neither"), "{foreign}");
    let mixed = rejected(|json| {
        json["segments"]["0"]["flags"] = serde_json::json!(["backup-previous"]);
    });
    assert!(mixed.contains("comes after a backup segment"), "{mixed}");
}

#[test]
fn a_corrupt_primary_of_a_running_reencryption_is_repaired_from_the_secondary() {
    let mut image = kat("mid-checksum-clean.img.xz");
    let json = json_of(&image);
    image[4096..8192].fill(0xff);
    let (report, plan) = crate::repair(&mut image.as_slice(), false, &mut rng(9)).unwrap();
    assert_eq!(report.repairs.len(), 1);
    execute(&mut image, &plan);
    assert_eq!(json_of(&image), json);
    assert!(load(&image).unwrap().report().copies.iter().all(|copy| copy.damage.is_none()));
}

/// Reasons, and how a header in the middle of a re-encryption earns them. All are valid LUKS2.
const REFUSED: &[(&str, Change)] = &[
    ("of the kind \"online-reencrypt\"", |j| requirement(j, "online-reencrypt")),
    ("of the kind \"online-reencrypt-v3\"", |j| requirement(j, "online-reencrypt-v3")),
    ("requires \"future\"", |j| {
        j["config"]["requirements"]["mandatory"] = json!(["online-reencrypt-v2", "future"]);
    }),
    ("mode is \"encrypt\"", |j| j["keyslots"]["2"]["mode"] = json!("encrypt")),
    ("mode is \"decrypt\"", |j| j["keyslots"]["2"]["mode"] = json!("decrypt")),
    ("direction is \"backward\"", |j| j["keyslots"]["2"]["direction"] = json!("backward")),
    ("area is of type \"none\"", |j| j["keyslots"]["2"]["area"]["type"] = json!("none")),
    ("area is of type \"datashift\"", |j| {
        j["keyslots"]["2"]["area"]["type"] = json!("datashift");
    }),
    ("unknown hash \"md5\"", |j| j["keyslots"]["2"]["area"]["hash"] = json!("md5")),
    ("blocks of 0 bytes", |j| j["keyslots"]["2"]["area"]["sector_size"] = json!(0)),
    ("blocks of 4294967295 bytes", |j| {
        j["keyslots"]["2"]["area"]["sector_size"] = json!(u32::MAX);
    }),
    ("not exactly one backup-previous", |j| j["segments"]["2"]["flags"] = json!(["backup-x"])),
    ("not exactly one backup-final", |j| j["segments"]["3"]["flags"] = json!(["backup-x"])),
    ("backup-final segment has the flags", |j| {
        j["segments"]["3"]["flags"] = json!(["backup-final", "x"]);
    }),
    ("backup-final segment has a fixed size", |j| j["segments"]["3"]["size"] = json!("524288")),
    ("backup-previous segment is not owned by exactly one", |j| {
        j["digests"]["1"]["segments"] = json!(["0", "2", "3"]);
    }),
    ("have the same key", |j| {
        j["digests"]["0"]["segments"] = json!(["1", "2", "3"]);
        j["digests"]["1"]["segments"] = json!(["0"]);
    }),
    ("backup-final segment is encrypted with", |j| {
        j["segments"]["3"]["encryption"] = json!("cipher_null-ecb");
    }),
    ("backup-final segment is encrypted with \"aes-xts-plain64\" or has tags", |j| {
        j["segments"]["3"]["integrity"] = json!({"type": "none"});
    }),
    ("moves the data", |j| j["segments"]["3"]["offset"] = json!("1052672")),
    ("changes the encryption sector", |j| j["segments"]["3"]["sector_size"] = json!(512)),
    ("IV within an encryption sector", |j| j["segments"]["3"]["iv_tweak"] = json!("1")),
    ("segment 1 does not begin where", |j| j["segments"]["0"]["size"] = json!("258048")),
    ("segment 1 has not the IV", |j| j["segments"]["1"]["iv_tweak"] = json!("0")),
    ("segment 0 has not the IV", |j| j["segments"]["0"]["iv_tweak"] = json!("8")),
    ("segment 1 is not owned by the old key alone", |j| {
        j["digests"]["0"]["segments"] = json!(["2"]);
        j["digests"]["1"]["segments"] = json!(["0", "1", "3"]);
    }),
    ("segment 0 is not owned by the old key alone", |j| {
        j["digests"]["0"]["segments"] = json!(["0", "1", "2"]);
    }),
    ("segment 1 has a fixed size", |j| j["segments"]["1"]["size"] = json!("262144")),
    ("segment 1 has the flags", |j| j["segments"]["1"]["flags"] = json!(["x"])),
    ("segment 0, in work, is not owned by both keys", |j| in_work(j, "4096")),
    ("segment 0, in work, has 64491520 bytes; the area protects 63963136", |j| {
        in_work(j, "64491520");
        j["digests"]["0"]["segments"] = json!(["0", "1", "2"]);
    }),
];

fn requirement(json: &mut Value, name: &str) {
    json["config"]["requirements"]["mandatory"] = json!([name]);
}

/// Segment 0 becomes the range in work.
fn in_work(json: &mut Value, size: &str) {
    json["segments"]["0"]["flags"] = json!(["in-reencryption"]);
    json["segments"]["0"]["size"] = json!(size);
    json["segments"]["1"]["offset"] = json!((1_048_576 + size.parse::<u64>().unwrap()).to_string());
}

#[test]
fn what_we_do_not_understand_completely_is_refused_with_the_reason() {
    let image = kat("mid-checksum-clean.img.xz");
    for (reason, change) in REFUSED {
        let mut json = json_of(&image);
        change(&mut json);
        let image = with_json(&image, &json);
        let header = load(&image).unwrap_or_else(|error| panic!("{reason}: {error}"));
        let refusals = header.refusals().join("; ");
        assert!(refusals.contains(reason), "{reason:?} is not in {refusals:?}");
        assert!(message(unlock(&image, "passphrase")).contains(reason), "{reason}");
        let both = header.unlock_rotation(
            &mut image.as_slice(),
            &[&secret("passphrase")],
            &KdfLimits::default(),
        );
        assert!(message(both).contains(reason), "{reason}");
    }
}

#[test]
fn an_interrupted_one_is_not_served_before_it_is_recovered() {
    let image = kat("mid-checksum-clean.img.xz");
    let mut json = json_of(&image);
    in_work(&mut json, "8192");
    json["segments"]["1"]["iv_tweak"] = json!("16");
    json["digests"]["0"]["segments"] = json!(["0", "1", "2"]);
    let image = with_json(&image, &json);
    let message = message(unlock(&image, "passphrase"));
    assert!(message.contains("interrupted while it rewrote 8192 bytes at 0"), "{message}");
    let header = load(&image).unwrap();
    let both = header.unlock_rotation(
        &mut image.as_slice(),
        &[&secret("passphrase")],
        &KdfLimits::default(),
    );
    both.unwrap();
}

/// What the digest binds, changed by one who does not know the keys.
#[test]
fn metadata_that_was_tampered_with_is_refused_after_unlocking() {
    let image = kat("mid-checksum-clean.img.xz");
    let changes: &[Change] = &[
        |j| j["keyslots"]["2"]["area"]["type"] = json!("journal"),
        |j| j["keyslots"]["2"]["area"]["hash"] = json!("sha512"),
        |j| j["keyslots"]["2"]["area"]["sector_size"] = json!(512),
        |j| j["keyslots"]["2"]["area"]["size"] = json!("495616"),
        |j| {
            j["keyslots"]["2"]["area"]["offset"] = json!("552960");
            j["keyslots"]["2"]["area"]["size"] = json!("495616");
        },
        |j| {
            // The same range, other IVs.
            j["segments"]["0"]["iv_tweak"] = json!("8");
            j["segments"]["3"]["iv_tweak"] = json!("8");
        },
        |j| {
            j["digests"]["0"]["segments"] = json!(["0", "3"]);
            j["digests"]["1"]["segments"] = json!(["1", "2"]);
        },
        |j| j["digests"]["2"]["keyslots"] = json!([]),
        |j| j["digests"]["2"]["iterations"] = json!(1001),
        |j| j["digests"]["2"]["iterations"] = json!(u32::MAX),
        |j| j["digests"]["2"]["segments"] = json!(["0"]),
        |j| j["digests"]["2"]["salt"] = json!("AAAA"),
    ];
    unlock(&with_json(&image, &json_of(&image)), "passphrase").unwrap();
    for (number, change) in changes.iter().enumerate() {
        let mut json = json_of(&image);
        change(&mut json);
        let message = message(unlock(&with_json(&image, &json), "passphrase"));
        let refused = ["is not to be trusted", "not owned by", "has not the IV"];
        assert!(refused.iter().any(|words| message.contains(words)), "{number}: {message}");
    }
}
