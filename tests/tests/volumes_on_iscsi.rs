//! Volumes behind a real iSCSI target: what we write there QEMU's initiator and cryptsetup read, what
//! they wrote we serve, the operator's commands work, what can't be is refused.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, ClientOptions, Daemon, GuestBuilder, GuestImage, Pattern, Proxy, Storage, Target,
    TargetOptions, TestVolume, oracle, progress, run, sealblk, sealblk_command, unpack_kat, until,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

const KNOWN_ANSWERS: [&str; 4] =
    ["l1-cs-k512.img", "l1-qemu-aes256.img", "l2-512-k512.img", "l2-4096-k512.img"];

fn with_blocks(block_bytes: u32) -> TargetOptions {
    TargetOptions { block_bytes, ..TargetOptions::with_chap() }
}

fn same(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{} bytes, not {}", found.len(), expected.len());
    let difference = found.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(difference.is_none(), "the first wrong byte is at {difference:?}");
    Ok(())
}

fn write_and_stop(volume: &TestVolume, plain: &[u8]) -> Result<()> {
    let mut daemon = Daemon::serve(volume, &["--queues", "2"])?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, plain)?;
    client.flush()?;
    drop(client);
    daemon.stop().map(drop)
}

#[test]
fn what_we_format_cryptsetup_reads_with_all_sizes_of_blocks_and_sectors() -> Result<()> {
    // Sectors smaller than the unit's blocks are refused by `format`.
    for (block_bytes, sector_bytes) in [(512, 512), (512, 4096), (4096, 4096)] {
        progress(format_args!("blocks of {block_bytes} bytes, sectors of {sector_bytes}"));
        let sector = sector_bytes.to_string();
        let arguments = ["--sector-size", &sector];
        let volume = TestVolume::formatted_behind(with_blocks(block_bytes), DISK, &arguments)?;
        let plain = Pattern(u64::from(block_bytes) + sector_bytes).bytes(0, usize::try_from(DISK)?);
        write_and_stop(&volume, &plain)?;
        same(&oracle::cryptsetup_decrypts(&volume)?, &plain)?;
    }
    Ok(())
}

/// The plaintext of a LUKS1 volume according to QEMU, which logs in by itself.
fn qemu_decrypts(volume: &mut TestVolume) -> Result<Vec<u8>> {
    let (plain, key) = (volume.scratch.file("plain"), volume.key.display().to_string());
    let target = volume.target()?;
    let (user, _) = TargetOptions::with_chap().chap.context("no CHAP")?;
    let source = format!(
        "driver=luks,key-secret=k,file.driver=iscsi,file.transport=tcp,file.portal={},\
         file.target={},file.lun=1,file.user={user},file.password-secret=c",
        target.address(),
        target.name()
    );
    let secrets = [
        format!("secret,id=k,file={key}"),
        format!("secret,id=c,file={}", target.secret_file().display()),
    ];
    let mut args: Vec<OsString> = vec!["convert".into()];
    args.extend(secrets.into_iter().flat_map(|secret| ["--object".into(), secret.into()]));
    args.extend(["--image-opts".into(), source.into(), "-O".into(), "raw".into()]);
    args.push(plain.clone().into());
    run("qemu-img", args)?;
    Ok(std::fs::read(plain)?)
}

#[test]
fn what_we_write_to_qemus_luks1_volume_qemu_reads_over_iscsi() -> Result<()> {
    for block_bytes in [512, 4096] {
        let made = TestVolume::blank(0)?;
        let secret = format!("secret,id=k,file={}", made.key.display());
        let options =
            "key-secret=k,iter-time=10,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64";
        let args = ["create", "-f", "luks", "--object", &secret, "-o", options];
        let size = DISK.to_string();
        let file = made.image.clone().into();
        run("qemu-img", args.map(OsString::from).into_iter().chain([file, size.into()]))?;
        let target = Target::with_copy_of(&made.image, with_blocks(block_bytes))?;
        let mut volume = TestVolume::on(Storage::Iscsi(target))?;
        let plain = Pattern(11).bytes(0, usize::try_from(DISK)?);
        write_and_stop(&volume, &plain)?;
        same(&qemu_decrypts(&mut volume)?, &plain)
            .with_context(|| format!("blocks of {block_bytes} bytes"))?;
    }
    Ok(())
}

