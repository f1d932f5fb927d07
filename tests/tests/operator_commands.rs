//! `sealblk` on volumes, with cryptsetup as the judge of what it leaves behind.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use sealblk_tests::{
    Client, ClientOptions, Daemon, Pattern, TestVolume, run, sealblk, sealblk_command,
};

const DISK: u64 = 4 << 20;

/// Whether this passphrase opens the volume, according to cryptsetup.
fn opens(volume: &TestVolume, key: &Path) -> bool {
    let arguments: [OsString; 6] = [
        "open".into(),
        "--test-passphrase".into(),
        "--batch-mode".into(),
        "--key-file".into(),
        key.into(),
        volume.image.clone().into(),
    ];
    run("cryptsetup", arguments).is_ok()
}

fn exit_code<const N: usize>(arguments: [&str; N], volume: &TestVolume) -> Result<Option<i32>> {
    let mut command = sealblk_command()?;
    Ok(command.args(arguments).args(["--volume", &volume.uri()]).output()?.status.code())
}

#[test]
fn format_makes_what_cryptsetup_opens() -> Result<()> {
    for arguments in [
        &["--sector-size", "512"][..],
        &["--sector-size", "4096", "--cipher", "aes-128-xts"],
        &["--kdf", "argon2id"],
    ] {
        let volume = TestVolume::formatted_with(DISK, arguments)?;
        ensure!(opens(&volume, &volume.key), "{arguments:?}");
        let wrong = volume.scratch.file("wrong");
        std::fs::write(&wrong, "wrong")?;
        ensure!(!opens(&volume, &wrong));
    }
    Ok(())
}

#[test]
fn format_makes_a_new_file_of_the_size_asked_for() -> Result<()> {
    let volume = TestVolume::blank(0)?;
    std::fs::remove_file(&volume.image)?;
    let arguments =
        ["format", "--volume", &volume.uri(), "--key", &volume.key_uri(), "--size", "8M"];
    sealblk(arguments.iter().chain(&["--kdf", "pbkdf2", "--yes"]))?;
    let daemon = Daemon::serve(&volume, &[])?;
    assert_eq!(Client::simple(daemon.socket())?.capacity_bytes()?, 8 << 20);
    Ok(())
}

#[test]
fn format_destroys_nothing_by_accident() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let before = std::fs::read(&volume.image)?;
    let key = volume.key_uri();
    assert_eq!(exit_code(["format", "--key", &key, "--yes"], &volume)?, Some(3));
    let other = TestVolume::blank(32 << 20)?;
    // Nobody is there to answer the question.
    assert_ne!(exit_code(["format", "--key", &key], &other)?, Some(0));
    ensure!(std::fs::read(&other.image)?.iter().all(|&byte| byte == 0));
    run("mkfs.ext4", ["-q".as_ref(), other.image.as_os_str()])?;
    assert_eq!(exit_code(["format", "--key", &key, "--yes"], &other)?, Some(3));
    run("e2fsck", ["-fn".as_ref(), other.image.as_os_str()])?;
    ensure!(std::fs::read(&volume.image)? == before);
    Ok(())
}

#[test]
fn passphrases_come_and_go_and_the_data_stays() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let data = Pattern(21).bytes(0, 1 << 20);
    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &data)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;

    let new_key = volume.scratch.file("new");
    std::fs::write(&new_key, "another passphrase, as long as one likes")?;
    let (old, new) = (volume.key_uri(), format!("file:{}", new_key.display()));
    let uri = volume.uri();
    let add = ["key", "add", "--volume", &uri, "--key", &old, "--new-key", &new, "--kdf", "pbkdf2"];
    sealblk(add)?;
    ensure!(opens(&volume, &new_key) && opens(&volume, &volume.key));
    sealblk(["key", "remove", "--volume", &uri, "--key", &old, "--yes"])?;
    ensure!(opens(&volume, &new_key) && !opens(&volume, &volume.key));
    // The last one can't be removed by mistake: nobody could open the volume any more.
    let output = sealblk_command()?
        .args(["key", "remove", "--volume", &uri, "--slot", "1", "--yes"])
        .output()?;
    ensure!(!output.status.success(), "the last passphrase was removed");
    ensure!(opens(&volume, &new_key));

    std::fs::copy(&new_key, &volume.key)?;
    let daemon = Daemon::serve(&volume, &[])?;
    ensure!(Client::simple(daemon.socket())?.read(0, 1 << 20)? == data);
    Ok(())
}

#[test]
fn a_damaged_header_copy_is_served_around_and_repaired() -> Result<()> {
    for copy_offset in [0, 16384] {
        let volume = TestVolume::formatted(DISK, 512)?;
        let file = std::fs::OpenOptions::new().write(true).open(&volume.image)?;
        file.write_all_at(&[0x55; 4096], copy_offset)?;
        let mut daemon = Daemon::serve(&volume, &["--read-only"])?;
        let reader = ClientOptions { read_only: true, ..ClientOptions::default() };
        Client::connect(daemon.socket(), reader)?.read(0, 4096)?;
        daemon.stop()?;
        sealblk(["repair", "--volume", &volume.uri(), "--yes"])?;
        ensure!(opens(&volume, &volume.key), "copy at {copy_offset}");
        // With the other copy gone, the repaired one must carry the volume alone.
        file.write_all_at(&[0x55; 4096], 16384 - copy_offset)?;
        let daemon = Daemon::serve(&volume, &[])?;
        Client::simple(daemon.socket())?.read(0, 4096)?;
    }
    Ok(())
}

#[test]
fn a_damaged_header_copy_is_mended_when_the_volume_is_served() -> Result<()> {
    for copy_offset in [0, 16384] {
        let volume = TestVolume::formatted(DISK, 512)?;
        let file = std::fs::OpenOptions::new().write(true).open(&volume.image)?;
        for damaged in [copy_offset, 16384 - copy_offset] {
            file.write_all_at(&[0x55; 4096], damaged)?;
            let mut daemon = Daemon::serve(&volume, &[])?;
            // It is ready, so what it had to mend is mended and logged.
            daemon.stop()?;
            ensure!(daemon.log().text().contains("header copy rewritten"), "at {damaged}");
        }
        ensure!(opens(&volume, &volume.key), "first damage at {copy_offset}");
    }
    Ok(())
}

#[test]
fn a_volume_with_no_good_header_copy_is_refused() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let file = std::fs::OpenOptions::new().write(true).open(&volume.image)?;
    file.write_all_at(&[0x55; 2048], 4096)?;
    file.write_all_at(&[0x55; 2048], 16384 + 4096)?;
    let mut arguments = volume.volume_args();
    arguments.extend(["--socket".into(), volume.scratch.file("vu.sock").into()]);
    let exit = Daemon::run_to_end(&arguments)?;
    ensure!(!exit.status.success(), "{}", exit.log);
    let output =
        sealblk_command()?.args(["repair", "--volume", &volume.uri(), "--yes"]).output()?;
    ensure!(!output.status.success(), "repaired from nothing");
    Ok(())
}
