//! The age of keys: what is noted, and what becomes of it when the note is mangled.

use serde_json::json;

use super::interop::File;
use super::luks1::small_header;
use super::*;
use crate::KeyAge;

const BORN: u64 = 1_790_000_000;

fn aged() -> Vec<u8> {
    let mut image = vec![0; VOLUME_BYTES as usize];
    let params = FormatParams { created_at: Some(BORN), ..params(VOLUME_BYTES) };
    execute(&mut image, &format(&params, &secret(OLD), &mut rng(1)).unwrap());
    image
}

fn age_of(image: &[u8]) -> Result<Option<KeyAge>, String> {
    load(image).unwrap().key_age()
}

fn with_age(image: &[u8], age: KeyAge) -> Vec<u8> {
    let mut image = image.to_vec();
    let plan = load(&image).unwrap().set_key_age(&mut image.as_slice(), age, &mut rng(2)).unwrap();
    execute(&mut image, &plan);
    image
}

#[test]
fn cryptsetup_takes_a_header_that_notes_its_age() {
    let image = aged();
    let age = KeyAge { volume_key_since: Some(BORN), secret_since: Some(BORN), rotations: 0 };
    assert_eq!(age_of(&image), Ok(Some(age)));
    let later = KeyAge { secret_since: None, rotations: 7, ..age };
    for image in [image.clone(), with_age(&image, later)] {
        let file = File::new(&image);
        let dump = file.must("", &["luksDump"]);
        assert!(dump.contains("1: sealblk-age"), "{dump}");
        assert!(file.opens(OLD));
        assert_eq!(file.image(), image, "cryptsetup found nothing to recover");
        // It carries the token along.
        file.must(OLD, &["luksAddKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]);
        assert!(file.opens(NEW));
        assert_eq!(age_of(&file.image()), age_of(&image));
    }
}

#[test]
fn a_header_without_a_note_says_nothing_until_it_gets_one() {
    let image = volume();
    assert_eq!(age_of(&image), Ok(None));
    let age = KeyAge { volume_key_since: None, secret_since: Some(5), rotations: 0 };
    let image = with_age(&image, age);
    assert_eq!(age_of(&image), Ok(Some(age)));
    assert_eq!(
        json_of(&image)["tokens"]["1"],
        json!({"type": "sealblk-age", "keyslots": [], "secret_since": "5", "rotations": "0"})
    );
    unlock(&image, OLD).unwrap();
}

#[test]
fn a_mangled_note_makes_the_age_unknown_and_the_volume_no_worse() {
    let image = aged();
    for (field, value) in [
        ("volume_key_since", json!(1_790_000_000)),
        ("volume_key_since", json!("-1")),
        ("volume_key_since", json!("yesterday")),
        ("volume_key_since", json!("18446744073709551616")),
        ("secret_since", json!(null)),
        ("secret_since", json!("")),
        ("rotations", json!(["1"])),
    ] {
        let mut json = json_of(&image);
        json["tokens"]["1"][field] = value.clone();
        let mangled = with_json(&image, &json);
        let reason = age_of(&mangled).unwrap_err();
        assert!(reason.starts_with(&format!("tokens.1.{field}: ")), "{value}: {reason}");
        unlock(&mangled, OLD).unwrap();
        // What is noted next counts.
        let age = KeyAge::new_at(9);
        assert_eq!(age_of(&with_age(&mangled, age)), Ok(Some(age)), "{value}");
    }
    let mut json = json_of(&image);
    json["tokens"]["9"] = json["tokens"]["1"].clone();
    let twice = with_json(&image, &json);
    assert!(age_of(&twice).unwrap_err().contains("several"));
    let mended = with_age(&twice, KeyAge::new_at(9));
    assert_eq!(json_of(&mended)["tokens"].as_object().unwrap().len(), 2);
}

#[test]
fn luks1_has_no_place_for_it_and_a_full_header_says_so() {
    let old = small_header();
    assert_eq!(age_of(&old), Ok(None));
    let set = |mut image: &[u8]| {
        load(image).unwrap().set_key_age(&mut image, KeyAge::new_at(1), &mut rng(1)).map(drop)
    };
    assert!(message(set(&old)).contains("LUKS1"));

    let image = volume();
    let mut json = json_of(&image);
    for id in 1..32 {
        json["tokens"][id.to_string()] = json!({"type": "x", "keyslots": []});
    }
    assert!(message(set(&with_json(&image, &json))).contains("all 32 are taken"));
    let mut json = json_of(&image);
    json["config"]["padding"] = Value::from("x".repeat(12288 - json.to_string().len() - 50));
    assert!(matches!(set(&with_json(&image, &json)), Err(LuksError::NoRoom(_))));
}
