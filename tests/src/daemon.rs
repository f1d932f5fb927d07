//! `sealblkd` as a process that one may start, kill and stop.
//!
//! It counts as started when it says READY=1 on the notify socket, as systemd would wait for it.

use std::ffi::{OsStr, OsString};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::programs::sealblkd_program;
use crate::volume::TestVolume;
use crate::wait::until;

/// How long a start or a stop may take on a machine that is busy with other things.
const LIMIT: Duration = Duration::from_secs(60);

/// How a daemon ended, with what it said.
#[derive(Debug)]
pub struct Exit {
    /// Its status.
    pub status: ExitStatus,
    /// What it printed, log included.
    pub log: String,
}

/// A daemon with its arguments; running or not.
pub struct Daemon {
    program: PathBuf,
    args: Vec<OsString>,
    socket: PathBuf,
    notify: PathBuf,
    notifies: bool,
    child: Option<Child>,
    log: Log,
    messages: Vec<String>,
}

impl Daemon {
    /// Starts `sealblkd` for one volume, on `vu.sock` beside it, with further arguments.
    pub fn serve(volume: &TestVolume, extra: &[&str]) -> Result<Self> {
        let mut args = volume.volume_args();
        args.extend(extra.iter().map(OsString::from));
        Self::with_args(&volume.scratch.file("vu.sock"), args)
    }

    /// Starts `sealblkd --plain` on a volume.
    pub fn serve_plain(volume: &TestVolume, extra: &[&str]) -> Result<Self> {
        let mut args: Vec<OsString> =
            vec!["--volume".into(), volume.uri().into(), "--plain".into()];
        args.extend(extra.iter().map(OsString::from));
        Self::with_args(&volume.scratch.file("plain.sock"), args)
    }

    /// Starts `sealblkd` with `args` and `--socket`.
    pub fn with_args(socket: &Path, mut args: Vec<OsString>) -> Result<Self> {
        args.extend(["--socket".into(), socket.into()]);
        Self::exactly(socket, args)
    }

    /// Starts `sealblkd` with these arguments and no others; `socket` is where it will serve.
    pub fn exactly(socket: &Path, args: Vec<OsString>) -> Result<Self> {
        Self::launch(sealblkd_program()?, socket, args, true)
    }

    /// Starts `qemu-storage-daemon` on an image: the peer that the harness itself is tried on.
    pub fn qemu_storage_daemon(image: &Path, socket: &Path, queues: u16) -> Result<Self> {
        let file = format!(
            "driver=file,node-name=f0,filename={},cache.direct=on,aio=io_uring,discard=unmap",
            image.display()
        );
        let export = format!(
            "type=vhost-user-blk,id=e0,node-name=d0,addr.type=unix,addr.path={},writable=on,\
             num-queues={queues},logical-block-size=512,iothread=io0",
            socket.display()
        );
        let pairs = [
            ["--object", "iothread,id=io0"],
            ["--blockdev", &file],
            ["--blockdev", "driver=raw,node-name=d0,file=f0"],
            ["--export", &export],
        ];
        let args = pairs.as_flattened().iter().map(OsString::from).collect();
        Self::launch("qemu-storage-daemon".into(), socket, args, false)
    }

    /// Starts somebody else's server, which will listen on `socket`.
    pub fn of_others(program: &str, socket: &Path, args: Vec<OsString>) -> Result<Self> {
        Self::launch(program.into(), socket, args, false)
    }

    fn launch(
        program: PathBuf,
        socket: &Path,
        args: Vec<OsString>,
        notifies: bool,
    ) -> Result<Self> {
        let notify = socket.with_extension("notify");
        let (child, log, messages) = (None, Log::default(), Vec::new());
        let socket = socket.to_owned();
        let mut daemon = Self { program, args, socket, notify, notifies, child, log, messages };
        daemon.start()?;
        Ok(daemon)
    }

    /// Runs `sealblkd` with these arguments to its end, which must come by itself.
    pub fn run_to_end<S: AsRef<OsStr>>(args: &[S]) -> Result<Exit> {
        let mut command = Command::new(sealblkd_program()?);
        command.args(args).env("NO_COLOR", "1").stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let status = until("the daemon to give up", LIMIT, || Ok(child.try_wait()?));
        child.kill().ok();
        let output = child.wait_with_output()?;
        let log = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Ok(Exit { status: status.with_context(|| log.clone())?, log })
    }

    /// Starts a daemon that doesn't run, with the arguments of the first time, and waits until it
    /// is ready.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon runs already");
        if !self.notifies {
            match std::fs::remove_file(&self.socket) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        std::fs::remove_file(&self.notify).ok();
        let notify = UnixDatagram::bind(&self.notify)?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("NOTIFY_SOCKET", &self.notify).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("can't run {command:?}"))?;
        if let Some(stdout) = child.stdout.take() {
            self.log.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            self.log.follow(stderr);
        }
        self.child = Some(child);
        let ready =
            if self.notifies { self.wait_until_ready(&notify) } else { self.wait_for_socket() };
        ready.with_context(|| format!("{:?}\n{}", self.program, self.log.text()))
    }

    fn wait_until_ready(&mut self, notify: &UnixDatagram) -> Result<()> {
        notify.set_read_timeout(Some(Duration::from_millis(100)))?;
        let end = Instant::now() + LIMIT;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            if let Ok(len) = notify.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..len]).into_owned();
                let ready = message.lines().any(|line| line == "READY=1");
                self.messages.push(message);
                if ready {
                    return Ok(());
                }
            } else if let Some(status) = self.ended()? {
                bail!("ended instead of serving: {status}");
            }
        }
        bail!("no READY=1 within {} s; got {:?}", LIMIT.as_secs(), self.messages)
    }

    fn wait_for_socket(&mut self) -> Result<()> {
        let socket = self.socket.clone();
        until("the vhost-user socket", LIMIT, || {
            if let Some(status) = self.ended()? {
                bail!("ended instead of serving: {status}");
            }
            Ok(socket.exists().then_some(()))
        })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let child = self.child.as_mut().context("not started")?;
        Ok(child.try_wait()?)
    }

    /// Where it serves.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the daemon does not run")?.id())
    }

    /// What it printed so far, over all its lives.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What it told the service manager.
    pub fn notifications(&self) -> &[String] {
        &self.messages
    }

    /// SIGKILL, as a crash: nothing is drained.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        let status = child.wait()?;
        ensure!(
            status.signal() == Some(9),
            "died of something else before: {status}\n{}",
            self.log.text()
        );
        Ok(())
    }

    /// A crash and a restart.
    pub fn kill_and_restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// SIGTERM; waits for the end, which must come in time and be a success.
    pub fn stop(&mut self) -> Result<Exit> {
        let mut child = self.child.take().context("the daemon does not run")?;
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::TERM)?;
        let status = until("the daemon's end after SIGTERM", LIMIT, || Ok(child.try_wait()?));
        if status.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let exit = Exit { status: status.with_context(|| self.log.text())?, log: self.log.text() };
        ensure!(exit.status.success(), "SIGTERM ended in {}\n{}", exit.status, exit.log);
        Ok(exit)
    }

    /// Fails if it has ended by itself.
    pub fn must_run(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("the daemon has ended: {status}\n{}", self.log.text()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
