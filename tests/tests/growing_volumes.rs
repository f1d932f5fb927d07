//! Volumes that grow while they are served: the guest sees its disk grow without a reboot, writes to the
//! new end and reads it back; also after the daemon was killed; and others read the same bytes.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, Daemon, GuestBuilder, GuestImage, Pattern, Rotating, TestVolume, oracle, progress, run,
    sealblk, sealblk_command, until,
};
use sha2::{Digest, Sha256};

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

/// 16 MiB of header in front of the data.
const HEADER: u64 = 16 * MIB;

fn set_size(image: &Path, bytes: u64) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(image)?.set_len(bytes)?)
}

/// `sealblk resize`
fn resize(disk: &Rotating) -> Result<Output> {
    let mut command = sealblk_command()?;
    command.args(["resize", "--json", "--volume", "vu", "--control"]).arg(disk.control());
    Ok(command.output()?)
}

/// The same when it must succeed; gives the answer.
fn resized(disk: &Rotating) -> Result<serde_json::Value> {
    let output = resize(disk)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}\n{}", disk.daemon.log().text());
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn capacity(disk: &Rotating) -> Result<u64> {
    let status = disk.ask("/v1/status")?;
    status["volumes"][0]["capacity_bytes"].as_u64().context("no capacity")
}

/// Writes around the old end and at the new one, without a cache in between, as the disk grows: by an
/// order while the daemon runs, and behind the back of one that is dead.
const GROWS: &str = r#"
await_size() {
  until [ "$(cat /sys/block/vda/size)" = "$1" ]; do sleep 1; done
  echo "SIZE $(cat /sys/block/vda/size)"
}
# Blocks of 64 KiB: name, place, count.
put() {
  dd if=/dev/urandom of=/tmp/$1 bs=64k count=$3 2>/dev/null
  dd if=/tmp/$1 of=/dev/vda bs=64k seek=$2 oflag=direct conv=notrunc,fsync 2>/dev/null || echo WRITE-ERROR
}
check() {
  dd if=/dev/vda bs=64k skip=$2 count=$3 iflag=direct 2>/dev/null | cmp - /tmp/$1 || echo WRONG-DATA
}
echo "SIZE $(cat /sys/block/vda/size)"
put start 0 16
dd if=/tmp/start of=/dev/vda bs=64k seek=512 count=1 oflag=direct conv=notrunc 2>/dev/null && echo BEYOND
echo READY
await_size 98304
put middle 504 16
put end 752 16
check start 0 16; check middle 504 16; check end 752 16
echo "SUMS1 $(sha256sum </tmp/middle) $(sha256sum </tmp/end)"
await_size 114688
check start 0 16; check middle 504 16; check end 752 16
put last 880 16
check last 880 16
echo "SUMS2 $(sha256sum </tmp/last)"
dmesg | grep -i 'I/O error' && exit 1
echo DONE
"#;

fn a_guest_sees_its_disk_grow(sector_bytes: u32, queues: u16) -> Result<()> {
    let volume = TestVolume::formatted(32 * MIB, sector_bytes)?;
    let queue_number = queues.to_string();
    let mut disk = Rotating::serve(&volume, &["--queues", &queue_number])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, GROWS).processors(queues.min(4));
    let mut guest = guest.disk(disk.daemon.socket(), queues).start()?;
    let line = guest.wait_for("SIZE", LIMIT)?;
    ensure!(line.contains("SIZE 65536"), "{line}");

    guest.wait_for("READY", LIMIT)?;
    set_size(&volume.image, HEADER + 48 * MIB)?;
    ensure!(capacity(&disk)? == 32 * MIB, "nobody has asked yet");
    let told = resized(&disk)?;
    ensure!(told["capacity_bytes"] == 48 * MIB && told["waits_for_rotation"] == false, "{told}");
    ensure!(capacity(&disk)? == 48 * MIB);
    guest.wait_for("SIZE 98304", LIMIT)?;
    let first = guest.wait_for("SUMS1", LIMIT)?;
    progress("the guest has used its larger disk");

    disk.daemon.kill()?;
    set_size(&volume.image, HEADER + 56 * MIB)?;
    disk.daemon.start()?;
    ensure!(capacity(&disk)? == 56 * MIB);
    guest.wait_for("SIZE 114688", LIMIT)?;
    let second = guest.wait_for("SUMS2", LIMIT)?;
    guest.wait_for("DONE", LIMIT)?;
    for bad in ["WRITE-ERROR", "WRONG-DATA", "BEYOND"] {
        ensure!(!guest.console().contains(bad), "{bad}:\n{}", guest.console());
    }
    guest.succeed(LIMIT)?;
    disk.daemon.stop()?;

    let plain = oracle::cryptsetup_decrypts(&volume)?;
    ensure!(plain.len() as u64 == 56 * MIB);
    for (at, sums) in [(504, &first), (752, &first), (880, &second)] {
        let start = at * (64 << 10);
        let sum = Sha256::digest(&plain[start..start + MIB as usize]);
        let sum: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        ensure!(sums.contains(&sum), "what cryptsetup reads at {start}: {sum}; {sums}");
    }
    Ok(())
}

