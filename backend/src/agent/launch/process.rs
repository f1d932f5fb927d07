//! Daemons as plain processes, where no systemd starts them.
//!
//! Contract: each has a session of its own; it gets the daemons' user and groups before it runs
//! anything, and of the environment what [`PASSED`] lists. A daemon is a keeper, which the note tells
//! of, and the process that serves, which is found by its command line: both are ended. Children of
//! this agent are reaped by a thread each; those of an earlier one by init.
//!
//! Invariant: a process is signalled only if it was started with this instance's directory as its
//! `--run-dir`: process ids are used again.
// UNSAFETY: what a child does between fork and exec can only be said by `pre_exec`.
#![expect(unsafe_code, reason = "user, groups and session of a child")]

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::{Order, note_path};
use crate::agent::config::AgentConfig;
use crate::agent::host::Ids;

/// What a daemon gets of the agent's environment: nothing of it is a secret.
const PASSED: &[&str] =
    &["PATH", "LANG", "LC_ALL", "TZ", "NO_COLOR", "JOURNAL_STREAM", "RUST_BACKTRACE", "CEPH_CONF"];

/// How long a killed process may take to go: its I/O is waited for by the kernel.
const KILLED: Duration = Duration::from_secs(30);

/// The note about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    pid: u32,
    /// Its start, in the kernel's ticks since boot (proc_pid_stat(5), field 22).
    start: u64,
}

/// How processes are started.
#[derive(Debug, Clone)]
pub(in crate::agent) struct Processes {
    instances: PathBuf,
    /// None: as the agent.
    ids: Option<(u32, u32, Vec<u32>)>,
}

impl Processes {
    pub(super) fn new(config: &AgentConfig, ids: &Ids) -> Self {
        let groups = ids.socket_gid.into_iter().collect();
        let ids = ids.root.then_some((ids.uid, ids.gid, groups));
        Self { instances: config.instances_dir(), ids }
    }

