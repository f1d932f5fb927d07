//! What a rotation leaves behind: a volume as it was, for cryptsetup and qemu-img too, with another
//! key, and nothing of the old one. Whoever began a re-encryption, the other can end it. On files, on
//! Ceph and on iSCSI; the modules at the end say which of it `make test` leaves to `make test-storage`.

use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, Daemon, Kind, Load, Pattern, Rotating, Storage, TestVolume, memory, oracle, progress,
    run, scenarios, unpack_kat,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;

fn opens(volume: &TestVolume, key: &Path) -> bool {
    cryptsetup(volume, key, &["open", "--test-passphrase"]).is_ok()
}

fn cryptsetup(volume: &TestVolume, key: &Path, action: &[&str]) -> Result<String> {
    let mut arguments: Vec<OsString> = action.iter().map(OsString::from).collect();
    arguments.extend(["--batch-mode".into(), "--key-file".into(), key.into()]);
    arguments.push(volume.raw()?.into());
    Ok(String::from_utf8(run("cryptsetup", arguments)?.stdout)?)
}

/// The same for what changes the volume, which nobody has open.
fn cryptsetup_changes(volume: &TestVolume, action: &[&str]) -> Result<()> {
    cryptsetup(volume, &volume.key, action)?;
    match volume.storage {
        Storage::File => Ok(()),
        // It changed the copy that the call above made.
        Storage::Rbd(_) | Storage::Iscsi(_) => volume.write_raw(&volume.scratch.file("raw")),
    }
}

/// Files in the state directory, but for claims on images.
fn left_in_the_state_directory(disk: &Rotating) -> Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(disk.state_dir())? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "claim") {
            left.push(path);
        }
    }
    Ok(left)
}

/// Another secret, beside the volume.
fn new_key(volume: &TestVolume) -> Result<PathBuf> {
    let key = volume.scratch.file("new.key");
    std::fs::write(&key, "another secret, as long as one likes")?;
    Ok(key)
}

fn formatted(kind: Kind, sector_bytes: u32) -> Result<TestVolume> {
    TestVolume::formatted_on(kind, DISK, &["--sector-size", &sector_bytes.to_string()])
}

/// A disk with known content, and a load for it.
fn filled(disk: &Rotating, size: u64) -> Result<(Load, Client)> {
    let content = Pattern(41).bytes(0, usize::try_from(size)?);
    let mut load = Load::new(content.clone(), 2, 8, false);
    let mut client = load.connect(disk.daemon.socket())?;
    client.write(0, &content)?;
    Ok((load, client))
}

/// On a network the middle of it goes without load: a rotation makes way for the guest, and there that
/// takes minutes.
fn rotate_under_load(
    disk: &Rotating,
    volume: &TestVolume,
    load: &mut Load,
    client: &mut Client,
) -> Result<()> {
    if !matches!(volume.storage, Storage::File) {
        let goal = load.done + 1024;
        load.run(client, |done| Ok(done > goal))?;
        load.check_all(client)?;
        disk.wait_for_bytes(DISK / 8 * 7)?;
    }
    load.run(client, |_| Ok(matches!(disk.state()?.as_str(), "completed" | "failed")))?;
    load.check_all(client)?;
    disk.wait_for_end()?;
    Ok(())
}

