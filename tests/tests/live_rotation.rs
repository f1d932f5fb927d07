//! The volume key is replaced while a guest works: no error, no wrong byte, whatever kills the daemon
//! meanwhile. Each scenario is a function of what the volume is on; which of them `make test` runs on
//! what, and which are left to `make test-storage`, is said by the modules at the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, Daemon, Guest, GuestBuilder, GuestImage, Kind, Load, Pattern, Rotating, TestVolume,
    oracle, progress, scenarios,
};

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

const SMALL_SECTORS: [&str; 2] = ["--sector-size", "512"];

/// Writes, removes, trims and verifies files on /dev/vda until the first sector of /dev/vdb says
/// `stop`; then all is verified from the disk, and the file system checked.
const WORK: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount -o errors=panic /dev/vda /mnt
mkdir /mnt/a /mnt/b
drop() { echo 3 >/proc/sys/vm/drop_caches; }
writer() {
  n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=/mnt/$1/$((n % 20)) bs=32k count=$((n % 9 + 1)) conv=fsync 2>/dev/null || echo "WRITE-ERROR $1"
  done
}
writer a & writer b &
n=0
while ! head -c 4 /dev/vdb | grep -q stop; do
  n=$((n + 1)); k=$((n % 8))
  dd if=/dev/urandom of=/mnt/tick$k bs=64k count=8 conv=fsync 2>/dev/null || echo "WRITE-ERROR tick"
  sha256sum </mnt/tick$k >/tmp/sum$k
  drop
  for f in /tmp/sum*; do
    sha256sum </mnt/tick${f#/tmp/sum} | cmp -s - $f || echo "WRONG-DATA $f"
  done
  if [ $((n % 5)) = 0 ]; then
    rm /mnt/tick$k /tmp/sum$k; sync
    fstrim /mnt || echo "TRIM-ERROR"
  fi
  echo "TICK $n"
done
touch /tmp/stop
wait
(cd /mnt && sha256sum a/* b/*) >/tmp/sums
umount /mnt
drop
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o ro /dev/vda /mnt
(cd /mnt && sha256sum -c /tmp/sums) >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
dmesg | grep -i 'I/O error' && exit 1
echo "CHECKED $(grep -c ': OK' /tmp/checked) files after $n ticks"
"#;

/// A guest at work on the rotated disk, and the disk that tells it to stop.
struct Work {
    guest: Guest,
    switch: TestVolume,
    _switch_daemon: Daemon,
}

impl Work {
    fn start(disk: &Daemon, queues: u16) -> Result<Self> {
        let switch = TestVolume::blank(MIB)?;
        let daemon = Daemon::serve_plain(&switch, &[])?;
        let guest = GuestBuilder::new(GuestImage::Tiny, WORK).processors(queues.min(4));
        let guest = guest.disk(disk.socket(), queues).disk(daemon.socket(), 1);
        let mut guest = guest.start()?;
        guest.wait_for("TICK", LIMIT)?;
        Ok(Self { guest, switch, _switch_daemon: daemon })
    }

    /// The guest verifies everything and ends.
    fn end(mut self) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::OpenOptions::new().write(true).open(&self.switch.image)?;
        file.write_all_at(b"stop", 0)?;
        file.sync_all()?;
        let checked = self.guest.wait_for("CHECKED", LIMIT)?;
        progress(checked);
        self.guest.succeed(LIMIT)?;
        for bad in ["WRITE-ERROR", "WRONG-DATA", "TRIM-ERROR"] {
            ensure!(!self.guest.console().contains(bad), "{bad}:\n{}", self.guest.console());
        }
        Ok(())
    }
}

fn a_guest_sees_nothing(kind: Kind, queues: u16) -> Result<()> {
    let volume = TestVolume::formatted_on(kind, 40 * MIB, &SMALL_SECTORS)?;
    let old_key = oracle::volume_key(&volume)?;
    let queue_number = queues.to_string();
    let mut disk = Rotating::serve(&volume, &["--queues", &queue_number, "--discard"])?;
    let mut work = Work::start(&disk.daemon, queues)?;
    disk.order("start", &["--hotzone", "256K"])?;
    disk.wait_for_bytes(8 * MIB)?;
    // It works on beside the rotation.
    work.guest.skip_to_now();
    work.guest.wait_for("TICK", LIMIT)?;
    let status = disk.wait_for_end()?;
    progress(format_args!("rotated: {status}"));
    work.guest.skip_to_now();
    work.guest.wait_for("TICK", LIMIT)?;
    work.end()?;
    disk.daemon.stop()?;
    ensure!(oracle::volume_key(&volume)? != old_key, "the volume key is the same");
    Ok(())
}

fn a_guest_with_one_queue_works_through_a_rotation(kind: Kind) -> Result<()> {
    a_guest_sees_nothing(kind, 1)
}

fn a_guest_with_four_queues_works_through_a_rotation(kind: Kind) -> Result<()> {
    a_guest_sees_nothing(kind, 4)
}

fn a_guest_works_through_ten_crashes_of_the_daemon_in_one_rotation(kind: Kind) -> Result<()> {
    let size = 40 * MIB;
    let volume = TestVolume::formatted_on(kind, size, &SMALL_SECTORS)?;
    let mut disk = Rotating::serve(&volume, &["--queues", "2", "--discard"])?;
    let work = Work::start(&disk.daemon, 2)?;
    disk.order("start", &["--rate", "4M", "--hotzone", "256K"])?;
    for crash in 1..=10 {
        disk.wait_for_bytes(size * crash / 12)?;
        disk.daemon.kill_and_restart()?;
        // It goes on by itself, from where it was.
        let status = disk.status()?;
        ensure!(status["state"] != "none" && status["state"] != "completed", "{status}");
        ensure!(status["limit_bytes"] == 4 << 20, "the limit is forgotten: {status}");
        progress(format_args!("crash {crash} of 10 at {}", status["done_bytes"]));
    }
    disk.wait_for_end()?;
    work.end()?;
    disk.daemon.stop()?;
    Ok(())
}

/// A disk full of a pattern, and a load for it.
fn filled(disk: &Rotating, size: u64, queues: u16, discards: bool) -> Result<(Load, Client)> {
    let content = Pattern(31).bytes(0, usize::try_from(size)?);
    let mut load = Load::new(content.clone(), queues, 8, discards);
    let mut client = load.connect(disk.daemon.socket())?;
    client.write(0, &content)?;
    Ok((load, client))
}

struct Shape {
    sector_bytes: u32,
    size: u64,
    hotzone: &'static str,
    queues: u16,
    on_error: &'static str,
    resilience: &'static str,
}

/// Requests of all kinds in all queues, until the rotation has ended; then everything is compared, by
/// us and by cryptsetup.
fn loaded_queues(kind: Kind, shape: &Shape) -> Result<()> {
    let sector_bytes = shape.sector_bytes.to_string();
    let volume = TestVolume::formatted_on(kind, shape.size, &["--sector-size", &sector_bytes])?;
    let queues = shape.queues.to_string();
    let arguments = ["--queues", &queues, "--discard", "--on-error", shape.on_error];
    let mut disk = Rotating::serve(&volume, &arguments)?;
    let (mut load, mut client) = filled(&disk, shape.size, shape.queues, true)?;
    disk.order("start", &["--hotzone", shape.hotzone])?;
    let before = load.done;
    load.run(&mut client, |_| Ok(matches!(disk.state()?.as_str(), "completed" | "failed")))?;
    load.check_all(&mut client)?;
    let status = disk.wait_for_end()?;
    progress(format_args!("{} requests during it: {status}", load.done - before));
    ensure!(status["resilience"] == shape.resilience, "{status}");
    ensure!(status["parked_us_max"].as_u64() > Some(0), "nothing was ever held: {status}");
    drop(client);
    disk.daemon.stop()?;
    load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)
}

fn four_loaded_queues_on_512_byte_sectors_in_the_shortest_hotzones(kind: Kind) -> Result<()> {
    let shape = Shape {
        sector_bytes: 512,
        size: 4 * MIB,
        hotzone: "64K",
        queues: 4,
        on_error: "report",
        resilience: "checksum",
    };
    loaded_queues(kind, &shape)
}

/// No storage promises that more than a logical block of 512 bytes is written as a whole, RBD objects
/// and iSCSI targets least of all: checksums could not tell which half of a sector is new.
fn four_loaded_queues_on_4096_byte_sectors(kind: Kind) -> Result<()> {
    let shape = Shape {
        sector_bytes: 4096,
        size: 8 * MIB,
        hotzone: "256K",
        queues: 4,
        on_error: "hold",
        resilience: "journal",
    };
    loaded_queues(kind, &shape)
}

fn two_loaded_queues_in_long_hotzones(kind: Kind) -> Result<()> {
    let shape = Shape {
        sector_bytes: 512,
        size: 16 * MIB,
        hotzone: "1M",
        queues: 2,
        on_error: "hold",
        resilience: "checksum",
    };
    loaded_queues(kind, &shape)
}

fn crashes_under_deep_queues(kind: Kind, sector_bytes: &str) -> Result<()> {
    let size = 8 * MIB;
    let volume = TestVolume::formatted_on(kind, size, &["--sector-size", sector_bytes])?;
    let mut disk = Rotating::serve(&volume, &["--queues", "4", "--discard"])?;
    let (mut load, mut client) = filled(&disk, size, 4, true)?;
    disk.order("start", &["--hotzone", "128K"])?;
    for crash in 1..=10 {
        let goal = load.done + 512;
        load.run(&mut client, |done| Ok(done > goal && disk.done_bytes()? >= size * crash / 12))?;
        disk.daemon.kill()?;
        drop(client);
        disk.daemon.start()?;
        let state = disk.state()?;
        ensure!(state != "none" && state != "completed", "{state} after crash {crash}");
        client = load.connect(disk.daemon.socket())?;
        load.after_a_crash(&mut client)?;
        load.check_all(&mut client)?;
    }
    load.run(&mut client, |_| Ok(disk.state()? == "completed"))?;
    load.check_all(&mut client)?;
    disk.wait_for_end()?;
    drop(client);
    disk.daemon.stop()?;
    load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)
}

fn ten_crashes_under_deep_queues_lose_nothing_on_512_byte_sectors(kind: Kind) -> Result<()> {
    crashes_under_deep_queues(kind, "512")
}

fn ten_crashes_under_deep_queues_lose_nothing_on_4096_byte_sectors(kind: Kind) -> Result<()> {
    crashes_under_deep_queues(kind, "4096")
}

fn a_rotation_is_paused_throttled_and_resumed_and_knows_it_after_a_restart(
    kind: Kind,
) -> Result<()> {
    let size = 16 * MIB;
    let volume = TestVolume::formatted_on(kind, size, &SMALL_SECTORS)?;
    let mut disk = Rotating::serve(&volume, &["--queues", "2"])?;
    let (mut load, mut client) = filled(&disk, size, 2, false)?;
    disk.order("start", &["--rate", "4M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(2 * MIB)?;
    disk.order("pause", &[])?;
    let paused = disk.wait_for_state("paused")?;
    let at = paused["done_bytes"].as_u64().context("no position")?;
    ensure!(at >= 2 * MIB && at < size, "{paused}");
    let goal = load.done + 500;
    load.run(&mut client, |done| Ok(done > goal))?;
    load.check_all(&mut client)?;
    ensure!(disk.done_bytes()? == at, "it moved while it was paused");
    drop(client);
    // Stopped in good order, and killed: still paused, at the same place.
    disk.daemon.stop()?;
    disk.daemon.start()?;
    ensure!(disk.wait_for_state("paused")?["done_bytes"] == at);
    disk.daemon.kill_and_restart()?;
    ensure!(disk.wait_for_state("paused")?["done_bytes"] == at);
    let mut client = load.connect(disk.daemon.socket())?;
    load.check_all(&mut client)?;

    disk.order("throttle", &["--rate", "1M"])?;
    disk.order("resume", &[])?;
    let status = disk.wait_for_state("throttled")?;
    ensure!(status["limit_bytes"] == 1 << 20, "{status}");
    disk.wait_for_bytes(at + MIB)?;
    drop(client);
    // Stopped by SIGTERM in the middle: it goes on by itself, at the operator's last rate.
    let middle = disk.done_bytes()?;
    disk.daemon.stop()?;
    disk.daemon.start()?;
    let status = disk.status()?;
    ensure!(status["limit_bytes"] == 1 << 20, "{status}");
    disk.wait_for_bytes(middle + 1)?;
    disk.order("throttle", &["--rate", "none"])?;
    let mut client = load.connect(disk.daemon.socket())?;
    disk.wait_for_end()?;
    load.check_all(&mut client)?;
    ensure!(disk.status()?["limit_bytes"].is_null());
    drop(client);
    disk.daemon.stop()?;
    load.compare_all(&oracle::cryptsetup_decrypts(&volume)?)
}

mod on_files {
    super::scenarios! {
        super::Kind::File;
        a_guest_with_one_queue_works_through_a_rotation
        a_guest_with_four_queues_works_through_a_rotation
        a_guest_works_through_ten_crashes_of_the_daemon_in_one_rotation
        four_loaded_queues_on_512_byte_sectors_in_the_shortest_hotzones
        four_loaded_queues_on_4096_byte_sectors
        two_loaded_queues_in_long_hotzones
        ten_crashes_under_deep_queues_lose_nothing_on_512_byte_sectors
        ten_crashes_under_deep_queues_lose_nothing_on_4096_byte_sectors
        a_rotation_is_paused_throttled_and_resumed_and_knows_it_after_a_restart
    }
}

mod on_ceph {
    super::scenarios! {
        super::Kind::Rbd;
        a_guest_with_one_queue_works_through_a_rotation
        four_loaded_queues_on_4096_byte_sectors
        ten_crashes_under_deep_queues_lose_nothing_on_512_byte_sectors
    }
}

mod on_iscsi {
    super::scenarios! {
        super::Kind::Iscsi;
        a_guest_with_one_queue_works_through_a_rotation
        four_loaded_queues_on_4096_byte_sectors
        ten_crashes_under_deep_queues_lose_nothing_on_512_byte_sectors
    }
}

mod rest_on_ceph {
    super::scenarios! {
        super::Kind::Rbd;
        a_guest_with_four_queues_works_through_a_rotation
        a_guest_works_through_ten_crashes_of_the_daemon_in_one_rotation
        four_loaded_queues_on_512_byte_sectors_in_the_shortest_hotzones
        two_loaded_queues_in_long_hotzones
        ten_crashes_under_deep_queues_lose_nothing_on_4096_byte_sectors
        a_rotation_is_paused_throttled_and_resumed_and_knows_it_after_a_restart
    }
}

mod rest_on_iscsi {
    super::scenarios! {
        super::Kind::Iscsi;
        a_guest_with_four_queues_works_through_a_rotation
        a_guest_works_through_ten_crashes_of_the_daemon_in_one_rotation
        four_loaded_queues_on_512_byte_sectors_in_the_shortest_hotzones
        two_loaded_queues_in_long_hotzones
        ten_crashes_under_deep_queues_lose_nothing_on_4096_byte_sectors
        a_rotation_is_paused_throttled_and_resumed_and_knows_it_after_a_restart
    }
}
