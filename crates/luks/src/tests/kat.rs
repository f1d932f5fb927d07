//! Volumes made by cryptsetup and qemu-img.

use super::*;

#[test]
fn volumes_of_cryptsetup_and_qemu_decrypt_to_the_known_plaintext() {
    let plain = kat("plain.raw.xz");
    let passphrase = std::fs::read_to_string(kat_path("pw")).unwrap();
    for (name, version, key_bytes, sector_bytes) in [
        ("l2-512-k512.img.xz", 2, 64, 512),
        ("l2-4096-k512.img.xz", 2, 64, 4096),
        ("l2-512-argon2id.img.xz", 2, 64, 512),
        ("l1-cs-k512.img.xz", 1, 64, 512),
        ("l1-qemu-aes256.img.xz", 1, 64, 512),
    ] {
        let image = kat(name);
        let header = load(&image).unwrap();
        assert_eq!(header.version(), version, "{name}");
        assert_eq!(header.refusals(), Vec::<String>::new(), "{name}");
        let report = header.report();
        assert_eq!(report.segments[0].key_bytes, Some(key_bytes), "{name}");
        assert_eq!(report.segments[0].sector_bytes, Some(sector_bytes), "{name}");
        assert!(report.keyslots.iter().all(|slot| slot.unusable.is_none()), "{name}: {report:?}");
        assert!(report.copies.iter().all(|copy| copy.damage.is_none()), "{name}: {report:?}");

        let unlocked = unlock(&image, &passphrase).unwrap_or_else(|e| panic!("{name}: {e}"));
        let specs = header.segments(&unlocked, image.len() as u64).unwrap();
        let decrypted = plaintext(&image, &specs);
        let common = decrypted.len().min(plain.len());
        assert!(common >= 256 << 10, "{name}: only {common} bytes to compare");
        assert!(decrypted[..common] == plain[..common], "{name}: plaintext differs");
    }
}

#[test]
fn a_wrong_passphrase_says_how_many_keyslots_were_tried() {
    let image = kat("l2-512-k512.img.xz");
    assert_eq!(
        message(unlock(&image, "passphrasE")),
        "no keyslot opens with this passphrase: 1 tried, 0 skipped"
    );
}

#[test]
fn a_volume_in_the_middle_of_a_reencryption_decrypts_with_both_keys() {
    let image = kat("mid-checksum-clean.img.xz");
    let header = load(&image).unwrap();
    assert_eq!(header.report().requirements, ["online-reencrypt-v2"]);
    assert_eq!(header.obstacles(image.len() as u64), Vec::<String>::new());
    let unlocked = unlock(&image, "passphrase").unwrap();
    let specs = header.segments(&unlocked, image.len() as u64).unwrap();
    let boundaries: Vec<_> = specs.iter().map(|s| (s.start, s.sectors, s.iv_start)).collect();
    assert_eq!(boundaries, [(0, 512, 0), (512, 512, 512)]);
    let keys: Vec<_> = specs.iter().map(|spec| spec.crypt.as_ref().unwrap().1.clone()).collect();
    assert!(!keys[0].ct_eq(keys[1].expose()));
    assert!(plaintext(&image, &specs) == kat("mid-checksum.plain.xz"), "plaintext differs");
    // Keyslots must stay: the one who goes on with the re-encryption counts on them.
    let mut io = image.as_slice();
    let error = header.remove_keyslot(&mut io, 0, true, &mut rng(1));
    assert!(message(error).contains("a re-encryption is under way: keyslots stay"));
    let new = crate::NewKeyslot::default();
    let error = header.add_keyslot(&mut io, &unlocked, &secret(NEW), &new, &mut rng(1));
    assert!(message(error).contains("a re-encryption is under way: keyslots stay"));
}

#[test]
fn a_pinned_version_is_enforced() {
    let image = kat("l1-qemu-aes256.img.xz");
    let error = Header::load(&mut image.as_slice(), &Policy { luks1: false, luks2: true });
    assert!(matches!(error, Err(LuksError::VersionNotAllowed { found: 1 })));
}
