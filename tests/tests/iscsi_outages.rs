//! A real iSCSI target goes away, is cut off, falls silent: what was acknowledged stays, the guest
//! gets what its policy says, and the operator sees it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, Daemon, Guest, GuestBuilder, GuestImage, Load, Pattern, Proxy, TargetOptions,
    TestVolume, oracle, progress, sealblk, until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;
const LIMIT: Duration = Duration::from_secs(60);

/// A guest without hardware virtualisation on a busy machine is slow.
const GUEST_LIMIT: Duration = Duration::from_secs(240);

const LOST: &str = "the connection to the storage is lost";
const BACK: &str = "the connection to the storage is back";

/// A volume behind a target that the daemon reaches through a proxy.
struct World {
    daemon: Daemon,
    proxy: Proxy,
    control: String,
    volume: TestVolume,
}

impl World {
    fn new(options: &[&str]) -> Result<Self> {
        let mut volume = TestVolume::formatted_behind(TargetOptions::default(), DISK, &[])?;
        let proxy = Proxy::to(volume.target()?.address())?;
        let uri = volume.target()?.url_at(proxy.address());
        let control = volume.scratch.file("control.sock").display().to_string();
        let key = volume.key_uri();
        let mut args = vec!["--volume", &uri, "--key", &key, "--control", &control];
        args.extend(options);
        let args = args.iter().map(OsString::from).collect();
        let daemon = Daemon::with_args(&volume.scratch.file("vu.sock"), args)?;
        Ok(Self { daemon, proxy, control, volume })
    }