#[test]
fn imported_images_of_others_serve_byte_for_byte() -> Result<()> {
    for name in KNOWN_ANSWERS {
        progress(name);
        let volume = TestVolume::known_answer_on(sealblk_tests::Kind::Iscsi, name)?;
        let plain = std::fs::read(unpack_kat("plain.raw", volume.scratch.path())?)?;
        let mut daemon = Daemon::serve(&volume, &[])?;
        let mut client = Client::simple(daemon.socket())?;
        same(&client.read(0, plain.len())?, &plain).context(name)?;
        drop(client);
        daemon.stop()?;
    }
    Ok(())
}

fn opens(raw: &Path, key: &Path) -> bool {
    let words = ["open", "--test-passphrase", "--batch-mode", "--key-file"].map(OsString::from);
    run("cryptsetup", words.into_iter().chain([key.into(), raw.into()])).is_ok()
}

#[test]
fn the_operators_commands_work_on_a_unit_with_a_secret() -> Result<()> {
    let volume = TestVolume::formatted_behind(TargetOptions::with_chap(), DISK, &[])?;
    let (uri, old) = (volume.uri(), volume.key_uri());
    ensure!(uri.contains("?secret=file:"), "{uri}");
    let file = |name: &str| volume.scratch.file(name).display().to_string();
    std::fs::write(file("new"), "another passphrase")?;
    let new = format!("file:{}", file("new"));
    let on_it = |words: &[&str]| {
        let mut all = words.to_vec();
        all.extend(["--volume", &uri]);
        sealblk(all).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    on_it(&["key", "add", "--key", &old, "--new-key", &new, "--kdf", "pbkdf2"])?;
    on_it(&["key", "remove", "--key", &old, "--yes"])?;
    ensure!(opens(&volume.raw()?, Path::new(&file("new"))), "the new passphrase");
    ensure!(!opens(&volume.raw()?, &volume.key), "the old passphrase");
    on_it(&["header", "backup", "--file", &file("header")])?;
    // Half of the header gets lost, and is made anew from the other half.
    std::fs::File::options().write(true).open(&volume.image)?.write_all_at(&[0; 4096], 0)?;
    let told = on_it(&["inspect"])?;
    ensure!(
        told.contains("at offset 16384: good") && !told.contains("at offset 0: good"),
        "{told}"
    );
    on_it(&["repair", "--yes"])?;
    let told = on_it(&["inspect"])?;
    ensure!(told.contains("at offset 0: good"), "{told}");
    let before = oracle_key(&volume, "new")?;
    on_it(&["rotate", "--key", &new, "--yes", "--header-backup", &file("rotation-header")])?;
    ensure!(before != oracle_key(&volume, "new")?, "the volume key is what it was");
    Ok(())
}

/// The volume key according to cryptsetup, opened with another passphrase.
fn oracle_key(volume: &TestVolume, key: &str) -> Result<Vec<u8>> {
    std::fs::copy(volume.scratch.file(key), &volume.key)?;
    oracle::volume_key(volume)
}

/// Arguments of a daemon that must not come up.
fn arguments(volume: &TestVolume, uri: &str) -> [OsString; 8] {
    let socket = volume.scratch.file("never.sock");
    let control = volume.scratch.file("never-control.sock");
    [
        "--volume".into(),
        uri.into(),
        "--key".into(),
        volume.key_uri().into(),
        "--socket".into(),
        socket.into(),
        "--control".into(),
        control.into(),
    ]
}

/// Neither daemon nor command open this, both say why in these words, and leave nothing behind.
fn refused(volume: &TestVolume, uri: &str, words: &[&str]) -> Result<()> {
    let names = || -> Result<Vec<_>> {
        let names = std::fs::read_dir(volume.scratch.path())?;
        let mut names = names.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    let before = names()?;
    let exit = Daemon::run_to_end(&arguments(volume, uri))?;
    ensure!(exit.status.code() == Some(1), "{uri}: {}\n{}", exit.status, exit.log);
    let output = sealblk_command()?.args(["inspect", "--volume", uri]).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1), "{uri}: {}\n{error}", output.status);
    for text in [exit.log, error] {
        for word in words {
            ensure!(text.contains(word), "{uri}: no {word:?} in:\n{text}");
        }
    }
    ensure!(names()? == before, "{uri}: {before:?} became {:?}", names()?);
    Ok(())
}

