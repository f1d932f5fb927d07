//! An iSCSI target of a test's own: `tgtd` on loopback with one LUN on an image file.
//!
//! Contract: the port answers only when the LUN is there, so a client that reconnects finds either
//! nobody or everything. tgtd writes to the page cache and acknowledges then, so what it has
//! acknowledged survives its SIGKILL (not the machine's end). Its control socket is in the
//! scratch directory: any number run side by side, and nothing is left in /var/run.
//!
//! Needs no root. Absent on purpose: discovery, several LUNs or portals, digests (tgtd offers them
//! when the initiator asks).

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;

use crate::log::Log;
use crate::process;
use crate::volume::Scratch;
use crate::wait::until;

const LIMIT: Duration = Duration::from_secs(30);

/// The beginning of a target's name; its port follows. Claims go by the name, so each has its own.
const IQN: &str = "iqn.2026-11.test.sealblk:port-";

/// Number of the LUN; 0 is tgtd's controller.
const LUN: u32 = 1;

/// What a target is like.
#[derive(Debug, Clone)]
pub struct TargetOptions {
    /// CHAP user and secret that clients must give.
    pub chap: Option<(String, String)>,
    /// Logical block in bytes, 512 or 4096.
    pub block_bytes: u32,
    /// Whether it offers UNMAP and WRITE SAME with it.
    pub thin: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { chap: None, block_bytes: 512, thin: true, read_only: false }
    }
}

impl TargetOptions {
    /// With CHAP.
    pub fn with_chap() -> Self {
        let chap = Some(("sealblk-user".into(), "8aVr3kd0wPq1".into()));
        Self { chap, ..Self::default() }
    }
}

/// A running target, until it is killed or dropped.
pub struct Target {
    image: PathBuf,
    options: TargetOptions,
    port: u16,
    child: Option<Child>,
    log: Log,
    // Last: its directory holds the image and the control socket.
    scratch: Scratch,
}

impl Target {
    /// A target with an image of `size_bytes` without content.
    pub fn new(size_bytes: u64, options: TargetOptions) -> Result<Self> {
        Self::with_image(
            options,
            |image| Ok(std::fs::File::create_new(image)?.set_len(size_bytes)?),
        )
    }

    /// A target with a copy of `file`.
    pub fn with_copy_of(file: &Path, options: TargetOptions) -> Result<Self> {
        Self::with_image(options, |image| std::fs::copy(file, image).map(drop).map_err(Into::into))
    }

    fn with_image(options: TargetOptions, make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let image = scratch.file("lun.img");
        make(&image)?;
        if let Some((_, secret)) = &options.chap {
            std::fs::write(scratch.file("chap-secret"), secret)?;
        }
        let (port, log) = (free_port()?, Log::default());
        let mut target = Self { image, options, port, child: None, log, scratch };
        target.start()?;
        Ok(target)
    }

    /// Starts it again after [`Self::kill`]: same port, same image.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the target runs already");
        // The portal that clients use comes last; tgtd insists on one from the beginning, so that
        // is any other.
        let mut command = self.with_control_socket("tgtd");
        command.args(["--foreground", "--iscsi", "portal=127.0.0.1:0"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("can't run tgtd (scripts/setup.sh installs it)")?;
        if let Some(stdout) = child.stdout.take() {
            self.log.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            self.log.follow(stderr);
        }
        self.child = Some(child);
        until("tgtd to listen to its operator", LIMIT, || {
            if let Some(status) = self.child.as_mut().context("no tgtd")?.try_wait()? {
                bail!("tgtd ended: {status}\n{}", self.log.text());
            }
            Ok(self.tgtadm("--mode sys --op show", &[]).ok())
        })?;
        self.configure().with_context(|| self.log.text())
    }

    fn configure(&self) -> Result<()> {
        self.tgtadm("--mode target --op new --tid 1 -T", &[&self.name()])?;
        let path = self.image.to_str().context("not UTF-8")?;
        let block = self.options.block_bytes.to_string();
        self.tgtadm(
            "--mode logicalunit --op new --tid 1 --lun 1 --bstype rdwr",
            &["--blocksize", &block, "-b", path],
        )?;
        let flags =
            [("thin_provisioning", self.options.thin), ("readonly", self.options.read_only)];
        for (name, on) in flags {
            self.update_lun(&format!("{name}={}", u8::from(on)))?;
        }
        if let Some((user, secret)) = &self.options.chap {
            self.tgtadm("--mode account --op new", &["--user", user, "--password", secret])?;
            self.tgtadm("--mode account --op bind --tid 1", &["--user", user])?;
        }
        self.tgtadm("--mode target --op bind --tid 1 -I ALL", &[])?;
        let portal = format!("portal={}", self.address());
        self.tgtadm("--mode portal --op new --param", &[&portal])?;
        Ok(())
    }

    fn update_lun(&self, parameters: &str) -> Result<()> {
        let command = "--mode logicalunit --op update --tid 1 --lun 1 --params";
        self.tgtadm(command, &[parameters]).map(drop)
    }

    fn with_control_socket(&self, program: &str) -> Command {
        let sbin = Path::new("/usr/sbin").join(program);
        let mut command = Command::new(if sbin.exists() { sbin } else { program.into() });
        command.env("TGT_IPC_SOCKET", self.scratch.file("tgt")).args(["--control-port", "1"]);
        command
    }

    /// tgtadm with the words of `command` and then `more`.
    fn tgtadm(&self, command: &str, more: &[&str]) -> Result<Output> {
        let mut tgtadm = self.with_control_socket("tgtadm");
        tgtadm.args(["--lld", "iscsi"]).args(command.split(' ')).args(more);
        let output = tgtadm.stdin(Stdio::null()).output().context("can't run tgtadm")?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "tgtadm {command} {more:?}: {error}");
        Ok(output)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The target's own name, which no other target has that lives now.
    pub fn name(&self) -> String {
        format!("{IQN}{}", self.port)
    }

    /// `iscsi://127.0.0.1:PORT/IQN/1`
    pub fn url(&self) -> String {
        self.url_at(self.address())
    }

    /// The same at another address: a [`crate::Proxy`]'s.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("iscsi://{address}/{}/{LUN}", self.name())
    }

