//! The scene in which a volume gets a new key and a new secret while its guest works.
//!
//! Contract: whatever is shown was checked; the first thing that isn't so ends the demonstration.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Daemon, Guest, GuestBuilder, GuestImage, TestVolume, run, sealblk, sealblk_command, until,
};
use serde_json::Value;

use crate::style::Style;

const DISK: u64 = 128 << 20;

/// The volume's name in the daemon: its socket's.
const NAME: &str = "vu";

/// As many hexadecimal digits as Cinder's secrets have.
const NEW_SECRET: &str = "c2f04b7d9e15a8360d71b4f8c93e2a5567fe18d0ab3c924e8517d6f09b2ce43a";

/// Writes files until a line is typed, and after each one reads all back from the disk.
const SCRIPT: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount /dev/vda /mnt
mkdir /tmp/sums
(read -r line </dev/console; touch /tmp/stop) &
round=0
while [ ! -e /tmp/stop ]; do
  file=file$((round % 8)) round=$((round + 1))
  dd if=/dev/urandom of=/mnt/$file bs=256k count=8 conv=fsync 2>/dev/null || { echo SAW-AN-ERROR; exit 1; }
  (cd /mnt && sha256sum $file) >/tmp/sums/$file
  echo 3 >/proc/sys/vm/drop_caches
  cat /tmp/sums/* >/tmp/all
  (cd /mnt && sha256sum -c /tmp/all) >/tmp/checked 2>&1 || { echo SAW-AN-ERROR; cat /tmp/checked; exit 1; }
  echo "ROUND $round: $(grep -c ': OK' /tmp/checked) files"
done
umount /mnt
echo "|| $(e2fsck -fn /dev/vda 2>/dev/null | tail -n 1)"
"#;

/// Plays it; nothing in it may take longer than `limit`.
pub(crate) fn scene(style: &Style, limit: Duration) -> Result<()> {
    style.title("5. The key is replaced while a guest writes, and the daemon dies half-way");
    let volume = TestVolume::formatted(DISK, 4096)?;
    let new_key = volume.scratch.file("new-key");
    std::fs::write(&new_key, NEW_SECRET)?;
    let old_volume_key = volume.scratch.file("old-volume-key");
    dump_volume_key(&volume, &old_volume_key)?;
    let (control, state) = (volume.scratch.file("control"), volume.scratch.file("state"));
    let [control_text, state_text] = [&control, &state].map(|path| path.display().to_string());
    let extra = ["--control", &control_text, "--state-dir", &state_text];
    let mut daemon = Daemon::serve(&volume, &extra)?;
    let builder = GuestBuilder::new(GuestImage::Tiny, SCRIPT).disk(daemon.socket(), 1);
    let mut guest = builder.start()?;
    let round = guest.wait_for("ROUND", limit)?;
    style.output(format_args!("guest: {}, read back from the disk as written", tail(&round)));

    let new_uri = format!("file:{}", new_key.display());
    style.command(
        "sealblk rotate start --control c.sock --volume vu --new-key file:new-key --rate 16M",
    );
    let served = ["--control", &control_text, "--volume", NAME];
    let how = ["rotate", "start", "--new-key", &new_uri, "--rate", "16M", "--yes"];
    sealblk(how.iter().chain(&served))?;
    style.command("sealblk rotate status --control c.sock --volume vu --watch");
    let watch = Watch::start(&served, style)?;
    until("half of the rotation", limit, || {
        guest_is_well(&guest)?;
        let told = status(&served)?;
        let number = |name| told.pointer(name).and_then(Value::as_u64).unwrap_or(0);
        ensure!(told["state"] != "completed", "it is over before the daemon could be killed");
        Ok((2 * number("/done_bytes") >= number("/total_bytes").max(1)).then_some(()))
    })?;
    style.break_line();
    style.command(&format!("kill -9 {}   # then systemd starts it again", daemon.pid()?));
    daemon.kill_and_restart()?;
    guest.skip_to_now();
    watch.end(limit)?;
    let told = status(&served)?;
    ensure!(told["state"] == "completed", "the bar has ended, the rotation has not: {told}");
    let last = guest.wait_for("ROUND", limit)?;
    // This one began after the end of the rotation.
    guest.skip_to_now();
    guest.wait_for("ROUND", limit)?;
    guest.type_line("stop")?;
    guest.succeed(limit)?;
    guest_is_well(&guest)?;
    let console = guest.console();
    let checked = console.lines().filter(|line| line.starts_with("ROUND")).count();
    style.output(format_args!(
        "guest: read its {} back {checked} times, no error seen",
        tail(&last)
    ));
    if let Some(line) = console.lines().rev().find_map(|line| line.strip_prefix("|| ")) {
        style.output(format_args!("guest: e2fsck: {line}"));
    }
    daemon.stop()?;
    old_key_is_dead(style, &volume, &new_key, &old_volume_key, &state)
}

/// What stock cryptsetup makes of the old and the new secret, and of the old volume key.
fn old_key_is_dead(
    style: &Style,
    volume: &TestVolume,
    new_key: &Path,
    old_volume_key: &Path,
    state: &Path,
) -> Result<()> {
    let tries: [(&str, &Path, bool); 3] = [
        ("--key-file", &volume.key, false),
        ("--volume-key-file", old_volume_key, false),
        ("--key-file", new_key, true),
    ];
    for (option, file, opens) in tries {
        let name = file.file_name().unwrap_or_default().display();
        style.command(&format!("cryptsetup open --test-passphrase {option} {name} volume.img"));
        let output = try_open(option, file, &volume.image)?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success() == opens, "{option} {name}: {}, {said}", output.status);
        style.output(if opens { "opens" } else { &said });
    }
    let left = std::fs::read_dir(state)?.filter_map(Result::ok).map(|entry| entry.file_name());
    let left: Vec<_> = left
        .filter(|name| Path::new(name).extension() == Some(OsStr::new("luks-header")))
        .collect();
    ensure!(left.is_empty(), "a backup with the old key is left: {left:?}");
    style.output("and the backup of the old header is destroyed");
    Ok(())
}

fn try_open(option: &str, file: &Path, image: &Path) -> Result<Output> {
    let mut command = Command::new("cryptsetup");
    command.args(["open", "--test-passphrase", "--batch-mode", option]).arg(file).arg(image);
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command.output().context("can't run cryptsetup")
}

/// Writes the volume key to a file, as an attacker would who had the secret once.
fn dump_volume_key(volume: &TestVolume, file: &Path) -> Result<()> {
    let words = ["luksDump", "--dump-volume-key", "--batch-mode", "--key-file"].map(OsStr::new);
    let rest = [volume.key.as_os_str(), OsStr::new("--volume-key-file"), file.as_os_str()];
    run("cryptsetup", words.iter().chain(&rest).chain([&volume.image.as_os_str()]))?;
    let opens = try_open("--volume-key-file", file, &volume.image)?.status.success();
    ensure!(opens, "the volume key that cryptsetup gave doesn't open the volume");
    Ok(())
}

fn status(served: &[&str]) -> Result<Value> {
    let output = sealblk(["rotate", "status", "--json"].iter().chain(served))?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn guest_is_well(guest: &Guest) -> Result<()> {
    let console = guest.console();
    ensure!(!console.contains("SAW-AN-ERROR"), "the guest saw an error:\n{console}");
    Ok(())
}

/// `8 files` of `ROUND 9: 8 files`.
fn tail(round: &str) -> &str {
    round.split_once(": ").map_or(round, |(_, tail)| tail)
}

/// `sealblk rotate status --watch`, whose bar goes where ours goes.
struct Watch(Child);

impl Watch {
    fn start(served: &[&str], style: &Style) -> Result<Self> {
        let mut command = sealblk_command()?;
        command.args(["rotate", "status", "--watch"]).args(served);
        if !style.is_terminal {
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = command.spawn().context("can't run sealblk")?;
        if let Some(stdout) = child.stdout.take() {
            show(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            show(stderr);
        }
        Ok(Self(child))
    }

    /// It ends with the rotation, and succeeds only if that did.
    fn end(mut self, limit: Duration) -> Result<()> {
        let status = until("the rotation's end", limit, || Ok(self.0.try_wait()?))?;
        ensure!(status.success(), "the rotation failed: {status}");
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Without a terminal there is a line for each per cent: one in ten is enough.
fn show(source: impl Read + Send + 'static) {
    std::thread::spawn(move || {
        let mut last = None;
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let tens = line.split_once(" %").and_then(|(head, _)| {
                let share = head.rsplit(' ').next()?.parse::<f64>().ok()?;
                Some((share / 10.0) as u32)
            });
            if tens.is_none() || tens != last {
                Style::new().output(&line);
            }
            last = tens.or(last);
        }
    });
}
