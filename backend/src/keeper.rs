//! The keeper: a process that serves nothing, and so is hard to kill; parent of the one that serves.
//!
//! Contract: it holds what the serving process (the worker) would lose by dying: the orders, the
//! passphrases (memory behind descriptors) and the devices. When the worker dies it starts another
//! one at once and gives it all back; no token, no agent and no key manager is needed for that. When
//! the worker ends by itself (exit status 0), or was never ready, the keeper ends with its status.
//! SIGTERM and SIGINT are passed on.
//!
//! Invariant: no byte from a guest, a header or a network gets here; messages come from the worker
//! alone. A keeper that dies leaves its worker serving, who then has nobody to start it again.
//! Deliberately absent: tokio, and any thread.

mod link;
mod words;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sealblk_keys::Held;
use sealblk_rpc::{Connection, Message};

pub(crate) use self::link::{Kept, Link};
use self::words::{Reply, Word};
use crate::notify;

/// The flag by which a worker knows that its standard input is the keeper.
pub(crate) const WORKER_FLAG: &str = "--kept";

/// How long to wait before a worker that died soon after the last one is started again: doubled each
/// time.
const BACKOFF: Duration = Duration::from_millis(50);
/// And at most this: somebody may mend the cause, and the guest waits.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A worker that lived so long was well.
const WELL: Duration = Duration::from_secs(10);

/// A volume of the worker's.
struct Volume {
    order: Box<crate::orders::AttachOrder>,
    key: Held,
    device: Option<OwnedFd>,
    parked: bool,
}

