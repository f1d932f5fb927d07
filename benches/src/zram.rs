//! zram devices: memory as a block device. It does its work in the call that submits it, but
//! doesn't know REQ_NOWAIT, so that io_uring submits from a worker thread.
//!
//! The kernel keeps such a device until somebody removes it. A note in /run names each device with
//! the process that made it, so that a later run removes what a killed one left behind.

use std::fs::{self, read_to_string};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sealblk_tests::until;

const CONTROL: &str = "/sys/class/zram-control";
const NOTES: &str = "/run/sealblk-bench";
/// How long a device may stay busy after its last user is gone.
const LIMIT: Duration = Duration::from_secs(5);

/// A device; removed when dropped.
pub(crate) struct Zram {
    number: u32,
}

impl Zram {
    /// A device of so many bytes, without content.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let number = read_to_string(format!("{CONTROL}/hot_add")).context(
            "no zram device (root on a kernel with zram may have one; or try --class memory)",
        )?;
        let zram = Self { number: number.trim().parse()? };
        fs::create_dir_all(NOTES)?;
        fs::write(note(zram.number), owner(std::process::id()).context("no /proc")?)?;
        fs::write(attribute(zram.number, "comp_algorithm"), "lz4")?;
        fs::write(attribute(zram.number, "disksize"), bytes.to_string())?;
        let path = zram.path();
        until("the zram device's node", LIMIT, || Ok(path.exists().then_some(())))?;
        Ok(zram)
    }

    /// The block device.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/dev/zram{}", self.number).into()
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        // What stays busy is left to the next run.
        let _ = remove(self.number);
    }
}

/// Removes the devices of runs that are no more; how many.
pub(crate) fn remove_left_overs() -> usize {
    let notes = fs::read_dir(NOTES).into_iter().flatten().flatten();
    let numbers = notes.filter_map(|note| note.file_name().to_str()?.parse().ok());
    numbers.filter(|&number| is_left_over(&note(number)) && remove(number).is_ok()).count()
}

/// Whether the process named in the note is gone.
fn is_left_over(note: &Path) -> bool {
    let text = read_to_string(note).unwrap_or_default();
    let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
    pid.and_then(owner) != Some(text)
}

/// A process so named that no later one is mistaken for it: with its start time, field 22 of
/// proc(5)'s stat.
fn owner(pid: u32) -> Option<String> {
    let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_dead = fields.next()? == "Z";
    let start = fields.nth(18)?;
    (!is_dead).then(|| format!("{pid} {start}"))
}

fn remove(number: u32) -> Result<()> {
    if Path::new(&attribute(number, "reset")).exists() {
        until("the zram device's last user to go", LIMIT, || {
            Ok(fs::write(attribute(number, "reset"), "1").ok())
        })?;
        fs::write(format!("{CONTROL}/hot_remove"), number.to_string())?;
    }
    Ok(fs::remove_file(note(number))?)
}

fn attribute(number: u32, name: &str) -> String {
    format!("/sys/block/zram{number}/{name}")
}

fn note(number: u32) -> PathBuf {
    format!("{NOTES}/{number}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_of_a_living_process_is_no_left_over() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("0");
        let ours = owner(std::process::id()).unwrap();
        fs::write(&note, &ours).unwrap();
        assert!(!is_left_over(&note));
        // The same number, another process.
        fs::write(&note, format!("{ours}1")).unwrap();
        assert!(is_left_over(&note));
        fs::write(&note, "").unwrap();
        assert!(is_left_over(&note));
    }
}
