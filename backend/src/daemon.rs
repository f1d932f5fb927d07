//! The daemon's life: open everything, listen, serve, drain, end.
//!
//! Contract: ready means that every volume is unlocked and every socket listens; if one volume
//! can't be had, none is served. At the first SIGTERM or SIGINT no front-end is accepted any more,
//! requests in work are finished, volumes are flushed, sockets are removed; at the second the
//! process ends at once (what was in work is replayed by the next start).

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealblk_block::in_one_line;
use sealblk_rotation::{ASK_AGAIN, Ages};
use sealblk_secret::Protection;
use sealblk_session::{Event, Session, StopHandle};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout_at};

use crate::audit;
use crate::config::{Config, DaemonConfig, VolumeConfig};
use crate::disk::{self, Opened};
use crate::socket::SocketFile;
use crate::status::Overview;
use crate::{control, notify, socket};

/// How often to say what a long end is waiting for.
const DRAIN_REPORT: Duration = Duration::from_secs(5);

/// How long, after one volume could not be opened, to listen for what else fails: enough for what
/// fails by itself, too short for what waits for storage.
const OTHER_FAILURES: Duration = Duration::from_millis(250);

/// Serves until a signal ends it.
pub(crate) async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    audit::reopen_on_hangup()?;
    let Config { daemon, volumes } = config;
    // A QEMU that connects waits for our answers, and its guest with it: sockets come last.
    let ages = Ages::new(daemon.state_dir());
    let opened = tokio::select! {
        opened = open_all(volumes, &ages) => opened?,
        name = signals.next() => {
            tracing::info!(signal = name, "told to end before the start was complete");
            return Ok(());
        }
    };
    tell_protection();
    // All that can fail comes before the first session starts.
    let control = bind_control(&daemon)?;
    let bound = bind_all(opened)?;
    let (mut serving, failure) = Serving::start(bound);
    let (stop_control, stopped) = watch::channel(false);
    let control = control.map(|(listener, file)| {
        let (overview, by_mode) = (serving.overview.clone(), daemon.control_group.is_some());
        tokio::spawn(async move {
            control::serve(listener, by_mode, overview, stopped).await;
            drop(file);
        })
    });
    let outcome = match failure {
        Some(failure) => Err(failure),
        None => serve(&mut serving, &mut signals).await,
    };
    notify::stopping();
    let outcome = first_failure(outcome.err(), serving.drain(&mut signals).await);
    let _ = stop_control.send(true);
    if let Some(task) = control {
        // A panic in it is logged already; there is nothing left to serve.
        let _ = task.await;
    }
    serving.let_go(&mut signals).await;
    tracing::info!("ended");
    audit::record(&audit::Event::DaemonEnded);
    outcome
}

/// Says how keys lie in memory; to be called when the first does.
pub(crate) fn tell_protection() {
    match sealblk_secret::protection() {
        protection @ Protection::Unlocked(_) => tracing::warn!(
            %protection,
            "keys in memory may be swapped; raise RLIMIT_MEMLOCK (LimitMEMLOCK=)"
        ),
        protection => tracing::info!(%protection, "keys in memory"),
    }
}

/// Serves until a signal or a defect ends it.
async fn serve(serving: &mut Serving, signals: &mut Signals) -> anyhow::Result<()> {
    notify::ready(serving.disks.len());
    tracing::info!(volumes = serving.disks.len(), "ready");
    let overview = serving.overview.clone();
    tokio::select! {
        name = signals.next() => {
            tracing::info!(signal = name, "draining");
            Ok(())
        }
        lost = serving.unexpected_end() => Err(lost),
        never = keep_schedules(overview) => match never {},
    }
}

/// Lets the schedules of rotations decide, every minute or sooner. The wall clock is looked at anew
/// each time, as it may jump.
async fn keep_schedules(overview: Arc<Overview>) -> Infallible {
    if overview.rotators().iter().all(|rotator| !rotator.is_scheduled()) {
        return pending().await;
    }
    tick(overview).await
}

/// Asks every schedule again and again. Disks may come and go.
pub(crate) async fn tick(overview: Arc<Overview>) -> Infallible {
    loop {
        let overview = overview.clone();
        // Keys are fetched and stretched, headers written: none of that on this thread.
        let ticked = tokio::task::spawn_blocking(move || {
            overview.rotators().iter().filter_map(crate::rotator::Rotator::tick).min()
        });
        let next = ticked.await.unwrap_or_default();
        let now = crate::aging::wall_clock();
        let soon = next.map(|at| Duration::from_secs(at.saturating_sub(now).max(1)));
        tokio::time::sleep(soon.unwrap_or(ASK_AGAIN).min(ASK_AGAIN)).await;
    }
}

