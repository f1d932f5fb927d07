//! The real cryptsetup reads what we write and the other way round. Needs no device mapper:
//! `--test-passphrase`, `luksDump`, `luksAddKey` and `luksFormat` work on plain files.

use std::io::Write as _;
use std::process::{Output, Stdio};

use tempfile::TempDir;

use super::*;
use crate::NewKeyslot;

pub(super) struct File {
    directory: TempDir,
}

impl File {
    pub(super) fn new(image: &[u8]) -> Self {
        let file = Self { directory: TempDir::new().unwrap() };
        file.set(image);
        file
    }

    pub(super) fn set(&self, image: &[u8]) {
        std::fs::write(self.path(), image).unwrap();
    }

    pub(super) fn image(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    pub(super) fn cryptsetup(&self, passphrase: &str, arguments: &[&str]) -> Output {
        let mut child = Command::new("/usr/sbin/cryptsetup")
            .args(arguments)
            .args(["--batch-mode", "--key-file", "-"])
            .arg(self.path())
            .args(if arguments[0] == "luksAddKey" { Some(self.new_key()) } else { None })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("cryptsetup (Debian package cryptsetup-bin) is needed");
        child.stdin.take().unwrap().write_all(passphrase.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn new_key(&self) -> PathBuf {
        let path = self.directory.path().join("new");
        std::fs::write(&path, NEW).unwrap();
        path
    }

    pub(super) fn must(&self, passphrase: &str, arguments: &[&str]) -> String {
        let output = self.cryptsetup(passphrase, arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cryptsetup {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) fn opens(&self, passphrase: &str) -> bool {
        let output = self.cryptsetup(passphrase, &["open", "--test-passphrase"]);
        match output.status.code() {
            Some(0) => true,
            Some(2) => false, // wrong passphrase
            _ => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}

fn add_with(image: &[u8], kdf: SlotKdf) -> Plan {
    let new = NewKeyslot { kdf, ..NewKeyslot::default() };
    let mut io = image;
    let unlocked = unlock(image, OLD).unwrap();
    let header = load(image).unwrap();
    header.add_keyslot(&mut io, &unlocked, &secret(NEW), &new, &mut rng(11)).unwrap().1
}

#[test]
fn cryptsetup_opens_and_dumps_what_we_format() {
    for sector_bytes in [512, 4096] {
        for (algorithm, bits) in
            [(Algorithm::Aes128XtsPlain64, 256), (Algorithm::Aes256XtsPlain64, 512)]
        {
            let mut image = vec![0; VOLUME_BYTES as usize];
            let params = FormatParams { sector_bytes, algorithm, ..params(VOLUME_BYTES) };
            execute(&mut image, &format(&params, &secret(OLD), &mut rng(1)).unwrap());
            let file = File::new(&image);
            assert!(file.opens(OLD));
            assert!(!file.opens(NEW));
            let dump = file.must("", &["luksDump"]);
            for expected in [
                "Version:       \t2".to_string(),
                "Label:         \tlabel".into(),
                "Subsystem:     \tsealblk".into(),
                "cipher: aes-xts-plain64".into(),
                format!("sector: {sector_bytes} [bytes]"),
                format!("Key:        {bits} bits"),
                "0: sealblk-kms".into(),
            ] {
                assert!(dump.contains(&expected), "{expected:?} in {dump}");
            }
            assert!(dump.contains(&load(&image).unwrap().uuid()));
            assert_eq!(file.image(), image, "cryptsetup found nothing to recover");
        }
    }
}

#[test]
fn keyslots_that_we_add_open_in_cryptsetup_until_we_remove_them() {
    for kdf in [
        SlotKdf::default(),
        SlotKdf::Argon2id { passes: 4, memory_kib: 64, lanes: 4 },
        SlotKdf::Argon2id { passes: 5, memory_kib: 1024, lanes: 3 },
    ] {
        let mut image = volume();
        let plan = add_with(&image, kdf);
        execute(&mut image, &plan);
        unlock(&image, NEW).unwrap();
        let file = File::new(&image);
        assert!(file.opens(OLD) && file.opens(NEW), "{kdf:?}");
        let plan =
            load(&image).unwrap().remove_keyslot(&mut image.as_slice(), 0, false, &mut rng(1));
        execute(&mut image, &plan.unwrap());
        file.set(&image);
        assert!(!file.opens(OLD), "{kdf:?}: removed");
        assert!(file.opens(NEW), "{kdf:?}: kept");
        assert_eq!(file.image(), image, "cryptsetup found nothing to recover");
    }
}

#[test]
fn keyslots_that_cryptsetup_adds_open_here() {
    let pbkdf2 = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1234"];
    for kdf in [
        [&pbkdf2[..], &["--hash", "sha512"]].concat(),
        [&pbkdf2[..], &["--keyslot-key-size", "256", "--keyslot-cipher", "aes-xts-plain64"]]
            .concat(),
        argon2("argon2id", "4", "4", "128"),
        argon2("argon2id", "1", "7", "4096"),
        argon2("argon2i", "2", "4", "64"),
        argon2("argon2i", "3", "4", "100"),
    ] {
        let file = File::new(&volume());
        file.must(OLD, &[&["luksAddKey", "--key-slot", "5"], &kdf[..]].concat());
        let image = file.image();
        assert_eq!(unlock(&image, NEW).unwrap().slot(), 5, "{kdf:?}");
        let added_by_us = load(&image).unwrap().report();
        assert_eq!(added_by_us.tokens[0].key_id.as_deref(), Some("secret/7"), "our token survives");
    }
}

fn argon2<'a>(name: &'a str, lanes: &'a str, passes: &'a str, kib: &'a str) -> Vec<&'a str> {
    vec![
        "--pbkdf",
        name,
        "--pbkdf-parallel",
        lanes,
        "--pbkdf-force-iterations",
        passes,
        "--pbkdf-memory",
        kib,
    ]
}

#[test]
fn luks1_and_luks2_volumes_of_cryptsetup_open_here_and_take_our_keyslots() {
    for (version, hash, bits) in [
        ("luks1", "sha1", "256"),
        ("luks1", "sha512", "512"),
        ("luks2", "sha256", "256"),
        ("luks2", "sha512", "512"),
    ] {
        let file = File::new(&vec![0; 17 << 20]);
        let fast = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        let format = [
            "luksFormat",
            "--type",
            version,
            "--hash",
            hash,
            "--key-size",
            bits,
            "--cipher",
            "aes-xts-plain64",
        ];
        file.must(OLD, &[&format[..], &fast[..]].concat());
        let mut image = file.image();
        let plan = add_with(&image, SlotKdf::default());
        execute(&mut image, &plan);
        file.set(&image);
        assert!(file.opens(OLD) && file.opens(NEW), "{version} {hash} {bits}");
        let plan =
            load(&image).unwrap().remove_keyslot(&mut image.as_slice(), 0, false, &mut rng(1));
        execute(&mut image, &plan.unwrap());
        file.set(&image);
        assert!(!file.opens(OLD) && file.opens(NEW), "{version} {hash} {bits}");
        assert!(file.must("", &["luksDump"]).contains(if version == "luks1" {
            "DISABLED"
        } else {
            "1: luks2"
        }));
    }
}

#[test]
fn cryptsetup_finds_a_copy_that_we_repaired_good() {
    for at in [5000, 16384 + 5000] {
        let mut image = volume();
        image[at] ^= 1;
        let (report, plan) = crate::repair(&mut image.as_slice(), false, &mut rng(1)).unwrap();
        assert_eq!(report.repairs.len(), 1);
        execute(&mut image, &plan);
        let file = File::new(&image);
        assert!(file.opens(OLD));
        assert_eq!(file.image(), image, "cryptsetup found nothing to recover");
    }
}
