//! A KMIP server: PyKMIP, on loopback, with certificates of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Daemon, Scratch, TestVolume, run, sealblk_command};

use super::check::{SECRET, cryptsetup_opens, fails, hex, opens, private, python, script};

/// A server until it is dropped.
struct Server {
    port: String,
    // Last: its directory holds the server's.
    scratch: Scratch,
}

impl Server {
    fn new() -> Result<Self> {
        let mut server = Self { port: String::new(), scratch: Scratch::new()? };
        server.start()?;
        Ok(server)
    }

    fn dir(&self) -> PathBuf {
        self.scratch.file("kmip")
    }

    fn control(&self, verb: &str) -> Result<String> {
        let output = run(script("kmip.sh"), [verb.as_ref(), self.dir().as_os_str()])?;
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn start(&mut self) -> Result<()> {
        self.port = self.control("up")?;
        Ok(())
    }

    fn objects(&self, arguments: &[&str]) -> Result<String> {
        let (dir, program) = (self.dir(), script("kmip_objects.py"));
        let text = |path: &Path| path.to_str().context("UTF-8").map(str::to_owned);
        let (dir, program) = (text(&dir)?, text(&program)?);
        let all: Vec<&str> =
            [program.as_str(), dir.as_str()].into_iter().chain(arguments.iter().copied()).collect();
        python(&self.dir().join("python"), &all)
    }

    /// The object's key source.
    fn register(&self, kind: &str, secret: &[u8]) -> Result<String> {
        Ok(format!("kmip:{}", self.objects(&["register", kind, &hex(secret)])?))
    }

    /// keys.toml for the holder of one of the certificates.
    fn managers(&self, who: &str, more: &str) -> Result<PathBuf> {
        let file = |name: String| self.dir().join(name);
        let text = format!(
            "[kmip]\nhost = \"127.0.0.1\"\nport = {}\nca_file = {:?}\ncert_file = {:?}\n\
             key_file = {:?}\n{more}",
            self.port,
            file("ca.crt".into()),
            file(format!("{who}.crt")),
            file(format!("{who}.key")),
        );
        private(&self.scratch.file("keys.toml"), &text)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A test that has failed already is not helped by a second panic.
        let _ = self.control("down");
    }
}

#[test]
fn every_kind_of_object_gives_the_passphrase_that_nova_makes_of_it() -> Result<()> {
    let server = Server::new()?;
    let managers = server.managers("client", "")?;
    let scratch = server.scratch.path();
    for kind in ["symmetric", "seed", "opaque"] {
        let key = server.register(kind, &SECRET)?;
        opens(&managers, &key, hex(&SECRET).as_bytes(), scratch).context(kind)?;
    }
    let key = server.register("password", "Pässwort".as_bytes())?;
    opens(&managers, &key, "Pässwort".as_bytes(), scratch).context("password")?;
    // Every version of the protocol that the server has.
    let key = server.register("symmetric", &SECRET)?;
    for version in ["1.0", "1.2", "1.4", "2.0"] {
        let managers = server.managers("client", &format!("version = \"{version}\"\n"))?;
        opens(&managers, &key, hex(&SECRET).as_bytes(), scratch).context(version)?;
    }
    let managers = server.managers("client", "version = \"2.1\"\n")?;
    fails(&managers, &key, 7, "malformed", "asked with KMIP 2.1")
}

#[test]
fn what_goes_wrong_is_told_apart() -> Result<()> {
    let mut server = Server::new()?;
    let key = server.register("symmetric", &SECRET)?;
    let id = key.trim_start_matches("kmip:");

    // Somebody else of the same authority, and somebody of another one.
    let managers = server.managers("stranger", "")?;
    fails(&managers, &key, 4, "denied", "it refuses the object")?;
    let managers = server.managers("foreign", "")?;
    fails(&managers, &key, 4, "denied", "it refuses this node's certificate")?;

    let managers = server.managers("client", "total_timeout_seconds = 1\n")?;
    fails(&managers, "vault:x", 8, "unconfigured", "no section [vault]")?;
    fails(&managers, "kmip:no-such-object", 5, "missing", "was it destroyed")?;
    server.objects(&["destroy", id])?;
    fails(&managers, &key, 5, "missing", "was it destroyed")?;

    server.control("stop")?;
    fails(&managers, &key, 6, "unreachable", "nobody listens there")?;
    server.start()?;
    let key = server.register("symmetric", &SECRET)?;
    opens(&managers, &key, hex(&SECRET).as_bytes(), server.scratch.path())
}

#[test]
fn a_daemon_serves_and_rotates_a_volume_whose_keys_a_server_has() -> Result<()> {
    let server = Server::new()?;
    let managers = server.managers("client", "")?;
    let old = server.register("symmetric", &SECRET)?;
    let new = server.register("password", b"the-new-one")?;
    let volume = TestVolume::blank(20 << 20)?;
    std::fs::remove_file(&volume.image)?;
    let mut format = sealblk_command()?;
    format.args(["format", "--size", "4M", "--kdf", "pbkdf2", "--key", &old, "--volume"]);
    let output = format.arg(volume.uri()).arg("--key-managers").arg(&managers).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let control = volume.scratch.file("control.sock");
    let socket = volume.scratch.file("vu.sock");
    let mut args: Vec<std::ffi::OsString> =
        ["--volume".into(), volume.uri().into(), "--key".into(), old.clone().into()].into();
    args.extend(["--control".into(), control.clone().into()]);
    args.extend(["--state-dir".into(), volume.scratch.path().into()]);
    args.extend(["--key-managers".into(), managers.clone().into()]);
    args.extend(["--log-level", "trace"].map(Into::into));
    let mut daemon = Daemon::with_args(&socket, args)?;
    let rotate = |verb: &str, more: &[&str]| -> Result<String> {
        let mut command = sealblk_command()?;
        command.args(["rotate", verb, "--volume", "vu", "--control"]).arg(&control).args(more);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{said}\n{}", daemon.log().text());
        Ok(said)
    };
    // Who asks can't know what the daemon has open.
    ensure!(rotate("start", &["--new-key", "fd:0", "--yes"]).is_err());
    rotate("start", &["--new-key", &new, "--header-backup", "none", "--yes"])?;
    rotate("status", &["--watch"])?;
    daemon.stop()?;
    for secret in [hex(&SECRET), "the-new-one".to_owned()] {
        ensure!(!daemon.log().text().contains(&secret), "the log shows a passphrase");
    }
    let expected = volume.scratch.file("expected");
    std::fs::write(&expected, "the-new-one")?;
    cryptsetup_opens(&volume.image, &expected)
}