    pub(super) fn start(&self, order: &Order<'_>) -> io::Result<()> {
        let mut command = Command::new(order.program);
        command.args(order.args).stdin(Stdio::null()).stdout(Stdio::null());
        command.env_clear().envs(
            std::env::vars_os()
                .filter(|(name, _)| name.to_str().is_some_and(|name| PASSED.contains(&name))),
        );
        let ids = self.ids.clone().map(|(uid, gid, groups)| {
            let groups: Vec<_> = groups.into_iter().map(Gid::from_raw).collect();
            (Uid::from_raw(uid), Gid::from_raw(gid), groups)
        });
        let become_daemon = move || {
            rustix::process::setsid()?;
            if let Some((uid, gid, groups)) = &ids {
                setgroups(groups)?;
                setresgid(*gid, *gid, *gid)?;
                setresuid(*uid, *uid, *uid)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made (setsid, setgroups, setresgid,
        // setresuid), with memory that the parent has prepared: nothing is allocated, no lock taken.
        unsafe { command.pre_exec(become_daemon) };
        let mut child = command.spawn()?;
        let pid = child.id();
        let note = start_of(pid).map(|start| Note { pid, start });
        let written = note.and_then(|note| {
            let path = note_path(&self.instances, order.instance);
            std::fs::write(path, serde_json::to_vec(&note)?)
        });
        if let Err(cause) = written {
            // Nobody could end it later.
            child.kill()?;
            child.wait()?;
            return Err(cause);
        }
        let instance = order.instance.to_owned();
        std::thread::Builder::new().name("reaper".into()).spawn(move || match child.wait() {
            Ok(status) if status.success() => {
                tracing::info!(instance, pid, "the instance's daemon has ended");
            }
            Ok(status) => {
                tracing::error!(instance, pid, %status, "the instance's daemon has ended")
            }
            Err(error) => tracing::error!(instance, pid, %error, "cannot wait for a daemon"),
        })?;
        Ok(())
    }

    pub(super) fn runs(&self, instance: &str) -> bool {
        self.keeper(instance).is_some() || !self.of_instance(instance).is_empty()
    }

    pub(super) fn pid(&self, instance: &str) -> Option<u32> {
        Some(self.note(instance).ok()?.pid)
    }

    pub(super) fn finish(&self, instance: &str, limit: Duration) {
        // The keeper first: it would start another one in place of the process that serves.
        if let Some(keeper) = self.keeper(instance)
            && !ends_within(&keeper, limit)
        {
            tracing::warn!(instance, "its daemon doesn't end: killing it");
            kill(instance, &keeper);
        }
        for process in self.of_instance(instance) {
            kill(instance, &process);
        }
        let _ = std::fs::remove_file(note_path(&self.instances, instance));
    }

    fn note(&self, instance: &str) -> io::Result<Note> {
        Ok(serde_json::from_slice(&std::fs::read(note_path(&self.instances, instance))?)?)
    }

    /// The process of the note, if it is still that one and runs.
    fn keeper(&self, instance: &str) -> Option<OwnedFd> {
        let note = self.note(instance).ok()?;
        let process = hold(note.pid)?;
        // After it is held: from here on the descriptor means this process.
        let same = start_of(note.pid).is_ok_and(|start| start == note.start);
        (same && !ends_within(&process, Duration::ZERO)).then_some(process)
    }

    /// All processes that run for an instance, by their command line.
    fn of_instance(&self, instance: &str) -> Vec<OwnedFd> {
        let directory = self.instances.join(instance);
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let own = std::process::id();
        let pids = names.filter_map(|name| name.parse().ok()).filter(|pid| *pid != own);
        pids.filter_map(|pid| {
            // Most are others, so the line is read before and after the process is held.
            let process = has_directory(pid, &directory).then(|| hold(pid)).flatten()?;
            let ours = has_directory(pid, &directory) && !ends_within(&process, Duration::ZERO);
            ours.then_some(process)
        })
        .collect()
    }
}

fn hold(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

fn has_directory(pid: u32, directory: &Path) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let arguments: Vec<_> = line.split(|byte| *byte == 0).map(OsStr::from_bytes).collect();
    arguments.windows(2).any(|pair| pair == [OsStr::new("--run-dir"), directory.as_os_str()])
}

fn kill(instance: &str, process: &OwnedFd) {
    // It may have ended this moment.
    let _ = pidfd_send_signal(process, Signal::KILL);
    if !ends_within(process, KILLED) {
        tracing::error!(instance, "a process of its daemon outlives SIGKILL: its storage hangs");
    }
}

/// Waits for the end of a process.
fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(ended) => return ended == 1,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// When a process began.
fn start_of(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name in parentheses, whatever that is.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let start = fields.split_ascii_whitespace().nth(19).and_then(|text| text.parse().ok());
    start.ok_or_else(|| io::Error::other("/proc/PID/stat makes no sense"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> (tempfile::TempDir, Processes) {
        let dir = tempfile::tempdir().unwrap();
        let processes = Processes { instances: dir.path().to_owned(), ids: None };
        (dir, processes)
    }

    /// Starts a shell that is an instance's daemon by its command line.
    fn start(processes: &Processes, instance: &str, script: &str) {
        let directory = processes.instances.join(instance);
        let directory = directory.to_str().unwrap();
        let args = ["-c", script, "sh", "--run-dir", directory].map(str::to_owned);
        let order = Order { instance, program: Path::new("/bin/sh"), args: &args };
        processes.start(&order).unwrap();
    }

    #[test]
    fn a_process_leads_a_session_and_is_ended_with_the_one_that_serves() {
        let (dir, processes) = here();
        let (fifo, name) = (dir.path().join("fifo"), "test-of-a-session");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        // It waits for somebody to read, then for its parent, which is not its group's any more.
        let script = format!(
            "setsid sh -c 'echo > {}; kill -STOP $$' sh --run-dir {} & wait",
            fifo.display(),
            dir.path().join(name).display(),
        );
        start(&processes, name, &script);
        assert!(processes.runs(name));
        let pid = processes.pid(name).unwrap();
        let session = rustix::process::getsid(Pid::from_raw(pid as i32)).unwrap();
        assert_eq!(session.as_raw_nonzero().get() as u32, pid);
        assert_eq!(std::fs::read(&fifo).unwrap(), b"\n");
        assert_eq!(processes.of_instance(name).len(), 2);
        processes.finish(name, Duration::ZERO);
        assert!(!processes.runs(name));
        assert!(processes.pid(name).is_none());
    }

    #[test]
    fn one_that_ends_by_itself_is_waited_for() {
        let (_dir, processes) = here();
        start(&processes, "test-of-an-end", "exit 0");
        processes.finish("test-of-an-end", Duration::from_secs(60));
        assert!(!processes.runs("test-of-an-end"));
    }

    #[test]
    fn another_process_of_the_same_id_is_left_alone() {
        let (dir, processes) = here();
        let mut other = Command::new("tail").args(["-f", "/dev/null"]).spawn().unwrap();
        let start = start_of(other.id()).unwrap();
        let note = Note { pid: other.id(), start: start + 1 };
        let path = note_path(dir.path(), "test-of-an-id");
        std::fs::write(&path, serde_json::to_vec(&note).unwrap()).unwrap();
        assert!(!processes.runs("test-of-an-id"));
        processes.finish("test-of-an-id", Duration::ZERO);
        assert!(other.try_wait().unwrap().is_none(), "it was killed");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn secrets_in_the_environment_stay_here() {
        assert!(PASSED.iter().all(|name| !name.contains("PASS") && !name.contains("TOKEN")));
    }
}
