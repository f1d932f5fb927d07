//! A real guest writes, checks and writes again while the key of its disk is rotated; also while the
//! daemon is killed again and again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Daemon, Guest, GuestBuilder, GuestImage, TestVolume, progress, run, sealblk, until,
};
use serde_json::Value;

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

const MIB: u64 = 1 << 20;

/// Writers overwrite and fsync without pause, and remove and trim; each tick is one more file whose
/// sum is noted after its fsync. At the end everything is checked from the disk.
const UNDER_LOAD: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount -o errors=panic,discard /dev/vda /mnt
mkdir /mnt/a /mnt/b
writer() {
  n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n + 1))
    dd if=/dev/urandom of=/mnt/$1/$((n % 30)) bs=32k count=$((n % 9 + 1)) conv=fsync 2>/dev/null || echo "WRITE-ERROR $1"
    [ $((n % 10)) = 0 ] && rm -f /mnt/$1/$((n % 7))
  done
}
writer a & writer b &
n=0
while [ $n -lt 4000 ] && [ ! -e /tmp/end ]; do
  n=$((n + 1))
  dd if=/dev/urandom of=/mnt/tick$((n % 60)) bs=64k count=4 conv=fsync 2>/dev/null || echo "WRITE-ERROR tick"
  (cd /mnt && sha256sum tick$((n % 60))) >/tmp/sum$((n % 60))
  dd if=/mnt/tick$((n % 60)) iflag=direct bs=64k 2>/dev/null | cmp - /mnt/tick$((n % 60)) || echo "READ-ERROR tick"
  echo "TICK $n"
  [ $n -ge TICKS ] && touch /tmp/end