#[test]
fn a_guest_sees_its_disk_grow_with_one_queue() -> Result<()> {
    a_guest_sees_its_disk_grow(512, 1)
}

#[test]
fn a_guest_sees_its_disk_grow_with_four_queues_on_4096_byte_sectors() -> Result<()> {
    a_guest_sees_its_disk_grow(4096, 4)
}

#[test]
fn a_volume_that_shrinks_is_refused_until_it_is_large_again() -> Result<()> {
    let volume = TestVolume::formatted(8 * MIB, 512)?;
    let mut disk = Rotating::serve(&volume, &[])?;
    set_size(&volume.image, HEADER + 4 * MIB)?;
    let output = resize(&disk)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("has shrunk"), "{said}");
    let log = disk.daemon.log().text();
    let line = log.lines().find(|line| line.contains("has shrunk")).context("not in the log")?;
    ensure!(line.contains("ERROR") && line.contains("make the volume large again"), "{line}");
    ensure!(capacity(&disk)? == 8 * MIB);
    let mut client = Client::simple(disk.daemon.socket())?;
    client.write(0, &Pattern(1).bytes(0, 4096))?;
    ensure!(client.read(8 * MIB - 4096, 4096).is_err(), "what is gone can't be read");
    set_size(&volume.image, HEADER + 9 * MIB)?;
    ensure!(resized(&disk)?["capacity_bytes"] == 9 * MIB);
    client.write(8 * MIB - 4096, &Pattern(1).bytes(0, 4096))?;
    drop(client);
    disk.daemon.stop()?;
    Ok(())
}

