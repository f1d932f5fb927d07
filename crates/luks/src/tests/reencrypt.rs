//! Rules of a header in the middle of a re-encryption, on a real one.

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
