//! Volumes that are no small files: a block device, and one larger than two tebibytes, where a
//! 32-bit sector number would wrap and two places of the disk would share their tweaks.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;

use aes::Aes256;
use aes::cipher::KeyInit;
use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, Daemon, Pattern, TestVolume, oracle, run, sealblk};
use xts_mode::{Xts128, get_tweak_default};

const MIB: u64 = 1 << 20;
const TIB: u64 = 1 << 40;

/// A loop device over an image, detached when dropped.
struct LoopDevice(String);

impl LoopDevice {
    fn attach(volume: &TestVolume) -> Result<Self> {
        let mut args: Vec<OsString> =
            ["--find", "--show", "--direct-io=on"].map(OsString::from).to_vec();
        args.push(volume.image.clone().into());
        let output = run("losetup", args)?;
        Ok(Self(String::from_utf8(output.stdout)?.trim().to_owned()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A device that is left behind goes with the machine.
        let _ = run("losetup", ["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_is_formatted_served_and_held() -> Result<()> {
    let volume = TestVolume::blank(80 * MIB)?;
    let device = LoopDevice::attach(&volume)?;
    let args: Vec<OsString> =
        ["--volume", &device.0, "--key", &volume.key_uri()].map(OsString::from).to_vec();
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    sealblk([words(&["format", "--yes", "--kdf", "pbkdf2"]), args.clone()].concat())?;

    let socket = volume.scratch.file("vu.sock");
    let mut daemon = Daemon::with_args(&socket, [args.clone(), words(&["--discard"])].concat())?;
    let again = sealblk([words(&["format", "--yes"]), args].concat());
    ensure!(again.is_err(), "the device was formatted while it was served");

    let mut client = Client::simple(daemon.socket())?;
    assert_eq!(client.capacity_bytes()?, 64 * MIB);
    for at in (0..64 * MIB).step_by(4 << 20) {
        client.write(at, &Pattern(3).bytes(at, 4 << 20))?;
    }
    client.discard(8 * MIB, 8 * MIB)?;
    client.write_zeroes(24 * MIB, MIB, false)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;
    drop(device);

    let mut plain = oracle::cryptsetup_decrypts(&volume)?;
    let zeroes = plain.drain(24 << 20..25 << 20).collect::<Vec<_>>();
    ensure!(zeroes.iter().all(|byte| *byte == 0), "zeroed range");
    assert_eq!(Pattern(3).first_difference(0, &plain[..8 << 20]), None);
    assert_eq!(Pattern(3).first_difference(16 * MIB, &plain[16 << 20..24 << 20]), None);
    assert_eq!(Pattern(3).first_difference(25 * MIB, &plain[24 << 20..]), None);
    Ok(())
}

#[test]
fn sectors_past_two_tebibytes_have_tweaks_of_their_own() -> Result<()> {
    let size = 3 * TIB;
    let volume = TestVolume::formatted(size, 512)?;
    let key = oracle::volume_key(&volume)?;
    let (data, tweak) = key.split_at_checked(32).context("a volume key of 64 bytes")?;
    let xts = Xts128::new(Aes256::new_from_slice(data)?, Aes256::new_from_slice(tweak)?);

    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    assert_eq!(client.capacity_bytes()?, size);
    // The same bytes at places whose sector numbers agree in their low 32 bits, and at the end.
    let places = [5 * MIB, 2 * TIB + 5 * MIB, size - 64 * 1024];
    let plain = Pattern(9).bytes(0, 64 << 10);
    for at in places {
        client.write(at, &plain)?;
    }
    client.flush()?;
    for at in places {
        ensure!(client.read(at, plain.len())? == plain, "read back at {at}");
    }
    drop(client);
    daemon.stop()?;

    let image = File::open(&volume.image)?;
    let offset = oracle::data_offset(&volume.image)?;
    for at in places {
        let mut found = vec![0; plain.len()];
        image.read_exact_at(&mut found, offset + at)?;
        for (index, sector) in found.chunks_exact_mut(512).enumerate() {
            let number = u128::from(at / 512) + index as u128;
            xts.decrypt_sector(sector, get_tweak_default(number));
        }
        assert_eq!(Pattern(9).first_difference(0, &found), None, "on the volume at {at}");
    }
    Ok(())
}