#[test]
fn a_rotation_that_is_under_way_is_waited_for() -> Result<()> {
    let volume = TestVolume::formatted(8 * MIB, 512)?;
    let mut disk = Rotating::serve(&volume, &[])?;
    let mut client = Client::simple(disk.daemon.socket())?;
    let data = Pattern(5).bytes(0, 8 << 20);
    client.write(0, &data)?;
    client.flush()?;
    disk.order("start", &["--rate", "2M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(MIB)?;
    set_size(&volume.image, HEADER + 12 * MIB)?;
    let told = resized(&disk)?;
    ensure!(told["waits_for_rotation"] == true && told["capacity_bytes"] == 8 * MIB, "{told}");
    ensure!(told["volume_bytes"] == HEADER + 12 * MIB, "{told}");
    disk.order("throttle", &["--rate", "none"])?;
    let status = disk.wait_for_end()?;
    ensure!(status["total_bytes"] == 8 * MIB, "{status}");
    until("a disk that has grown", LIMIT, || Ok((capacity(&disk)? == 12 * MIB).then_some(())))?;
    drop(client);
    let mut client = Client::simple(disk.daemon.socket())?;
    ensure!(client.capacity_bytes()? == 12 * MIB);
    let more = Pattern(6).bytes(8 * MIB, 4 << 20);
    client.write(8 * MIB, &more)?;
    client.flush()?;
    drop(client);
    disk.daemon.kill()?;
    let plain = oracle::cryptsetup_decrypts(&volume)?;
    ensure!(plain == [data, more].concat(), "cryptsetup reads something else");
    Ok(())
}

#[test]
fn a_rotation_that_was_killed_goes_on_to_the_new_end() -> Result<()> {
    let volume = TestVolume::formatted(8 * MIB, 512)?;
    let mut disk = Rotating::serve(&volume, &[])?;
    let mut client = Client::simple(disk.daemon.socket())?;
    let data = Pattern(7).bytes(0, 8 << 20);
    client.write(0, &data)?;
    client.flush()?;
    drop(client);
    disk.order("start", &["--rate", "2M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(MIB)?;
    set_size(&volume.image, HEADER + 12 * MIB)?;
    ensure!(resized(&disk)?["waits_for_rotation"] == true);
    disk.daemon.kill_and_restart()?;
    ensure!(capacity(&disk)? == 12 * MIB);
    ensure!(disk.status()?["total_bytes"] == 12 * MIB, "{}", disk.status()?);
    // Written with the old key, behind the old end, and rotated like everything else.
    let mut client = Client::simple(disk.daemon.socket())?;
    let more = Pattern(8).bytes(8 * MIB, 4 << 20);
    client.write(8 * MIB, &more)?;
    client.flush()?;
    ensure!(disk.state()? != "completed", "the rotation ended before anything was written");
    disk.order("throttle", &["--rate", "none"])?;
    disk.wait_for_end()?;
    ensure!(client.read(8 * MIB, 4 << 20)? == more);
    drop(client);
    disk.daemon.stop()?;
    let plain = oracle::cryptsetup_decrypts(&volume)?;
    ensure!(plain == [data, more].concat(), "cryptsetup reads something else");
    Ok(())
}

/// A loop device over an image, detached when dropped.
struct LoopDevice(String);

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // A device that is left behind goes with the machine.
        let _ = run("losetup", ["--detach", &self.0]);
    }
}

#[test]
fn a_block_device_and_a_luks1_volume_grow() -> Result<()> {
    let volume = TestVolume::blank(10 * MIB)?;
    let size = 8 * MIB;
    run(
        "cryptsetup",
        [
            "luksFormat".into(),
            "--type=luks1".into(),
            "--batch-mode".into(),
            "--pbkdf-force-iterations=1000".into(),
            "--key-file".into(),
            volume.key.clone().into_os_string(),
            volume.image.clone().into_os_string(),
        ],
    )?;
    let offset = oracle::data_offset(&volume.image)?;
    set_size(&volume.image, offset + size)?;
    let attached = run(
        "losetup",
        [
            OsString::from("--find"),
            "--show".into(),
            "--direct-io=on".into(),
            volume.image.clone().into(),
        ],
    )?;
    let device = LoopDevice(String::from_utf8(attached.stdout)?.trim().to_owned());
    let (control, state_dir) = Rotating::places(&volume);
    let mut args: Vec<OsString> =
        ["--volume", &device.0, "--key", &volume.key_uri()].map(OsString::from).to_vec();
    args.extend(["--control".into(), control.into(), "--state-dir".into(), state_dir.into()]);
    let daemon = Daemon::with_args(&volume.scratch.file("vu.sock"), args)?;
    let mut disk = Rotating::with_daemon(&volume, daemon);
    ensure!(capacity(&disk)? == size);
    set_size(&volume.image, offset + 2 * size)?;
    run("losetup", ["--set-capacity", &device.0])?;
    ensure!(resized(&disk)?["capacity_bytes"] == 2 * size);
    let mut client = Client::simple(disk.daemon.socket())?;
    let data = Pattern(9).bytes(size, 1 << 20);
    client.write(size - MIB / 2, &data)?;
    client.write(2 * size - MIB, &data)?;
    client.flush()?;
    drop(client);
    disk.daemon.stop()?;
    drop(device);
    let plain = oracle::qemu_img_decrypts(&volume)?;
    ensure!(plain.len() as u64 == 2 * size);
    for at in [size - MIB / 2, 2 * size - MIB] {
        ensure!(plain[at as usize..][..MIB as usize] == data, "qemu-img reads something else");
    }
    // Unknown names are told, as with every order.
    ensure!(sealblk(["resize", "--volume", "vu", "--control", "/nowhere/at/all"]).is_err());
    Ok(())
}
