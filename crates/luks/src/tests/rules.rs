//! One broken header per rule, made from a valid one; each must be rejected for its own reason.

use serde_json::json;

use super::*;

pub(super) type Change = fn(&mut Value);

/// Name of the reason (a part of its text), and how to earn it.
const INVALID: &[(&str, Change)] = &[
    ("JSON: lacks \"keyslots\"", |j| remove(j, "", "keyslots")),
    ("JSON: lacks \"tokens\"", |j| remove(j, "", "tokens")),
    ("JSON: lacks \"segments\"", |j| remove(j, "", "segments")),
    ("JSON: lacks \"digests\"", |j| remove(j, "", "digests")),
    ("JSON: lacks \"config\"", |j| remove(j, "", "config")),
    ("keyslots: is no object", |j| j["keyslots"] = json!([])),
    ("tokens: is no object", |j| j["tokens"] = json!("x")),
    ("segments: is no object", |j| j["segments"] = json!(1)),
    ("digests: is no object", |j| j["digests"] = json!(null)),
    ("config: is no object", |j| j["config"] = json!([])),
    ("keyslots.x: is no number as a key", |j| j["keyslots"]["x"] = j["keyslots"]["0"].clone()),
    ("keyslots.00: is no number as a key", |j| j["keyslots"]["00"] = j["keyslots"]["0"].clone()),
    ("keyslots.-1: is no number as a key", |j| j["keyslots"]["-1"] = j["keyslots"]["0"].clone()),
    ("keyslots.0: lacks \"type\"", |j| remove(j, "/keyslots/0", "type")),
    ("keyslots.0: lacks \"key_size\"", |j| remove(j, "/keyslots/0", "key_size")),
    ("keyslots.0: lacks \"area\"", |j| remove(j, "/keyslots/0", "area")),
    ("keyslots.0: lacks \"af\"", |j| remove(j, "/keyslots/0", "af")),
    ("keyslots.0: lacks \"kdf\"", |j| remove(j, "/keyslots/0", "kdf")),
    ("keyslots.0.af: is no object", |j| j["keyslots"]["0"]["af"] = json!("luks1")),
    ("keyslots.0.af: lacks \"hash\"", |j| remove(j, "/keyslots/0/af", "hash")),
    ("keyslots.0.kdf: lacks \"iterations\"", |j| remove(j, "/keyslots/0/kdf", "iterations")),
    ("keyslots.0.kdf.iterations: is no unsigned 32-bit", |j| {
        j["keyslots"]["0"]["kdf"]["iterations"] = json!(-1);
    }),
    ("keyslots.0.kdf.salt: is no base64", |j| j["keyslots"]["0"]["kdf"]["salt"] = json!("?")),
    ("keyslots.0.priority: is 3, not 0, 1 or 2", |j| j["keyslots"]["0"]["priority"] = json!(3)),
    ("keyslots.0.area.offset: is no string", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!(32768);
    }),
    ("keyslots.0.area.size: \"18446744073709551616\" is no unsigned 64-bit", |j| {
        j["keyslots"]["0"]["area"]["size"] = json!("18446744073709551616");
    }),
    ("keyslots.0.area.size: \"-4096\" is no unsigned 64-bit", |j| {
        j["keyslots"]["0"]["area"]["size"] = json!("-4096");
    }),
    ("keyslots.0.area.size: \"\" is no unsigned 64-bit", |j| {
        j["keyslots"]["0"]["area"]["size"] = json!("");
    }),
    ("keyslots.0.area: offset and size overflow", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!("18446744073709551104");
    }),
    ("keyslots.0.area: does not consist of whole sectors", |j| {
        j["keyslots"]["0"]["area"]["offset"] = json!("32769");
    }),
    ("keyslots.0.area: is empty", |j| j["keyslots"]["0"]["area"]["size"] = json!("0")),
    ("is outside the keyslots area", |j| j["keyslots"]["0"]["area"]["offset"] = json!("16384")),
    ("is outside the keyslots area", |j| j["keyslots"]["0"]["area"]["offset"] = json!("16777216")),
    ("keyslots.0.area: has 4096 bytes, too few", |j| {
        j["keyslots"]["0"]["area"]["size"] = json!("4096");
    }),
    ("keyslots.1.area: overlaps that of keyslot 0", |j| {
        j["keyslots"]["1"] = j["keyslots"]["0"].clone();
        j["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    }),
    ("keyslots.0: is in 0 digests", |j| j["digests"]["0"]["keyslots"] = json!([])),
    ("keyslots.0: is in 2 digests", |j| {
        j["digests"]["1"] = j["digests"]["0"].clone();
        j["digests"]["1"]["segments"] = json!([]);
    }),
    ("keyslots: has more than 32 members", |j| {
        for id in 1..33 {
            j["keyslots"][id.to_string()] = json!({"type": "future", "key_size": 1});
        }
    }),
    ("tokens.0.keyslots: has 65 members, more than 64", |j| {
        j["tokens"]["0"]["keyslots"] = (0..65).map(|id: u32| id.to_string()).collect();
    }),
    ("segments: has 65 members, more than 64", |j| {
        j["segments"]["0"]["size"] = json!("512");
        (1..65).for_each(|id| segment(j, &id.to_string(), "16777728", "512"));
    }),
    ("tokens.0.keyslots: names keyslot 5", |j| j["tokens"]["0"]["keyslots"] = json!(["5"])),
    ("tokens.0.keyslots: names 0 twice", |j| j["tokens"]["0"]["keyslots"] = json!(["0", "0"])),
    ("tokens.0.keyslots: has an element that is no string", |j| {
        j["tokens"]["0"]["keyslots"] = json!([0]);
    }),
    ("tokens.0: lacks \"keyslots\"", |j| remove(j, "/tokens/0", "keyslots")),
    ("digests.0.keyslots: names keyslot 9", |j| j["digests"]["0"]["keyslots"] = json!(["0", "9"])),
    ("digests.0.segments: names segment 4", |j| j["digests"]["0"]["segments"] = json!(["0", "4"])),
    ("digests.0.digest: has 0 bytes", |j| j["digests"]["0"]["digest"] = json!("")),
    ("digests.0.digest: has 3 bytes", |j| j["digests"]["0"]["digest"] = json!("AAAA")),
    ("segments: has no member that maps data", |j| {
        j["segments"] = json!({});
        j["digests"]["0"]["segments"] = json!([]);
    }),
    ("segments.0: is encrypted but in no digest", |j| j["digests"]["0"]["segments"] = json!([])),
    ("segments.0: lacks \"type\"", |j| remove(j, "/segments/0", "type")),
    ("segments.0.type: is no string", |j| j["segments"]["0"]["type"] = json!(42)),
    ("segments.0.offset: \"x\" is no unsigned", |j| j["segments"]["0"]["offset"] = json!("x")),
    ("segments.0.offset: 16777217 is no multiple of 512", |j| {
        j["segments"]["0"]["offset"] = json!("16777217");
    }),
    ("inside the header and keyslots area", |j| j["segments"]["0"]["offset"] = json!("0")),
    ("inside the header and keyslots area", |j| j["segments"]["0"]["offset"] = json!("16776704")),
    ("segments.0.size: is 0", |j| j["segments"]["0"]["size"] = json!("0")),
    ("segments.0.size: 4097 is no multiple of 512", |j| {
        j["segments"]["0"]["size"] = json!("4097");
    }),
    ("segments.0.size: 512 is no multiple of 4096", |j| {
        j["segments"]["0"]["size"] = json!("512");
        j["segments"]["0"]["sector_size"] = json!(4096);
    }),
    ("segments.0.size: \"Dynamic\" is no unsigned", |j| {
        j["segments"]["0"]["size"] = json!("Dynamic");
    }),
    ("segments.0.sector_size: 8192 is not supported", |j| {
        j["segments"]["0"]["sector_size"] = json!(8192);
    }),
    ("segments.0.sector_size: 1000 is not supported", |j| {
        j["segments"]["0"]["sector_size"] = json!(1000);
    }),
    ("segments.0: lacks \"encryption\"", |j| remove(j, "/segments/0", "encryption")),
    ("segments.0.encryption: is empty", |j| j["segments"]["0"]["encryption"] = json!("")),
    ("segments.0.iv_tweak: is no string", |j| j["segments"]["0"]["iv_tweak"] = json!(0)),
    ("segments.0.flags: is no array", |j| j["segments"]["0"]["flags"] = json!("x")),
    ("segments.0.flags: has an element", |j| j["segments"]["0"]["flags"] = json!([1])),
    ("segments.0: is dynamic, but not the last", |j| segment(j, "1", "33554432", "512")),
    ("segments.1: overlaps segment 0", |j| {
        j["segments"]["0"]["size"] = json!("8192");
        segment(j, "1", "16781312", "512");
    }),
    ("segments: lacks number 1 in the row", |j| {
        j["segments"]["0"]["size"] = json!("8192");
        segment(j, "2", "16785408", "512");
    }),
    ("segments: lacks number 1 in the row", |j| {
        segment(j, "2", "16777216", "512");
        j["segments"]["2"]["flags"] = json!(["backup-final"]);
    }),
    ("segments.1: comes after a backup segment", |j| {
        j["segments"]["0"]["flags"] = json!(["backup-final"]);
        segment(j, "1", "16777216", "512");
    }),
    ("config.json_size: is 16384", |j| j["config"]["json_size"] = json!("16384")),
    ("config.keyslots_size: is 16744447", |j| j["config"]["keyslots_size"] = json!("16744447")),
    ("config.keyslots_size: is 134221824", |j| j["config"]["keyslots_size"] = json!("134221824")),
    ("inside the header and keyslots area", |j| {
        j["config"]["keyslots_size"] = json!("16748544");
    }),
    ("config.requirements.mandatory: is no array", |j| {
        j["config"]["requirements"] = json!({"mandatory": "x"});
    }),
    ("config.flags: is no array", |j| j["config"]["flags"] = json!({})),
    ("1 online-reencrypt flags for 0 reencrypt keyslots", |j| {
        j["config"]["requirements"] = json!({"mandatory": ["online-reencrypt-v2"]});
    }),
    ("0 online-reencrypt flags for 1 reencrypt keyslots", |j| {
        j["keyslots"]["1"] = json!({
            "type": "reencrypt", "key_size": 1, "mode": "reencrypt", "direction": "forward",
            "area": {"type": "none", "offset": "1048576", "size": "4096"},
        });
    }),
];

/// Valid, but not for us to serve.
const REFUSED: &[(&str, Change)] = &[
    ("cipher \"aes-cbc-essiv:sha256\" is not allowed", |j| {
        j["segments"]["0"]["encryption"] = json!("aes-cbc-essiv:sha256");
    }),
    ("cipher \"cipher_null-ecb\" is not allowed", |j| {
        j["segments"]["0"]["encryption"] = json!("cipher_null-ecb");
    }),
    ("cipher \"aes-xts-plain\" is not allowed", |j| {
        j["segments"]["0"]["encryption"] = json!("aes-xts-plain");
    }),
    ("dm-integrity tags", |j| {
        j["segments"]["0"]["integrity"] =
            json!({"type": "hmac(sha256)", "journal_encryption": "none"});
    }),
    ("OPAL", |j| j["segments"]["0"]["type"] = json!("hw-opal-crypt")),
    ("unknown type \"future\"", |j| j["segments"]["0"]["type"] = json!("future")),
    ("is not encrypted", |j| j["segments"]["0"]["type"] = json!("linear")),
    ("requires \"quantum\"", |j| {
        j["config"]["requirements"] = json!({"mandatory": ["quantum"]});
    }),
    ("has the flags [\"odd\"]", |j| j["segments"]["0"]["flags"] = json!(["odd"])),
    ("does not begin where the one before ends", |j| {
        j["segments"]["0"]["size"] = json!("4096");
        segment(j, "1", "16785408", "512");
    }),
    ("uses IVs that another segment uses", |j| {
        j["segments"]["0"]["size"] = json!("4096");
        segment(j, "1", "16781312", "dynamic");
        j["segments"]["1"]["iv_tweak"] = json!("7");
    }),
    ("segment 1: has another volume key", |j| {
        j["segments"]["0"]["size"] = json!("4096");
        segment(j, "1", "16781312", "dynamic");
        j["digests"]["0"]["segments"] = json!(["0"]);
        j["digests"]["1"] = j["digests"]["0"].clone();
        j["digests"]["1"]["keyslots"] = json!([]);
        j["digests"]["1"]["segments"] = json!(["1"]);
    }),
    ("is not owned by exactly one digest", |j| {
        j["digests"]["1"] = j["digests"]["0"].clone();
        j["digests"]["1"]["keyslots"] = json!([]);
    }),
    ("does not fit the volume", |j| j["segments"]["0"]["size"] = json!("18446744073709551104")),
    ("does not fit the volume", |j| j["segments"]["0"]["offset"] = json!("1099511627776")),
];

/// Keyslots that cannot be used, in a header that stays valid.
const UNUSABLE: &[(&str, Change)] = &[
    ("unknown key derivation \"argon2\"", |j| j["keyslots"]["0"]["kdf"]["type"] = json!("argon2")),
    ("its cipher \"cipher_null-ecb\" is not allowed", |j| {
        j["keyslots"]["0"]["area"]["encryption"] = json!("cipher_null-ecb");
    }),
    ("its cipher \"aes-cbc-plain\" is not allowed", |j| {
        j["keyslots"]["0"]["area"]["encryption"] = json!("aes-cbc-plain");
    }),
    ("more than the limit of 100000000", |j| {
        j["keyslots"]["0"]["kdf"]["iterations"] = json!(4_000_000_000_u32);
    }),
    ("pbkdf2 with 0 iterations", |j| j["keyslots"]["0"]["kdf"]["iterations"] = json!(0)),
    ("unknown hash \"md5\"", |j| j["keyslots"]["0"]["kdf"]["hash"] = json!("md5")),
    ("unknown anti-forensic hash \"md5\"", |j| j["keyslots"]["0"]["af"]["hash"] = json!("md5")),
    ("1 anti-forensic stripes", |j| j["keyslots"]["0"]["af"]["stripes"] = json!(1)),
    ("unknown anti-forensic type", |j| j["keyslots"]["0"]["af"]["type"] = json!("none")),
    ("area key of 16 bytes", |j| j["keyslots"]["0"]["area"]["key_size"] = json!(16)),
    ("wants 4194304 KiB of memory, more than the limit", |j| argon2(j, 4, 4 << 20, 4)),
    ("wants 4000000000 passes", |j| argon2(j, 4_000_000_000, 1 << 20, 4)),
    ("wants 4000 lanes", |j| argon2(j, 4, 1 << 20, 4000)),
    ("argon2 parameters t=4 m=1 p=1", |j| argon2(j, 4, 1, 1)),
    ("has priority 0", |j| j["keyslots"]["0"]["priority"] = json!(0)),
    ("its digest: pbkdf2 wants 4000000000 iterations", |j| {
        j["digests"]["0"]["iterations"] = json!(4_000_000_000_u32);
    }),
    ("its digest has the unknown type", |j| j["digests"]["0"]["type"] = json!("blake4")),
    ("unknown type \"future\"", |j| j["keyslots"]["0"]["type"] = json!("future")),
    ("(unbound)", |j| {
        j["digests"]["1"] = j["digests"]["0"].clone();
        j["digests"]["1"]["segments"] = json!([]);
        j["digests"]["0"]["keyslots"] = json!([]);
    }),
];

/// Odd, but accepted by the specification: kept and served.
const ACCEPTED: &[(&str, Change)] = &[
    ("unchanged", |_| {}),
    ("leftover parameters", |j| {
        j["keyslots"]["0"]["kdf"]["time"] = json!(4);
        j["keyslots"]["0"]["kdf"]["memory"] = json!(-1);
    }),
    ("unknown fields", |j| j["config"]["x"] = json!({"y": [1, "z", null]})),
    ("unknown top-level object", |j| j["future"] = json!({})),
    ("unknown token", |j| j["tokens"]["7"] = json!({"type": "t", "keyslots": [], "data": 1})),
    ("unknown keyslot", |j| j["keyslots"]["9"] = json!({"type": "future", "key_size": 5})),
    ("unknown flag", |j| j["config"]["flags"] = json!(["allow-discards", "future"])),
    ("a second segment", |j| {
        j["segments"]["0"]["size"] = json!("4096");
        segment(j, "1", "16781312", "dynamic");
        j["segments"]["1"]["iv_tweak"] = json!("8");
    }),
];

fn remove(json: &mut Value, at: &str, name: &str) {
    let object = json.pointer_mut(at).unwrap().as_object_mut().unwrap();
    object.shift_remove(name).unwrap();
}

fn segment(json: &mut Value, id: &str, offset: &str, size: &str) {
    let mut segment = json["segments"]["0"].clone();
    segment["offset"] = json!(offset);
    segment["size"] = json!(size);
    segment["flags"] = json!([]);
    json["segments"][id] = segment;
    json["digests"]["0"]["segments"].as_array_mut().unwrap().push(json!(id));
}

pub(super) fn argon2(json: &mut Value, time: u32, memory: u32, cpus: u32) {
    json["keyslots"]["0"]["kdf"] = json!({
        "type": "argon2id", "time": time, "memory": memory, "cpus": cpus,
        "salt": json["keyslots"]["0"]["kdf"]["salt"],
    });
}

/// Opens the volume whose header was changed: to the segments, as `sealblkd` would.
fn serve(image: &[u8], change: Change) -> Result<Vec<SegmentSpec>, LuksError> {
    let mut json = json_of(image);
    change(&mut json);
    let image = with_json(image, &json);
    let header = load(&image)?;
    // Whatever was accepted can be reported and serialised.
    serde_json::to_string(&header.report()).unwrap();
    header.segments(&unlock(&image, OLD)?, image.len() as u64)
}

#[test]
fn each_broken_rule_is_rejected_for_its_own_reason() {
    let image = volume();
    serve(&image, |_| {}).unwrap();
    for (reason, change) in INVALID {
        let message = message(serve(&image, *change));
        assert!(
            message.starts_with("both LUKS2 header copies are unusable"),
            "{reason}: {message}"
        );
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

#[test]
fn valid_volumes_that_we_must_not_serve_are_refused_with_the_reason() {
    let image = volume();
    for (reason, change) in REFUSED {
        let message = message(serve(&image, *change));
        assert!(!message.contains("unusable"), "{reason}: {message}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

#[test]
fn unusable_keyslots_are_skipped_with_the_reason() {
    let image = volume();
    for (reason, change) in UNUSABLE {
        let message = message(serve(&image, *change));
        assert!(message.contains("0 tried, 1 skipped (keyslot 0: "), "{reason}: {message}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

#[test]
fn what_the_specification_leaves_open_is_accepted() {
    let image = volume();
    for (name, change) in ACCEPTED {
        serve(&image, *change).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn obstacles_are_refusals_and_what_the_size_and_the_keyslots_say() {
    let image = volume();
    let size = image.len() as u64;
    let obstacles = |change: Change, volume_bytes: u64| {
        let mut json = json_of(&image);
        change(&mut json);
        load(&with_json(&image, &json)).unwrap().obstacles(volume_bytes)
    };
    assert_eq!(obstacles(|_| {}, size), Vec::<String>::new());
    for (reason, change) in REFUSED.iter().chain(UNUSABLE) {
        let found = obstacles(*change, size).join("; ");
        assert!(found.contains(reason), "{reason}: {found}");
    }
    for (reason, volume_bytes) in [
        ("it begins at 16777216", 1 << 20),
        ("nothing is left for data", 16 << 20),
        ("nothing is left for data", (16 << 20) + 511),
    ] {
        let found = obstacles(|_| {}, volume_bytes).join("; ");
        assert!(found.contains(reason), "{volume_bytes}: {found}");
    }
    let without = obstacles(
        |json| {
            json["keyslots"] = json!({});
            json["tokens"] = json!({});
            json["digests"]["0"]["keyslots"] = json!([]);
        },
        size,
    );
    assert_eq!(without, ["there is no keyslot that could open it"]);
    let unknown_hash =
        obstacles(|json| json["digests"]["0"]["hash"] = json!("md5"), size).join("; ");
    assert!(unknown_hash.contains("its digest has the unknown hash \"md5\""), "{unknown_hash}");
}