    /// With a load that keeps both queues full of requests.
    fn loaded(options: &[&str]) -> Result<(Self, Load, Client)> {
        let world = Self::new(&[options, &["--queues", "2"]].concat())?;
        let content = Pattern(41).bytes(0, usize::try_from(DISK)?);
        let mut load = Load::new(content.clone(), 2, 16, false);
        let mut client = load.connect(world.daemon.socket())?;
        client.write(0, &content)?;
        Ok((world, load, client))
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

    fn wait_for_line(&self, what: &str, mark: usize) -> Result<usize> {
        Ok(self.daemon.log().wait_for(what, mark, LIMIT)?.1)
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

    /// Ends everything; the disk as cryptsetup reads it must be what the load knows.
    fn end(mut self, mut load: Load, mut client: Client) -> Result<()> {
        load.check_all(&mut client)?;
        client.flush()?;
        drop(client);
        self.daemon.stop()?;
        load.compare_all(&oracle::cryptsetup_decrypts(&self.volume)?)
    }
}

fn more(load: &mut Load, client: &mut Client, requests: u64) -> Result<()> {
    let goal = load.done + requests;
    load.run(client, |done| Ok(done > goal))
}

#[test]
fn ten_crashes_under_deep_queues_lose_nothing() -> Result<()> {
    let (mut world, mut load, mut client) = World::loaded(&[])?;
    for _ in 0..10 {
        more(&mut load, &mut client, 256)?;
        world.daemon.kill()?;
        drop(client);
        world.daemon.start()?;
        client = load.connect(world.daemon.socket())?;
        load.after_a_crash(&mut client)?;
        load.check_all(&mut client)?;
    }
    world.end(load, client)
}

#[test]
fn a_connection_that_is_cut_or_refused_costs_time_only() -> Result<()> {
    let (world, mut load, mut client) = World::loaded(&["--on-error", "hold"])?;
    for _ in 0..8 {
        more(&mut load, &mut client, 200)?;
        world.proxy.cut()?;
    }
    more(&mut load, &mut client, 200)?;
    let mark = world.daemon.log().mark();
    world.proxy.refuse(true)?;
    world.proxy.cut()?;
    load.fill(&mut client)?;
    let mark = world.wait_for_line(LOST, mark)?;
    // For seconds: until the queues have noticed that nothing comes.
    world.wait_for("silent")?;
    world.proxy.refuse(false)?;
    world.wait_for_line(BACK, mark)?;
    more(&mut load, &mut client, 400)?;
    world.end(load, client)
}

#[test]
fn a_connection_that_ends_in_mid_transfer_costs_time_only() -> Result<()> {
    let (world, mut load, mut client) = World::loaded(&["--on-error", "hold"])?;
    // Within a header, at its end, in the data behind it, in later ones.
    for bytes in [1, 47, 48, 49, 4143, 70_001, 300_000, 1_000_003] {
        let before = world.proxy.counts().cut;
        world.proxy.drop_after(bytes)?;
        load.run(&mut client, |_| Ok(world.proxy.counts().cut > before))?;
        more(&mut load, &mut client, 64)?;
    }
    world.end(load, client)
}

#[test]
fn a_path_that_dies_silently_changes_nothing_when_it_comes_back() -> Result<()> {
    let (world, mut load, mut client) = World::loaded(&["--on-error", "hold"])?;
    more(&mut load, &mut client, 200)?;
    let mark = world.daemon.log().mark();
    world.proxy.stall(true)?;
    load.fill(&mut client)?;
    let (line, mark) = world.daemon.log().wait_for(LOST, mark, LIMIT)?;
    ensure!(line.contains("no sign of life"), "{line}");
    world.proxy.stall(false)?;
    world.wait_for_line(BACK, mark)?;
    // What the path held back has reached the target by now, or never will.
    more(&mut load, &mut client, 1000)?;
    world.end(load, client)
}

#[test]
fn who_reports_tells_the_guest_in_time_and_works_again_afterwards() -> Result<()> {
    let world = World::new(&["--io-timeout", "2s"])?;
    let mut client = Client::simple(world.daemon.socket())?;
    client.write(0, &[1; 65536])?;
    client.flush()?;
    world.proxy.stall(true)?;
    ensure!(client.write(0, &[2; 65536]).is_err(), "a write through a dead path");
    ensure!(client.flush().is_err(), "a flush through a dead path");
    ensure!(client.read(0, 4096).is_err(), "a read through a dead path");
    ensure!(world.storage()?["state"] == "reporting", "{}", world.storage()?);
    world.proxy.stall(false)?;
    until("the path to work again", LIMIT, || Ok(client.write(0, &[3; 65536]).ok()))?;
    client.flush()?;
    // The write that failed may have been held back on the way: it must not come any more.
    ensure!(client.read(0, 65536)? == [3; 65536]);
    ensure!(world.wait_for("ok")?["losses"] == 1, "{}", world.storage()?);
    drop(client);
    let World { mut daemon, volume, .. } = world;
    daemon.stop()?;
    ensure!(oracle::cryptsetup_decrypts(&volume)?[..65536] == [3; 65536], "on the target");
    Ok(())
}

#[test]
fn who_holds_with_a_limit_tells_the_guest_when_it_has_passed() -> Result<()> {
    let mut world = World::new(&["--on-error", "hold", "--hold-limit", "2s"])?;
    let mut client = Client::simple(world.daemon.socket())?;
    client.write(0, &[1; 4096])?;
    let mark = world.daemon.log().mark();
    world.volume.target()?.kill()?;
    ensure!(client.write(0, &[2; 4096]).is_err(), "the limit ends it");
    let mark = world.wait_for_line("longer than `hold_limit`", mark)?;
    ensure!(world.storage()?["state"] == "reporting", "{}", world.storage()?);
    world.volume.target()?.start()?;
    until("the path to work again", LIMIT, || Ok(client.write(0, &[3; 4096]).ok()))?;
    world.wait_for_line("the volume works again", mark)?;
    client.flush()?;
    ensure!(client.read(0, 4096)? == [3; 4096]);
    Ok(())
}

#[test]
fn an_operator_sees_an_outage_begin_and_end_once_each() -> Result<()> {
    let options = ["--on-error", "hold", "--log-format", "json"];
    let (mut world, mut load, mut client) = World::loaded(&options)?;
    more(&mut load, &mut client, 200)?;
    ensure!(world.storage()?["state"] == "ok" && world.storage()?["losses"] == 0);
    let mark = world.daemon.log().mark();
    world.volume.target()?.kill()?;
    load.fill(&mut client)?;
    let storage = world.wait_for("silent")?;
    ensure!(storage["losses"] == 1 && storage["since_seconds"].is_u64(), "{storage}");
    ensure!(storage["waiting"].as_u64() > Some(0), "{storage}");
    let shown = sealblk(["status", "--control", &world.control])?.stdout;
    let shown = String::from_utf8(shown)?;
    ensure!(shown.contains("\n  storage     SILENT: "), "{shown}");
    let metrics = world.metrics()?;
    for line in [
        "sealblk_storage_state{volume=\"vu\",state=\"silent\"} 1",
        "sealblk_storage_state{volume=\"vu\",state=\"ok\"} 0",
        "sealblk_storage_losses_total{volume=\"vu\"} 1",
    ] {
        ensure!(metrics.contains(&format!("\n{line}\n")), "no {line} in\n{metrics}");
    }
    world.volume.target()?.start()?;
    world.wait_for_line("the volume works again", mark)?;
    ensure!(world.wait_for("ok")?["losses"] == 1, "{}", world.storage()?);
    more(&mut load, &mut client, 200)?;
    let log = world.daemon.log().text();
    let lines: Vec<Value> =
        log.lines().skip(mark).map(serde_json::from_str).collect::<Result<_, _>>()?;
    let told = |level: &str, what: &str| {
        let is = |line: &&Value| line["level"] == level && line.to_string().contains(what);
        let found: Vec<_> = lines.iter().filter(is).collect();
        ensure!(found.len() == 1, "{} events with {what:?}:\n{log}", found.len());
        ensure!(found[0].to_string().contains("\"disk\":\"vu\""), "{}", found[0]);
        Ok(())
    };
    told("WARN", LOST)?;
    told("WARN", "the volume doesn't answer: requests wait in it")?;
    told("INFO", BACK)?;
    told("INFO", "the volume works again")?;
    world.end(load, client)
}

/// Writes files without pause, and checks them at the end.
const WRITES: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount -o errors=panic /dev/vda /mnt
for n in $(seq 60); do
  dd if=/dev/urandom of=/mnt/file$n bs=64k count=8 conv=fsync 2>/dev/null || echo "WRITE-ERROR"
  (cd /mnt && sha256sum file$n) >>/tmp/sums
  echo "TICK $n"
done
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c /tmp/sums >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
dmesg | grep -i 'I/O error' && exit 1
echo "CHECKED $(grep -c ': OK' /tmp/checked) files"
"#;

fn tick(guest: &mut Guest) -> Result<()> {
    guest.skip_to_now();
    guest.wait_for("TICK", GUEST_LIMIT)?;
    Ok(())
}

#[test]
fn a_guest_survives_the_death_of_its_target() -> Result<()> {
    let mut volume = TestVolume::formatted_behind(TargetOptions::with_chap(), 128 * MIB, &[])?;
    let mut daemon = Daemon::serve(&volume, &["--on-error", "hold", "--queues", "2"])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, WRITES).processors(2);
    let mut guest = guest.disk(daemon.socket(), 2).start()?;
    tick(&mut guest)?;
    for _ in 0..3 {
        progress("the target is killed and started");
        volume.target()?.kill()?;
        volume.target()?.start()?;
        tick(&mut guest)?;
    }
    progress("the target is away until nothing has come back for seconds");
    let mark = daemon.log().mark();
    volume.target()?.kill()?;
    daemon.log().wait_for("the volume doesn't answer", mark, LIMIT)?;
    volume.target()?.start()?;
    tick(&mut guest)?;
    progress("the daemon is killed while the target is away");
    volume.target()?.kill()?;
    daemon.kill()?;
    volume.target()?.start()?;
    daemon.start()?;
    tick(&mut guest)?;
    let checked = guest.wait_for("CHECKED", GUEST_LIMIT)?;
    ensure!(checked.contains("CHECKED 60 files"), "{checked}");
    guest.succeed(GUEST_LIMIT)?;
    ensure!(!guest.console().contains("WRITE-ERROR"), "{}", guest.console());
    daemon.stop()?;
    Ok(())
}
