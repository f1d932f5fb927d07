//! LUKS1: rules and changes.

use super::*;
use crate::NewKeyslot;

/// A header as cryptsetup makes it, without its material.
pub(super) fn small_header() -> Vec<u8> {
    let mut image = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\0\x01");
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4096_u32.to_be_bytes());
    put(108, &64_u32.to_be_bytes());
    put(164, &1000_u32.to_be_bytes());
    put(168, b"00000000-0000-0000-0000-000000000000");
    for slot in 0..8 {
        let at = 208 + 48 * slot;
        let active: u32 = if slot == 0 { 0x00ac_71f3 } else { 0x0000_dead };
        put(at, &active.to_be_bytes());
        put(at + 4, &1000_u32.to_be_bytes());
        put(at + 40, &(8 + 504 * slot as u32).to_be_bytes());
        put(at + 44, &4000_u32.to_be_bytes());
    }
    image
}

#[test]
fn each_broken_rule_is_rejected_for_its_own_reason() {
    let base = small_header();
    load(&base).unwrap();
    let cases: &[(&str, usize, &[u8])] = &[
        ("payloadOffset: is 0", 104, &[0; 4]),
        ("keyslot 0: has its material at 4096..260096, not between", 104, &[0, 0, 0, 9]),
        ("keyslot 0: has its material at 512..", 248, &[0, 0, 0, 1]),
        ("keyslot 0: has its material at 2199023255040", 248, &[0xff; 4]),
        ("keyslot 0: has 1 stripes", 252, &[0, 0, 0, 1]),
        ("keyslot 3: is neither active nor inactive", 352, &[1; 4]),
        ("keyBytes: is 4294967295", 108, &[0xff; 4]),
        ("cipherName: is no NUL-terminated text", 8, &[b'a'; 32]),
        ("hashSpec: is no NUL-terminated text", 72, &[0]),
    ];
    for (reason, at, bytes) in cases {
        let mut image = base.clone();
        image[*at..at + bytes.len()].copy_from_slice(bytes);
        let message = message(load(&image));
        assert!(message.contains(reason), "{reason}: {message}");
    }
    let mut overlapping = base.clone();
    overlapping[256..260].copy_from_slice(&0x00ac_71f3_u32.to_be_bytes());
    overlapping[296..300].copy_from_slice(&8_u32.to_be_bytes());
    assert!(message(load(&overlapping)).contains("keyslot 0: overlaps keyslot 1"));
}

#[test]
fn other_ciphers_hashes_and_costs_are_refused() {
    for (reason, at, bytes) in [
        ("cipher \"aes-cbc-essiv:sha256\" is not allowed", 40, b"cbc-essiv:sha256\0".as_slice()),
        ("cipher \"cipher_null-xts-plain64\" is not allowed", 8, b"cipher_null\0"),
        ("hash \"ripemd160\" is not supported", 72, b"ripemd160\0"),
        ("a volume key of 48 bytes", 108, &[0, 0, 0, 48]),
        ("volume key digest: pbkdf2 wants 4294967295 iterations", 164, &[0xff; 4]),
        ("keyslot 0: pbkdf2 wants 4294967295 iterations", 212, &[0xff; 4]),
    ] {
        let mut image = small_header();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let message = message(unlock(&image, "x"));
        assert!(message.contains(reason), "{reason}: {message}");
    }
}

#[test]
fn obstacles_are_refusals_and_what_the_size_and_the_keyslots_say() {
    let header = load(&small_header()).unwrap();
    let data = 4096 * 512;
    assert_eq!(header.obstacles(data + 512), Vec::<String>::new());
    assert!(header.obstacles(data + 511).concat().contains("its data begins at 2097152"));
    for (reason, at, bytes) in [
        ("hash \"ripemd160\" is not supported", 72, b"ripemd160\0".as_slice()),
        ("volume key digest: pbkdf2 with 0 iterations", 164, &[0; 4]),
        ("keyslot 0: pbkdf2 with 0 iterations", 212, &[0; 4]),
        ("there is no keyslot that could open it", 208, &0x0000_dead_u32.to_be_bytes()),
    ] {
        let mut image = small_header();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        let found = load(&image).unwrap().obstacles(data + 512).join("; ");
        assert!(found.contains(reason), "{reason}: {found}");
    }
}

/// Torn writes of the header's two sectors: each is whole or not written.
#[test]
fn keyslots_come_and_go_without_a_moment_in_which_the_volume_does_not_open() {
    // Slot 6 straddles the header's two sectors.
    for slot in [1, 6, 7] {
        let base = kat("l1-cs-k512.img.xz");
        let new = NewKeyslot { slot: Some(slot), ..NewKeyslot::default() };
        let header = load(&base).unwrap();
        let unlocked = unlock(&base, "passphrase").unwrap();
        let (added, plan) = header
            .add_keyslot(&mut base.as_slice(), &unlocked, &secret(NEW), &new, &mut rng(7))
            .unwrap();
        assert_eq!(added, slot);
        let mut image = base.clone();
        for step in plan.steps() {
            if let Step::Write { offset_bytes, data } = step {
                let at = *offset_bytes as usize;
                assert!(at >= 1024 || data.len() == 512, "header sectors are written one by one");
                image[at..at + data.len()].copy_from_slice(data);
            }
            let now = load(&image).unwrap();
            if now.report().keyslots.iter().any(|keyslot| keyslot.id == slot) {
                let limits = KdfLimits::default();
                now.unlock_slot(&mut image.as_slice(), &secret(NEW), slot, &limits).unwrap();
            }
            assert_eq!(image[..208], base[..208]);
            assert_eq!(image[208..256], base[208..256], "slot 0 is untouched");
        }
        let header = load(&image).unwrap();
        let key = header
            .unlock_slot(&mut image.as_slice(), &secret(NEW), slot, &KdfLimits::default())
            .unwrap();
        assert!(key.key.ct_eq(unlocked.key.expose()));

        let plan = header.remove_keyslot(&mut image.as_slice(), slot, false, &mut rng(8)).unwrap();
        execute(&mut image, &plan);
        assert_eq!(load(&image).unwrap().report().keyslots.len(), 1);
        let area = header.report().keyslots[1].offset_bytes.unwrap() as usize;
        assert_ne!(image[area..area + 512], base[area..area + 512]);
        let last =
            load(&image).unwrap().remove_keyslot(&mut image.as_slice(), 0, false, &mut rng(8));
        assert!(matches!(last, Err(LuksError::LastKeyslot(0))));
    }
}

#[test]
fn what_luks1_cannot_hold_is_refused() {
    let base = kat("l1-qemu-aes256.img.xz");
    let header = load(&base).unwrap();
    let unlocked = unlock(&base, "passphrase").unwrap();
    let add = |new: NewKeyslot| {
        message(header.add_keyslot(
            &mut base.as_slice(),
            &unlocked,
            &secret(NEW),
            &new,
            &mut rng(7),
        ))
    };
    let argon2 = SlotKdf::Argon2id { passes: 4, memory_kib: 32, lanes: 1 };
    let message = add(NewKeyslot { kdf: argon2, ..NewKeyslot::default() });
    assert!(message.contains("LUKS1 knows neither Argon2 nor tokens"), "{message}");
    let taken = add(NewKeyslot { slot: Some(0), ..NewKeyslot::default() });
    assert!(taken.contains("keyslot 0 is in use"), "{taken}");
    let repair = crate::repair(&mut base.as_slice(), false, &mut rng(1));
    assert!(self::message(repair.map(drop)).contains("LUKS1 has one header"));
}
