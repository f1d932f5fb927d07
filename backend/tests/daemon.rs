//! The daemon as a process: how it ends when it can't serve. (Guests are served in `/tests`.)
#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

struct Scratch(tempfile::TempDir);

impl Scratch {
    /// With a volume of 1 MiB to serve unencrypted. On a real file system: `O_DIRECT`.
    fn new() -> Self {
        let scratch = Self(tempfile::tempdir_in("/var/tmp").unwrap());
        fs::File::create(scratch.path("a.img")).unwrap().set_len(1 << 20).unwrap();
        scratch
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The daemon's end with a configuration of this head and a volume with these lines more.
    fn sealblkd(&self, head: &str, lines: &str, check: bool) -> (Option<i32>, String) {
        let (volume, socket) = (self.path("a.img"), self.path("a.sock"));
        let text = format!(
            "{head}\n[[volume]]\nname = \"a\"\nuri = \"file:{}\"\nsocket = \"{}\"\n{lines}\n",
            volume.display(),
            socket.display(),
        );
        let config = self.path("c.toml");
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblkd"));
        command.arg("--config").arg(config).env_remove("NOTIFY_SOCKET");
        if check {
            command.arg("--check");
        }
        let Output { status, stderr, .. } = command.output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    }
}

#[test]
fn a_control_socket_that_cannot_be_leaves_no_socket_behind() {
    let scratch = Scratch::new();
    let control = scratch.path("no/such/control.sock");
    let head = format!("[daemon]\ncontrol = \"{}\"", control.display());
    let (code, log) = scratch.sealblkd(&head, "plain = true", false);
    assert!(code == Some(1) && log.contains("no/such/control.sock"), "{code:?}: {log}");
    assert!(!log.contains("ready") && !log.contains("listening"), "{log}");
    assert!(!scratch.path("a.sock").exists(), "{log}");
    assert_eq!(log.matches("os error").count(), 1, "{log}");
}

#[test]
fn every_volume_that_cannot_be_opened_is_named_and_nothing_listens() {
    let scratch = Scratch::new();
    let second = "plain = true\n[[volume]]\nname = \"b\"\nplain = true\nuri = \"file:/no/b\"\n\
        socket = \"/no/b.sock\"\n[[volume]]\nname = \"c\"\nplain = true\nuri = \"file:/no/c\"\n\
        socket = \"/no/c.sock\"";
    let (code, log) = scratch.sealblkd("", second, false);
    assert!(code == Some(1) && log.contains("/no/b)") && log.contains("/no/c)"), "{log}");
    assert!(!scratch.path("a.sock").exists());
    for line in log.lines() {
        assert!(line.matches("os error").count() <= 1, "{line}");
    }
}

#[test]
fn check_finds_what_is_wrong_without_opening_anything() {
    let scratch = Scratch::new();
    fs::remove_file(scratch.path("a.img")).unwrap();
    let check = |head: &str, lines: &str| scratch.sealblkd(head, lines, true);
    let (code, log) = check("", "plain = true");
    assert!(code == Some(0) && log.contains("valid") && !log.contains("WARN"), "{log}");
    let (code, log) = check("", "plain = true\nsocket_mode = \"0666\"");
    assert!(code == Some(0) && log.contains("every user"), "{log}");
    let (code, log) = check("", "plain = true\nsocket_group = \"no-such-group\"");
    assert!(code == Some(2) && log.contains("no-such-group"), "{log}");
    let head = "[daemon]\ncontrol = \"/c.sock\"\ncontrol_group = \"no-such-group\"";
    let (code, log) = check(head, "plain = true");
    assert!(code == Some(2) && log.contains("no-such-group"), "{log}");
}
