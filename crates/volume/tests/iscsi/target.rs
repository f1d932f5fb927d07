//! A target of a test's own: `tgtd` with one logical unit on an image file.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// CHAP user and secret of a target with CHAP.
pub(crate) const USER: &str = "sealblk-user";
pub(crate) const SECRET: &str = "8aVr3kd0wPq1";

/// What a target is like.
#[derive(Debug, Clone, Default)]
pub(crate) struct Like {
    pub(crate) chap: bool,
    pub(crate) block_bytes: u32,
    pub(crate) thin: bool,
    pub(crate) read_only: bool,
}

pub(crate) struct Target {
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
    /// Another than tgtd's own, if set before the start.
    pub(crate) scsi_id: Option<String>,
    like: Like,
    child: Option<Child>,
}

impl Target {
    pub(crate) fn new(like: Like) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::File::create(dir.path().join("image")).unwrap().set_len(16 << 20).unwrap();
        std::fs::write(dir.path().join("secret"), format!("{SECRET}\n")).unwrap();
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut target = Self { port, dir, scsi_id: None, like, child: None };
        target.start();
        target
    }

    /// The control socket and the image are the test's, so any number run side by side. The port
    /// answers only when the unit is there.
    pub(crate) fn start(&mut self) {
        let mut tgtd = self.program("tgtd");
        tgtd.args(["--foreground", "--iscsi", "portal=127.0.0.1:0"]);
        tgtd.stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(tgtd.spawn().expect("no tgtd: run `make setup`"));
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.try_admin("--mode sys --op show") {
            assert!(Instant::now() < deadline, "tgtd doesn't start");
        }
        let block = match self.like.block_bytes {
            0 => 512,
            bytes => bytes,
        };
        let image = self.image();
        self.admin(&format!("--mode target --op new --tid 1 -T {}", self.name()));
        self.admin(&format!(
            "--mode logicalunit --op new --tid 1 --lun 1 --bstype rdwr --blocksize {block} -b {}",
            image.display()
        ));
        let update = "--mode logicalunit --op update --tid 1 --lun 1 --params";
        self.admin(&format!("{update} thin_provisioning={}", u8::from(self.like.thin)));
        self.admin(&format!("{update} readonly={}", u8::from(self.like.read_only)));
        if let Some(id) = &self.scsi_id {
            self.admin(&format!("{update} scsi_id={id}"));
        }
        if self.like.chap {
            self.admin(&format!("--mode account --op new --user {USER} --password {SECRET}"));
            self.admin(&format!("--mode account --op bind --tid 1 --user {USER}"));
        }
        self.admin("--mode target --op bind --tid 1 -I ALL");
        self.admin(&format!("--mode portal --op new --param portal={}", self.address()));
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(format!("/usr/sbin/{name}"));
        command.env("TGT_IPC_SOCKET", self.dir.path().join("tgt")).args(["-C", "1"]);
        command.stdin(Stdio::null());
        command
    }

    fn try_admin(&self, words: &str) -> bool {
        let mut tgtadm = self.program("tgtadm");
        tgtadm.args(["--lld", "iscsi"]).args(words.split(' '));
        let output = tgtadm.output().expect("no tgtadm: run `make setup`");
        output.status.success()
    }

    pub(crate) fn admin(&self, words: &str) {
        assert!(self.try_admin(words), "tgtadm {words}");
    }

    /// What tgtadm shows of the target.
    pub(crate) fn shown(&self) -> String {
        let mut tgtadm = self.program("tgtadm");
        tgtadm.args(["--lld", "iscsi", "--mode", "target", "--op", "show"]);
        String::from_utf8(tgtadm.output().unwrap().stdout).unwrap()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Unlike any other test's, for the claim is by name.
    pub(crate) fn name(&self) -> String {
        let dir = self.dir.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        format!("iqn.2026-11.test.sealblk:{}", dir.trim_start_matches('.'))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub(crate) fn uri(&self) -> String {
        self.uri_at(self.address())
    }

    pub(crate) fn uri_at(&self, address: SocketAddr) -> String {
        format!("iscsi://{address}/{}/1", self.name())
    }

    /// With SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
        // No other test has this name: nobody claims it any more.
        let claim = format!("/run/sealblk/iscsi-{}-1.lock", self.name());
        let _never_opened = std::fs::remove_file(claim);
    }
}
