//! Starting an instance's daemon and ending it.
//!
//! Contract: a daemon outlives the agent, and a later agent can end it: what must be known for that
//! lies in a file beside the instance's directory, where the daemons' user can't write.
//!
//! Deliberately absent: starting a daemon again. Its keeper does that for the process that serves
//! (docs/agent.md); without the keeper, there are no keys to start it with.

mod process;
mod systemd;

use std::path::{Path, PathBuf};
use std::time::Duration;

use sealblk_api::agent::AgentError;

use super::config::{AgentConfig, LauncherChoice};
use super::error::internal;
use super::host::Ids;

/// Where systemd shows that it is PID 1 (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";

/// How daemons are started on this host.
#[derive(Debug, Clone)]
pub(super) enum Launcher {
    /// As processes of their own sessions.
    Process(process::Processes),
    /// As transient units.
    Systemd(systemd::Units),
}

/// What is to be started.
#[derive(Debug)]
pub(super) struct Order<'a> {
    pub(super) instance: &'a str,
    pub(super) program: &'a Path,
    pub(super) args: &'a [String],
}

impl Launcher {
    pub(super) fn new(config: &AgentConfig, ids: &Ids) -> Self {
        let systemd = match config.agent.launcher {
            LauncherChoice::Auto => Path::new(SYSTEMD).exists() && ids.root,
            LauncherChoice::Systemd => true,
            LauncherChoice::Process => false,
        };
        if systemd {
            Self::Systemd(systemd::Units::new(config, ids))
        } else {
            Self::Process(process::Processes::new(config, ids))
        }
    }

    /// For the log.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Systemd(_) => "systemd",
        }
    }

    /// Starts a daemon. It isn't ready yet.
    pub(super) fn start(&self, order: &Order<'_>) -> Result<(), AgentError> {
        let started = match self {
            Self::Process(processes) => processes.start(order),
            Self::Systemd(units) => units.start(order),
        };
        started.map_err(|cause| {
            let program = order.program.display();
            internal(format!("instance {}: {program} can't be started: {cause}", order.instance))
        })
    }

    /// Whether it runs, as far as can be told without asking it.
    pub(super) fn runs(&self, instance: &str) -> bool {
        match self {
            Self::Process(processes) => processes.runs(instance),
            Self::Systemd(units) => units.runs(instance),
        }
    }

    /// Its process, if it is known.
    pub(super) fn pid(&self, instance: &str) -> Option<u32> {
        match self {
            Self::Process(processes) => processes.pid(instance),
            Self::Systemd(units) => units.pid(instance),
        }
    }

    /// Waits until it has ended by itself; past `limit`, ends it the hard way. Nothing of it is left
    /// afterwards.
    pub(super) fn finish(&self, instance: &str, limit: Duration) {
        match self {
            Self::Process(processes) => processes.finish(instance, limit),
            Self::Systemd(units) => units.finish(instance, limit),
        }
    }
}

/// The note about an instance's process.
fn note_path(instances: &Path, instance: &str) -> PathBuf {
    instances.join(format!("{instance}.pid"))
}
