//! Backups on real files, with cryptsetup as the judge of what they are.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use sealblk_cipher::Algorithm;
use sealblk_luks::{
    FormatParams, KdfLimits, NewKeyslot, Plan, RotationNotes, RotationParams, SlotKdf, Unlocked,
    format,
};
use sealblk_secret::SecretBytes;
use sealblk_volume::{OpenOptions, Volume};

use super::*;
use crate::{Beginning, Reader, begin, carry_out, params, random};

const FAST: SlotKdf = SlotKdf::Pbkdf2Sha256 { iterations: 1000 };
const SECRET: &[u8] = b"the secret";
const OTHER: &[u8] = b"another secret";

/// The header of our volumes, in bytes.
const AREA: u64 = 16 << 20;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    fn file(&self) -> PathBuf {
        self.path("backup")
    }

    fn open(&self) -> Arc<dyn Volume> {
        let uri = format!("file:{}", self.image().display());
        sealblk_volume::open(&uri, &OpenOptions::default()).unwrap()
    }

    /// A LUKS2 volume of 2 MiB.
    fn luks2(&self) -> Arc<dyn Volume> {
        fs::File::create(self.image()).unwrap().set_len(AREA + (2 << 20)).unwrap();
        let volume = self.open();
        let params = FormatParams {
            volume_bytes: AREA + (2 << 20),
            algorithm: Algorithm::Aes256XtsPlain64,
            sector_bytes: 512,
            kdf: FAST,
            label: String::new(),
            subsystem: String::new(),
            token: None,
            created_at: None,
        };
        let plan = format(&params, &secret(SECRET), &mut random).unwrap();
        execute(&*volume, &plan);
        volume
    }

    /// A LUKS1 volume, by cryptsetup.
    fn luks1(&self) -> Arc<dyn Volume> {
        fs::File::create(self.image()).unwrap().set_len(4 << 20).unwrap();
        let key = self.key(SECRET);
        let key = key.to_str().unwrap();
        cryptsetup(
            &[
                "luksFormat",
                "-q",
                "--type",
                "luks1",
                "--pbkdf-force-iterations",
                "1000",
                "--key-file",
                key,
            ],
            &self.image(),
        )
        .unwrap();
        self.open()
    }

    fn key(&self, content: &[u8]) -> PathBuf {
        let path = self.path("key");
        fs::write(&path, content).unwrap();
        path
    }

    fn opens_with(&self, secret: &[u8]) -> bool {
        let key = self.key(secret);
        let args = ["open", "--test-passphrase", "--key-file", key.to_str().unwrap()];
        cryptsetup(&args, &self.image()).is_ok()
    }

    fn restore_by_cryptsetup(&self, file: &Path) -> Result<(), String> {
        let args = ["luksHeaderRestore", "-q", "--header-backup-file", file.to_str().unwrap()];
        cryptsetup(&args, &self.image())
    }

    /// Zeroes over both header copies.
    fn lose_header(&self) {
        let file = fs::File::options().write(true).open(self.image()).unwrap();
        file.write_all_at(&[0; 32 << 10], 0).unwrap();
    }
}

fn cryptsetup(args: &[&str], image: &Path) -> Result<(), String> {
    let output = Command::new("cryptsetup").args(args).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::copy_from(bytes).unwrap()
}

fn execute(volume: &dyn Volume, plan: &Plan) {
    carry_out(volume, plan).unwrap();
    volume.flush().unwrap();
}

fn header(volume: &dyn Volume) -> Header {
    Header::load(&mut Reader(volume), &Policy::default()).unwrap()
}

fn unlock(volume: &dyn Volume, bytes: &[u8]) -> Unlocked {
    let secret = secret(bytes);
    header(volume).unlock(&mut Reader(volume), &secret, &KdfLimits::default()).unwrap()
}

fn create(scratch: &Scratch, volume: &dyn Volume) -> HeaderBackup {
    HeaderBackup::create(&scratch.file(), &mut Reader(volume)).unwrap()
}

fn zone_params(volume: &dyn Volume) -> RotationParams {
    params(volume, 1 << 20)
}

