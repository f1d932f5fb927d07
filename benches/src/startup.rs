//! How long a server takes to start: from its process to a socket that takes a connection.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::machine::{CLIENT, pin};
use crate::results::Spread;
use crate::servers::Launch;

/// A server that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(30);
/// An orderly end may take so long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Starts are repeated, at most so often and while they have taken less time than this together.
const STARTS: usize = 5;
const ENOUGH: Duration = Duration::from_secs(1);

/// Medians over some starts, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// To the first connection.
    pub(crate) socket_ms: f64,
    /// Between sealblkd's log lines `unlocked` (the volume key is known) and `ready`.
    pub(crate) after_key_ms: Option<f64>,
}

/// Starts it some times, and ends it again each time.
pub(crate) fn measure(launch: &Launch, processors: &[usize]) -> Result<Start> {
    let (mut sockets, mut after_keys) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while sockets.len() < STARTS && begin.elapsed() < ENOUGH {
        let (socket, after_key) = once(launch, processors)?;
        sockets.push(socket.as_secs_f64() * 1e3);
        after_keys.extend(after_key);
    }
    let socket_ms = Spread::of(&sockets).context("no start")?.median;
    Ok(Start { socket_ms, after_key_ms: Spread::of(&after_keys).map(|spread| spread.median) })
}

fn once(launch: &Launch, processors: &[usize]) -> Result<(Duration, Option<f64>)> {
    std::fs::remove_file(&launch.socket).ok();
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env("NO_COLOR", "1");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // What is started inherits the processors of the thread that starts it.
    pin(processors)?;
    let begin = Instant::now();
    let child = command.spawn();
    pin(&[CLIENT])?;
    let mut child = child.with_context(|| format!("can't run {command:?}"))?;
    let connected = connect(&mut child, &launch.socket, begin);
    let after_key = if connected.is_ok() && launch.is_ours { after_key(&mut child) } else { None };
    end(&mut child, launch.is_ours)?;
    let output = child.wait_with_output()?;
    let log = || String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((connected.with_context(log)?, after_key))
}

/// In an orderly way, so that it gives back what others wait for: a lock on an image. What we start
/// has SIGTERM blocked (see interrupt.rs): ours takes it all the same, others understand SIGHUP.
fn end(child: &mut Child, is_ours: bool) -> Result<()> {
    if child.try_wait()?.is_some() {
        return Ok(());
    }
    kill_process(Pid::from_child(child), if is_ours { Signal::TERM } else { Signal::HUP })?;
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill()?;
        }
        #[expect(clippy::disallowed_methods, reason = "waits for somebody's end, now and then")]
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn connect(child: &mut Child, socket: &Path, begin: Instant) -> Result<Duration> {
    while begin.elapsed() < LIMIT {
        if UnixStream::connect(socket).is_ok() {
            return Ok(begin.elapsed());
        }
        if let Some(status) = child.try_wait()? {
            bail!("ended instead of serving: {status}");
        }
        #[expect(clippy::disallowed_methods, reason = "somebody's socket gives no event")]
        std::thread::sleep(Duration::from_micros(100));
    }
    bail!("no socket within {} s", LIMIT.as_secs())
}

/// Reads the log up to the line `ready`; the time of day stands in front of each line.
fn after_key(child: &mut Child) -> Option<f64> {
    let mut known = None;
    for line in BufReader::new(child.stderr.as_mut()?).lines() {
        let line = line.ok()?;
        if line.contains("unlocked (LUKS") {
            known = time_of_day_ms(&line);
        } else if line.contains(" ready ") || line.ends_with(" ready") {
            return Some(time_of_day_ms(&line)? - known?);
        }
    }
    None
}

/// `2026-11-24T06:30:15.123456Z ...`: milliseconds since midnight.
fn time_of_day_ms(line: &str) -> Option<f64> {
    let time = line.split_whitespace().next()?.split_once('T')?.1.strip_suffix('Z')?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let (hours, minutes, seconds) = (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
    Some(((hours * 60.0 + minutes) * 60.0 + seconds) * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_tells_its_time() {
        let at = |text| time_of_day_ms(text).unwrap();
        let (one, two) =
            ("2026-11-24T00:01:02.500000Z  INFO a", "2026-11-24T01:00:00.000250Z  INFO b");
        assert!((at(one) - 62_500.0).abs() < 1e-6);
        assert!((at(two) - 3_600_000.25).abs() < 1e-6);
        assert_eq!(time_of_day_ms("ready"), None);
    }
}