fn with_a_new_secret_the_old_one_and_the_old_key_are_dead(kind: Kind) -> Result<()> {
    let mut volume = formatted(kind, 512)?;
    let new = new_key(&volume)?;
    let new_uri = format!("file:{}", new.display());
    let old_key = oracle::volume_key(&volume)?;
    // Where its keyslots are: between the JSON copies and the data.
    let front = usize::try_from(oracle::data_offset(&volume.raw()?)?)?;
    let before = volume.bytes()?[32768..front].to_vec();

    let mut disk = Rotating::serve(&volume, &["--queues", "2"])?;
    let (mut load, mut client) = filled(&disk, DISK)?;
    let extra = ["--new-key", &new_uri, "--yes", "--hotzone", "512K", "--rate", "1M"];
    disk.order("start", &extra)?;
    // Until the end both secrets open it, and the header is kept in a file.
    ensure!(opens(&volume, &volume.key) && opens(&volume, &new));
    let status = disk.status()?;
    let backup = status["header_backup"].as_str().context("no header backup")?.to_owned();
    ensure!(Path::new(&backup).starts_with(disk.state_dir()), "{backup}");
    ensure!(Path::new(&backup).is_file());
    disk.order("throttle", &["--rate", "none"])?;
    rotate_under_load(&disk, &volume, &mut load, &mut client)?;

    ensure!(!opens(&volume, &volume.key), "the old secret opens it still");
    ensure!(opens(&volume, &new), "the new secret doesn't open it");
    let pid = disk.daemon.pid()?;
    let searched = memory::search(pid, memory::Pages::All, &[&old_key])?;
    ensure!(searched > MIB, "only {searched} bytes could be searched");
    let after = volume.bytes()?[32768..front].to_vec();
    let left = before.chunks(512).filter(|old| {
        old.iter().any(|&byte| byte != 0) && after.chunks(512).any(|new| new == *old)
    });
    ensure!(left.count() == 0, "parts of the old keyslots are still there");
    let files = left_in_the_state_directory(&disk)?;
    ensure!(files.is_empty(), "left in the state directory: {files:?}");
    drop(client);
    disk.daemon.stop()?;

    // The old secret doesn't serve it any more, and says so; the new one does.
    let mut arguments = volume.volume_args();
    arguments.extend(["--socket".into(), volume.scratch.file("vu.sock").into()]);
    let (_, state_dir) = Rotating::places(&volume);
    arguments.extend(["--state-dir".into(), state_dir.into()]);
    let exit = Daemon::run_to_end(&arguments)?;
    ensure!(exit.status.code() == Some(1), "{}", exit.log);
    drop(disk);
    let old = volume.key.clone();
    for (key, extra) in [(&old, &["--new-key", new_uri.as_str()][..]), (&new, &[])] {
        volume.key.clone_from(key);
        let mut disk = Rotating::serve(&volume, &[&["--queues", "2"], extra].concat())?;
        let mut client = load.connect(disk.daemon.socket())?;
        load.check_all(&mut client)?;
        drop(client);
        disk.daemon.stop()?;
    }
    ensure!(oracle::volume_key(&volume)? != old_key);
    load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)
}

/// As OpenStack's are made.
fn luks1_by_qemu_img(kind: Kind) -> Result<TestVolume> {
    let volume = TestVolume::blank(0)?;
    let secret = format!("secret,id=s,file={}", volume.key.display());
    let options = ["-o", "key-secret=s,iter-time=10"];
    let mut arguments: Vec<OsString> =
        ["create", "-f", "luks", "--object", &secret].iter().map(OsString::from).collect();
    arguments.extend(options.iter().map(OsString::from));
    arguments.extend([volume.image.clone().into(), DISK.to_string().into()]);
    run("qemu-img", arguments)?;
    volume.moved_to(kind)
}

fn luks1_by_cryptsetup(kind: Kind) -> Result<TestVolume> {
    let volume = TestVolume::blank(DISK + 2 * MIB)?;
    let action = ["luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000"];
    cryptsetup(&volume, &volume.key, &action)?;
    volume.moved_to(kind)
}

fn luks1_stays_luks1(mut volume: TestVolume, crash: bool) -> Result<()> {
    let new = new_key(&volume)?;
    let new_uri = format!("file:{}", new.display());
    let raw = volume.raw()?;
    let size = std::fs::metadata(&raw)?.len() - oracle::data_offset(&raw)?;
    let mut disk = Rotating::serve(&volume, &["--queues", "2", "--new-key", &new_uri])?;
    let (mut load, mut client) = filled(&disk, size)?;
    let mut extra = vec!["--new-key", &new_uri, "--yes", "--hotzone", "256K"];
    if crash {
        extra.extend(["--rate", "4M"]);
    }
    disk.order("start", &extra)?;
    if crash {
        load.run(&mut client, |_| Ok(disk.done_bytes()? > size / 3))?;
        disk.daemon.kill()?;
        drop(client);
        disk.daemon.start()?;
        let state = disk.state()?;
        ensure!(state != "none" && state != "completed", "{state}");
        client = load.connect(disk.daemon.socket())?;
        load.after_a_crash(&mut client)?;
    }
    rotate_under_load(&disk, &volume, &mut load, &mut client)?;
    drop(client);
    disk.daemon.stop()?;
    ensure!(!opens(&volume, &volume.key) && opens(&volume, &new));
    cryptsetup(&volume, &new, &["isLuks", "--type", "luks1"])?;
    volume.key = new;
    load.compare_all(&oracle::qemu_img_decrypts(&volume)?)
}