/// The failure to end with, which the caller tells; the others go to the log.
fn first_failure(
    first: Option<anyhow::Error>,
    rest: impl IntoIterator<Item = anyhow::Error>,
) -> anyhow::Result<()> {
    let mut failures = first.into_iter().chain(rest);
    let Some(first) = failures.next() else { return Ok(()) };
    for other in failures {
        tracing::error!("{}", in_one_line(other.as_ref()));
    }
    Err(first)
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot catch signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Opens all volumes at the same time, each on a thread of its own: storage and key sources may
/// be slow, and key derivation takes a core. (Memory-hard ones queue up inside `sealblk-luks`.)
async fn open_all(volumes: Vec<VolumeConfig>, ages: &Ages) -> anyhow::Result<Vec<Opened>> {
    let (done, answers) = mpsc::unbounded_channel();
    let count = volumes.len();
    for (index, config) in volumes.into_iter().enumerate() {
        let title = format!("volume {:?} ({})", config.name, config.uri);
        let (done, thread_title, ages) = (done.clone(), title.clone(), ages.clone());
        thread::Builder::new()
            .name("open".to_owned())
            .spawn(move || {
                // The receiver is gone when another volume failed first.
                let _ = done.send((index, disk::open(config, &ages, None).context(thread_title)));
            })
            .with_context(|| format!("{title}: no thread to open it"))?;
    }
    drop(done);
    collect(count, answers).await
}

/// The answers in the order of their index, unless one is a failure: the first to come is the
/// result, at once, whatever the others still wait for.
async fn collect<T>(
    count: usize,
    mut answers: mpsc::UnboundedReceiver<(usize, anyhow::Result<T>)>,
) -> anyhow::Result<Vec<T>> {
    let mut opened: Vec<_> = (0..count).map(|_| None).collect();
    while let Some((index, answer)) = answers.recv().await {
        match (answer, opened.get_mut(index)) {
            (Ok(answer), Some(place)) => *place = Some(answer),
            (Ok(_), None) => {}
            (Err(first), _) => {
                let deadline = tokio::time::Instant::now() + OTHER_FAILURES;
                let mut others = Vec::new();
                while let Ok(Some((_, answer))) = timeout_at(deadline, answers.recv()).await {
                    others.extend(answer.err());
                }
                return Err(first_failure(Some(first), others).err().unwrap_or_else(lost_thread));
            }
        }
    }
    opened.into_iter().collect::<Option<_>>().ok_or_else(lost_thread)
}

/// A thread that opens a volume ended without an answer.
fn lost_thread() -> anyhow::Error {
    anyhow!("opening a volume failed badly, which is a defect; see the log")
}

fn bind_control(config: &DaemonConfig) -> anyhow::Result<Option<(UnixListener, SocketFile)>> {
    let Some(path) = &config.control else { return Ok(None) };
    control::bind(path, config.control_group.as_deref()).context("control API").map(Some)
}

/// Binds every disk's socket.
fn bind_all(opened: Vec<Opened>) -> anyhow::Result<Vec<(Session, Opened)>> {
    let each = opened.into_iter().map(|disk| {
        let session = bind(&disk).with_context(|| format!("volume {:?}", disk.name))?;
        Ok((session, disk))
    });
    each.collect()
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
    /// Each disk whose thread has ended, by its index, and what the last flush said.
    ends: mpsc::UnboundedReceiver<End>,
    overview: Arc<Overview>,
}

type End = (usize, anyhow::Result<()>);

/// Tells that a thread has ended, however it did.
struct EndNotice {
    index: usize,
    outcome: anyhow::Result<()>,
    ends: mpsc::UnboundedSender<End>,
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Ok(()));
        // Nobody listens only when the process is ending.
        let _ = self.ends.send((self.index, outcome));
    }
}

impl Serving {
    /// Starts every session. With a failure, those that run already are there to be drained.
    fn start(bound: Vec<(Session, Opened)>) -> (Self, Option<anyhow::Error>) {
        let (ends_in, ends) = mpsc::unbounded_channel();
        let (mut disks, mut views) = (Vec::new(), Vec::new());
        let mut failure = None;
        for (index, (session, mut disk)) in bound.into_iter().enumerate() {
            let stop = session.stop_handle();
            disk.growth.told_by(session.capacity_handle());
            let (name, view) = (disk.name.clone(), disk.view(stop.clone()));
            let mut notice = EndNotice { index, outcome: Ok(()), ends: ends_in.clone() };
            let thread = thread::Builder::new().name("session".to_owned()).spawn(move || {
                let span = tracing::info_span!("disk", name = disk.name);
                let _entered = span.enter();
                tracing::info!(socket = %session.path().display(), "listening");
                session.run(&mut disk.host, &log_event);
                let title = format!("volume {:?}", disk.name);
                notice.outcome = disk.close().context(title);
                // The socket goes last: a successor finds it free only when the volume is.
                drop(session);
                drop(notice);
            });
            if let Err(error) = thread {
                let what = format!("volume {name:?}: no thread for its session");
                failure = Some(anyhow!(error).context(what));
                break;
            }
            views.push(view);
            disks.push(DiskThread { name, stop, ended: false });
        }
        (Self { disks, ends, overview: Arc::new(Overview::new(views)) }, failure)
    }

