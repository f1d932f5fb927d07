//! The daemon's life: open everything, listen, serve, drain, end.
//!
//! Contract: ready means that every volume is unlocked and every socket listens; if one volume
//! can't be had, none is served. At the first SIGTERM or SIGINT no front-end is accepted any more,
//! requests in work are finished, volumes are flushed, sockets are removed; at the second the
//! process ends at once (what was in work is replayed by the next start).

use std::future::pending;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealblk_secret::Protection;
use sealblk_session::{Event, Session, StopHandle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::config::{Config, DaemonConfig, VolumeConfig};
use crate::disk::{self, Opened};
use crate::status::Overview;
use crate::{control, notify, socket};

/// How often to say what a long end is waiting for.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// Serves until a signal ends it.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let Config { daemon, volumes } = config;
    // A QEMU that connects waits for our answers, and its guest with it: sockets come last.
    let opened = tokio::select! {
        opened = open_all(volumes) => opened?,
        name = signals.next() => {
            tracing::info!(signal = name, "told to end before the start was complete");
            return Ok(());
        }
    };
    let mut serving = Serving::start(opened)?;
    let (stop_control, stopped) = watch::channel(false);
    let control = start_control(&daemon, serving.overview.clone(), stopped)?;
    match sealblk_secret::protection() {
        Protection::Unlocked(reason) => tracing::warn!(
            reason,
            "keys are in memory that may be swapped; raise RLIMIT_MEMLOCK (LimitMEMLOCK=)"
        ),
        protection => tracing::info!(%protection, "keys in memory"),
    }
    notify::ready(serving.disks.len());
    tracing::info!(volumes = serving.disks.len(), "ready");

    let outcome = tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "draining");
            Ok(())
        }
        lost = serving.unexpected_end() => Err(lost),
    };
    notify::stopping();
    serving.drain(&mut signals).await;
    let _ = stop_control.send(true);
    if let Some(task) = control {
        // A panic in it is logged already; there is nothing left to serve.
        let _ = task.await;
    }
    tracing::info!("ended");
    outcome
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Opens all volumes at the same time, each on a thread of its own: storage and key sources may
/// be slow, and key derivation takes a core. (Memory-hard ones queue up inside `sealblk-luks`.)
async fn open_all(volumes: Vec<VolumeConfig>) -> anyhow::Result<Vec<Opened>> {
    let mut answers = Vec::with_capacity(volumes.len());
    for config in volumes {
        let (done, answer) = oneshot::channel();
        let title = format!("volume {:?} ({})", config.name, config.uri);
        thread::Builder::new()
            .name("open".to_owned())
            .spawn(move || {
                // The receiver is gone when another volume failed first.
                let _ = done.send(disk::open(config));
            })
            .with_context(|| format!("{title}: no thread to open it"))?;
        answers.push((title, answer));
    }
    let mut opened = Vec::with_capacity(answers.len());
    for (title, answer) in answers {
        let result = answer.await.unwrap_or_else(|_| Err(anyhow!("opening it failed badly")));
        opened.push(result.context(title)?);
    }
    Ok(opened)
}

fn start_control(
    config: &DaemonConfig,
    overview: Arc<Overview>,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<Option<tokio::task::JoinHandle<()>>> {
    let Some(path) = &config.control else { return Ok(None) };
    let group = config.control_group.as_deref();
    let (listener, file) = control::bind(path, group).context("control API")?;
    let by_mode = group.is_some();
    Ok(Some(tokio::spawn(async move {
        control::serve(listener, by_mode, overview, stopped).await;
        drop(file);
    })))
}

/// One disk's thread.
struct DiskThread {
    name: String,
    stop: StopHandle,
    ended: bool,
}

/// All disks, being served.
struct Serving {
    disks: Vec<DiskThread>,
    /// Index of each disk whose thread has ended.
    ends: mpsc::UnboundedReceiver<usize>,
    overview: Arc<Overview>,
}

/// Tells that a thread has ended, however it did.
struct EndNotice(usize, mpsc::UnboundedSender<usize>);

impl Drop for EndNotice {
    fn drop(&mut self) {
        // Nobody listens only when the process is ending.
        let _ = self.1.send(self.0);
    }
}

impl Serving {
    /// Binds every socket, then starts every session.
    fn start(opened: Vec<Opened>) -> anyhow::Result<Self> {
        let mut bound = Vec::with_capacity(opened.len());
        for disk in opened {
            let session = bind(&disk).with_context(|| format!("volume {:?}", disk.name))?;
            bound.push((session, disk));
        }
        let (end, ends) = mpsc::unbounded_channel();
        let mut disks = Vec::with_capacity(bound.len());
        let mut views = Vec::with_capacity(bound.len());
        for (index, (session, mut disk)) in bound.into_iter().enumerate() {
            let stop = session.stop_handle();
            views.push(disk.view(stop.clone()));
            disks.push(DiskThread { name: disk.name.clone(), stop, ended: false });
            let notice = EndNotice(index, end.clone());
            thread::Builder::new()
                .name("session".to_owned())
                .spawn(move || {
                    let _notice = notice;
                    let span = tracing::info_span!("disk", name = disk.name);
                    let _entered = span.enter();
                    tracing::info!(socket = %session.path().display(), "listening");
                    session.run(&mut disk.host, &log_event);
                    disk.close();
                    // The socket goes last: a successor finds it free only when the volume is.
                    drop(session);
                })
                .context("no thread for a session")?;
        }
        Ok(Self { disks, ends, overview: Arc::new(Overview::new(views)) })
    }

    /// A session that ends without being told: waits for ever unless there is one.
    async fn unexpected_end(&mut self) -> anyhow::Error {
        let Some(index) = self.ends.recv().await else { return pending().await };
        let Some(disk) = self.disks.get_mut(index) else { return pending().await };
        disk.ended = true;
        anyhow!(
            "volume {:?}: its session ended by itself, which is a defect; restart it",
            disk.name
        )
    }

    /// Stops all sessions and waits for them; a signal meanwhile ends the process.
    async fn drain(&mut self, signals: &mut Signals) {
        self.overview.drain();
        for disk in &self.disks {
            disk.stop.stop();
        }
        let mut report = interval(DRAIN_REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        report.reset();
        while self.disks.iter().any(|disk| !disk.ended) {
            tokio::select! {
                index = self.ends.recv() => {
                    if let Some(disk) = index.and_then(|index| self.disks.get_mut(index)) {
                        disk.ended = true;
                    }
                }
                name = signals.next() => {
                    tracing::warn!(signal = name, "told again to end: ending at once");
                    std::process::exit(1);
                }
                _ = report.tick() => {
                    let waiting: Vec<_> =
                        self.disks.iter().filter(|d| !d.ended).map(|d| d.name.as_str()).collect();
                    tracing::warn!(volumes = ?waiting, "still waiting for requests in work");
                }
            }
        }
    }
}

fn bind(disk: &Opened) -> anyhow::Result<Session> {
    let group = disk.socket.group.as_deref();
    let group = group.map(|name| socket::find_group(&disk.socket.path, name)).transpose()?;
    let at = sealblk_session::SocketConfig {
        path: disk.socket.path.clone(),
        mode: disk.socket.mode,
        group,
    };
    Ok(Session::bind(&at, disk.profile.clone())?)
}

/// What happens on a disk's socket, in the log. Called by the session's thread.
fn log_event(event: &Event, dropped: u64) {
    match event {
        Event::Connected | Event::Disconnected { .. } => tracing::info!("{event}"),
        _ => tracing::warn!("{event}"),
    }
    if dropped > 0 {
        tracing::warn!(dropped, "more events than are logged");
    }
}