fn luks1_by_qemu_img_is_rotated_and_stays_luks1(kind: Kind) -> Result<()> {
    luks1_stays_luks1(luks1_by_qemu_img(kind)?, false)
}

fn luks1_by_cryptsetup_is_rotated_and_stays_luks1(kind: Kind) -> Result<()> {
    luks1_stays_luks1(luks1_by_cryptsetup(kind)?, false)
}

fn luks1_stays_luks1_after_a_crash_in_the_middle(kind: Kind) -> Result<()> {
    luks1_stays_luks1(luks1_by_qemu_img(kind)?, true)?;
    luks1_stays_luks1(luks1_by_cryptsetup(kind)?, true)
}

fn a_reencryption_that_cryptsetup_began_is_ended_beside_the_guest(kind: Kind) -> Result<()> {
    for (sector_bytes, resilience) in [(512, "checksum"), (4096, "journal")] {
        progress(format_args!("{sector_bytes}-byte sectors, {resilience}"));
        let volume = formatted(kind, sector_bytes)?;
        let old_key = oracle::volume_key(&volume)?;
        let mut disk = Rotating::serve(&volume, &["--queues", "2"])?;
        let (mut load, mut client) = filled(&disk, DISK)?;
        load.check_all(&mut client)?;
        drop(client);
        disk.daemon.stop()?;
        let begin = ["reencrypt", "--init-only", "--force-offline-reencrypt", "--resilience"];
        let rest = [resilience, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
        cryptsetup_changes(&volume, &[&begin[..], &rest].concat())?;
        disk.daemon.start()?;
        let mut client = load.connect(disk.daemon.socket())?;
        rotate_under_load(&disk, &volume, &mut load, &mut client)?;
        drop(client);
        disk.daemon.stop()?;
        ensure!(oracle::volume_key(&volume)? != old_key);
        load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)?;
    }
    Ok(())
}

fn what_cryptsetup_left_in_the_middle_is_ended_by_itself(kind: Kind) -> Result<()> {
    let volume = TestVolume::known_answer_on(kind, "mid-checksum-clean.img")?;
    let plain = unpack_kat("mid-checksum.plain", volume.scratch.path())?;
    let plain = std::fs::read(plain)?;
    let mut disk = Rotating::serve(&volume, &[])?;
    let mut client = Client::simple(disk.daemon.socket())?;
    ensure!(client.read(0, plain.len())? == plain, "wrong at first sight");
    disk.wait_for_end()?;
    ensure!(client.read(0, plain.len())? == plain, "wrong afterwards");
    drop(client);
    disk.daemon.stop()?;
    ensure!(oracle::cryptsetup_decrypts(&volume)? == plain, "wrong for cryptsetup");
    Ok(())
}

fn cryptsetup_ends_what_a_crash_of_the_daemon_left(kind: Kind) -> Result<()> {
    for sector_bytes in [512, 4096] {
        let volume = formatted(kind, sector_bytes)?;
        let old_key = oracle::volume_key(&volume)?;
        let mut disk = Rotating::serve(&volume, &["--queues", "2"])?;
        let (mut load, mut client) = filled(&disk, DISK)?;
        disk.order("start", &["--rate", "8M", "--hotzone", "256K"])?;
        load.run(&mut client, |_| Ok(disk.done_bytes()? > DISK / 3))?;
        let state = disk.state()?;
        disk.daemon.kill()?;
        drop(client);
        ensure!(state != "completed", "too fast to be killed in the middle");
        let under_way = || -> Result<bool> {
            Ok(cryptsetup(&volume, &volume.key, &["luksDump"])?.contains("online-reencrypt"))
        };
        ensure!(under_way()?, "nothing is under way");
        cryptsetup_changes(&volume, &["repair"])?;
        if under_way()? {
            let resume = ["reencrypt", "--resume-only", "--force-offline-reencrypt"];
            cryptsetup_changes(&volume, &resume)?;
        }
        ensure!(!under_way()?, "cryptsetup didn't end it");
        // The daemon takes it as it is, and what it cleans up is no more than its own traces.
        disk.daemon.start()?;
        let mut client = load.connect(disk.daemon.socket())?;
        load.after_a_crash(&mut client)?;
        load.check_all(&mut client)?;
        drop(client);
        disk.daemon.stop()?;
        ensure!(oracle::volume_key(&volume)? != old_key);
        load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)?;
    }
    Ok(())
}

