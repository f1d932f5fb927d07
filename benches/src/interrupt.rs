//! SIGINT and SIGTERM: the run ends at the next sample, and everything made for it goes away.
//!
//! The servers inherit that these signals are blocked, so that a Ctrl-C ends them when their
//! storage is no longer used, by us. A second signal ends the program at once, after what
//! [`at_exit`] was told; what else it leaves behind, the next run removes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use nix::sys::signal::{SigSet, Signal};

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
                std::process::exit(130);
            }
        }
    });
    Ok(())
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
