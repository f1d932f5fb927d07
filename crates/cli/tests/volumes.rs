//! The command on real files, with cryptsetup as the judge of what is in them.
#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use sealblk_luks::{Header, KeyAge, Policy, Step};

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
    let (code, _) = fail(&[&remove[..], &["--key", &first]].concat());
    assert_eq!(code, 3, "nobody was there to confirm");
    let said = succeed(&[&remove[..], &["--key", &first, "--yes"]].concat());
    assert!(said.contains("remains: keyslot 3"), "{said}");
    assert!(!opens(&image, &first) && opens(&image, &second));
    for which in [&["--slot", "3", "--unproven"][..], &["--key", &second]] {
        let (code, why) = fail(&[&remove[..], which, &["--yes"]].concat());
        assert!(code == 3 && why.contains("last"), "{why}");
    }
    assert!(opens(&image, &second));
}

#[test]
fn a_removed_passphrase_opens_nothing_even_if_it_had_several_keyslots() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let volume = scratch.formatted(&first);
    let image = scratch.path("disk.img");
    let add = ["key", "add", "--volume", &volume, "--kdf", "pbkdf2", "--key", &first];
    let remove = ["key", "remove", "--volume", &volume, "--yes", "--key", &first];
    succeed(&[&add[..], &["--new-key", &first, "--slot", "2"]].concat());
    let (code, why) = fail(&remove);
    assert!(code == 3 && why.contains("keyslots 0, 2") && opens(&image, &first), "{why}");
    succeed(&[&add[..], &["--new-key", &second, "--slot", "1"]].concat());
    let said = succeed(&remove);
    for words in ["keyslot 0 is removed", "keyslot 2 is removed", "remains: keyslot 1"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    assert!(!opens(&image, &first) && opens(&image, &second));
}

#[test]
fn a_keyslot_is_removed_by_number_only_if_another_is_shown_to_open() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let volume = scratch.formatted(&first);
    let image = scratch.path("disk.img");
    for slot in ["1", "2"] {
        succeed(&[
            "key",
            "add",
            "--volume",
            &volume,
            "--kdf",
            "pbkdf2",
            "--key",
            &first,
            "--new-key",
            &second,
            "--slot",
            slot,
        ]);
    }
    let remove = ["key", "remove", "--volume", &volume, "--yes", "--slot"];
    assert_eq!(fail(&[&remove[..], &["0"]].concat()).0, 2);
    let (code, why) = fail(&[&remove[..], &["0", "--key", &first]].concat());
    assert!(code == 3 && why.contains("--unproven") && opens(&image, &first), "{why}");
    let wrong = scratch.key("3", b"wrong");
    let (code, why) = fail(&[&remove[..], &["0", "--key", &wrong]].concat());
    assert!(code == 1 && why.contains("no keyslot opens"), "{why}");
    let (code, why) = fail(&[&remove[..], &["7", "--key", &second]].concat());
    assert!(code == 1 && why.contains("no keyslot 7"), "{why}");
    succeed(&[&remove[..], &["0", "--key", &second]].concat());
    assert!(!opens(&image, &first) && opens(&image, &second));
    succeed(&[&remove[..], &["2", "--unproven"]].concat());
    assert!(opens(&image, &second));
}

#[test]
fn keys_of_a_luks1_volume_are_added_and_removed() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let image = scratch.path("disk.img");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let key_file = first.strip_prefix("file:").unwrap();
    let options = ["--pbkdf-force-iterations", "1000", "--key-file", key_file];
    let format = [&["luksFormat", "-q", "--type", "luks1", "-s", "512"][..], &options].concat();
    assert!(cryptsetup(&format, &image).status.success());

    let volume = scratch.volume();
    let add = ["key", "add", "--volume", &volume, "--key", &first, "--new-key", &second];
    let (code, why) = fail(&[&add[..], &["--kdf", "argon2id"]].concat());
    assert!(code == 1 && why.contains("pbkdf2"), "{why}");
    succeed(&[&add[..], &["--iterations", "2345"]].concat());
    let dump = String::from_utf8(cryptsetup(&["luksDump"], &image).stdout).unwrap();
    assert!(dump.contains("2345"), "{dump}");
    succeed(&["key", "remove", "--volume", &volume, "--key", &first, "--yes"]);
    assert!(!opens(&image, &first) && opens(&image, &second));
}

