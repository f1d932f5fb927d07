//! The audit log: who did what with which volume and which key, one JSON object per line.
//!
//! Contract: [`start`] opens the sink that the configuration names; until then, and without one,
//! [`record`] does nothing. Recording never waits and never fails: a line goes through a bounded
//! queue to a thread that writes it. A sink that can't be written to is told once in the log, and so
//! is its return; lines that were lost are counted in a line of their own (`lost`). The end waits for
//! what is queued, but not for storage that hangs. The schema is in docs/observability.md: fields are
//! added, never changed or removed.
//! Invariant: names and fingerprints of keys, never secrets.
//!
//! Deliberately absent: making lines durable one by one (that is a log collector's work), and what
//! only reads (`GET`).

mod event;
mod sink;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::event::{
    Event, Pause, fingerprint, key_fetch_failed, news, path_listener, paused, request,
    rotation_completed, rotation_started,
};
use self::sink::Sink;

/// Lines that may wait to be written; more would be a storm.
const QUEUE_LINES: usize = 1024;

/// How long the end waits for lines to be written.
const END_WAIT: Duration = Duration::from_secs(2);

/// In place of a path: the daemon's own log.
const JOURNAL: &str = "journal";

/// The process's audit log.
static AUDIT: OnceLock<Audit> = OnceLock::new();

/// Where to write, as `audit_log` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Appended to this file.
    File(PathBuf),
    /// Lines of the daemon's log, with the target `sealblk::audit`.
    Journal,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            JOURNAL => Ok(Self::Journal),
            path if path.starts_with('/') => Ok(Self::File(path.into())),
            other => Err(format!("{other:?} is neither `{JOURNAL}` nor a path that begins with /")),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Target {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is sent to the writing thread.
enum Message {
    Line(String),
    Reopen,
    End,
}

/// The way to one audit log.
struct Audit {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    instance: Option<String>,
}

/// Ends the audit log when dropped: with the process.
pub(crate) struct Guard {
    end: Option<(SyncSender<Message>, Receiver<()>)>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((lines, ended)) = self.end.take()
            && lines.try_send(Message::End).is_ok()
        {
            // Storage that hangs must not keep the daemon from ending.
            let _ = ended.recv_timeout(END_WAIT);
        }
    }
}

/// Opens the audit log of this process, once. `instance`: whose volumes it serves.
///
/// # Errors
/// The file can't be opened: who wants an audit log must not run without one unawares.
pub(crate) fn start(target: Option<&Target>, instance: Option<&str>) -> anyhow::Result<Guard> {
    let Some(target) = target else { return Ok(Guard { end: None }) };
    let (audit, guard) = Audit::open(target, instance.map(str::to_owned))?;
    // A second start in one process is a defect that costs the second log only.
    let _ = AUDIT.set(audit);
    record(&Event::DaemonStarted { version: env!("CARGO_PKG_VERSION") });
    Ok(guard)
}

/// Opens the file anew at every SIGHUP, as logrotate wants it. To be called within the runtime. Without
/// a file the signal does nothing: it is sent to all daemons alike, and must end none.
pub(crate) fn reopen_on_hangup() -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("cannot catch SIGHUP")?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            if let Some(audit) = AUDIT.get() {
                // A queue that is full has no room for what could wait anyway.
                let _ = audit.lines.try_send(Message::Reopen);
            }
        }
    });
    Ok(())
}

/// Writes an event.
pub(crate) fn record(event: &Event<'_>) {
    if let Some(audit) = AUDIT.get() {
        audit.record(event);
    }
}

/// One line: when, what, and who says so.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    event: &'a Event<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'a str>,
    pid: u32,
}

impl Audit {
    fn open(target: &Target, instance: Option<String>) -> anyhow::Result<(Self, Guard)> {
        let mut sink = Sink::open(target)?;
        let (lines, queue) = sync_channel(QUEUE_LINES);
        let (tell_end, ended) = channel();
        let lost = Arc::new(AtomicU64::new(0));
        let audit = Self { lines: lines.clone(), lost: lost.clone(), instance };
        let (for_thread, pid_instance) = (lost, audit.instance.clone());
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                write_all(&mut sink, &queue, &for_thread, pid_instance.as_deref());
                let _ = tell_end.send(());
            })
            .context("no thread for the audit log")?;
        Ok((audit, Guard { end: Some((lines, ended)) }))
    }

    fn record(&self, event: &Event<'_>) {
        let line = line(event, self.instance.as_deref());
        match self.lines.try_send(Message::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.lost.fetch_add(1, Relaxed);
            }
        }
    }
}

/// An event as a line, with its end.
fn line(event: &Event<'_>, instance: Option<&str>) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = Line { time: rfc3339(since), event, instance, pid: std::process::id() };
    // Nothing in an event has a form that JSON doesn't.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// The writing thread.
fn write_all(sink: &mut Sink, queue: &Receiver<Message>, lost: &AtomicU64, instance: Option<&str>) {
    while let Ok(message) = queue.recv() {
        match message {
            Message::Line(text) => {
                let missing = lost.load(Relaxed);
                if missing > 0 && sink.write(&line(&Event::Lost { lines: missing }, instance)) {
                    lost.fetch_sub(missing, Relaxed);
                }
                if !sink.write(&text) {
                    lost.fetch_add(1, Relaxed);
                }
            }
            Message::Reopen => sink.reopen(),
            Message::End => return,
        }
    }
}

/// A time since 1970 as RFC 3339 has it, in UTC, to the millisecond.
fn rfc3339(since: Duration) -> String {
    let (seconds, of_day) = (since.as_secs(), since.as_secs() % 86_400);
    format!(
        "{}T{:02}:{:02}:{:02}.{:03}Z",
        sealblk_rotation::utc_date(seconds),
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_millis()
    )
}

#[cfg(test)]
mod tests;
