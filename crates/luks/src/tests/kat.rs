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
fn a_volume_in_the_middle_of_a_reencryption_is_refused_with_the_tool_that_helps() {
    let image = kat("mid-checksum-clean.img.xz");
    let header = load(&image).unwrap();
    assert_eq!(header.report().requirements, ["online-reencrypt-v2"]);
    let message = message(unlock(&image, "passphrase"));
    assert!(message.contains("re-encryption is under way"), "{message}");
    assert!(message.contains("cryptsetup reencrypt --resume-only"), "{message}");
}

#[test]
fn a_pinned_version_is_enforced() {
    let image = kat("l1-qemu-aes256.img.xz");
    let error = Header::load(&mut image.as_slice(), &Policy { luks1: false, luks2: true });
    assert!(matches!(error, Err(LuksError::VersionNotAllowed { found: 1 })));
}