    /// `iscsi://USER@127.0.0.1:PORT/IQN/1`; without CHAP there is no user either.
    pub fn chap_url_without_secret(&self) -> String {
        match &self.options.chap {
            None => self.url(),
            Some((user, _)) => format!("iscsi://{user}@{}/{}/{LUN}", self.address(), self.name()),
        }
    }

    /// The file that holds the CHAP secret; there is none without CHAP.
    pub fn secret_file(&self) -> PathBuf {
        self.scratch.file("chap-secret")
    }

    /// As our programs name it: the secret, if there is one, from its file.
    pub fn uri(&self) -> String {
        let url = self.chap_url_without_secret();
        match &self.options.chap {
            None => url,
            Some(_) => format!("{url}?secret=file:{}", self.secret_file().display()),
        }
    }

    /// As QEMU and the iscsi-* tools name it: the secret, if there is one, in the URL.
    pub fn qemu(&self) -> String {
        match &self.options.chap {
            None => self.url(),
            Some((user, secret)) => {
                format!("iscsi://{user}%{secret}@{}/{}/{LUN}", self.address(), self.name())
            }
        }
    }

    /// The file behind the LUN.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// What tgtd printed so far, over all its lives.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// SIGKILL: connections end, then nobody listens.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the target does not run")?;
        child.kill()?;
        let status = child.wait()?;
        ensure!(status.signal() == Some(9), "tgtd died before: {status}\n{}", self.log.text());
        Ok(())
    }

    /// SIGSTOP: connections stay and are accepted, nothing is answered.
    pub fn pause(&self) -> Result<()> {
        process::pause(self.pid()?)
    }

    /// The end of a [`Self::pause`].
    pub fn resume(&self) -> Result<()> {
        process::resume(self.pid()?)
    }

    /// tgtd's process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_child(self.child.as_ref().context("the target does not run")?))
    }

    /// Its memory in use, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        process::resident_kib(self.pid()?)
    }

    /// Changes the size of image and LUN; sessions stay. tgtd reads a size only when it opens the
    /// image, so TEST UNIT READY says NOT READY for an instant in between (reads and writes go on),
    /// and it raises no UNIT ATTENTION: only who asks READ CAPACITY again sees it.
    pub fn resize(&self, size_bytes: u64) -> Result<()> {
        self.update_lun("online=0")?;
        std::fs::File::options().write(true).open(&self.image)?.set_len(size_bytes)?;
        self.update_lun(&format!("path={}", self.image.display()))?;
        self.update_lun("online=1")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// A port on loopback that nobody listens on now, below those that the kernel gives to outgoing
/// connections: one that is closed for a while is still free when it is wanted again.
pub(crate) fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = u32::try_from(Pid::as_raw(Some(rustix::process::getpid())))? * 61;
    for _ in 0..1000 {
        let port = 13_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        let port = u16::try_from(port)?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on loopback")
}