done
touch /tmp/stop
wait
(cd /mnt && sha256sum a/* b/*) >/tmp/sums
cat /tmp/sum[0-9]* >>/tmp/sums
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c /tmp/sums >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
dmesg | grep -i 'I/O error' && exit 1
echo "CHECKED $(grep -c ': OK' /tmp/checked) files"
"#;

/// A served volume whose key can be rotated.
struct Served {
    volume: TestVolume,
    daemon: Daemon,
    control: String,
}

impl Served {
    fn new(data_bytes: u64, sector_bytes: u32, queues: u16) -> Result<Self> {
        let volume = TestVolume::formatted(data_bytes, sector_bytes)?;
        let new_key = volume.scratch.file("new.key");
        std::fs::write(&new_key, "another secret, 0123456789abcdef")?;
        let control = volume.scratch.file("control.sock").display().to_string();
        let state = volume.scratch.file("state").display().to_string();
        let new_key = format!("file:{}", new_key.display());
        let queues = queues.to_string();
        let flags = ["--queues", &queues, "--control", &control, "--state-dir", &state];
        let more = ["--discard", "--new-key", &new_key];
        let daemon = Daemon::serve(&volume, &[&flags[..], &more].concat())?;
        Ok(Self { volume, daemon, control })
    }

    fn order(&self, what: &[&str]) -> Result<()> {
        let at = ["--control", &self.control, "--volume", "vu"];
        sealblk([&["rotate"], what, &at].concat())?;
        Ok(())
    }

    /// A new volume key and a new secret.
    fn start(&self, rate: &str) -> Result<()> {
        let new = format!("file:{}", self.volume.scratch.file("new.key").display());
        let how = ["--rate", rate, "--hotzone", "1M", "--yes"];
        self.order(&[&["start", "--new-key", &new], &how[..]].concat())
    }

    fn told(&self) -> Result<Value> {
        let at = ["rotate", "status", "--json", "--control", &self.control, "--volume", "vu"];
        Ok(serde_json::from_slice(&sealblk(at)?.stdout)?)
    }

    fn done_bytes(&self) -> Result<u64> {
        self.told()?["done_bytes"].as_u64().context("no progress")
    }

    fn wait_for_completion(&self) -> Result<()> {
        until("the rotation's end", LIMIT, || {
            let told = self.told()?;
            ensure!(told["state"] != "failed", "{told}");
            Ok((told["state"] == "completed").then_some(()))
        })
    }

    /// The old secret opens nothing any more; the new one does.
    fn check_secrets(&self) -> Result<()> {
        let test = |key: &std::path::Path| {
            let args = ["open", "--test-passphrase", "--key-file"];
            let mut args: Vec<_> = args.iter().map(std::ffi::OsString::from).collect();
            args.extend([key.into(), self.volume.image.clone().into()]);
            run("cryptsetup", args)
        };
        ensure!(test(&self.volume.key).is_err(), "the old secret still opens it");
        test(&self.volume.scratch.file("new.key"))?;
        Ok(())
    }
}

fn guest(served: &Served, queues: u16, ticks: u32) -> Result<Guest> {
    let script = UNDER_LOAD.replace("TICKS", &ticks.to_string());
    let guest = GuestBuilder::new(GuestImage::Tiny, &script).processors(queues.min(4));
    guest.disk(served.daemon.socket(), queues).start()
}

fn finish(served: &mut Served, mut guest: Guest) -> Result<()> {
    let checked = guest.wait_for("CHECKED", LIMIT)?;
    progress(checked);
    guest.succeed(LIMIT)?;
    let console = guest.console();
    ensure!(!console.contains("-ERROR"), "an error reached the guest:\n{console}");
    served.daemon.stop()?;
    served.check_secrets()
}

/// A whole rotation, with a pause in it, while the guest works.
fn rotated_under_a_guest(queues: u16, sector_bytes: u32) -> Result<()> {
    let mut served = Served::new(160 * MIB, sector_bytes, queues)?;
    let mut guest = guest(&served, queues, 40)?;
    guest.wait_for("TICK 2", LIMIT)?;
    served.start("12M")?;
    guest.skip_to_now();
    guest.wait_for("TICK", LIMIT)?;
    served.order(&["pause"])?;
    until("the pause", LIMIT, || Ok((served.told()?["state"] == "paused").then_some(())))?;
    let paused_at = served.done_bytes()?;
    guest.skip_to_now();
    guest.wait_for("TICK", LIMIT)?;
    ensure!(served.done_bytes()? == paused_at, "it moved while it was paused");
    served.order(&["resume"])?;
    served.wait_for_completion()?;
    progress(served.told()?);
    finish(&mut served, guest)
}

#[test]
fn a_guest_works_through_a_rotation_with_one_queue() -> Result<()> {
    rotated_under_a_guest(1, 512)
}

#[test]
fn a_guest_works_through_a_rotation_with_four_queues_and_a_journal() -> Result<()> {
    rotated_under_a_guest(4, 4096)
}

#[test]
fn ten_crashes_in_one_rotation_lose_nothing_and_it_goes_on_by_itself() -> Result<()> {
    let mut served = Served::new(256 * MIB, 512, 4)?;
    let mut guest = guest(&served, 4, 60)?;
    guest.wait_for("TICK 2", LIMIT)?;
    served.start("8M")?;
    let mut before = 0;
    for crash in 1..=10_u64 {
        guest.skip_to_now();
        guest.wait_for("TICK", LIMIT)?;
        #[expect(clippy::disallowed_methods, reason = "a moment that no event marks: mid-zone")]
        std::thread::sleep(Duration::from_millis(crash * 37 % 150));
        served.daemon.kill()?;
        served.daemon.start()?;
        let done = served.done_bytes()?;
        ensure!(done >= before, "it went back from {before} to {done}");
        before = done;
        progress(format_args!("crash {crash} of 10, at {} MiB", done / MIB));
    }
    ensure!(before > 0 && before < 256 * MIB, "the crashes were in the middle: {before}");
    served.order(&["throttle", "--rate", "none"])?;
    served.wait_for_completion()?;
    finish(&mut served, guest)
}
