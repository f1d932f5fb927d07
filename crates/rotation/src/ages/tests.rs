use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;

use sealblk_luks::{FormatParams, Policy, SlotKdf};
use sealblk_secret::SecretBytes;

use super::*;
use crate::random;

const UUID: &str = "9ba0d8ce-5d5a-4a9e-9a3c-0123456789ab";

const AGE: KeyAge =
    KeyAge { volume_key_since: Some(1_790_000_000), secret_since: None, rotations: 3 };

struct Scratch {
    directory: tempfile::TempDir,
    ages: Ages,
}

impl Scratch {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ages = Ages::new(directory.path().join("state"));
        Self { directory, ages }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(format!("state/{UUID}.json"))
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_written_is_read_and_nobody_else_may_read_it() {
    let scratch = Scratch::new();
    assert_eq!(scratch.ages.read(UUID), Ok(None), "nothing is there yet");
    scratch.ages.write(UUID, &AGE).unwrap();
    assert_eq!(scratch.ages.read(UUID), Ok(Some(AGE)));
    assert_eq!(mode(&scratch.file()), 0o600);
    assert_eq!(mode(scratch.file().parent().unwrap()), 0o700);
    // The same volume, however its UUID is written.
    let again = KeyAge { rotations: 4, ..AGE };
    scratch.ages.write(&UUID.to_uppercase(), &again).unwrap();
    assert_eq!(scratch.ages.read(UUID), Ok(Some(again)));
    assert_eq!(fs::read_dir(scratch.file().parent().unwrap()).unwrap().count(), 1);
    assert_eq!(scratch.ages.read("00000000-0000-4000-8000-000000000000"), Ok(None));
}

#[test]
fn a_uuid_that_is_none_names_no_file() {
    let scratch = Scratch::new();
    let outside = "../../../../../etc/cron.d/abcdefghij".to_owned();
    assert_eq!(outside.len(), 36);
    for uuid in [outside.as_str(), "", "x", &format!("{UUID}/x"), &UUID.replace('-', "/")] {
        let error = scratch.ages.write(uuid, &AGE).unwrap_err();
        assert!(matches!(error, AgeError::NotUuid(_)), "{error}");
        assert_eq!(scratch.ages.read(uuid), Ok(None));
    }
    assert_eq!(fs::read_dir(scratch.directory.path()).unwrap().count(), 0);
}

#[test]
fn hostile_content_is_an_unknown_age_with_a_reason() {
    let scratch = Scratch::new();
    scratch.ages.write(UUID, &AGE).unwrap();
    let good = fs::read_to_string(scratch.file()).unwrap();
    let other = good.replace(UUID, "00000000-0000-4000-8000-000000000000");
    let long = format!("{good}{}", " ".repeat(5000));
    for (text, reason) in [
        ("", "EOF"),
        ("[]", "invalid length"),
        ("\u{1b}[2J", "expected value"),
        (&good[..good.len() / 2], "EOF"),
        (&good.replace("1790000000", "-1"), "invalid value"),
        (&good.replace("1790000000", "\"now\""), "invalid type"),
        (&good.replace("\"rotations\"", "\"rotated\""), "unknown field"),
        (&good.replace("\"version\":1", "\"version\":2"), "version 2"),
        (&other, "another volume"),
        (&long, "longer than 4096"),
    ] {
        fs::write(scratch.file(), text).unwrap();
        let error = scratch.ages.read(UUID).unwrap_err();
        assert!(error.contains(reason), "{text:?}: {error}");
        assert!(error.contains(&format!("{UUID}.json")) && !error.contains('\u{1b}'), "{error}");
    }
    scratch.ages.write(UUID, &AGE).unwrap();
    assert_eq!(scratch.ages.read(UUID), Ok(Some(AGE)), "what is noted next counts");
}

#[test]
fn neither_links_nor_other_kinds_of_files_are_followed() {
    let scratch = Scratch::new();
    scratch.ages.write(UUID, &AGE).unwrap();
    let victim = scratch.directory.path().join("victim");
    fs::write(&victim, fs::read(scratch.file()).unwrap()).unwrap();
    let before = fs::read(&victim).unwrap();

    fs::remove_file(scratch.file()).unwrap();
    symlink(&victim, scratch.file()).unwrap();
    scratch.ages.read(UUID).unwrap_err();
    // A leftover of that kind is not written through, and the link itself is replaced.
    symlink(&victim, scratch.file().with_extension("json.new")).unwrap();
    scratch.ages.write(UUID, &KeyAge { rotations: 9, ..AGE }).unwrap();
    assert_eq!(fs::read(&victim).unwrap(), before);
    assert_eq!(scratch.ages.read(UUID).unwrap().unwrap().rotations, 9);

    fs::remove_file(scratch.file()).unwrap();
    fs::create_dir(scratch.file()).unwrap();
    assert!(scratch.ages.read(UUID).unwrap_err().contains("no regular file"));
    let error = scratch.ages.write(UUID, &AGE).unwrap_err();
    assert!(error.to_string().contains(UUID), "{error}");
}

#[test]
fn an_interrupted_write_leaves_what_was_there() {
    let scratch = Scratch::new();
    scratch.ages.write(UUID, &AGE).unwrap();
    fs::write(scratch.file().with_extension("json.new"), "{\"vers").unwrap();
    assert_eq!(scratch.ages.read(UUID), Ok(Some(AGE)));
    scratch.ages.write(UUID, &KeyAge { rotations: 9, ..AGE }).unwrap();
    assert_eq!(scratch.ages.read(UUID).unwrap().unwrap().rotations, 9);
}

/// A volume as bytes.
struct Bytes(Vec<u8>);

impl sealblk_luks::ReadAt for Bytes {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = offset_bytes as usize;
        let end = at.checked_add(buf.len()).filter(|end| *end <= self.0.len());
        buf.copy_from_slice(&self.0[at..end.ok_or(io::ErrorKind::UnexpectedEof)?]);
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
}

fn header(created_at: Option<u64>) -> Header {
    let params = FormatParams {
        volume_bytes: 17 << 20,
        algorithm: sealblk_cipher::Algorithm::Aes256XtsPlain64,
        sector_bytes: 512,
        kdf: SlotKdf::Pbkdf2Sha256 { iterations: 1000 },
        label: String::new(),
        subsystem: String::new(),
        token: None,
        created_at,
    };
    let secret = SecretBytes::copy_from(b"secret").unwrap();
    let plan = sealblk_luks::format(&params, &secret, &mut random).unwrap();
    let mut bytes = Bytes(vec![0; 17 << 20]);
    for step in plan.steps() {
        if let sealblk_luks::Step::Write { offset_bytes, data } = step {
            let at = *offset_bytes as usize;
            bytes.0[at..at + data.len()].copy_from_slice(data);
        }
    }
    Header::load(&mut bytes, &Policy::default()).unwrap()
}

#[test]
fn the_header_counts_and_then_the_directory() {
    let scratch = Scratch::new();
    let silent = header(None);
    let known = known_age(&silent, false, &scratch.ages);
    assert_eq!((known.age, known.place), (KeyAge::default(), Place::Header));
    assert!(known.trouble.is_empty());
    scratch.ages.write(&silent.uuid(), &AGE).unwrap();
    let known = known_age(&silent, true, &scratch.ages);
    assert_eq!((known.age, known.place), (AGE, Place::Directory), "a volume not to be written");

    let tells = header(Some(7));
    scratch.ages.write(&tells.uuid(), &AGE).unwrap();
    assert_eq!(known_age(&tells, false, &scratch.ages).age, KeyAge::new_at(7));

    let path = scratch.directory.path().join(format!("state/{}.json", silent.uuid()));
    fs::write(path, "{}").unwrap();
    let known = known_age(&silent, true, &scratch.ages);
    assert_eq!(known.age, KeyAge::default());
    assert!(known.trouble[0].contains("missing field"), "{:?}", known.trouble);
}

#[test]
fn a_rotation_as_luks2_adds_to_what_was_kept_and_once_only() {
    let kept = KeyAge { volume_key_since: Some(5), secret_since: Some(3), rotations: 2 };
    let noted = KeyAge { volume_key_since: Some(9), secret_since: None, rotations: 1 };
    let after = KeyAge { volume_key_since: Some(9), secret_since: Some(3), rotations: 3 };
    assert_eq!(after_rotation_as_luks2(kept, noted), after);
    assert_eq!(after_rotation_as_luks2(after, noted), after);
    let new_secret = KeyAge { secret_since: Some(9), ..noted };
    assert_eq!(after_rotation_as_luks2(kept, new_secret).secret_since, Some(9));
    assert_eq!(after_rotation_as_luks2(KeyAge::default(), noted), noted);
}