/// Begins a rotation.
fn begun(volume: &dyn Volume) -> (Unlocked, sealblk_luks::Rotation) {
    let passphrase = secret(SECRET);
    let beginning = Beginning {
        passphrase: &passphrase,
        new_passphrase: None,
        kdf: Some(FAST),
        notes: RotationNotes::default(),
        keep_luks2: false,
    };
    let begun = begin(volume, &beginning, zone_params(volume)).unwrap();
    (begun.unlocked, begun.rotation)
}

/// Moves the first zone.
fn move_one(volume: &dyn Volume, rotation: sealblk_luks::Rotation) -> sealblk_luks::Rotation {
    let zone = rotation.zone().unwrap();
    let mut recryptor = rotation.recryptor(sealblk_cipher::Implementation::Auto).unwrap();
    let mut data = vec![0; usize::try_from(zone.len_bytes).unwrap()];
    volume.read_at(zone.volume_offset_bytes, &mut data).unwrap();
    let pending = rotation.arm(&data).unwrap();
    carry_out(volume, pending.plan()).unwrap();
    let armed = pending.carried_out();
    recryptor.recrypt(zone.start_bytes, &mut data);
    volume.write_at(zone.volume_offset_bytes, &data).unwrap();
    let pending = armed.commit().unwrap();
    carry_out(volume, pending.plan()).unwrap();
    match pending.carried_out() {
        sealblk_luks::Progress::More(rotation) => rotation,
        sealblk_luks::Progress::Done(_) => panic!("it has two zones"),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T, BackupError>) -> String {
    match result {
        Err(BackupError::Refused { why, .. }) => why,
        other => panic!("not refused: {other:?}"),
    }
}

fn may_restore(scratch: &Scratch, volume: &dyn Volume) -> Result<Restoration, BackupError> {
    Restoration::of(&scratch.file(), volume, false)
}

#[test]
fn cryptsetup_restores_a_backup_of_either_version() {
    for luks1 in [false, true] {
        let scratch = Scratch::new();
        let volume = if luks1 { scratch.luks1() } else { scratch.luks2() };
        create(&scratch, &*volume);
        drop(volume);
        let before = fs::read(scratch.image()).unwrap();
        scratch.lose_header();
        assert!(!scratch.opens_with(SECRET));
        scratch.restore_by_cryptsetup(&scratch.file()).unwrap();
        assert!(scratch.opens_with(SECRET));
        assert!(fs::read(scratch.image()).unwrap() == before, "luks1: {luks1}");
    }
}

#[test]
fn a_backup_is_readable_by_its_owner_only_and_holds_the_whole_area() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    create(&scratch, &*volume);
    assert_eq!(fs::metadata(scratch.file()).unwrap().mode() & 0o7777, 0o600);
    let (file, image) = (fs::read(scratch.file()).unwrap(), fs::read(scratch.image()).unwrap());
    let area = usize::try_from(AREA).unwrap();
    assert!(file[..area] == image[..area]);
    assert_eq!(file.len() - area, 4096);
    let names: Vec<_> =
        fs::read_dir(scratch.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn once_data_moves_neither_cryptsetup_nor_we_put_it_back() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    let backup = create(&scratch, &*volume);
    let (_, rotation) = begun(&*volume);
    backup.refresh(&mut Reader(&*volume)).unwrap();
    // Both keys are in it, and no data has moved: it may still go back.
    may_restore(&scratch, &*volume).unwrap();
    backup.data_moves().unwrap();
    backup.data_moves().unwrap();
    let rotation = move_one(&*volume, rotation);
    assert!(refusal(may_restore(&scratch, &*volume)).contains("data has moved"));
    drop(volume);
    let image = fs::read(scratch.image()).unwrap();
    let said = scratch.restore_by_cryptsetup(&scratch.file()).unwrap_err();
    assert!(said.contains("compatible LUKS header"), "{said}");
    assert!(fs::read(scratch.image()).unwrap() == image);
    // Nor when the volume's own header is lost.
    scratch.lose_header();
    let volume = scratch.open();
    assert!(refusal(may_restore(&scratch, &*volume)).contains("data has moved"));
    drop(rotation);
}

#[test]
fn a_backup_from_before_a_range_is_refused_by_what_the_volume_says() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    create(&scratch, &*volume);
    let before = fs::read(scratch.file()).unwrap();
    let (_, rotation) = begun(&*volume);
    fs::copy(scratch.file(), scratch.path("copy")).unwrap();
    let backup = HeaderBackup::adopt(&scratch.file(), &header(&*volume).uuid()).unwrap().unwrap();
    backup.refresh(&mut Reader(&*volume)).unwrap();
    let at_zero = fs::read(scratch.file()).unwrap();
    move_one(&*volume, rotation);
    // Copies that nobody told that data moved: what cryptsetup would put back.
    for stale in [before, at_zero] {
        fs::write(scratch.file(), stale).unwrap();
        assert!(refusal(may_restore(&scratch, &*volume)).contains("has another key"));
    }
    // At rest between two ranges a fresh one is true again.
    assert!(backup.refresh(&mut Reader(&*volume)).is_ok());
    may_restore(&scratch, &*volume).unwrap();
    // But nobody makes a first one then.
    let new = HeaderBackup::create_new(&scratch.path("new"), &mut Reader(&*volume));
    assert!(refusal(new).contains("under way"));
}