    /// A session that ends without being told: waits for ever unless there is one.
    async fn unexpected_end(&mut self) -> anyhow::Error {
        let Some((index, outcome)) = self.ends.recv().await else { return pending().await };
        let Some(disk) = self.disks.get_mut(index) else { return pending().await };
        disk.ended = true;
        if let Err(error) = outcome {
            tracing::error!("{}", in_one_line(error.as_ref()));
        }
        anyhow!(
            "volume {:?}: its session ended by itself, which is a defect; restart it",
            disk.name
        )
    }

    /// Stops all sessions and waits for them; a signal meanwhile ends the process. Gives what
    /// could not be made durable.
    async fn drain(&mut self, signals: &mut Signals) -> Vec<anyhow::Error> {
        let mut failures = Vec::new();
        self.overview.drain();
        for disk in &self.disks {
            disk.stop.stop();
        }
        let mut report = interval(DRAIN_REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        report.reset();
        while self.disks.iter().any(|disk| !disk.ended) {
            tokio::select! {
                Some((index, outcome)) = self.ends.recv() => {
                    failures.extend(outcome.err());
                    if let Some(disk) = self.disks.get_mut(index) {
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
        failures
    }

    /// Closes the volumes, which storage that is away can keep waiting: a signal ends that, too.
    async fn let_go(self, signals: &mut Signals) {
        // Views of the disks have hands on their volumes, and these were the last.
        let mut closed = tokio::task::spawn_blocking(move || drop(self));
        loop {
            tokio::select! {
                // A panic in it is logged already.
                _ = &mut closed => return,
                name = signals.next() => {
                    tracing::warn!(signal = name, "told again to end: ending at once");
                    std::process::exit(1);
                }
                () = tokio::time::sleep(DRAIN_REPORT) => {
                    tracing::warn!("still waiting for the storage to close the volumes");
                }
            }
        }
    }
}

/// Binds a disk's socket.
pub(crate) fn bind(disk: &Opened) -> anyhow::Result<Session> {
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
pub(crate) fn log_event(event: &Event, dropped: u64) {
    match event {
        Event::Connected | Event::Disconnected { .. } | Event::SizeTold { .. } => {
            tracing::info!("{event}")
        }
        _ => tracing::warn!("{event}"),
    }
    if dropped > 0 {
        tracing::warn!(dropped, "more events than are logged");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn volumes_keep_their_order_whichever_opens_first() {
        let (done, answers) = mpsc::unbounded_channel();
        for index in [2, 0, 1] {
            done.send((index, Ok(index))).unwrap();
        }
        drop(done);
        assert_eq!(collect(3, answers).await.unwrap(), [0, 1, 2]);
    }

    #[tokio::test]
    async fn a_volume_that_fails_does_not_wait_for_one_that_hangs() {
        let (done, answers) = mpsc::unbounded_channel();
        done.send((2, Err(anyhow!("first to fail")))).unwrap();
        done.send((1, Err(anyhow!("second")))).unwrap();
        // The volume at 0 never answers: its sender lives.
        let error = collect::<()>(3, answers).await.unwrap_err();
        assert_eq!(error.to_string(), "first to fail");
        drop(done);
    }

    #[tokio::test]
    async fn a_thread_that_vanishes_is_a_failure() {
        let (done, answers) = mpsc::unbounded_channel();
        done.send((1, Ok(()))).unwrap();
        drop(done);
        assert!(collect(2, answers).await.is_err());
    }

    #[test]
    fn what_fails_at_the_end_is_the_outcome_unless_something_failed_before() {
        let end = || vec![anyhow!("flush of a"), anyhow!("flush of b")];
        assert!(first_failure(None, Vec::new()).is_ok());
        assert_eq!(first_failure(None, end()).unwrap_err().to_string(), "flush of a");
        let first = Some(anyhow!("lost"));
        assert_eq!(first_failure(first, end()).unwrap_err().to_string(), "lost");
    }
}