/// Runs workers until one ends by itself.
pub(crate) fn run() -> ExitCode {
    crate::limits::raise();
    match supervise() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{}", sealblk_block::in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> anyhow::Result<u8> {
    let signals = catch_signals().context("cannot catch signals")?;
    let mut keeper = Keeper { volumes: BTreeMap::new(), ready: false, told_to_end: false };
    let mut backoff = Duration::ZERO;
    loop {
        let began = Instant::now();
        let (mut child, link) = start()?;
        let status = keeper.attend(&mut child, &link, &signals)?;
        if status.success() || !keeper.ready || keeper.told_to_end {
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        if began.elapsed() > WELL {
            backoff = Duration::ZERO;
        }
        let how = match (status.signal(), status.code()) {
            (Some(signal), _) => format!("killed by signal {signal}"),
            (None, code) => format!("exit status {}", code.unwrap_or(-1)),
        };
        tracing::error!(
            volumes = keeper.volumes.len(),
            "the serving process died ({how}): another one takes over"
        );
        if keeper.wait_or_told(&signals, backoff)? {
            return Ok(1);
        }
        backoff = (backoff * 2).clamp(BACKOFF, BACKOFF_MAX);
    }
}

/// The descriptor becomes readable when SIGTERM or SIGINT came.
fn catch_signals() -> std::io::Result<UnixStream> {
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    for signal in [Signal::TERM, Signal::INT] {
        signal_hook::low_level::pipe::register(signal.as_raw(), writer.try_clone()?)?;
    }
    // It is for the audit log, which is the worker's; a keeper must not end by it.
    signal_hook::flag::register(Signal::HUP.as_raw(), Arc::default())?;
    Ok(reader)
}

/// Starts a worker: this same program (also if its file was replaced since: the two have to
/// understand each other), in a process group of its own, so that a terminal's Ctrl-C reaches only us.
fn start() -> anyhow::Result<(Child, Connection)> {
    let (ours, theirs) = Connection::pair().context("no socket for the serving process")?;
    let child = Command::new("/proc/self/exe")
        .arg0("sealblkd")
        .args(std::env::args_os().skip(1))
        .arg(WORKER_FLAG)
        .env_remove("NOTIFY_SOCKET")
        .stdin(OwnedFd::from(theirs))
        .process_group(0)
        .spawn()
        .context("cannot start the serving process")?;
    Ok((child, ours))
}

struct Keeper {
    volumes: BTreeMap<String, Volume>,
    /// A worker was ready once.
    ready: bool,
    told_to_end: bool,
}

impl Keeper {
    /// Answers a worker until it has ended.
    fn attend(
        &mut self,
        child: &mut Child,
        link: &Connection,
        signals: &UnixStream,
    ) -> anyhow::Result<ExitStatus> {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no pid")?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the process")?;
        let mut linked = true;
        loop {
            let mut watched =
                vec![PollFd::new(&pidfd, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            if linked {
                watched.push(PollFd::new(link, PollFlags::IN));
            }
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("poll"),
            }
            let came = |at: usize| watched.get(at).is_some_and(|fd| !fd.revents().is_empty());
            let (ended, told, spoken) = (came(0), came(1), came(2));
            if told && drained(signals) {
                self.told_to_end = true;
                // It may have ended this moment.
                let _ = pidfd_send_signal(&pidfd, Signal::TERM);
            }
            if linked && spoken {
                linked = self.hear(link);
            } else if ended {
                // What it said last was heard above: only then nothing is left to read.
                return child.wait().context("cannot ask how the serving process ended");
            }
        }
    }

    /// Hears and answers one message; false: nothing will come any more.
    fn hear(&mut self, link: &Connection) -> bool {
        let message = match link.receive() {
            Ok(Some(message)) => message,
            Ok(None) => return false,
            Err(error) => {
                tracing::error!(%error, "the serving process cannot be understood");
                return false;
            }
        };
        match self.obey(link, message) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!("keeping: {error:#}");
                let reply = Reply::Refused { why: format!("{error:#}") };
                link.send(&words::bytes(&reply), &[]).is_ok()
            }
        }
    }

    fn obey(&mut self, link: &Connection, message: Message) -> anyhow::Result<()> {
        let word = serde_json::from_slice(&message.bytes).context("an unknown word")?;
        match word {
            Word::Ready => {
                if !std::mem::replace(&mut self.ready, true) {
                    notify::ready(self.volumes.len());
                }
            }
            Word::Keep { volume, order, device } => {
                let mut descriptors = message.descriptors.into_iter();
                let key = descriptors.next().context("no key came along")?;
                let key = Held::from_descriptor(&volume, key)?;
                let device = device.then(|| descriptors.next()).flatten();
                self.volumes.insert(volume, Volume { order, key, device, parked: false });
            }
            Word::Park { volume } => {
                if let Some(volume) = self.volumes.get_mut(&volume) {
                    volume.device = None;
                    volume.parked = true;
                }
            }
            Word::Drop { volume } => {
                self.volumes.remove(&volume);
            }
            Word::Restore => {
                for (name, volume) in &self.volumes {
                    let reply = Reply::Volume {
                        volume: name.clone(),
                        order: volume.order.clone(),
                        parked: volume.parked,
                        device: volume.device.is_some(),
                    };
                    let mut descriptors = vec![volume.key.as_fd()];
                    descriptors.extend(volume.device.as_ref().map(AsFd::as_fd));
                    link.send(&words::bytes(&reply), &descriptors)?;
                }
            }
        }
        link.send(&words::bytes(&Reply::Done), &[])?;
        Ok(())
    }

    /// Waits before the next attempt; true: told to end meanwhile.
    fn wait_or_told(&self, signals: &UnixStream, limit: Duration) -> anyhow::Result<bool> {
        let limit = Timespec::try_from(limit).context("a time limit")?;
        match poll(&mut [PollFd::new(signals, PollFlags::IN)], Some(&limit)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
            Ok(_) => Ok(drained(signals)),
            Err(errno) => Err(errno).context("poll"),
        }
    }
}

/// Whether there was anything.
fn drained(mut signals: &UnixStream) -> bool {
    std::io::Read::read(&mut signals, &mut [0; 64]).is_ok_and(|count| count > 0)
}

#[cfg(test)]
mod tests;
