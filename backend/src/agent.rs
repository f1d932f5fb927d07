//! sealblk-agent: the node's daemon, which starts `sealblkd` for each instance and tells it what to
//! serve (docs/agent.md, docs/agent-protocol.md).
//!
//! Contract: everything blocks, on threads; requests for one instance follow each other, others don't
//! wait for them. The agent may die at any time: daemons don't notice, and a later agent finds them.
//!
//! Invariant: a key is here for as long as the request takes that brings it.
//!
//! Deliberately absent: knowing which instances there should be. That is Nova's.

mod args;
mod blank;
mod check;
mod client;
mod config;
mod counters;
mod error;
mod host;
mod http;
mod key;
mod launch;
mod metrics;
mod node;
mod page;
mod rotations;
mod server;
mod source;

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use rustix::fs::Mode;
use sealblk_block::in_one_line;
use tokio::signal::unix::{SignalKind, signal};

use self::args::Args;
use self::config::AgentConfig;
use self::counters::Counters;
use self::host::Ids;
use self::metrics::Metrics;
use self::node::Node;
use self::rotations::Rotations;
use self::server::{Allowed, Server};
use crate::config::{ConfigError, DaemonConfig, LogFormat};
use crate::{limits, log, notify, version};

/// How long requests that are in work may take at the agent's end.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What `sealblk-agent` runs.
pub fn sealblk_agent() -> ExitCode {
    if let Err(error) = sealblk_secret::harden_process() {
        let error = in_one_line(&error);
        return complain(&format!("cannot keep keys out of core dumps: {error}"), 1);
    }
    rustix::process::umask(Mode::from_raw_mode(0o077));
    let args = Args::parse();
    if args.version {
        // Where standard output is gone, nobody wants to know.
        let _ = write!(std::io::stdout(), "{}", version::text("sealblk-agent", args.verbose));
        return ExitCode::SUCCESS;
    }
    let config = match prepare(&args) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), crate::EXIT_CONFIG),
    };
    let (config, ids, allowed) = config;
    if args.check {
        tracing::info!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let format = config.agent.log_format;
    match run(config, ids, allowed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if format == LogFormat::Json => {
            tracing::error!("{}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
        Err(error) => complain(&in_one_line(error.as_ref()), 1),
    }
}

fn prepare(args: &Args) -> Result<(AgentConfig, Ids, Allowed), ConfigError> {
    let path = args.config.clone().unwrap_or_else(|| config::CONFIG_FILE.into());
    let config = AgentConfig::load(&path, args.config.is_some())?;
    log::init(&DaemonConfig {
        log_level: args.log_level.clone().or_else(|| config.agent.log_level.clone()),
        log_format: config.agent.log_format,
        ..DaemonConfig::default()
    })?;
    let ids = Ids::find(&config.agent)?;
    let allowed = Allowed::new(config.agent.allow_users.as_deref())?;
    Ok((config, ids, allowed))
}

fn run(config: AgentConfig, ids: Ids, allowed: Allowed) -> anyhow::Result<()> {
    // The daemons inherit them.
    limits::raise();
    let program = match &config.agent.daemon {
        Some(program) => program.clone(),
        None => beside_us("sealblkd"),
    };
    let socket = config.agent.socket.clone();
    let group = socket_group(config.agent.socket_group.as_deref())?;
    let node = Node::new(config, ids, program).context("making the agent's directories")?;
    let what = || format!("socket {}", socket.display());
    if let Some(parent) = socket.parent() {
        std::fs::create_dir_all(parent).with_context(what)?;
        open_to(parent, group).with_context(what)?;
    }
    let listener = server::bind(&socket, group).with_context(what)?;
    let node = Arc::new(node);
    let counters = Arc::new(Counters::default());
    let rotations = Arc::new(Rotations::new(node.clone()));
    if let Some(address) = node.config.agent.metrics_listen {
        let listener = TcpListener::bind(address)
            .with_context(|| format!("`metrics_listen` {address}: cannot listen there"))?;
        let metrics = Metrics {
            node: node.clone(),
            rotations: rotations.clone(),
            counters: counters.clone(),
        };
        start("scrapes", move || Arc::new(metrics).serve(&listener))?;
    }
    let server = Arc::new(Server::new(node.clone(), rotations.clone(), allowed, counters));
    let serving = server.clone();
    start("listener", move || serving.serve(&listener))?;
    start("rotations", move || rotations.look_after())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tracing::info!(socket = %socket.display(), launcher = node.launcher(), "listening");
        notify::listening();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::io::Result::Ok(())
    });
    notify::stopping();
    // Whoever asks from now on finds nobody, and asks the next agent.
    std::fs::remove_file(&socket).with_context(what)?;
    ended?;
    let begun = Instant::now();
    while server.working() > 0 && begun.elapsed() < LAST_WORDS {
        host::pause();
    }
    tracing::info!("ending; the instances' daemons go on");
    Ok(())
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map(|_| ()).with_context(|| format!("starting the thread {name}"))
}

/// Another program of ours.
fn beside_us(name: &str) -> PathBuf {
    let directory = std::env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    directory.unwrap_or_else(|| "/usr/bin".into()).join(name)
}

/// The group of the agent's socket.
fn socket_group(name: Option<&str>) -> Result<Option<u32>, ConfigError> {
    match name {
        Some("") => Ok(None),
        Some(name) => host::group(name).map(Some),
        None => Ok(host::group("nova").ok().filter(|_| rustix::process::geteuid().is_root())),
    }
}

/// Lets the group of the socket pass through its directory, where that is ours.
fn open_to(directory: &std::path::Path, group: Option<u32>) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let metadata = std::fs::metadata(directory)?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let closed = metadata.permissions().mode() & 0o077 == 0;
    if let Some(gid) = group.filter(|_| ours && closed) {
        std::os::unix::fs::chown(directory, None, Some(gid))?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o750))?;
    }
    Ok(())
}

/// Tells a person at the terminal, or the journal's reader, why there is no agent.
fn complain(text: &str, code: u8) -> ExitCode {
    // Where standard error is gone, the exit code has to do.
    let _ = writeln!(std::io::stderr(), "sealblk-agent: {text}");
    ExitCode::from(code)
}