#[test]
fn a_passphrase_comes_back_with_the_header() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    create(&scratch, &*volume);
    let unlocked = unlock(&*volume, SECRET);
    let keyslot = NewKeyslot { kdf: FAST, ..Default::default() };
    let (_, plan) = header(&*volume)
        .add_keyslot(&mut Reader(&*volume), &unlocked, &secret(OTHER), &keyslot, &mut random)
        .unwrap();
    execute(&*volume, &plan);
    let plan = header(&*volume)
        .remove_keyslot(&mut Reader(&*volume), unlocked.slot(), false, &mut random)
        .unwrap();
    execute(&*volume, &plan);
    let restoration = may_restore(&scratch, &*volume).unwrap();
    assert!(restoration.question().contains("Passphrases that were removed"));
    let restored = restore(&*volume, &restoration).unwrap();
    assert_eq!(restored.before, None);
    drop(volume);
    assert!(scratch.opens_with(SECRET) && !scratch.opens_with(OTHER));
}

#[test]
fn a_lost_header_comes_back_and_what_lay_there_is_kept() {
    for luks1 in [false, true] {
        let scratch = Scratch::new();
        let volume = if luks1 { scratch.luks1() } else { scratch.luks2() };
        create(&scratch, &*volume);
        drop(volume);
        let whole = fs::read(scratch.image()).unwrap();
        scratch.lose_header();
        let lost = fs::read(scratch.image()).unwrap();
        let volume = scratch.open();
        let restoration = may_restore(&scratch, &*volume).unwrap();
        assert!(restoration.question().contains("look like noise"));
        let restored = restore(&*volume, &restoration).unwrap();
        let before = fs::read(restored.before.unwrap()).unwrap();
        assert!(lost.starts_with(&before) && before.len() >= 1 << 20);
        drop(volume);
        assert!(fs::read(scratch.image()).unwrap() == whole);
        assert!(scratch.opens_with(SECRET));
    }
}

#[test]
fn nothing_is_put_over_another_volume_or_another_thing() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let volume = scratch.luks2();
    create(&scratch, &*volume);
    let foreign = other.luks2();
    assert!(refusal(may_restore(&scratch, &*foreign)).contains("another volume"));
    drop(volume);
    scratch.lose_header();
    // An ext4 superblock's magic.
    let image = fs::File::options().write(true).open(scratch.image()).unwrap();
    image.write_all_at(&[0x53, 0xef], 0x438).unwrap();
    let volume = scratch.open();
    assert!(refusal(may_restore(&scratch, &*volume)).contains("--overwrite-signature"));
    assert!(Restoration::of(&scratch.file(), &*volume, true).is_ok());
}

#[test]
fn a_backup_by_cryptsetup_goes_back_only_where_the_volume_vouches_for_it() {
    for luks1 in [false, true] {
        let scratch = Scratch::new();
        let volume = if luks1 { scratch.luks1() } else { scratch.luks2() };
        let file = scratch.file();
        let args = ["luksHeaderBackup", "--header-backup-file", file.to_str().unwrap()];
        drop(volume);
        cryptsetup(&args, &scratch.image()).unwrap();
        let volume = scratch.open();
        let restoration = may_restore(&scratch, &*volume).unwrap();
        restore(&*volume, &restoration).unwrap();
        drop(volume);
        assert!(scratch.opens_with(SECRET));
        scratch.lose_header();
        let volume = scratch.open();
        assert!(refusal(may_restore(&scratch, &*volume)).contains("cryptsetup luksHeaderRestore"));
    }
}

