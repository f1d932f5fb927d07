//! The storage path is lost under a daemon at work: the volume's file ends before its data begins,
//! as a device does that was taken away, and has its old size again later.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, Daemon, TestVolume, sealblk, until};
use serde_json::Value;

const DISK: u64 = 4 << 20;
const HEADER: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);

struct World {
    daemon: Daemon,
    image: File,
    control: String,
    // Dropped last: the directory.
    _volume: TestVolume,
}

impl World {
    fn new(options: &[&str]) -> Result<Self> {
        let volume = TestVolume::formatted(DISK, 512)?;
        let control = volume.scratch.file("control.sock").display().to_string();
        let daemon = Daemon::serve(&volume, &[&["--control", &control], options].concat())?;
        let image = File::options().write(true).open(&volume.image)?;
        Ok(Self { daemon, image, control, _volume: volume })
    }

    fn lose(&self) -> Result<()> {
        Ok(self.image.set_len(HEADER)?)
    }

    fn mend(&self) -> Result<()> {
        Ok(self.image.set_len(HEADER + DISK)?)
    }

    fn storage(&self) -> Result<Value> {
        let status = sealblk(["status", "--json", "--control", &self.control])?;
        let status: Value = serde_json::from_slice(&status.stdout)?;
        Ok(status["volumes"][0]["storage"].clone())
    }

    fn wait_for(&self, state: &str) -> Result<Value> {
        until(&format!("the state {state}"), LIMIT, || {
            let storage = self.storage()?;
            Ok((storage["state"] == state).then_some(storage))
        })
    }

    fn metrics(&self) -> Result<String> {
        let mut stream = UnixStream::connect(&self.control)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(body.to_owned())
    }
}

#[test]
fn a_guest_that_holds_waits_out_a_lost_path_and_the_operator_sees_it() -> Result<()> {
    let world = World::new(&["--on-error", "hold"])?;
    let mut client = Client::simple(world.daemon.socket())?;
    client.write(0, &[7; 4096])?;
    ensure!(world.storage()?["state"] == "ok" && world.storage()?["since_seconds"].is_null());
    let mark = world.daemon.log().mark();
    world.lose()?;
    client.start_read(0, 4096, 0, 4096, 1)?;
    client.complete(0, 0)?;
    let storage = world.wait_for("holding")?;
    ensure!(storage["losses"] == 1 && storage["waiting"] == 1, "{storage}");
    let shown = sealblk(["status", "--control", &world.control])?.stdout;
    let shown = String::from_utf8(shown)?;
    ensure!(shown.contains("\n  storage     HOLDING: the volume fails, 1 I/O"), "{shown}");
    let state = |word| format!("sealblk_storage_state{{volume=\"vu\",state=\"{word}\"}}");
    let metrics = world.metrics()?;
    ensure!(metrics.contains(&format!("\n{} 1\n", state("holding"))), "{metrics}");
    ensure!(metrics.contains("\nsealblk_storage_waiting{volume=\"vu\"} 1\n"), "{metrics}");
    let (_, mark) = world.daemon.log().wait_for("requests are held", mark, LIMIT)?;
    world.mend()?;
    let done = client.complete(0, 1)?;
    ensure!(done[0].tag == 1 && done[0].result == 0, "{done:?}");
    world.daemon.log().wait_for("the volume works again", mark, LIMIT)?;
    let storage = world.wait_for("ok")?;
    ensure!(storage["losses"] == 1 && storage["waiting"] == 0, "{storage}");
    ensure!(world.metrics()?.contains(&format!("\n{} 1\n", state("ok"))));
    Ok(())
}

#[test]
fn holding_ends_at_its_limit_and_begins_afresh() -> Result<()> {
    let world = World::new(&["--on-error", "hold", "--hold-limit", "1s"])?;
    let mut client = Client::simple(world.daemon.socket())?;
    for loss in 1..=2 {
        client.write(0, &[7; 4096])?;
        let mark = world.daemon.log().mark();
        world.lose()?;
        ensure!(client.read(0, 4096).is_err(), "the limit ends it");
        let storage = world.storage()?;
        ensure!(storage["state"] == "reporting" && storage["losses"] == loss, "{storage}");
        world.daemon.log().wait_for("longer than `hold_limit`", mark, LIMIT)?;
        world.mend()?;
        ensure!(client.read(0, 4096).is_ok());
        ensure!(world.storage()?["state"] == "ok");
    }
    Ok(())
}

#[test]
fn a_guest_that_is_told_goes_on_when_the_path_is_back() -> Result<()> {
    let world = World::new(&[])?;
    let mut client = Client::simple(world.daemon.socket())?;
    world.lose()?;
    ensure!(client.read(0, 4096).is_err());
    ensure!(world.storage()?["state"] == "reporting");
    world.daemon.log().wait_for("the volume fails: the guest is told", 0, LIMIT)?;
    world.mend()?;
    client.read(0, 4096)?;
    ensure!(world.storage()?["state"] == "ok");
    Ok(())
}
