//! Signals to daemons that are not our children, or that we stop for a while.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal, test_kill_process,
};

use crate::wait::until;

/// How long a signal may take to have its effect.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether the process exists and is no zombie, which some PID 1 are slow to bury.
pub(crate) fn is_alive(pid: Pid) -> bool {
    test_kill_process(pid).is_ok() && state(pid).is_ok_and(|state| state != 'Z')
}

/// Sends `signal` and waits until the process has ended.
pub(crate) fn end(pid: Pid, signal: Signal) -> Result<()> {
    let process = pidfd_open(pid, PidfdFlags::empty()).context("the process has ended before")?;
    pidfd_send_signal(&process, signal)?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    let limit = Timespec { tv_sec: LIMIT.as_secs().try_into()?, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(ended) => {
                ensure!(ended == 1, "process {pid} outlives {signal:?}");
                return Ok(());
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Stops all threads of the process where they are.
pub(crate) fn pause(pid: Pid) -> Result<()> {
    kill_process(pid, Signal::STOP)?;
    until("a process to stop", LIMIT, || Ok((state(pid)? == 'T').then_some(())))
}

/// Lets them go on.
pub(crate) fn resume(pid: Pid) -> Result<()> {
    Ok(kill_process(pid, Signal::CONT)?)
}

/// Its memory in use, in KiB.
pub(crate) fn resident_kib(pid: Pid) -> Result<u64> {
    let field = status_field(pid, "VmRSS:")?;
    Ok(field.trim_end_matches(" kB").parse()?)
}

fn state(pid: Pid) -> Result<char> {
    status_field(pid, "State:")?.chars().next().context("no state")
}

fn status_field(pid: Pid, name: &str) -> Result<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    Ok(line.with_context(|| format!("no {name} in the process's status"))?.trim().to_owned())
}