#[test]
fn a_mangled_backup_is_none() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    create(&scratch, &*volume);
    let good = fs::read(scratch.file()).unwrap();
    let uuid = header(&*volume).uuid();
    // In the header, in a keyslot's area, in the record; cut off.
    for at in [20, 40 << 10, good.len() - 4090] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(scratch.file(), &bad).unwrap();
        refusal(may_restore(&scratch, &*volume));
        refusal(HeaderBackup::adopt(&scratch.file(), &uuid));
    }
    for len in [0, 1, 4096, 40 << 10, good.len() - 1] {
        fs::write(scratch.file(), &good[..len]).unwrap();
        refusal(may_restore(&scratch, &*volume));
    }
}

#[test]
fn a_file_of_somebody_else_is_left_alone_and_a_symlink_not_followed() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    let mut reader = Reader(&*volume);
    fs::write(scratch.file(), "precious").unwrap();
    refusal(HeaderBackup::create(&scratch.file(), &mut reader));
    refusal(HeaderBackup::create_new(&scratch.file(), &mut reader));
    assert_eq!(fs::read(scratch.file()).unwrap(), b"precious");
    let link = scratch.path("link");
    symlink(scratch.file(), &link).unwrap();
    refusal(HeaderBackup::create(&link, &mut reader));
    refusal(HeaderBackup::create_new(&link, &mut reader));
    let dangling = scratch.path("dangling");
    symlink(scratch.path("nowhere"), &dangling).unwrap();
    refusal(HeaderBackup::create_new(&dangling, &mut reader));
    refusal(HeaderBackup::create(&dangling, &mut reader));
    assert!(!scratch.path("nowhere").exists());
    let elsewhere = HeaderBackup::create(&scratch.path("missing/backup"), &mut reader);
    assert!(matches!(elsewhere, Err(BackupError::File { .. })), "{elsewhere:?}");
    assert_eq!(fs::read(scratch.file()).unwrap(), b"precious");
}

#[test]
fn a_replaced_or_finished_backup_is_overwritten_before_it_is_gone() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    let backup = create(&scratch, &*volume);
    let good = fs::read(scratch.file()).unwrap();
    // A second name shows what becomes of the content.
    let shadow = scratch.path("shadow");
    fs::hard_link(scratch.file(), &shadow).unwrap();
    backup.refresh(&mut Reader(&*volume)).unwrap();
    let was = fs::read(&shadow).unwrap();
    assert_eq!(was.len(), good.len());
    assert!(was.chunks(4096).zip(good.chunks(4096)).all(|(was, good)| was != good));
    fs::remove_file(&shadow).unwrap();
    fs::hard_link(scratch.file(), &shadow).unwrap();
    // Left by somebody who died in the middle.
    let part = scratch.path(".backup.part");
    fs::write(&part, &good).unwrap();
    backup.finish(false).unwrap();
    assert!(!scratch.file().exists() && !part.exists());
    let was = fs::read(&shadow).unwrap();
    assert!(was.chunks(4096).zip(good.chunks(4096)).all(|(was, good)| was != good));
}

#[test]
fn a_kept_backup_can_not_be_put_back_by_mistake() {
    let scratch = Scratch::new();
    let volume = scratch.luks2();
    let backup = create(&scratch, &*volume);
    backup.finish(true).unwrap();
    assert!(refusal(may_restore(&scratch, &*volume)).contains("data has moved"));
    let uuid = header(&*volume).uuid();
    assert!(HeaderBackup::adopt(&scratch.file(), &uuid).unwrap().is_some());
    refusal(HeaderBackup::adopt(&scratch.file(), "another"));
    assert!(HeaderBackup::adopt(&scratch.path("nothing"), &uuid).unwrap().is_none());
}

#[test]
fn a_hostile_uuid_names_no_other_directory() {
    let path = HeaderBackup::default_path(Path::new("/etc/sealblk"), "../../x\0/1G-a");
    assert_eq!(path, Path::new("/etc/sealblk/_________1_-a.luks-header"));
}
