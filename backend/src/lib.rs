//! sealblkd, the daemon, and sealblk-agent, which starts daemons. Everything meets here:
//! configuration, volumes, keys, sessions, control. Two programs, as they share their words (what a
//! volume's section is, what an order to a daemon is); what each runs is a function here.
//!
//! Invariants: the process is hardened (no core dumps, no ptrace) before anything else is read;
//! only this crate knows tokio, and it runs on one thread; no key derivation and no blocking I/O
//! happens on that thread.

mod agent;
mod aging;
mod args;
mod audit;
mod config;
mod control;
mod daemon;
mod disk;
mod growth;
mod host;
mod keeper;
mod limits;
mod log;
mod managed;
mod mend;
mod metrics;
mod news;
mod notify;
mod orders;
mod rotator;
mod socket;
mod status;
mod version;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use sealblk_block::in_one_line;

pub use crate::agent::sealblk_agent;
use crate::args::Args;
use crate::config::{Config, DaemonConfig, LogFormat};
use crate::managed::Managed;

/// The command line or the configuration is wrong. clap uses it too.
const EXIT_CONFIG: u8 = 2;

/// The command line of `sealblkd`, for its manual page and completions.
pub fn sealblkd_command() -> clap::Command {
    use clap::CommandFactory;
    Args::command()
}

/// What `sealblkd` runs.
pub fn sealblkd() -> ExitCode {
    if let Err(error) = sealblk_secret::harden_process() {
        let error = in_one_line(&error);
        return complain(&format!("cannot keep keys out of core dumps: {error}"), 1);
    }
    socket::private_umask();
    let args = Args::parse();
    if args.version {
        // Where standard output is gone, nobody wants to know.
        let _ = write!(std::io::stdout(), "{}", version::text("sealblkd", args.verbose));
        return ExitCode::SUCCESS;
    }
    match args.managed() {
        Ok(None) => {}
        Ok(Some((daemon, managed))) => return serve_instance(args.kept, daemon, managed),
        Err(error) => return complain(&error.to_string(), EXIT_CONFIG),
    }
    let check = args.check;
    let config = match args.into_config().and_then(|mut config| {
        log::init(&config.daemon)?;
        config.check_host()?;
        config.load_key_managers()?;
        Ok(config)
    }) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), EXIT_CONFIG),
    };
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    if check {
        tracing::info!(volumes = config.volumes.len(), "the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let format = config.daemon.log_format;
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if format == LogFormat::Json => {
            tracing::error!("{}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
        Err(error) => complain(&in_one_line(error.as_ref()), 1),
    }
}

/// The keeper of an instance's daemon, or the process that serves.
fn serve_instance(kept: bool, daemon: DaemonConfig, managed: Managed) -> ExitCode {
    if let Err(error) = log::init(&daemon) {
        return complain(&error.to_string(), EXIT_CONFIG);
    }
    if !kept {
        return keeper::run();
    }
    let instance = managed.instance.clone();
    let audited = audit::start(daemon.audit_log.as_ref(), Some(&instance));
    match audited.and_then(|_audit| run(managed::run(daemon, managed))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    let _audit = audit::start(config.daemon.audit_log.as_ref(), None)?;
    run(daemon::run(config))
}

fn run(serving: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    limits::raise();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serving);
    // Whatever still runs (a key derivation at a stop during the start) ends with the process.
    runtime.shutdown_background();
    result
}

/// Tells a person at the terminal, or the journal's reader, why there is no daemon.
fn complain(text: &str, code: u8) -> ExitCode {
    // Where standard error is gone, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "sealblkd: {text}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_was_named_is_not_named_again() {
        let error = anyhow::anyhow!("no such file").context("reading: no such file");
        assert_eq!(in_one_line(error.context("volume").as_ref()), "volume: reading: no such file");
        let error = anyhow::anyhow!("why").context("what");
        assert_eq!(in_one_line(error.as_ref()), "what: why");
    }
}
