//! A real guest with a disk of ours: it makes a file system, writes, checks, reboots, checks
//! again; also while the daemon is killed again and again; and it boots from the disk alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use sealblk_tests::{
    Client, Daemon, Guest, GuestBuilder, GuestImage, TestVolume, oracle, progress, run,
    shares_blocks,
};
use sha2::{Digest, Sha256};

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

/// First boot: make a file system, write files with fsync, note their sums, check, reboot.
/// Second boot (there is a file system): check everything again.
const FILESYSTEM: &str = r#"
if blkid /dev/vda | grep -q ext4; then
  e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
  mount -o ro /dev/vda /mnt
  cd /mnt && sha256sum -c sums >/tmp/sums || { grep -v ': OK' /tmp/sums; exit 1; }
  echo "CHECKED $(grep -c ': OK' /tmp/sums) files"
  exit 0
fi
mkfs.ext4 -q -F /dev/vda
mount /dev/vda /mnt
for n in $(seq 24); do
  dd if=/dev/urandom of=/mnt/file$n bs=64k count=$n conv=fsync 2>/dev/null
done
cd /mnt && sha256sum file* >sums && sync && cd /
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
echo WRITTEN
reboot -f
"#;

fn filesystem_survives_a_reboot(queues: u16, sector_bytes: u32) -> Result<()> {
    let volume = TestVolume::formatted(128 * MIB, sector_bytes)?;
    let mut daemon = Daemon::serve(&volume, &["--queues", &queues.to_string()])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, FILESYSTEM).may_reboot();
    let mut guest = guest.disk(daemon.socket(), queues).processors(queues.min(4)).start()?;
    guest.wait_for("WRITTEN", LIMIT)?;
    progress("written; the guest reboots");
    let checked = guest.wait_for("CHECKED", LIMIT)?;
    ensure!(checked.contains("CHECKED 24 files"), "{checked}");
    guest.succeed(LIMIT)?;
    daemon.must_run()?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_file_system_survives_a_reboot_with_one_queue() -> Result<()> {
    filesystem_survives_a_reboot(1, 512)
}

#[test]
fn a_file_system_survives_a_reboot_with_four_queues() -> Result<()> {
    filesystem_survives_a_reboot(4, 512)
}

#[test]
fn a_file_system_survives_a_reboot_on_4096_byte_sectors() -> Result<()> {
    filesystem_survives_a_reboot(1, 4096)
}

/// Writers in the background write and fsync without pause; each tick is one more file whose sum
/// is noted after its fsync. Then everything is checked from the disk.
const UNDER_LOAD: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount -o errors=panic /dev/vda /mnt
mkdir /mnt/a /mnt/b /mnt/c
writer() {
  n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=/mnt/$1/$((n % 40)) bs=32k count=$((n % 9 + 1)) conv=fsync 2>/dev/null || echo "WRITE-ERROR $1"
  done
}
writer a & writer b & writer c &
for n in $(seq 60); do
  dd if=/dev/urandom of=/mnt/tick$n bs=64k count=8 conv=fsync 2>/dev/null || echo "WRITE-ERROR tick"
  (cd /mnt && sha256sum tick$n) >>/tmp/sums
  echo "TICK $n"
