//! SIGINT and SIGTERM: the run ends at the next sample, and everything made for it goes away.
//!
//! The servers inherit that these signals are blocked, so that a Ctrl-C ends them when their
//! storage is no longer used, by us. A second signal ends the program at once, with the servers and
//! after what [`at_exit`] was told; directories of temporary files stay, and zram devices, which the
//! next run removes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

static ASKED: AtomicBool = AtomicBool::new(false);
static LAST: OnceLock<fn()> = OnceLock::new();

/// Call it before any other thread exists.
pub(crate) fn listen() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        while signals.wait().is_ok() {
            if ASKED.swap(true, Ordering::Relaxed) {
                if let Some(last) = LAST.get() {
                    last();
                }
                // As late as possible: the other thread may still start some.
                children().into_iter().for_each(|child| {
                    kill(child, Signal::SIGKILL).ok();
                });
                std::process::exit(130);
            }
        }
    });
    Ok(())
}

/// Processes that we have started and not waited for: proc(5)'s fourth field of stat is the parent.
fn children() -> Vec<Pid> {
    let ours = Pid::this().to_string();
    let is_ours = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
        fields.and_then(|mut fields| fields.nth(1)).is_some_and(|parent| parent == ours)
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).map(Pid::from_raw).collect()
}

/// What a second signal does before it ends the program.
pub(crate) fn at_exit(last: fn()) {
    // The first stays: there is only one cluster.
    LAST.set(last).ok();
}

/// Fails once somebody wants the program to end.
pub(crate) fn check() -> Result<()> {
    ensure!(!ASKED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_children_are_known() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        assert!(children().contains(&pid));
        assert!(!children().contains(&Pid::this()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
