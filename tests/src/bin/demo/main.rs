//! `make demo`: an encrypted disk under a real guest, a look at the volume, a crash, a new key,
//! the same on Ceph, the price.

mod ceph;
mod rotation;
mod style;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Daemon, Guest, GuestBuilder, GuestImage, TestVolume, chi_square, oracle, overhead, sealblk,
};

use crate::style::Style;

const LIMIT: Duration = Duration::from_secs(300);
const DISK: u64 = 256 << 20;
const LINE: &str = "Dear diary, nobody on the storage network may read this.";

/// Makes a file system, writes the diary, then writes on and on for 20 seconds while the daemon
/// dies: on a fast machine a number of files would be written before the host has killed anything.
const SCRIPT: &str = r#"
echo "|| mkfs.ext4 /dev/vda"
mkfs.ext4 -F /dev/vda 2>&1 | grep -E 'Creating filesystem|UUID' | sed 's/^/|| /'
mount /dev/vda /mnt
n=0; while [ $n -lt 2000 ]; do echo "DIARY"; n=$((n + 1)); done >/mnt/diary.txt
dd if=/dev/urandom of=/mnt/data bs=1M count=48 conv=fsync 2>/dev/null
sync
echo "|| $(df -h /mnt | tail -n 1)"
cd /mnt && sha256sum diary.txt data >/tmp/sums
echo WRITTEN
uptime() { cut -d. -f1 /proc/uptime; }
mkdir /tmp/load
n=0 end=$(($(uptime) + 20))
while [ "$(uptime)" -lt $end ]; do
  file=load$((n % 24)) n=$((n + 1))
  dd if=/dev/urandom of=/mnt/$file bs=256k count=8 conv=fsync 2>/dev/null || echo WRITE-ERROR
  (cd /mnt && sha256sum $file) >/tmp/load/$file
  echo "TICK $n"
done
cat /tmp/sums /tmp/load/* >/mnt/sums
cd / && umount /mnt
e2fsck -fn /dev/vda 2>/dev/null | tail -n 1 | sed 's/^/|| e2fsck: /'
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c sums >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
echo "CHECKED $(grep -c ': OK' /tmp/checked)"
"#;

fn main() -> Result<()> {
    let started = Instant::now();
    let style = Style::new();

    style.title("1. A volume: a file of noise with a standard LUKS2 header");
    let volume = TestVolume::formatted(DISK, 4096)?;
    style.command("sealblk format --volume file:volume.img --key file:key --sector-size 4096");
    style.command("sealblk inspect --volume file:volume.img");
    let inspected = sealblk(["inspect", "--volume", &volume.uri()])?;
    style.output(String::from_utf8_lossy(&inspected.stdout));

    style.title("2. A guest (stock QEMU, stock Debian kernel) uses it as its disk");
    style.command("sealblkd --volume file:volume.img --key file:key --socket vu.sock");
    let mut daemon = Daemon::serve(&volume, &[])?;
    style.command("qemu-system-x86_64 ... -device vhost-user-blk-pci,chardev=vu");
    let script = SCRIPT.replace("DIARY", LINE);
    let builder = GuestBuilder::new(GuestImage::Tiny, &script).disk(daemon.socket(), 1);
    let mut guest = builder.start()?;
    guest.wait_for("WRITTEN", LIMIT)?;
    for line in guest.console().lines().filter_map(|line| line.strip_prefix("|| ")) {
        style.output(format_args!("guest: {line}"));
    }
    style.output(format_args!("guest: wrote 2000 lines of \"{LINE}\""));

    look_at_the_volume(&style, &volume)?;
    crash(&style, &mut daemon, &mut guest)?;
    daemon.stop()?;

    rotation::scene(&style, LIMIT)?;
    ceph::scene(&style, LIMIT)?;

    style.title("7. What it costs: random 4 KiB I/O at depth 32, encrypted and --plain in turns");
    for (what, figure) in overhead::measure(3, Duration::from_secs(2))? {
        style.output(format_args!(
            "{what:5}  encrypted {:7.0} IOPS   plain {:7.0} IOPS   {:5.1} %",
            figure.encrypted,
            figure.plain,
            figure.ratio * 100.0
        ));
    }
    style.output("A smoke figure, seconds long on whatever this machine is; a benchmark beside");
    style.output("other programs, with its spread, is `make bench`.");
    style.title(format_args!("Done in {} s.", started.elapsed().as_secs()));
    Ok(())
}

/// The volume as the storage network sees it, while the guest runs.
fn look_at_the_volume(style: &Style, volume: &TestVolume) -> Result<()> {
    style.title("3. The same disk as the storage sees it");
    let image = std::fs::read(&volume.image)?;
    let data = &image[usize::try_from(oracle::data_offset(&volume.image)?)?..];
    let written = data.chunks_exact(4096).filter(|block| block.iter().any(|&byte| byte != 0));
    let sample: Vec<u8> = written.clone().flatten().copied().collect();
    let first = sample.first_chunk::<64>().context("the guest wrote nothing")?;
    style.command("xxd volume.img | ...");
    for row in first.chunks(16) {
        let hex: Vec<String> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = row.iter().map(|&byte| printable(byte)).collect();
        style.output(format_args!("{}  {text}", hex.join(" ")));
    }
    let needle = LINE.as_bytes();
    let found = image.windows(needle.len()).filter(|window| *window == needle).count();
    style.command("grep -c 'Dear diary' volume.img");
    style.output(found);
    ensure!(found == 0, "plaintext on the volume");
    let chi = chi_square(&sample);
    style.output(format_args!(
        "{} MiB written; byte values are as even as noise (chi square {chi:.0}, noise has 255 ± 45)",
        sample.len() >> 20
    ));
    ensure!(chi < 400.0, "that is not noise");
    Ok(())
}

/// Kills the daemon twice while the guest writes.
fn crash(style: &Style, daemon: &mut Daemon, guest: &mut Guest) -> Result<()> {
    style.title("4. The daemon dies while the guest writes");
    for _ in 0..2 {
        guest.skip_to_now();
        guest.wait_for("TICK", LIMIT)?;
        style.command(&format!("kill -9 {}   # then systemd starts it again", daemon.pid()?));
        let died = Instant::now();
        daemon.kill_and_restart()?;
        style.output(format_args!("ready again after {} ms", died.elapsed().as_millis()));
        guest.skip_to_now();
        guest.wait_for("TICK", LIMIT)?;
        style.output(format_args!(
            "guest: the next file is written, {} ms after",
            died.elapsed().as_millis()
        ));
    }
    let checked = guest.wait_for("CHECKED", LIMIT)?;
    guest.succeed(LIMIT)?;
    let console = guest.console();
    ensure!(!console.contains("WRITE-ERROR"), "the guest saw an error:\n{console}");
    if let Some(line) = console.lines().rev().find_map(|line| line.strip_prefix("|| e2fsck: ")) {
        style.output(format_args!("guest: {line}"));
    }
    let files = checked.trim_start_matches("CHECKED ").to_owned();
    style.output(format_args!("guest: {files} files read back as written, no error seen"));
    Ok(())
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() { byte.into() } else { '.' }
}
