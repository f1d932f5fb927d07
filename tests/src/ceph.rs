//! A real Ceph cluster of one node, shared by all tests of a run, and its faults.
//!
//! `scripts/ceph.sh` starts and stops it, for people too. The first test that asks for the cluster
//! waits some six seconds for it, every later one 0.1 s, in other test programs as well. It is left
//! running: `make test` tears its own down at the end, whoever runs single tests says
//! `scripts/ceph.sh down`. `SEALBLK_CEPH_DIR` says which cluster, for who needs one to himself.
//!
//! Invariant: an [`Outage`] ends with its value, so a test that fails leaves a healthy cluster.
//! Only one test at a time may disturb it (`--test-threads=1`). Absent on purpose: more than one
//! osd, a mgr, pools beside `rbd`.

mod image;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};

pub use image::{LockOwner, RbdImage};

use crate::process;
use crate::programs::{root, run};

/// Seconds after which a command that the cluster does not answer counts as failed.
const LIMIT_SECONDS: &str = "90";

/// The daemons of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CephDaemon {
    /// The monitor: maps, authentication, blocklist.
    Mon,
    /// The only osd: the data.
    Osd,
}

impl CephDaemon {
    fn name(self) -> &'static str {
        match self {
            Self::Mon => "mon.a",
            Self::Osd => "osd.0",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Mon => "mon",
            Self::Osd => "osd",
        }
    }
}

/// A cephx user of the cluster.
#[derive(Debug, Clone)]
pub struct CephUser {
    /// Its name without `client.`.
    pub id: &'static str,
    /// Holds its key and nothing else.
    pub keyring: PathBuf,
}

/// A running cluster. Cheap to clone; dropping it leaves it running.
#[derive(Debug, Clone)]
pub struct Ceph {
    conf: PathBuf,
}

impl Ceph {
    /// The cluster of this test run, started if need be; a daemon that a test which was killed
    /// left dead runs again.
    pub fn shared() -> Result<Self> {
        let output = run(script(), ["up"])?;
        let conf = PathBuf::from(String::from_utf8(output.stdout)?.trim());
        ensure!(conf.is_absolute(), "ceph.sh printed no path");
        Ok(Self { conf })
    }

    /// What clients read: addresses, and where the administrator's key is.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// The administrator's key.
    pub fn keyring(&self) -> PathBuf {
        self.conf.with_file_name("keyring")
    }

    /// A user with the rights of a hypervisor (`profile rbd` on the pool); not in [`Self::conf`].
    pub fn user(&self) -> CephUser {
        let keyring = self.conf.with_file_name("client.sealblk.keyring");
        CephUser { id: "sealblk", keyring }
    }

    /// A new image without content in the pool `rbd`.
    pub fn image(&self, size_bytes: u64) -> Result<RbdImage> {
        RbdImage::create(self, size_bytes, None)
    }

    /// The same with these features ("layering,exclusive-lock") instead of those that OpenStack's
    /// clusters give.
    pub fn image_with_features(&self, size_bytes: u64, features: &str) -> Result<RbdImage> {
        RbdImage::create(self, size_bytes, Some(features))
    }

    /// Runs the `rbd` command as administrator; fails if it does or takes too long.
    pub fn rbd<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        self.command("rbd", args)
    }

    /// Runs the `ceph` command as administrator; fails if it does or takes too long.
    pub fn ceph<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        self.command("ceph", args)
    }

    fn command<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Result<Output> {
        let mut all: Vec<&OsStr> = vec![LIMIT_SECONDS.as_ref(), program.as_ref()];
        all.extend::<[&OsStr; 2]>(["-c".as_ref(), self.conf.as_ref()]);
        all.extend(args.iter().map(AsRef::as_ref));
        run("timeout", all)
    }

    /// Clients that may write no more, as `ADDRESS:PORT/NONCE`.
    pub fn blocklist(&self) -> Result<Vec<String>> {
        let output = self.ceph(&["osd", "blocklist", "ls"])?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(Into::into).collect())
    }

    /// SIGKILL to the osd: clients' requests wait until it is back.
    pub fn osd_kill(&self) -> Result<Outage> {
        self.kill(CephDaemon::Osd, Signal::KILL)
    }

    /// SIGTERM to the osd: an orderly stop.
    pub fn osd_stop(&self) -> Result<Outage> {
        self.kill(CephDaemon::Osd, Signal::TERM)
    }

    /// SIGSTOP to the osd: connections stay, nothing is answered.
    pub fn osd_pause(&self) -> Result<Outage> {
        self.pause(CephDaemon::Osd)
    }

    /// SIGKILL to the monitor: clients that are connected go on for minutes, new ones wait.
    pub fn mon_kill(&self) -> Result<Outage> {
        self.kill(CephDaemon::Mon, Signal::KILL)
    }

    /// SIGSTOP to the monitor.
    pub fn mon_pause(&self) -> Result<Outage> {
        self.pause(CephDaemon::Mon)
    }

    fn kill(&self, daemon: CephDaemon, signal: Signal) -> Result<Outage> {
        process::end(self.pid(daemon)?, signal)?;
        Ok(Outage { ceph: self.clone(), daemon, kind: OutageKind::Ended })
    }

    fn pause(&self, daemon: CephDaemon) -> Result<Outage> {
        process::pause(self.pid(daemon)?)?;
        Ok(Outage { ceph: self.clone(), daemon, kind: OutageKind::Paused })
    }

    /// The daemon's process; fails unless it runs.
    pub fn pid(&self, daemon: CephDaemon) -> Result<Pid> {
        let name = daemon.name();
        let file = self.conf.with_file_name("run").join(format!("{name}.pid"));
        let text = std::fs::read_to_string(&file).with_context(|| format!("no {name}"))?;
        let pid = Pid::from_raw(text.trim().parse()?).context("no process id")?;
        // The number may be somebody else's by now.
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let ours = command.split('\0').any(|word| Path::new(word) == self.conf);
        if !(ours && process::is_alive(pid)) {
            bail!("{name} does not run");
        }
        Ok(pid)
    }

    /// Memory that both daemons have in use, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let of = |daemon| process::resident_kib(self.pid(daemon)?);
        Ok(of(CephDaemon::Mon)? + of(CephDaemon::Osd)?)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OutageKind {
    Ended,
    Paused,
}

/// A daemon that a test took away. It comes back with [`Outage::end`], or when this is dropped.
#[must_use = "the outage ends when this is dropped"]
#[derive(Debug)]
pub struct Outage {
    ceph: Ceph,
    daemon: CephDaemon,
    kind: OutageKind,
}

impl Outage {
    /// Brings the daemon back; waits until it serves (an osd: unless the monitor is away).
    pub fn end(self) -> Result<()> {
        let result = self.undo();
        std::mem::forget(self);
        result
    }

    fn undo(&self) -> Result<()> {
        match self.kind {
            OutageKind::Paused => process::resume(self.ceph.pid(self.daemon)?),
            OutageKind::Ended => {
                let dir = self.ceph.conf.parent().context("no directory")?;
                let args = ["start".as_ref(), self.daemon.kind().as_ref(), dir.as_os_str()];
                run(script(), args).map(drop)
            }
        }
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            crate::wait::progress(format_args!("{} stays away: {error:#}", self.daemon.name()));
        }
    }
}

fn script() -> PathBuf {
    root().join("scripts/ceph.sh")
}
