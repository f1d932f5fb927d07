//! Keyslots of LUKS2: which are tried, at what cost, and which may go.

use serde_json::json;

use super::rules::{Change, argon2};
use super::*;

/// A volume that [`OLD`] opens by keyslot 0 and [`NEW`] by keyslot 1.
fn two_keyslots() -> Vec<u8> {
    let mut image = volume();
    let unlocked = unlock(&image, OLD).unwrap();
    let new = crate::NewKeyslot::default();
    let header = load(&image).unwrap();
    let (_, plan) = header
        .add_keyslot(&mut image.as_slice(), &unlocked, &secret(NEW), &new, &mut rng(2))
        .unwrap();
    execute(&mut image, &plan);
    image
}

#[test]
fn keyslots_that_unlocking_skips_do_not_count_as_others_that_open() {
    let image = two_keyslots();
    let remove = |change: Change| {
        let mut json = json_of(&image);
        change(&mut json);
        let image = with_json(&image, &json);
        load(&image).unwrap().remove_keyslot(&mut image.as_slice(), 0, false, &mut rng(1))
    };
    remove(|_| {}).unwrap();
    let last: &[Change] = &[
        |json| json["keyslots"]["1"]["priority"] = json!(0),
        |json| json["keyslots"]["1"]["kdf"]["hash"] = json!("md5"),
        |json| json["digests"]["0"]["hash"] = json!("md5"),
    ];
    for change in last {
        assert!(matches!(remove(*change), Err(LuksError::LastKeyslot(0))));
    }
}

#[test]
fn all_keyslots_together_cost_no_more_than_the_limits() {
    let image = two_keyslots();
    let try_with = |image: &[u8], limits: &KdfLimits| {
        let mut io = image;
        load(image).unwrap().unlock(&mut io, &secret(NEW), limits)
    };
    // Each keyslot takes 1000 iterations and its digest as many.
    let limits = |pbkdf2_total_iterations| KdfLimits {
        pbkdf2_total_iterations,
        argon2_total_kib: 128,
        ..KdfLimits::default()
    };
    assert_eq!(try_with(&image, &limits(4000)).unwrap().slot(), 1);
    let message = message(try_with(&image, &limits(3999)));
    assert!(message.contains("1 tried, 1 skipped (keyslot 1: costs more than"), "{message}");

    let costly: &[Change] = &[
        |json| json["keyslots"]["0"]["kdf"]["iterations"] = json!(90_000_000),
        |json| {
            argon2(json, 4, 33, 1);
        },
    ];
    for change in costly {
        let mut json = json_of(&image);
        change(&mut json);
        let image = with_json(&image, &json);
        assert_eq!(try_with(&image, &limits(2000)).unwrap().slot(), 1, "the cheap one is tried");
    }
}

#[test]
fn a_keyslot_of_priority_0_opens_when_it_is_named() {
    let image = volume();
    let mut json = json_of(&image);
    json["keyslots"]["0"]["priority"] = json!(0);
    let image = with_json(&image, &json);
    let header = load(&image).unwrap();
    let limits = KdfLimits::default();
    header.unlock_slot(&mut image.as_slice(), &secret(OLD), 0, &limits).unwrap();
}

#[test]
fn unknown_fields_and_tokens_survive_a_rewrite() {
    let image = volume();
    let mut json = json_of(&image);
    json["tokens"]["7"] = json!({"type": "other", "keyslots": ["0"], "deep": {"x": [1.5, null]}});
    json["config"]["future"] = json!("kept");
    json["keyslots"]["0"]["kdf"]["leftover"] = json!(true);
    let mut image = with_json(&image, &json);
    let unlocked = unlock(&image, OLD).unwrap();
    let new = crate::NewKeyslot {
        token: Some(KmsToken { key_id: "k2".into() }),
        ..crate::NewKeyslot::default()
    };
    let (slot, plan) = load(&image)
        .unwrap()
        .add_keyslot(&mut image.as_slice(), &unlocked, &secret(NEW), &new, &mut rng(6))
        .unwrap();
    execute(&mut image, &plan);
    let added = json_of(&image);
    assert_eq!(added["tokens"]["7"], json["tokens"]["7"]);
    assert_eq!(added["config"], json["config"]);
    assert_eq!(added["keyslots"]["0"], json["keyslots"]["0"]);
    assert_eq!(
        added["tokens"]["1"],
        json!({"type": "sealblk-kms", "keyslots": ["1"], "kid": "k2"})
    );

    let plan = load(&image)
        .unwrap()
        .remove_keyslot(&mut image.as_slice(), slot, false, &mut rng(6))
        .unwrap();
    execute(&mut image, &plan);
    assert_eq!(json_of(&image), json, "removing what was added gives the header of before");
}

#[test]
fn the_last_keyslot_stays_unless_forced_and_stale_plans_are_not_made() {
    let mut image = volume();
    let header = load(&image).unwrap();
    let mut io = image.as_slice();
    let remove = |io: &mut &[u8], force| header.remove_keyslot(io, 0, force, &mut rng(1));
    assert!(matches!(remove(&mut io, false), Err(LuksError::LastKeyslot(0))));
    remove(&mut io, true).unwrap();
    let plan = remove(&mut io, true).unwrap();
    execute(&mut image, &plan);
    let mut io = image.as_slice();
    assert!(matches!(remove(&mut io, true), Err(LuksError::Changed)));
    assert!(message(unlock(&image, OLD)).contains("0 tried, 0 skipped"));
}
