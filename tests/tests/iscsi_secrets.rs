//! A CHAP secret is taken from a file or from a configuration file, never from a command line, and
//! is shown nowhere.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, Daemon, Exit, TargetOptions, TestVolume, sealblk, sealblk_command};

const DISK: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// As it never occurs by chance.
const OTHER: &str = "0therS3cret9zz";

struct World {
    secret: String,
    volume: TestVolume,
}

impl World {
    fn new() -> Result<Self> {
        let options = TargetOptions::with_chap();
        let (_, secret) = options.chap.clone().context("no CHAP")?;
        Ok(Self { secret, volume: TestVolume::formatted_behind(options, DISK, &[])? })
    }

    fn socket(&self) -> PathBuf {
        self.volume.scratch.file("vu.sock")
    }

    fn control(&self) -> String {
        self.volume.scratch.file("control.sock").display().to_string()
    }

    /// The secret in the name.
    fn inline(&mut self) -> Result<String> {
        Ok(self.volume.target()?.qemu())
    }

    /// A configuration file with volumes of these names.
    fn configured(&self, uris: &[&str]) -> Result<[OsString; 2]> {
        let mut text = format!("[daemon]\ncontrol = {:?}\nlog_level = \"trace\"\n", self.control());
        for (index, uri) in uris.iter().enumerate() {
            let socket = self.socket().with_extension(if index == 0 { "sock" } else { "2" });
            text.push_str(&format!(
                "[[volume]]\nname = \"disk{index}\"\nuri = {uri:?}\nkey = {:?}\nsocket = {socket:?}\n",
                self.volume.key_uri()
            ));
        }
        let file = self.volume.scratch.file("sealblkd.toml");
        std::fs::write(&file, text)?;
        Ok(["--config".into(), file.into()])
    }

    fn hides(&self, what: &str, text: &str) -> Result<()> {
        for secret in [self.secret.as_str(), OTHER] {
            ensure!(!text.contains(secret), "the secret is in the {what}:\n{text}");
        }
        Ok(())
    }

    /// A daemon that ends by itself with this status, and without telling the secret.
    fn ends(&self, code: i32, args: &[OsString]) -> Result<Exit> {
        let exit = Daemon::run_to_end(args)?;
        ensure!(exit.status.code() == Some(code), "{}\n{}", exit.status, exit.log);
        self.hides("error", &exit.log)?;
        Ok(exit)
    }
}

#[test]
fn a_secret_on_a_command_line_is_refused_and_not_repeated() -> Result<()> {
    let mut world = World::new()?;
    let (uri, key) = (world.inline()?, world.volume.key_uri());
    ensure!(uri.contains(&world.secret), "{uri}");
    let socket = world.socket();
    let args = ["--volume", &uri, "--key", &key, "--socket"].map(OsString::from);
    let args: Vec<_> = args.into_iter().chain([socket.into()]).collect();
    let exit = world.ends(2, &args)?;
    ensure!(exit.log.contains("?secret=file:PATH"), "{}", exit.log);
    let file = world.volume.scratch.file("header").display().to_string();
    for command in [
        &["inspect"][..],
        &["format", "--key", &key, "--yes"],
        &["key", "remove", "--key", &key, "--yes"],
        &["repair", "--yes"],
        &["header", "backup", "--file", &file],
        &["rotate", "--key", &key, "--yes", "--header-backup", &file],
    ] {
        let output = sealblk_command()?.args(command).args(["--volume", &uri]).output()?;
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!output.status.success(), "{command:?} took it");
        world.hides("error", &text)?;
        ensure!(text.contains("?secret=file:PATH"), "{command:?}: {text}");
    }
    Ok(())
}

#[test]
fn a_secret_in_the_configuration_is_used_and_shown_nowhere() -> Result<()> {
    let mut world = World::new()?;
    let uri = world.inline()?;
    let args = world.configured(&[&uri])?;
    let mut daemon = Daemon::exactly(&world.socket(), args.into())?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &[7; 4096])?;
    // An outage tells of the path, too.
    let mark = daemon.log().mark();
    world.volume.target()?.kill()?;
    daemon.log().wait_for("the connection to the storage is lost", mark, LIMIT)?;
    world.volume.target()?.start()?;
    ensure!(client.read(0, 4096)? == [7; 4096]);
    let control = world.control();
    for words in [&["status"][..], &["status", "--json"]] {
        let shown = sealblk([words, &["--control", &control]].concat())?.stdout;
        let shown = String::from_utf8(shown)?;
        ensure!(shown.contains("iscsi://sealblk-user%***@"), "{shown}");
        world.hides("status", &shown)?;
    }
    let mut stream = UnixStream::connect(&control)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics)?;
    ensure!(metrics.contains("sealblk_storage_losses_total"), "{metrics}");
    world.hides("metrics", &metrics)?;
    drop(client);
    let exit = daemon.stop()?;
    ensure!(exit.log.contains("iscsi://sealblk-user%***@"), "{}", exit.log);
    world.hides("log", &exit.log)
}

#[test]
fn no_error_about_a_configuration_shows_its_secret() -> Result<()> {
    let mut world = World::new()?;
    let uri = world.inline()?;
    let wrong = uri.replace(&world.secret, OTHER);
    let exit = world.ends(1, &world.configured(&[&wrong])?)?;
    ensure!(exit.log.contains("refused the login"), "{}", exit.log);
    let exit = world.ends(1, &world.configured(&[&uri.replace("/1", "/7")])?)?;
    ensure!(exit.log.contains("has no logical unit 7"), "{}", exit.log);
    world.ends(2, &world.configured(&[&uri.replace("/1", "/x")])?)?;
    world.ends(2, &world.configured(&[&format!("{uri}?what=1")])?)?;
    world.ends(2, &world.configured(&[&format!("{uri}?secret=file:/s")])?)?;
    world.ends(2, &world.configured(&[&uri, &uri])?)?;
    world.volume.target()?.kill()?;
    let exit = world.ends(1, &world.configured(&[&uri])?)?;
    ensure!(exit.log.contains("is the target running"), "{}", exit.log);
    Ok(())
}