fn the_header_backup_of_a_rotation_cannot_be_put_back(kind: Kind) -> Result<()> {
    let volume = formatted(kind, 512)?;
    let mut disk = Rotating::serve(&volume, &["--queues", "2"])?;
    let (mut load, mut client) = filled(&disk, DISK)?;
    disk.order("start", &["--rate", "2M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(MIB)?;
    let backup = disk.status()?["header_backup"].as_str().context("no backup")?.to_owned();
    load.check_all(&mut client)?;
    drop(client);
    disk.daemon.stop()?;
    let before = volume.bytes()?;
    let mut command = sealblk_tests::sealblk_command()?;
    command.args(["header", "restore", "--yes", "--volume", &volume.uri(), "--file", &backup]);
    let output = command.output()?;
    ensure!(!output.status.success(), "an old header was put over data with the new key");
    // cryptsetup takes none of it, either.
    let file = std::fs::File::open(&backup)?;
    let mut magic = [0; 6];
    file.read_exact_at(&mut magic, 0)?;
    ensure!(magic != *b"LUKS\xba\xbe", "cryptsetup would put it back");
    ensure!(volume.bytes()? == before);
    Ok(())
}

mod on_files {
    super::scenarios! {
        super::Kind::File;
        with_a_new_secret_the_old_one_and_the_old_key_are_dead
        luks1_by_qemu_img_is_rotated_and_stays_luks1
        luks1_by_cryptsetup_is_rotated_and_stays_luks1
        luks1_stays_luks1_after_a_crash_in_the_middle
        a_reencryption_that_cryptsetup_began_is_ended_beside_the_guest
        what_cryptsetup_left_in_the_middle_is_ended_by_itself
        cryptsetup_ends_what_a_crash_of_the_daemon_left
        the_header_backup_of_a_rotation_cannot_be_put_back
    }
}

mod on_ceph {
    super::scenarios! {
        super::Kind::Rbd;
        with_a_new_secret_the_old_one_and_the_old_key_are_dead
        luks1_by_qemu_img_is_rotated_and_stays_luks1
    }
}

mod on_iscsi {
    super::scenarios! {
        super::Kind::Iscsi;
        with_a_new_secret_the_old_one_and_the_old_key_are_dead
        luks1_by_qemu_img_is_rotated_and_stays_luks1
    }
}

mod rest_on_ceph {
    super::scenarios! {
        super::Kind::Rbd;
        luks1_by_cryptsetup_is_rotated_and_stays_luks1
        luks1_stays_luks1_after_a_crash_in_the_middle
        a_reencryption_that_cryptsetup_began_is_ended_beside_the_guest
        what_cryptsetup_left_in_the_middle_is_ended_by_itself
        cryptsetup_ends_what_a_crash_of_the_daemon_left
        the_header_backup_of_a_rotation_cannot_be_put_back
    }
}

mod rest_on_iscsi {
    super::scenarios! {
        super::Kind::Iscsi;
        luks1_by_cryptsetup_is_rotated_and_stays_luks1
        luks1_stays_luks1_after_a_crash_in_the_middle
        a_reencryption_that_cryptsetup_began_is_ended_beside_the_guest
        what_cryptsetup_left_in_the_middle_is_ended_by_itself
        cryptsetup_ends_what_a_crash_of_the_daemon_left
        the_header_backup_of_a_rotation_cannot_be_put_back
    }
}
