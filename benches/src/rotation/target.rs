//! A served volume whose key can be rotated, and its control socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Daemon, sealblk};
use serde_json::Value;

use crate::cpu::process_ns;
use crate::interrupt;
use crate::machine::{CLIENT, pin};
use crate::server::explain;
use crate::servers::{Kind, Materials};
use crate::store::{Class, Store};

/// Nothing here takes longer, or the daemon hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at a rotation.
const LOOK: Duration = Duration::from_millis(4);
/// Parts of a rotation that are not looked at: its beginning and its end, which cost the same for a
/// volume of any size.
const MIDDLE: (f64, f64) = (0.05, 0.95);

/// How far a rotation is.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) state: String,
    pub(super) done_bytes: u64,
    pub(super) total_bytes: u64,
    pub(super) parked_us: u64,
    pub(super) resilience: String,
}

/// What the middle of a rotation took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Middle {
    pub(super) bytes_per_second: f64,
    pub(super) cpu_ns_per_mib: f64,
}

/// The daemon with its volume.
pub(super) struct Target {
    // Dropped in this order.
    daemon: Daemon,
    control: PathBuf,
    name: String,
    pub(super) store: Store,
}

impl Target {
    /// Serves a new volume on these processors.
    pub(super) fn start(
        class: Class,
        materials: &Materials,
        sector_bytes: u32,
        processors: &[usize],
    ) -> Result<Self> {
        let kind = Kind::Encrypted(sector_bytes);
        let store = Store::new(class, |image| materials.make_image(&kind, image))?;
        let mut launch = materials.launch(&kind, &store, 1)?.context("no server")?;
        let (control, state) = (store.scratch.file("control"), store.scratch.file("state"));
        launch.args.extend(["--control".into(), control.clone().into()]);
        launch.args.extend(["--state-dir".into(), state.into()]);
        let name = launch.socket.file_stem().context("a socket without a name")?;
        let name = name.to_string_lossy().into_owned();
        pin(processors)?;
        let daemon = launch.start();
        pin(&[CLIENT])?;
        Ok(Self { daemon: daemon?, control, name, store })
    }

    pub(super) fn socket(&self) -> &std::path::Path {
        self.daemon.socket()
    }

    /// Gives the operator's command.
    pub(super) fn order(&mut self, verb: &str, how: &[&str]) -> Result<()> {
        let control = self.control.to_str().context("a path that is not UTF-8")?;
        let served = ["rotate", verb, "--control", control, "--volume", &self.name];
        let done = sealblk(served.iter().chain(how));
        done.map(|_| ()).map_err(|error| explain(error, &mut self.daemon))
    }

    /// A rotation begins.
    pub(super) fn begin(&mut self, how: &[&str]) -> Result<()> {
        self.order("start", &[&["--yes"], how].concat())
    }

    pub(super) fn told(&self) -> Result<Told> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let path = format!("/v1/volumes/{}/rotation", self.name);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: sealblkd\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        parse(&answer).with_context(|| format!("the daemon's answer makes no sense: {answer}"))
    }

    /// Waits for the end of a rotation that has begun, and looks at its middle.
    pub(super) fn middle(&mut self) -> Result<Middle> {
        let pid = self.daemon.pid()?;
        let (begin, mut marks) = (Instant::now(), Vec::new());
        loop {
            interrupt::check()?;
            let told = self.told()?;
            let part = told.done_bytes as f64 / told.total_bytes.max(1) as f64;
            let seen = (Instant::now(), told.done_bytes, process_ns(pid)?);
            let is_new = marks.last().is_none_or(|(_, done, _)| *done != told.done_bytes);
            if is_new && part >= MIDDLE.0 && part <= MIDDLE.1 {
                marks.push(seen);
            }
            if told.state == "completed" {
                break;
            }
            ensure!(told.state != "failed" && begin.elapsed() < PATIENCE, "{told:?}");
            rest(LOOK);
        }
        let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
            anyhow::bail!("the rotation was over before it could be looked at")
        };
        let bytes = last.1.saturating_sub(first.1) as f64;
        ensure!(bytes > 0.0, "the rotation was over before it could be looked at twice");
        Ok(Middle {
            bytes_per_second: bytes / (last.0 - first.0).as_secs_f64(),
            cpu_ns_per_mib: (last.2 - first.2) as f64 / (bytes / f64::from(1 << 20)),
        })
    }
}

fn parse(answer: &str) -> Option<Told> {
    let body = answer.get(answer.find('{')?..=answer.rfind('}')?)?;
    let value: Value = serde_json::from_str(body).ok()?;
    let number = |name: &str| value.get(name).and_then(Value::as_u64);
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(Told {
        state: text("state")?,
        done_bytes: number("done_bytes")?,
        total_bytes: number("total_bytes")?,
        parked_us: number("parked_us_max")?,
        resilience: text("resilience")?,
    })
}

pub(super) fn rest(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "nothing shall happen for so long")]
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_whatever_is_around_it() {
        let body = r#"{"state":"running","done_bytes":1,"total_bytes":2,"parked_us_max":3,"resilience":"journal"}"#;
        for answer in
            [format!("HTTP/1.1 200 OK\r\n\r\n{body}"), format!("\r\n\r\n5f\r\n{body}\r\n0\r\n")]
        {
            let told = parse(&answer).unwrap();
            assert_eq!(
                (told.done_bytes, told.parked_us, told.resilience.as_str()),
                (1, 3, "journal")
            );
        }
        assert!(parse("HTTP/1.1 404 Not Found\r\n\r\n{}").is_none());
    }
}
