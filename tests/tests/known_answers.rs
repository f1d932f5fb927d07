//! Volumes that cryptsetup and qemu-img made read, through the daemon, as what they were made of.

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, ClientOptions, Daemon, Scratch, TestVolume, progress, sealblk_command, unpack_kat,
};
use sha2::Digest as _;

fn plain(name: &str) -> Result<Vec<u8>> {
    let scratch = Scratch::new()?;
    Ok(std::fs::read(unpack_kat(name, scratch.path())?)?)
}

fn reads_as_plain(name: &str, arguments: &[&str]) -> Result<()> {
    reads_as(name, "plain.raw", arguments)
}

fn reads_as(name: &str, plain_name: &str, arguments: &[&str]) -> Result<()> {
    progress(format_args!("{name} {}", arguments.join(" ")));
    let volume = TestVolume::known_answer(name)?;
    let before = std::fs::read(&volume.image)?;
    let arguments = [arguments, &["--read-only"]].concat();
    let mut daemon = Daemon::serve(&volume, &arguments)?;
    let options = ClientOptions { read_only: true, ..ClientOptions::default() };
    let mut client = Client::connect(daemon.socket(), options)?;
    let expected = plain(plain_name)?;
    assert_eq!(client.capacity_bytes()?, expected.len() as u64, "{name}");
    let found = client.read(0, expected.len())?;
    let difference = expected.iter().zip(&found).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{name}: first wrong byte");
    drop(client);
    daemon.stop()?;
    ensure!(std::fs::read(&volume.image)? == before, "{name}: reading it changed it");
    Ok(())
}

#[test]
fn luks2_with_512_byte_sectors() -> Result<()> {
    reads_as_plain("l2-512-k512.img", &[])
}

#[test]
fn luks2_with_4096_byte_sectors() -> Result<()> {
    reads_as_plain("l2-4096-k512.img", &[])
}

#[test]
fn luks2_with_a_memory_hard_keyslot() -> Result<()> {
    reads_as_plain("l2-512-argon2id.img", &[])
}

#[test]
fn luks1_by_cryptsetup() -> Result<()> {
    reads_as_plain("l1-cs-k512.img", &[])
}

#[test]
fn luks1_by_qemu_img_as_cinder_makes_it() -> Result<()> {
    reads_as_plain("l1-qemu-aes256.img", &[])
}

#[test]
fn the_portable_cipher_reads_the_same() -> Result<()> {
    reads_as_plain("l2-512-k512.img", &["--cipher", "portable"])?;
    reads_as_plain("l2-4096-k512.img", &["--cipher", "portable"])
}

#[test]
fn a_volume_in_the_middle_of_a_reencryption_by_cryptsetup() -> Result<()> {
    reads_as("mid-checksum-clean.img", "mid-checksum.plain", &[])
}

#[test]
fn a_reencryption_that_cannot_be_trusted_is_refused_with_the_reason() -> Result<()> {
    let volume = TestVolume::known_answer("mid-checksum-clean.img")?;
    // Both header copies: another kind of re-encryption, with checksums that fit.
    let mut image = std::fs::read(&volume.image)?;
    for at in [0, 16384] {
        let copy = &mut image[at..at + 16384];
        let flag = b"online-reencrypt-v2";
        let place = copy.windows(flag.len()).position(|bytes| bytes == flag).context("no flag")?;
        copy[place + flag.len() - 1] = b'3';
        copy[448..512].fill(0);
        let checksum = sha2::Sha256::digest(&*copy);
        copy[448..480].copy_from_slice(&checksum);
    }
    std::fs::write(&volume.image, &image)?;
    let mut arguments = volume.volume_args();
    arguments.extend(["--socket".into(), volume.scratch.file("vu.sock").into()]);
    let exit = Daemon::run_to_end(&arguments)?;
    assert_eq!(exit.status.code(), Some(1), "{}", exit.log);
    assert!(exit.log.contains("online-reencrypt-v3"), "{}", exit.log);
    assert!(std::fs::read(&volume.image)? == image, "refusing it changed it");
    Ok(())
}

#[test]
fn inspect_tells_what_each_of_them_is() -> Result<()> {
    for (name, version, sector_size) in [
        ("l2-512-k512.img", 2, 512),
        ("l2-4096-k512.img", 2, 4096),
        ("l1-cs-k512.img", 1, 512),
        ("l1-qemu-aes256.img", 1, 512),
    ] {
        let volume = TestVolume::known_answer(name)?;
        let mut command = sealblk_command()?;
        let output = command.args(["inspect", "--json", "--volume", &volume.uri()]).output()?;
        ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let text = report.to_string();
        let has = |key: &str, value: u64| text.contains(&format!("\"{key}\":{value}"));
        ensure!(has("version", version), "{name}: no version {version} in {text}");
        ensure!(text.contains("aes-xts-plain64"), "{name}: no cipher in {text}");
        let sector = ["sector_size", "sector_bytes"].iter().any(|key| has(key, sector_size));
        sector.then_some(()).with_context(|| format!("{name}: no sector size in {text}"))?;
    }
    Ok(())
}