done
touch /tmp/stop
wait
(cd /mnt && sha256sum a/* b/* c/*) >>/tmp/sums
cp /tmp/sums /mnt/sums
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c sums >/tmp/sums || { grep -v ': OK' /tmp/sums; exit 1; }
dmesg | grep -i 'I/O error' && exit 1
echo "CHECKED $(grep -c ': OK' /tmp/sums) files"
"#;

/// Kills the daemon at ten ticks, each time some milliseconds later than the tick.
fn crashes_under_load(daemon: &mut Daemon, guest: &mut Guest) -> Result<()> {
    for crash in 1..=10_u64 {
        guest.skip_to_now();
        guest.wait_for("TICK", LIMIT)?;
        #[expect(clippy::disallowed_methods, reason = "a moment that no event marks: mid-write")]
        std::thread::sleep(Duration::from_millis(crash * 17 % 60));
        daemon.kill()?;
        progress(format_args!("crash {crash} of 10"));
        daemon.start()?;
    }
    Ok(())
}

fn ten_crashes(queues: u16) -> Result<()> {
    let volume = TestVolume::formatted(256 * MIB, 512)?;
    let mut daemon = Daemon::serve(&volume, &["--queues", &queues.to_string()])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, UNDER_LOAD).processors(queues.min(4));
    let mut guest = guest.disk(daemon.socket(), queues).start()?;
    crashes_under_load(&mut daemon, &mut guest)?;
    let checked = guest.wait_for("CHECKED", LIMIT)?;
    progress(checked);
    guest.succeed(LIMIT)?;
    ensure!(!guest.console().contains("WRITE-ERROR"), "a write failed:\n{}", guest.console());
    daemon.stop()?;
    Ok(())
}

#[test]
fn ten_crashes_under_load_with_one_queue_lose_nothing() -> Result<()> {
    ten_crashes(1)
}

#[test]
fn ten_crashes_under_load_with_four_queues_lose_nothing() -> Result<()> {
    ten_crashes(4)
}

/// fio writes blocks that carry their own checksum, at depth 16, and verifies them at the end.
const VERIFY: &str = r#"
tick() { n=0; while sleep 0.2; do n=$((n + 1)); echo "TICK $n"; done; }
tick & ticker=$!
fio --name=v --filename=/dev/vda --direct=1 --ioengine=io_uring --iodepth=16 --numjobs=1 \
  --rw=randwrite --bsrange=4k-64k --bs_unaligned=0 --size=64M --io_size=192M --rate_iops=600 \
  --verify=crc32c --do_verify=1 --verify_fatal=1 --minimal >/tmp/fio 2>&1 || { cat /tmp/fio; exit 1; }
kill $ticker
echo VERIFIED
"#;

#[test]
fn deep_queues_of_verified_writes_survive_ten_crashes() -> Result<()> {
    let volume = TestVolume::formatted(64 * MIB, 512)?;
    let mut daemon = Daemon::serve(&volume, &["--queues", "2"])?;
    let guest = GuestBuilder::new(GuestImage::WithFio, VERIFY).processors(2);
    let mut guest = guest.disk(daemon.socket(), 2).start()?;
    crashes_under_load(&mut daemon, &mut guest)?;
    guest.wait_for("VERIFIED", LIMIT)?;
    guest.succeed(LIMIT)?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_guest_boots_from_the_encrypted_disk_alone() -> Result<()> {
    let volume = TestVolume::formatted(48 * MIB, 512)?;
    let plain = volume.scratch.file("plain.img");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/boot-disk.sh"), [&plain])?;
    let plain = std::fs::read(plain)?;
    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &plain)?;
    client.flush()?;
    drop(client);
    // Firmware, boot loader, kernel and initramfs all come from the disk; then it is read whole.
    let script = "echo \"DISK $(sha256sum </dev/vda)\"";
    let guest = GuestBuilder::new(GuestImage::FromDisk, script).disk(daemon.socket(), 1);
    let mut guest = guest.start()?;
    let sum = guest.wait_for("DISK ", LIMIT)?;
    guest.succeed(LIMIT)?;
    let expected: String = Sha256::digest(&plain).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(sum.contains(&expected), "{sum} where {expected} was expected");
    daemon.stop()?;
    let image = std::fs::read(&volume.image)?;
    let data = &image[usize::try_from(oracle::data_offset(&volume.image)?)?..];
    let written: Vec<u8> = plain
        .chunks(16)
        .filter(|block| block.iter().any(|&byte| byte != 0))
        .flatten()
        .copied()
        .collect();
    ensure!(!shares_blocks(&written, data), "plaintext of the boot disk is on the volume");
    Ok(())
}