#[test]
fn pbkdf2_is_as_slow_as_it_is_told_to_be() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.volume();
    let format = ["format", "--volume", &volume, "--key", &key, "--size", "4M"];
    let (code, why) = fail(&[&format[..], &["--iterations", "5000"]].concat());
    assert!(code == 1 && why.contains("--kdf pbkdf2"), "{why}");
    succeed(&[&format[..], &["--kdf", "pbkdf2", "--iterations", "5000"]].concat());
    let text = succeed(&["inspect", "--volume", &volume]);
    assert!(text.contains("5000"), "{text}");
    assert_eq!(fail(&[&format[..], &["--kdf", "pbkdf2", "--iterations", "999"]].concat()).0, 2);
}

#[test]
fn format_wipes_what_lies_at_the_volume_s_end() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let image = scratch.path("disk.img");
    let file = fs::File::create(&image).unwrap();
    file.set_len(20 << 20).unwrap();
    file.write_all_at(b"EFI PART", (20 << 20) - 512).unwrap();
    succeed(&[
        "format",
        "--volume",
        &scratch.volume(),
        "--key",
        &key,
        "--kdf",
        "pbkdf2",
        "--yes",
        "--overwrite-signature",
    ]);
    let content = fs::read(&image).unwrap();
    assert!(content[content.len() - 512..].iter().all(|&byte| byte == 0));
    assert!(opens(&image, &key));
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
fn inspect_does_not_promise_what_the_daemon_would_not_do() {
    let scratch = Scratch::new();
    let volume = scratch.formatted(&scratch.key("key", b"secret"));
    let image = fs::OpenOptions::new().write(true).open(scratch.path("disk.img")).unwrap();
    image.set_len(16 << 20).unwrap();
    let text = succeed(&["inspect", "--volume", &volume]);
    assert!(text.contains("REFUSES") && !text.contains("sealblkd serves"), "{text}");
    let json = succeed(&["inspect", "--volume", &volume, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["refusals"], serde_json::json!([]));
    assert_eq!(json["obstacles"].as_array().unwrap().len(), 1);
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
fn repair_destroys_another_s_signature_only_if_told() {
    let scratch = Scratch::new();
    let key = scratch.key("key", b"secret");
    let volume = scratch.formatted(&key);
    let image = scratch.path("disk.img");
    // A bootable partition table's first sector, in place of the primary header.
    let mut mbr = [0; 4096];
    mbr[446..462].copy_from_slice(&[0x80, 0, 2, 0, 0x83, 1, 1, 1, 0, 8, 0, 0, 0, 16, 0, 0]);
    mbr[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::OpenOptions::new().write(true).open(&image).unwrap().write_all_at(&mbr, 0).unwrap();
    let (code, why) = fail(&["repair", "--volume", &volume, "--yes"]);
    assert!(code == 3 && why.contains("--overwrite-signature"), "{code}: {why}");
    assert_eq!(fs::read(&image).unwrap()[..4096], mbr);
    succeed(&["repair", "--volume", &volume, "--yes", "--overwrite-signature"]);
    assert!(!succeed(&["inspect", "--volume", &volume]).contains("DAMAGED"));
    assert!(opens(&image, &key));
}

#[test]
fn rewrapping_puts_one_key_in_the_place_of_another_also_after_an_interruption() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let volume = scratch.formatted(&first);
    let image = scratch.path("disk.img");
    let add = ["key", "add", "--volume", &volume, "--kdf", "pbkdf2", "--key", &first];
    let rewrap = ["rewrap", "--volume", &volume, "--kdf", "pbkdf2", "--yes"];
    let (to_second, to_first) =
        (["--key", &first, "--new-key", &second], ["--key", &second, "--new-key", &first]);

    let (code, why) = fail(&[&rewrap[..], &to_first].concat());
    assert!(code == 1 && why.contains("no keyslot opens"), "{why}");
    let (code, _) = fail(&[&rewrap[..], &["--key", &first, "--new-key", &first]].concat());
    assert_eq!(code, 3, "nothing would change");
    let (code, _) = fail(&[&rewrap[..5], &to_second].concat());
    assert_eq!(code, 3, "nobody was there to confirm");
    assert!(opens(&image, &first) && !opens(&image, &second));

    succeed(&[&add[..], &["--new-key", &first, "--slot", "5"]].concat());
    let said = succeed(&[&rewrap[..], &to_second].concat());
    assert!(said.contains("keyslot 1 opens with") && said.contains("keyslot 5"), "{said}");
    assert!(!opens(&image, &first) && opens(&image, &second));

    // Interrupted after the first half.
    let add = ["key", "add", "--volume", &volume, "--kdf", "pbkdf2", "--key", &second];
    succeed(&[&add[..], &["--new-key", &first]].concat());
    let said = succeed(&[&rewrap[..], &to_first].concat());
    assert!(said.contains("opens with it already"), "{said}");
    assert!(opens(&image, &first) && !opens(&image, &second));
}

/// What `inspect` says of the keys' age.
fn age(volume: &str) -> serde_json::Value {
    let json = succeed(&["inspect", "--volume", volume, "--json"]);
    serde_json::from_str::<serde_json::Value>(&json).unwrap()["key_age"].clone()
}

fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn a_volume_knows_how_old_its_keys_are_and_rewrapping_makes_the_secret_a_new_one() {
    let scratch = Scratch::new();
    let (first, second) = (scratch.key("1", b"first"), scratch.key("2", b"second"));
    let before = clock();
    let volume = scratch.formatted(&first);
    let image = scratch.path("disk.img");
    let new = age(&volume);
    let born = new["volume_key_since"].as_u64().unwrap();
    assert!((before..=clock()).contains(&born));
    assert_eq!((new["secret_since"].as_u64(), &new["rotations"]), (Some(born), &0.into()));
    let text = succeed(&["inspect", "--volume", &volume]);
    assert!(
        text.contains("age       volume key since 20") && text.contains(" s), secret since 20")
    );
    let dump = String::from_utf8(cryptsetup(&["luksDump"], &image).stdout).unwrap();
    assert!(dump.contains("0: sealblk-age"), "{dump}");

    // As if it was made long ago.
    let mut bytes = fs::read(&image).unwrap();
    let mut io = bytes.as_slice();
    let header = Header::load(&mut io, &Policy::default()).unwrap();
    let long_ago = KeyAge { rotations: 2, ..KeyAge::new_at(1_700_000_000) };
    let plan = header.set_key_age(&mut io, long_ago, &mut sealblk_rotation::random).unwrap();
    for step in plan.steps() {
        if let Step::Write { offset_bytes, data } = step {
            let at = *offset_bytes as usize;
            bytes[at..at + data.len()].copy_from_slice(data);
        }
    }
    fs::write(&image, bytes).unwrap();
    let text = succeed(&["inspect", "--volume", &volume]);
    assert!(text.contains("volume key since 2023-11-14 ("), "{text}");
    assert!(text.contains("rotated 2 times"), "{text}");

    let before = clock();
    let rewrap = ["rewrap", "--volume", &volume, "--kdf", "pbkdf2", "--yes"];
    // With two keyslots to go: the age is that of the last.
    let add = ["key", "add", "--volume", &volume, "--kdf", "pbkdf2", "--key", &first];
    succeed(&[&add[..], &["--new-key", &first]].concat());
    assert_eq!(age(&volume)["secret_since"], 1_700_000_000, "another keyslot is no new secret");
    succeed(&[&rewrap[..], &["--key", &first, "--new-key", &second]].concat());
    let rewrapped = age(&volume);
    assert_eq!(rewrapped["volume_key_since"], 1_700_000_000);
    assert_eq!(rewrapped["rotations"], 2);
    assert!((before..=clock()).contains(&rewrapped["secret_since"].as_u64().unwrap()));
    assert!(!opens(&image, &first) && opens(&image, &second));
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
    assert!(why.contains("does the daemon run") && why.matches("os error").count() == 1, "{why}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let (code, why) = fail(&["status", "--control", path.to_str().unwrap()]);
    assert!(code == 1 && why.contains("no daemon listens there"), "{why}");
}

#[test]
fn a_wrong_command_line_is_exit_status_2() {
    assert_eq!(fail(&["format"]).0, 2);
    assert_eq!(fail(&["inspect", "--volume", "/dev/x", "--nonsense"]).0, 2);
}
