//! The command on real files, with cryptsetup as the judge of what is in them.
#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn key(&self, name: &str, content: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        format!("file:{}", path.display())
    }

    fn volume(&self) -> String {
        format!("file:{}", self.path("disk.img").display())
    }

    /// A volume for `key` with a disk of 4 MiB.
    fn formatted(&self, key: &str) -> String {
        let volume = self.volume();
        let args = ["format", "--volume", &volume, "--key", key, "--size", "4M", "--kdf", "pbkdf2"];
        succeed(&args);
        volume
    }
}

fn sealblk(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealblk")).args(args).output().unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = sealblk(args);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Exit status and message of a command that must fail.
fn fail(args: &[&str]) -> (i32, String) {
    let output = sealblk(args);
    assert!(!output.status.success(), "{args:?} succeeded");
    assert!(output.stdout.is_empty(), "a failure is no result");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn cryptsetup(args: &[&str], image: &Path) -> Output {
    Command::new("cryptsetup").args(args).arg(image).output().unwrap()
}

fn opens(image: &Path, key: &str) -> bool {
    let key = key.strip_prefix("file:").unwrap();
    cryptsetup(&["open", "--test-passphrase", "-q", "--key-file", key], image).status.success()
}

#[test]
fn a_new_volume_is_one_for_cryptsetup_too() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"\0 any bytes \xff\n");
    let volume = scratch.volume();
    let args = ["format", "--volume", &volume, "--key", &key, "--size", "4M", "--kdf", "pbkdf2"];
    let said = succeed(&[&args[..], &["--sector-size", "4096", "--label", "mine"]].concat());
    assert!(said.contains("4 MiB (4194304 bytes)"), "{said}");

    let image = scratch.path("disk.img");
    let metadata = fs::metadata(&image).unwrap();
    assert_eq!(metadata.len(), (4 << 20) + (16 << 20));
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let dump = String::from_utf8(cryptsetup(&["luksDump"], &image).stdout).unwrap();
    for words in ["Version:       \t2", "mine", "aes-xts-plain64", "sector: 4096", "16777216"] {
        assert!(dump.contains(words), "{words} is not in\n{dump}");
    }
    assert!(opens(&image, &key));
    assert!(!opens(&image, &scratch.key("wrong", b"wrong")));
}

#[test]
fn format_destroys_nothing_unasked() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.formatted(&key);
    let image = scratch.path("disk.img");
    let before = fs::read(&image).unwrap();
    let format = ["format", "--volume", &volume, "--key", &key, "--kdf", "pbkdf2"];

    let (code, why) = fail(&[&format[..], &["--yes"]].concat());
    assert!(code == 3 && why.contains("holds LUKS2"), "{code}: {why}");
    // Nobody is at a terminal in a test.
    let (code, why) = fail(&[&format[..], &["--overwrite-signature"]].concat());
    assert!(code == 3 && why.contains("--yes"), "{code}: {why}");
    let (code, _) = fail(&[&format[..], &["--size", "4M", "--yes"]].concat());
    assert_eq!(code, 1);
    assert!(fs::read(&image).unwrap() == before, "the volume was changed");

    succeed(&[&format[..], &["--overwrite-signature", "--yes"]].concat());
    assert!(opens(&image, &key) && fs::read(&image).unwrap() != before);
}

#[test]
fn a_failed_format_leaves_no_file() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.volume();
    let label = "x".repeat(100);
    let (code, _) =
        fail(&["format", "--volume", &volume, "--key", &key, "--size", "4M", "--label", &label]);
    assert!(code == 1 && !scratch.path("disk.img").exists());
    let (code, why) = fail(&["format", "--volume", &volume, "--key", &key]);
    assert!(code == 1 && why.contains("--size"), "{why}");
    let (code, why) =
        fail(&["format", "--volume", &volume, "--key", "file:/no/such", "--size", "4M"]);
    assert!(code == 1 && why.contains("/no/such") && !scratch.path("disk.img").exists(), "{why}");
}

