//! The scene on Ceph: the storage goes away under the guest, and then the daemon.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealblk_tests::{Ceph, Daemon, GuestBuilder, GuestImage, Kind, Scratch, Storage, TestVolume};

use crate::style::Style;

/// Writes files until it is told enough, then checks them all.
const SCRIPT: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount /dev/vda /mnt
for n in $(seq 40); do
  dd if=/dev/urandom of=/mnt/file$n bs=64k count=8 conv=fsync 2>/dev/null || echo WRITE-ERROR
  (cd /mnt && sha256sum file$n) >>/tmp/sums
  echo "TICK $n"
done
umount /mnt
e2fsck -fn /dev/vda 2>/dev/null | tail -n 1 | sed 's/^/|| e2fsck: /'
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c /tmp/sums >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
echo "CHECKED $(grep -c ': OK' /tmp/checked)"
"#;

pub(crate) fn scene(style: &Style, limit: Duration) -> Result<()> {
    style.title("6. The same on Ceph: a cluster of one node, with monitor, OSD and cephx");
    style.command("scripts/ceph.sh up");
    let ceph = Ceph::shared()?;
    style.command(
        "rbd create --size 144M rbd/vm; sealblk format --volume rbd:rbd/vm --key file:key",
    );
    let volume = TestVolume::formatted_on(Kind::Rbd, 128 << 20, &[])?;
    style.command("sealblkd --volume rbd:rbd/vm --key file:key --on-error hold --socket vu.sock");
    let state = Scratch::new()?;
    let state = state.path().to_string_lossy().into_owned();
    let mut daemon = Daemon::serve(&volume, &["--on-error", "hold", "--state-dir", &state])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, SCRIPT).disk(daemon.socket(), 1);
    let mut guest = guest.start()?;
    guest.wait_for("TICK", limit)?;

    style.command("kill -9 $(cat osd.0.pid)   # and a new one, while the guest writes");
    let gone = Instant::now();
    ceph.osd_kill()?.end()?;
    guest.skip_to_now();
    guest.wait_for("TICK", limit)?;
    let waited = gone.elapsed().as_millis();
    style.output(format_args!("guest: waits, sees no error, goes on after {waited} ms"));

    style.command(&format!("kill -9 {}   # the daemon this time", daemon.pid()?));
    let died = Instant::now();
    daemon.kill_and_restart()?;
    style.output(format_args!(
        "ready again after {} ms; the dead one is shut out of the cluster first, so that nothing it \
         had sent lands late",
        died.elapsed().as_millis()
    ));
    let checked = guest.wait_for("CHECKED", limit)?;
    guest.succeed(limit)?;
    ensure!(!guest.console().contains("WRITE-ERROR"), "the guest saw an error");
    for line in guest.console().lines().filter_map(|line| line.strip_prefix("|| ")) {
        style.output(format_args!("guest: {line}"));
    }
    let files = checked.trim_start_matches("CHECKED ");
    style.output(format_args!("guest: {files} files read back as written, no error seen"));
    daemon.stop()?;

    if let Storage::Rbd(image) = &volume.storage {
        style.command("rbd lock ls rbd/vm   # given back");
        let owner = image.lock_owner()?;
        style.output(owner.as_ref().map_or("nobody has it", |_| "somebody has it"));
        ensure!(owner.is_none(), "the daemon kept its lock");
    }
    Ok(())
}
