//! A running server with a client that has filled its disk; or the raw client in its place.
//!
//! Contract: whatever goes wrong names the server and shows the end of its log.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use sealblk_tests::Daemon;

use crate::cpu::{Clocks, Passed, process_ns};
use crate::interrupt;
use crate::load::Load;
use crate::machine::{CLIENT, SERVER, pin};
use crate::memory::Resident;
use crate::network::external::External;
use crate::raw::Raw;
use crate::results::{Idle, Sample};
use crate::servers::{Kind, Materials};
use crate::startup::{self, Start};
use crate::store::{Class, Store};
use crate::work::Work;

/// Lines of a failed server's log that are shown.
const LOG_LINES: usize = 10;

/// One server, its client, its storage.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    // Dropped in this order: client, server, storage.
    driver: Driver,
    daemon: Option<Daemon>,
    start: Option<Start>,
    /// Who keeps the data.
    service: Option<u32>,
    _store: Store,
}

enum Driver {
    Client(Load),
    Raw(Raw),
    External(External),
}

/// How a sample is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) warm_up: Duration,
    pub(crate) sample: Duration,
}

impl Server {
    /// Makes the storage, starts the server, connects, fills the disk. With more than one queue it
    /// may use both processors.
    pub(crate) fn start(
        kind: &Kind,
        class: Class,
        materials: &Materials,
        queues: u16,
        polls: bool,
    ) -> Result<Self> {
        let start = || -> Result<Self> {
            let kind = kind.clone();
            let store = Store::new(class, |image| materials.make_image(&kind, image))?;
            materials.finish(&kind, &store)?;
            let service = store.service()?;
            let Some(launch) = materials.launch(&kind, &store, queues)? else {
                let driver = match External::new(&kind, &store) {
                    Some(external) => Driver::External(external),
                    None => Driver::Raw(Raw::open(store.path()?, queues.into())?),
                };
                return Ok(Self {
                    kind,
                    driver,
                    daemon: None,
                    start: None,
                    service,
                    _store: store,
                });
            };
            let processors = if queues > 1 { &[CLIENT, SERVER][..] } else { &[SERVER] };
            let start = startup::measure(&launch, processors)?;
            // What is started inherits the processors of the thread that starts it.
            pin(processors)?;
            let daemon = launch.start();
            pin(&[CLIENT])?;
            let mut daemon = daemon?;
            let load = Load::connect(daemon.socket(), queues, polls);
            let load = load.map_err(|error| explain(error, &mut daemon))?;
            let (driver, daemon, start) = (Driver::Client(load), Some(daemon), Some(start));
            Ok(Self { kind, driver, daemon, start, service, _store: store })
        };
        start().with_context(|| format!("{} on {} storage", kind.name(), class.name()))
    }

    /// The process whose time counts as the server's.
    fn pid(&self) -> Result<u32> {
        self.daemon.as_ref().map_or_else(|| Ok(std::process::id()), Daemon::pid)
    }

    /// Takes one sample, and says what else the machine did meanwhile.
    pub(crate) fn sample(
        &mut self,
        work: &Work,
        timing: Timing,
        clocks: &mut Clocks,
    ) -> Result<(Sample, Passed)> {
        interrupt::check()?;
        if let Driver::External(external) = &self.driver {
            return external
                .sample(work, timing, clocks, self.service)
                .with_context(|| format!("{}: {}", self.kind.name(), work.name()));
        }
        let pid = self.pid()?;
        let alone = if matches!(self.driver, Driver::Raw(_)) { SERVER } else { CLIENT };
        pin(if work.both_processors { &[CLIENT, SERVER] } else { std::slice::from_ref(&alone) })?;
        let sampled = self.drive(work, timing, clocks, pid);
        pin(&[CLIENT])?;
        sampled
            .map_err(|error| match &mut self.daemon {
                Some(daemon) => explain(error, daemon),
                None => error,
            })
            .with_context(|| format!("{}: {}", self.kind.name(), work.name()))
    }

    fn drive(
        &mut self,
        work: &Work,
        timing: Timing,
        clocks: &mut Clocks,
        pid: u32,
    ) -> Result<(Sample, Passed)> {
        let mut drive = |duration| match &mut self.driver {
            Driver::Client(load) => load.drive(work, duration),
            Driver::Raw(raw) => raw.drive(work, duration),
            Driver::External(_) => bail!("another program drives itself"),
        };
        drive(timing.warm_up)?;
        let before = clocks.read(pid, self.service)?;
        let outcome = drive(timing.sample)?;
        let passed = clocks.read(pid, self.service)?.since(&before, pid);
        let sample = Sample {
            iops: outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
            p50_ns: outcome.p50_ns,
            p99_ns: outcome.p99_ns,
            p999_ns: outcome.p999_ns,
            requests: outcome.requests,
            cpu: passed.cpu,
        };
        Ok((sample, passed))
    }

    /// Processor time used so far; none for the raw client.
    pub(crate) fn used_ns(&self) -> Result<Option<u64>> {
        self.daemon.as_ref().map(|daemon| process_ns(daemon.pid()?)).transpose()
    }

    /// What it takes, given its processor time within a window in which nobody used it.
    pub(crate) fn idle(&self, cpu_ns: u64, window: Duration) -> Result<Option<Idle>> {
        let (Some(daemon), Some(start)) = (&self.daemon, self.start) else { return Ok(None) };
        let resident = Resident::of(daemon.pid()?)?;
        Ok(Some(Idle {
            cpu_ns,
            window_ns: u64::try_from(window.as_nanos())?,
            rss_bytes: resident.all,
            client_bytes: resident.client,
            file_bytes: resident.file,
            start_ms: start.socket_ms,
            ready_after_key_ms: start.after_key_ms,
        }))
    }
}

/// Whether it has died, and the last it said.
pub(crate) fn explain(error: anyhow::Error, daemon: &mut Daemon) -> anyhow::Error {
    let text = daemon.log().text();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n");
    let state = if daemon.must_run().is_err() { "has ended" } else { "still runs" };
    error.context(format!("the server {state}; the end of its log:\n{last}"))
}