#[test]
fn keys_are_added_and_removed_and_the_last_stays() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let volume = scratch.formatted(&first);
    let image = scratch.path("disk.img");
    let add = ["key", "add", "--volume", &volume, "--kdf", "pbkdf2"];

    let (code, why) = fail(&[&add[..], &["--key", &second, "--new-key", &first]].concat());
    assert!(code == 1 && why.contains("no keyslot opens"), "{why}");
    let said =
        succeed(&[&add[..], &["--key", &first, "--new-key", &second, "--slot", "3"]].concat());
    assert!(said.contains("keyslot 3"), "{said}");
    assert!(opens(&image, &first) && opens(&image, &second));

    let remove = ["key", "remove", "--volume", &volume];
    let (code, _) = fail(&[&remove[..], &["--slot", "0"]].concat());
    assert_eq!(code, 3, "nobody was there to confirm");
    succeed(&[&remove[..], &["--key", &first, "--yes"]].concat());
    assert!(!opens(&image, &first) && opens(&image, &second));
    let (code, why) = fail(&[&remove[..], &["--slot", "3", "--yes"]].concat());
    assert!(code == 3 && why.contains("last"), "{why}");
    assert!(opens(&image, &second));
}

#[test]
fn a_newline_too_much_is_pointed_out() {
    let scratch = Scratch::new();
    let (key, with_newline) = (scratch.key("1", b"secret"), scratch.key("2", b"secret\n"));
    let volume = scratch.formatted(&key);
    let (_, why) =
        fail(&["key", "add", "--volume", &volume, "--key", &with_newline, "--new-key", &key]);
    assert!(why.contains("newline") && !why.contains("secret\n"), "{why}");
}

#[test]
fn inspect_tells_the_same_to_people_and_programs() {
    let scratch = Scratch::new();
    let volume = scratch.formatted(&scratch.key("key", b"secret"));
    let json = succeed(&["inspect", "--volume", &volume, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["version"], 2);
    assert_eq!(json["size_bytes"], 20 << 20);
    assert_eq!(json["segments"][0]["offset_bytes"], 16 << 20);
    assert_eq!(json["refusals"], serde_json::json!([]));
    let text = succeed(&["inspect", "--volume", &volume]);
    for words in [
        json["uuid"].as_str().unwrap(),
        "crypt  16 MiB  4 MiB  aes-xts-plain64  512 bits   512 B",
        "pbkdf2",
        "serves this volume",
    ] {
        assert!(text.contains(words), "{words} is not in\n{text}");
    }
}

#[test]
fn a_damaged_copy_is_shown_and_repaired() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.formatted(&key);
    let image = scratch.path("disk.img");
    let said = succeed(&["repair", "--volume", &volume]);
    assert!(said.contains("nothing to repair"), "{said}");

    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(&[0xaa; 512], 16384 + 4096).unwrap();
    let text = succeed(&["inspect", "--volume", &volume]);
    assert!(text.contains("offset 16384: DAMAGED"), "{text}");
    let (code, _) = fail(&["repair", "--volume", &volume]);
    assert_eq!(code, 3, "nobody was there to confirm");
    succeed(&["repair", "--volume", &volume, "--yes"]);
    assert!(!succeed(&["inspect", "--volume", &volume]).contains("DAMAGED"));
    assert!(opens(&image, &key));
}

#[test]
fn a_volume_in_use_is_not_changed_but_may_be_looked_at() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.formatted(&key);
    let held = sealblk_volume::open(&volume, &sealblk_volume::OpenOptions::default()).unwrap();
    let (code, why) = fail(&["repair", "--volume", &volume, "--yes"]);
    assert!(code == 1 && why.contains("in use"), "{why}");
    succeed(&["inspect", "--volume", &volume]);
    drop(held);
    succeed(&["repair", "--volume", &volume, "--yes"]);
}

#[test]
fn a_key_that_others_may_read_is_used_with_a_warning() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    fs::set_permissions(scratch.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let volume = scratch.volume();
    let output =
        sealblk(&["format", "--volume", &volume, "--key", &key, "--size", "4M", "--kdf", "pbkdf2"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.contains("chmod 0600"), "{errors}");
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let scratch = Scratch::new();
    let path = scratch.path("control.sock");
    let (code, why) = fail(&["status", "--control", path.to_str().unwrap()]);
    assert!(code == 1 && why.contains("control.sock") && why.contains("No such file"), "{why}");
}

#[test]
fn a_wrong_command_line_is_exit_status_2() {
    assert_eq!(fail(&["format"]).0, 2);
    assert_eq!(fail(&["inspect", "--volume", "/dev/x", "--nonsense"]).0, 2);
}