#[test]
fn what_cant_be_opened_is_refused_and_told_why() -> Result<()> {
    let mut volume = TestVolume::formatted_behind(TargetOptions::with_chap(), DISK, &[])?;
    let proxy = Proxy::to(volume.target()?.address())?;
    let at_proxy = |uri: &str, target: &Target| {
        uri.replace(&target.address().to_string(), &proxy.address().to_string())
    };
    let target = volume.target()?;
    let (uri, without) = (target.uri(), target.url());
    let (name, right) = (target.name(), at_proxy(&uri, target));
    let without = at_proxy(&without, target);
    let wrong_file = volume.scratch.file("wrong");
    std::fs::write(&wrong_file, "not-the-secret")?;
    let (place, _) = right.split_once('?').context("no options")?;
    let wrong = format!("{place}?secret=file:{}", wrong_file.display());
    refused(&volume, &wrong, &["refused the login", "as CHAP user `sealblk-user`", "secret"])?;
    refused(&volume, &without, &["refused the login", "without CHAP", "?secret=file:PATH"])?;
    let missing = format!("{place}?secret=file:{}", volume.scratch.file("no-file").display());
    refused(&volume, &missing, &["the file with the CHAP secret", "No such file"])?;
    let unknown = right.replace(&name, "iqn.2026-11.test.sealblk:none");
    refused(&volume, &unknown, &["there is no target iqn.2026-11.test.sealblk:none"])?;
    refused(&volume, &right.replace("/1?", "/7?"), &["has no logical unit 7"])?;
    refused(&volume, &right.replace("/1?", "/0?"), &["it is no disk"])?;
    until("the last connection to end", LIMIT, || Ok((proxy.counts().open == 0).then_some(())))?;
    drop(proxy);
    refused(&volume, &right, &["can't be used", "is the target running"])
}

#[test]
fn a_unit_that_cant_be_written_serves_readers_only() -> Result<()> {
    let writable = TestVolume::formatted(DISK, 512)?;
    let options = TargetOptions { read_only: true, ..TargetOptions::default() };
    let volume = TestVolume::on(Storage::Iscsi(Target::with_copy_of(&writable.image, options)?))?;
    let before = std::fs::read(&volume.image)?;
    let key = volume.key_uri();
    let output = sealblk_command()?
        .args(["key", "remove", "--yes", "--volume", &volume.uri(), "--key", &key])
        .output()?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let mut daemon = Daemon::serve(&volume, &["--read-only"])?;
    let reader = ClientOptions { read_only: true, ..ClientOptions::default() };
    Client::connect(daemon.socket(), reader)?.read(0, 4096)?;
    daemon.stop()?;
    ensure!(std::fs::read(&volume.image)? == before, "it was written to");
    Ok(())
}

#[test]
fn a_unit_is_served_once_on_a_host_and_again_at_once_after_a_crash() -> Result<()> {
    let volume = TestVolume::formatted_behind(TargetOptions::default(), DISK, &[])?;
    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    let exit = Daemon::run_to_end(&arguments(&volume, &volume.uri()))?;
    ensure!(exit.status.code() == Some(1), "{}", exit.log);
    ensure!(exit.log.contains("another process of this host has it open"), "{}", exit.log);
    let mut format = vec!["format".into(), "--yes".into()];
    format.extend(volume.volume_args());
    ensure!(sealblk(format).is_err(), "it was formatted while it was served");
    client.write(0, &[5; 4096])?;
    drop(client);
    daemon.kill_and_restart()?;
    same(&Client::simple(daemon.socket())?.read(0, 4096)?, &[5; 4096])
}

#[test]
fn a_guest_boots_from_a_unit() -> Result<()> {
    let mut volume = TestVolume::formatted_behind(TargetOptions::with_chap(), 48 * MIB, &[])?;
    let plain = volume.scratch.file("plain.img");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/boot-disk.sh"), [&plain])?;
    write_and_stop(&volume, &std::fs::read(plain)?)?;
    let mut daemon = Daemon::serve(&volume, &["--on-error", "hold"])?;
    // Firmware, boot loader, kernel and initramfs all come from the unit; then its target goes.
    let script = "echo 3 >/proc/sys/vm/drop_caches; echo TICK; sha256sum /dev/vda && echo READ";
    let guest = GuestBuilder::new(GuestImage::FromDisk, script).disk(daemon.socket(), 1);
    let mut guest = guest.start()?;
    guest.wait_for("TICK", LIMIT)?;
    volume.target()?.kill()?;
    volume.target()?.start()?;
    guest.wait_for("READ", LIMIT)?;
    guest.succeed(LIMIT)?;
    daemon.stop()?;
    Ok(())
}
