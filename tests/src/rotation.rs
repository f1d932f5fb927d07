//! A volume that a daemon serves and rotates: orders as an operator gives them, status as the
//! control socket tells it.
//!
//! The daemon's state directory is beside the volume: nothing of a test stays on the host.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::programs::sealblk_command;
use crate::volume::TestVolume;
use crate::wait::until;

/// No rotation of a small disk takes longer, on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(180);

/// A daemon with one volume, named `vu`.
pub struct Rotating {
    /// The daemon.
    pub daemon: Daemon,
    control: PathBuf,
    state_dir: PathBuf,
}

impl Rotating {
    /// Serves the volume, with further arguments.
    pub fn serve(volume: &TestVolume, extra: &[&str]) -> Result<Self> {
        Self::serve_as(volume, &volume.uri(), "", extra)
    }

    /// Serves what this URI names with the volume's key, as if on another host: sockets and state
    /// directory are in a directory of this name.
    pub fn serve_as(volume: &TestVolume, uri: &str, host: &str, extra: &[&str]) -> Result<Self> {
        let host = volume.scratch.file(host);
        std::fs::create_dir_all(&host)?;
        let place = |name: &str| host.join(name);
        let (control, state_dir) = (place("control.sock"), place("state"));
        let mut args: Vec<OsString> =
            ["--volume", uri, "--key", &volume.key_uri()].map(OsString::from).to_vec();
        args.extend(["--control".into(), control.clone().into()]);
        args.extend(["--state-dir".into(), state_dir.clone().into()]);
        args.extend(extra.iter().map(OsString::from));
        let daemon = Daemon::with_args(&place("vu.sock"), args)?;
        Ok(Self { daemon, control, state_dir })
    }

    /// Takes a daemon that was started otherwise, on the control socket and with the state directory
    /// of [`Self::places`].
    pub fn with_daemon(volume: &TestVolume, daemon: Daemon) -> Self {
        let (control, state_dir) = Self::places(volume);
        Self { daemon, control, state_dir }
    }

    /// Where a volume's control socket and state directory are.
    pub fn places(volume: &TestVolume) -> (PathBuf, PathBuf) {
        (volume.scratch.file("control.sock"), volume.scratch.file("state"))
    }

    /// Where the daemon keeps what it must not forget.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The daemon's control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// `sealblk rotate WHAT --control ... --volume NAME` with further arguments; also its failure.
    pub fn try_order(&self, what: &str, name: &str, extra: &[&str]) -> Result<Output> {
        let mut command = sealblk_command()?;
        command.args(["rotate", what, "--volume", name, "--control"]).arg(&self.control);
        Ok(command.args(extra).output()?)
    }

    /// An order that must be obeyed.
    pub fn order(&self, what: &str, extra: &[&str]) -> Result<()> {
        let output = self.try_order(what, "vu", extra)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "rotate {what}: {said}\n{}", self.daemon.log().text());
        Ok(())
    }

    /// An order that must be refused with status 1; gives the reason.
    pub fn refused(&self, what: &str, name: &str, extra: &[&str]) -> Result<String> {
        let output = self.try_order(what, name, extra)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1), "rotate {what}: {}: {said}", output.status);
        Ok(said)
    }

    /// What the daemon tells of its rotation.
    pub fn status(&self) -> Result<Value> {
        self.ask("/v1/volumes/vu/rotation")
    }

    /// What the daemon tells of everything.
    pub fn ask(&self, path: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: sealblk\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        ensure!(head.contains(" 200 "), "{answer}");
        Ok(serde_json::from_str(body)?)
    }

    /// The state of the rotation.
    pub fn state(&self) -> Result<String> {
        Ok(self.status()?["state"].as_str().context("no state")?.to_owned())
    }

    /// Bytes that have the new key.
    pub fn done_bytes(&self) -> Result<u64> {
        self.status()?["done_bytes"].as_u64().context("no position")
    }

    /// Waits until it is in this state; gives the status.
    pub fn wait_for_state(&self, state: &str) -> Result<Value> {
        let found = until(&format!("a rotation that is {state}"), LIMIT, || {
            let status = self.status()?;
            match status["state"].as_str() {
                Some(found) if found == state => Ok(Some(status)),
                Some("failed") => bail!("{status}\n{}", self.daemon.log().text()),
                _ => Ok(None),
            }
        });
        found.with_context(|| format!("{:?}\n{}", self.status(), self.daemon.log().text()))
    }

    /// Waits until at least so much of the data has the new key, or all of it.
    pub fn wait_for_bytes(&self, bytes: u64) -> Result<()> {
        let reached = until(&format!("{bytes} rotated bytes"), LIMIT, || {
            let status = self.status()?;
            let over = matches!(status["state"].as_str(), Some("completed" | "none"));
            ensure!(status["state"] != "failed", "{status}");
            Ok((over || status["done_bytes"].as_u64() >= Some(bytes)).then_some(()))
        });
        reached.with_context(|| format!("{:?}\n{}", self.status(), self.daemon.log().text()))
    }

    /// Waits for the end.
    pub fn wait_for_end(&self) -> Result<Value> {
        let status = self.wait_for_state("completed")?;
        ensure!(status["done_bytes"] == status["total_bytes"], "{status}");
        Ok(status)
    }
}
