//! The two header copies: what damages one, how the other is found, what else may lie there.

use serde_json::json;

use super::*;
use crate::luks2::HEADER_SIZES;

/// Changes in the binary part; both copies get them, so none is left to serve.
#[test]
fn each_broken_binary_field_is_rejected_for_its_own_reason() {
    let image = volume();
    let cases: &[(&str, usize, &[u8], bool)] = &[
        ("version: is 3", 6, &[0, 3], true),
        ("hdr_size: is 20480", 8, &[0, 0, 0, 0, 0, 0, 0x50, 0], true),
        ("hdr_size: is 9223372036854775808", 8, &[0x80, 0, 0, 0, 0, 0, 0, 0], true),
        ("hdr_offset: is 512", 256, &[0, 0, 0, 0, 0, 0, 2, 0], true),
        ("csum_alg: is \"sha1\"", 72, b"sha1\0\0", true),
        ("csum_alg: is \"md\u{fffd}\"", 72, b"md\x1b\0", true),
        ("uuid: is no NUL-terminated", 168, &[0xff; 40], true),
        ("csum: does not match", 448, &[0; 4], false),
        ("csum: does not match", 5000, b"x", false),
        ("JSON area: does not start with '{'", 4096, b"[", true),
        ("JSON area: is no JSON", 4097, b"}", true),
        ("JSON area: has a byte other than NUL", 16383, b"x", true),
        ("JSON area: lacks the NUL", 4096, &[b'{'; 12288], true),
    ];
    for (reason, at, bytes, fix_checksum) in cases {
        let mut changed = image.clone();
        for copy in [0, 16384] {
            changed[copy + at..copy + at + bytes.len()].copy_from_slice(bytes);
            if *fix_checksum {
                fix(&mut changed[copy..copy + 16384]);
            }
        }
        let mut io = changed.as_slice();
        let message = message(Luks2::load(&mut io));
        assert!(message.starts_with("both LUKS2 header copies"), "{reason}: {message}");
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

pub(super) fn fix(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let checksum = crate::hash::sha256(&[copy]);
    copy[448..480].copy_from_slice(&checksum);
}

#[test]
fn the_secondary_is_found_at_each_of_the_nine_offsets() {
    let base = volume();
    let mut json = json_of(&base);
    json["keyslots"]["0"]["area"]["offset"] = json!((8 << 20).to_string());
    for hdr_size in HEADER_SIZES {
        json["config"]["json_size"] = json!((hdr_size - 4096).to_string());
        json["config"]["keyslots_size"] = json!(((16 << 20) - 2 * hdr_size).to_string());
        let mut image = base.clone();
        image[..8 << 20].fill(0);
        image.copy_within(32768..32768 + 256_000, 8 << 20);
        image[8 << 20..(8 << 20) + 256_000].copy_from_slice(&base[32768..32768 + 256_000]);
        let binary = Binary {
            hdr_size,
            seqid: 3,
            label: [0; 48],
            uuid: crate::text::field("u").unwrap(),
            subsystem: [0; 48],
        };
        for offset_bytes in [0, hdr_size] {
            let copy =
                binary.image(&Place { offset_bytes, salt: [1; 64] }, json.to_string().as_bytes());
            image[offset_bytes as usize..][..copy.len()].copy_from_slice(&copy);
        }
        unlock(&image, OLD).unwrap();
        image[..4096].fill(0);
        assert_eq!(crate::probe(&mut image.as_slice()).unwrap(), crate::Found::Luks2);
        unlock(&image, OLD).unwrap();
        let report = load(&image).unwrap().report();
        assert!(report.copies[0].damage.as_ref().unwrap().contains("magic"));
        assert_eq!(report.copies[1].offset_bytes, hdr_size);
    }
}

#[test]
fn a_primary_with_any_field_damaged_is_served_and_repaired_from_the_secondary() {
    let good = volume();
    for at in [0, 6, 7, 8, 15, 16, 72, 104, 168, 256, 448, 4096, 16383] {
        let mut image = good.clone();
        image[at] ^= 0x55;
        unlock(&image, OLD).unwrap_or_else(|error| panic!("byte {at}: {error}"));
        let (report, plan) = crate::repair(&mut image.as_slice(), false, &mut rng(1)).unwrap();
        assert_eq!(report.repairs.len(), 1, "byte {at}");
        execute(&mut image, &plan);
        assert!(load(&image).unwrap().report().copies.iter().all(|copy| copy.damage.is_none()));
    }
}

#[test]
fn two_valid_secondaries_without_a_primary_are_ambiguous() {
    let mut image = volume();
    let mut leftover = image[16384..32768].to_vec();
    leftover.resize(32768, 0);
    leftover[8..16].copy_from_slice(&32768_u64.to_be_bytes());
    leftover[256..264].copy_from_slice(&32768_u64.to_be_bytes());
    let mut json = json_of(&image);
    json["config"]["json_size"] = json!("28672");
    json["config"]["keyslots_size"] = json!("16711680");
    json["keyslots"]["0"]["area"]["offset"] = json!("1048576");
    leftover[4096..].fill(0);
    leftover[4096..4096 + json.to_string().len()].copy_from_slice(json.to_string().as_bytes());
    fix(&mut leftover);
    image[32768..65536].copy_from_slice(&leftover);
    unlock(&image, OLD).unwrap_err();
    image[..16384].fill(0);
    let message = message(load(&image));
    assert!(message.contains("several valid ones, at offsets 16384, 32768"), "{message}");
}

#[test]
fn a_secondary_of_another_volume_does_not_win_by_its_seqid() {
    let mut image = volume();
    let ours = load(&image).unwrap().uuid();
    image[16384 + 16..16384 + 24].copy_from_slice(&99_u64.to_be_bytes());
    let outranked = image.clone();
    image[16384 + 168] = if image[16384 + 168] == b'a' { b'b' } else { b'a' };
    fix(&mut image[16384..32768]);
    let theirs = String::from_utf8(image[16384 + 168..16384 + 204].to_vec()).unwrap();

    let report = load(&image).unwrap().report();
    assert_eq!((report.uuid.as_str(), report.seqid), (ours.as_str(), Some(1)));
    assert_eq!(report.copies[0].damage, None);
    let damage = report.copies[1].damage.as_ref().unwrap();
    assert!(damage.contains(&format!("uuid: is {theirs}, another volume's")), "{damage}");
    let (_, plan) = crate::repair(&mut image.as_slice(), false, &mut rng(1)).unwrap();
    execute(&mut image, &plan);
    let report = load(&image).unwrap().report();
    assert_eq!(report.uuid, ours);
    assert!(report.copies.iter().all(|copy| copy.damage.is_none()));

    // The same volume's does.
    let mut image = outranked;
    fix(&mut image[16384..32768]);
    assert_eq!(load(&image).unwrap().report().seqid, Some(99));
}

#[test]
fn a_primary_overwritten_by_a_file_system_is_not_repaired_without_force() {
    let mut image = volume();
    image[..4096].fill(0);
    image[1024 + 0x38..1024 + 0x3a].copy_from_slice(b"\x53\xef");
    let message = message(crate::repair(&mut image.as_slice(), false, &mut rng(1)).map(drop));
    assert!(message.contains("ext2 lies at offset 0"), "{message}");
    let (report, _) = crate::repair(&mut image.as_slice(), true, &mut rng(1)).unwrap();
    assert!(report.repairs[0].contains("ext2 lies there"), "{report:?}");
}
