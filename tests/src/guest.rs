//! A virtual machine under QEMU, without hardware virtualisation, that runs a shell script.
//!
//! It boots Debian's kernel and the initramfs of `scripts/guest-image.sh`; its disks are
//! vhost-user-blk sockets, `/dev/vda` the first. The script's output comes over the serial console.
//! QEMU reconnects by itself when a daemon goes away.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::log::Log;
use crate::programs::run;
use crate::volume::Scratch;
use crate::wait::until;

/// What a guest finds in its memory at boot.
#[derive(Debug, Clone, Copy)]
pub enum GuestImage {
    /// busybox, mkfs.ext4, e2fsck.
    Tiny,
    /// The same and fio; takes twice as long to boot.
    WithFio,
    /// Nothing: the firmware boots what it finds on the first disk.
    FromDisk,
}

/// A guest to be started.
pub struct GuestBuilder {
    image: GuestImage,
    script: String,
    disks: Vec<(PathBuf, u16)>,
    processors: u16,
    may_reboot: bool,
}

impl GuestBuilder {
    /// A guest that runs `script` (busybox's shell); `set -e` is on.
    pub fn new(image: GuestImage, script: &str) -> Self {
        let script = format!("set -e\n{script}\n");
        Self { image, script, disks: Vec::new(), processors: 1, may_reboot: false }
    }

    /// Adds a disk.
    pub fn disk(mut self, socket: &Path, queues: u16) -> Self {
        self.disks.push((socket.to_owned(), queues));
        self
    }

    /// Number of virtual processors.
    pub fn processors(mut self, processors: u16) -> Self {
        self.processors = processors;
        self
    }

    /// Lets the guest reboot; otherwise a reboot ends it.
    pub fn may_reboot(mut self) -> Self {
        self.may_reboot = true;
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Guest> {
        let scratch = Scratch::new()?;
        let script = scratch.file("script");
        std::fs::write(&script, &self.script)?;
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", "q35,memory-backend=mem", "-accel", "tcg,thread=multi", "-cpu", "max"]);
        command.args(["-m", "768", "-object", "memory-backend-memfd,id=mem,size=768M,share=on"]);
        command.args(["-smp", &self.processors.to_string(), "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        if !self.may_reboot {
            command.arg("-no-reboot");
        }
        let cache = cache_directory()?;
        let initramfs = match self.image {
            GuestImage::Tiny => Some("tiny.img"),
            GuestImage::WithFio => Some("guest.img"),
            GuestImage::FromDisk => None,
        };
        if let Some(initramfs) = initramfs {
            command.arg("-kernel").arg(cache.join("vmlinuz"));
            command.arg("-initrd").arg(cache.join(initramfs));
            command.args(["-append", "console=ttyS0 quiet panic=-1"]);
        }
        command.arg("-fw_cfg").arg(format!("name=opt/guestcmd,file={}", script.display()));
        for (index, (socket, queues)) in self.disks.iter().enumerate() {
            let path = socket.display();
            let again = reconnect()?;
            let mut device = format!("vhost-user-blk-pci,chardev=c{index},num-queues={queues}");
            if index == 0 && initramfs.is_none() {
                device.push_str(",bootindex=0");
            }
            command.args(["-chardev", &format!("socket,id=c{index},path={path},{again}")]);
            command.args(["-device", &device]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("can't run {command:?}"))?;
        let (console, errors) = (Log::default(), Log::default());
        if let Some(stdout) = child.stdout.take() {
            console.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            errors.follow(stderr);
        }
        Ok(Guest { child: Some(child), console, errors, mark: 0, _scratch: scratch })
    }
}

/// A running guest.
pub struct Guest {
    child: Option<Child>,
    console: Log,
    errors: Log,
    mark: usize,
    _scratch: Scratch,
}

impl Guest {
    /// Waits for the next line of the console that contains `what`, and gives it.
    pub fn wait_for(&mut self, what: &str, limit: Duration) -> Result<String> {
        let found = self.console.wait_for(what, self.mark, limit);
        let (line, mark) = found.with_context(|| format!("QEMU said: {}", self.errors.text()))?;
        self.mark = mark;
        Ok(line)
    }

    /// Forgets the lines that have come so far: [`Self::wait_for`] then waits for a later one.
    pub fn skip_to_now(&mut self) {
        self.mark = self.console.mark();
    }

    /// Types a line at the console, where the script may read it.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let child = self.child.as_mut().context("the guest has ended")?;
        let stdin = child.stdin.as_mut().context("it has no keyboard")?;
        stdin.write_all(line.as_bytes())?;
        stdin.write_all(b"\n")?;
        Ok(stdin.flush()?)
    }

    /// Waits for the end of the script and of the guest; the script must have succeeded.
    pub fn succeed(&mut self, limit: Duration) -> Result<()> {
        let line = self.wait_for("GUEST-RC=", limit)?;
        ensure!(line.contains("GUEST-RC=0"), "the script failed:\n{}", self.transcript());
        let mut child = self.child.take().context("the guest has ended")?;
        let ended = until("QEMU's end", Duration::from_secs(60), || Ok(child.try_wait()?));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let status = ended?;
        ensure!(status.success(), "QEMU: {status}\n{}", self.transcript());
        Ok(())
    }

    /// Everything on the console so far.
    pub fn console(&self) -> String {
        self.console.text()
    }

    fn transcript(&self) -> String {
        let mut all = self.console.text();
        let _ = write!(all, "\nQEMU said:\n{}", self.errors.text());
        all
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// How QEMU is told to connect again: `reconnect=SECONDS` became `reconnect-ms` in 9.2.
fn reconnect() -> Result<&'static str> {
    static OPTION: OnceLock<&str> = OnceLock::new();
    if let Some(option) = OPTION.get() {
        return Ok(option);
    }
    let output = run("qemu-system-x86_64", ["--version"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split("version ").nth(1).and_then(|rest| {
        let mut numbers = rest.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    let Some(version) = version else { bail!("QEMU's version is not in {text:?}") };
    Ok(OPTION.get_or_init(|| if version >= (9, 2) { "reconnect-ms=200" } else { "reconnect=1" }))
}

/// Where the guest's kernel and images are; makes what is missing.
pub(crate) fn cache_directory() -> Result<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/guest-image.sh");
    let no_arguments: [&str; 0] = [];
    let output = run(script, no_arguments)?;
    Ok(String::from_utf8(output.stdout)?.trim_end().into())
}
