//! The agent of a node with daemons of its own: what it is asked comes true, again and again, and
//! whatever is killed, guests go on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags};
use sealblk_tests::{Agent, Client, Load, NOBODY, Pattern, run, sealblk_command, until};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;
/// Size of disks; their volumes have 16 MiB more.
const SIZE: u64 = 8 * MIB;

const ONE: &str = "11111111-1111-4111-8111-111111111111";
const TWO: &str = "22222222-2222-4222-8222-222222222222";
const VOLUME: &str = "a1111111-1111-4111-8111-111111111111";
const OTHER: &str = "b2222222-2222-4222-8222-222222222222";

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn attach(instance: &str, volume: &str, path: &Path) -> Value {
    let kind = if path.starts_with("/dev") { "device" } else { "file" };
    json!({
        "op": "attach", "instance": instance, "volume": volume,
        "source": {"kind": kind, "path": path}, "key": {"from": "descriptor"},
        "key_id": "kid", "format": "if-blank",
    })
}

fn of(op: &str, instance: &str, volume: &str) -> Value {
    json!({"op": op, "instance": instance, "volume": volume})
}

/// A loop device on a file.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn on(file: &Path) -> Result<Self> {
        let output = run("losetup", ["-f".as_ref(), "--show".as_ref(), file.as_os_str()])?;
        Ok(Self(String::from_utf8(output.stdout)?.trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        run("losetup", ["-d".as_ref(), self.0.as_os_str()]).ok();
    }
}

/// Whether nobody claims it: a second one can.
fn is_free(path: &Path) -> Result<bool> {
    if !path.starts_with("/dev") {
        // A file's claim is a lock.
        let file = File::options().read(true).write(true).open(path)?;
        return match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Ok(false),
            Err(error) => Err(error.into()),
        };
    }
    match rustix::fs::open(path, OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::BUSY) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn lifecycle(agent: &mut Agent, path: &Path) -> Result<()> {
    let request = attach(ONE, VOLUME, path);
    let first = agent.ok(&request, Some(KEY))?;
    ensure!(first["formatted"] == true && first["capacity_bytes"] == SIZE, "{first}");
    ensure!(first["serial"] == VOLUME[..20] && first["luks_version"] == 2, "{first}");
    let socket = PathBuf::from(first["socket"].as_str().context("no socket")?);
    let expected = |mut answer: Value| {
        answer["formatted"] = true.into();
        answer == first
    };
    ensure!(expected(agent.ok(&request, Some(KEY))?), "another answer the second time");
    let elsewhere = agent.disk("elsewhere", SIZE)?;
    ensure!(agent.refusal(&attach(ONE, VOLUME, &elsewhere), Some(KEY))? == "conflict");
    ensure!(agent.refusal(&attach(TWO, VOLUME, path), Some(KEY))? == "conflict");

    let content = Pattern(7).bytes(0, 1 << 20);
    let mut client = Client::simple(&socket)?;
    client.write(0, &content)?;
    let listed = agent.ok(&json!({"op": "list"}), None)?;
    ensure!(listed["instances"].as_array().map(Vec::len) == Some(1), "{listed}");
    ensure!(listed["instances"][0]["volumes"][0]["connected"] == true, "{listed}");
    ensure!(!is_free(path)?, "it is served and nobody claims it");
    drop(client);

    ensure!(agent.ok(&of("park", ONE, VOLUME), None)?["state"] == "parked");
    ensure!(agent.ok(&of("park", ONE, VOLUME), None)?["state"] == "parked");
    ensure!(!socket.exists(), "a parked volume's socket is there");
    ensure!(is_free(path)?, "it is parked and still claimed");
    let mut kept = request.clone();
    kept["key"] = json!({"from": "kept"});
    ensure!(expected(agent.ok(&kept, None)?), "another answer after parking");
    let mut client = Client::simple(&socket)?;
    ensure!(client.read(0, content.len())? == content, "other data after parking");
    drop(client);

    ensure!(agent.ok(&of("detach", ONE, VOLUME), None)?["state"] == "absent");
    ensure!(agent.ok(&of("detach", ONE, VOLUME), None)?["state"] == "absent");
    ensure!(is_free(path)?, "it is detached and still claimed");
    agent.must_be_idle()?;
    // The key went with it.
    ensure!(agent.refusal(&kept, None)? == "key-missing");
    agent.must_be_idle()?;
    agent.stop()
}

#[test]
fn a_file_is_served_parked_and_let_go() -> Result<()> {
    let mut agent = Agent::start(false, "", "")?;
    let path = agent.disk("disk", SIZE + 16 * MIB)?;
    lifecycle(&mut agent, &path)
}

#[test]
fn an_agent_without_rights_does_the_same_for_its_own_files() -> Result<()> {
    let mut agent = Agent::start(true, "", "")?;
    let path = agent.disk("disk", SIZE + 16 * MIB)?;
    lifecycle(&mut agent, &path)
}

#[test]
fn a_device_is_served_to_a_daemon_that_may_not_open_it() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let mut agent = Agent::start(false, "", "")?;
    let file = agent.disk("disk", SIZE + 16 * MIB)?;
    let device = LoopDevice::on(&file)?;
    lifecycle(&mut agent, &device.0)
}

/// A volume full of a pattern, and a load for it.
fn loaded(agent: &Agent) -> Result<(PathBuf, Load, Client)> {
    let path = agent.disk("disk", SIZE + 16 * MIB)?;
    let answer = agent.ok(&attach(ONE, VOLUME, &path), Some(KEY))?;
    let socket = PathBuf::from(answer["socket"].as_str().context("no socket")?);
    let content = Pattern(31).bytes(0, usize::try_from(SIZE)?);
    let mut load = Load::new(content.clone(), 1, 16, false);
    let mut client = load.connect(&socket)?;
    client.write(0, &content)?;
    Ok((socket, load, client))
}

#[test]
fn a_killed_daemon_comes_back_with_its_keys_and_devices_without_the_agent() -> Result<()> {
    let mut agent = Agent::start(false, "", "")?;
    let (socket, mut load, mut client) = loaded(&agent)?;
    for _ in 0..3 {
        let before = load.done;
        load.run(&mut client, |done| Ok(done > before + 500))?;
        load.fill(&mut client)?;
        let worker = agent.worker(ONE)?;
        agent.kill_worker(ONE)?;
        drop(client);
        client = until("the daemon's successor", LIMIT, || Ok(load.connect(&socket).ok()))?;
        load.after_a_crash(&mut client)?;
        ensure!(agent.worker(ONE)? != worker, "the same process serves");
    }
    load.check_all(&mut client)?;
    drop(client);
    agent.ok(&json!({"op": "forget", "instance": ONE}), None)?;
    agent.must_be_idle()?;
    agent.stop()
}

#[test]
fn a_killed_agent_disturbs_no_guest_and_the_next_one_knows_as_much() -> Result<()> {
    let mut agent = Agent::start(false, "", "")?;
    let (_, mut load, mut client) = loaded(&agent)?;
    let before = agent.ok(&json!({"op": "list"}), None)?;
    load.fill(&mut client)?;
    agent.kill()?;
    let done = load.done;
    load.run(&mut client, |now| Ok(now > done + 500))?;
    agent.run()?;
    ensure!(agent.ok(&json!({"op": "list"}), None)? == before, "another list");
    let again = attach(ONE, VOLUME, &agent.scratch.file("disks/disk"));
    ensure!(agent.ok(&again, Some(KEY))?["state"] == "serving");
    ensure!(
        agent.refusal(&attach(TWO, VOLUME, &agent.scratch.file("disks/disk")), Some(KEY))?
            == "conflict"
    );
    let done = load.done;
    load.run(&mut client, |now| Ok(now > done + 500))?;
    load.check_all(&mut client)?;
    drop(client);
    agent.ok(&of("detach", ONE, VOLUME), None)?;
    agent.must_be_idle()?;

    // A daemon that is gone for good.
    agent.ok(&again, Some(KEY))?;
    agent.kill()?;
    for pid in agent.daemons()? {
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
    }
    until("the daemon's end", LIMIT, || Ok(agent.daemons()?.is_empty().then_some(())))?;
    agent.run()?;
    ensure!(agent.ok(&json!({"op": "list"}), None)? == json!({"instances": []}));
    // What was served can be served again.
    agent.ok(&again, Some(KEY))?;
    agent.ok(&json!({"op": "forget", "instance": ONE}), None)?;
    agent.stop()
}

#[test]
fn what_cannot_be_served_is_told_and_leaves_nothing_running() -> Result<()> {
    let mut agent = Agent::start(false, "", "")?;
    let path = agent.disk("disk", SIZE + 16 * MIB)?;
    let unchanged = |path: &Path, what: &dyn Fn() -> Result<()>| {
        let before = std::fs::read(path)?;
        what()?;
        ensure!(std::fs::read(path)? == before, "it was written to");
        agent.must_be_idle()
    };
    let never = |path: &Path| {
        let mut request = attach(ONE, VOLUME, path);
        request["format"] = "never".into();
        request
    };
    unchanged(&path, &|| {
        ensure!(agent.refusal(&never(&path), Some(KEY))? == "not-encrypted");
        Ok(())
    })?;
    agent.ok(&attach(ONE, VOLUME, &path), Some(KEY))?;
    agent.ok(&of("detach", ONE, VOLUME), None)?;
    unchanged(&path, &|| {
        ensure!(agent.refusal(&attach(ONE, VOLUME, &path), Some(b"wrong"))? == "key-wrong");
        Ok(())
    })?;
    let plain = agent.disk("plain", SIZE + 16 * MIB)?;
    run("mkfs.ext4", ["-q".as_ref(), plain.as_os_str()])?;
    unchanged(&plain, &|| {
        ensure!(agent.refusal(&attach(ONE, VOLUME, &plain), Some(KEY))? == "not-encrypted");
        ensure!(agent.refusal(&never(&plain), Some(KEY))? == "not-encrypted");
        Ok(())
    })?;
    // A single byte that no signature knows.
    let written = agent.disk("written", SIZE + 16 * MIB)?;
    File::options().write(true).open(&written)?.write_all_at(b"x", 9 * MIB)?;
    unchanged(&written, &|| {
        ensure!(agent.refusal(&attach(ONE, VOLUME, &written), Some(KEY))? == "not-encrypted");
        Ok(())
    })?;
    let outside = agent.scratch.file("agent.toml");
    unchanged(&outside, &|| {
        ensure!(agent.refusal(&attach(ONE, VOLUME, &outside), Some(KEY))? == "refused");
        Ok(())
    })?;
    // A failure does nothing to the instance's other volumes.
    agent.ok(&attach(ONE, VOLUME, &path), Some(KEY))?;
    ensure!(agent.refusal(&attach(ONE, OTHER, &plain), Some(KEY))? == "not-encrypted");
    let listed = agent.ok(&json!({"op": "list"}), None)?;
    ensure!(listed["instances"][0]["volumes"].as_array().map(Vec::len) == Some(1), "{listed}");
    ensure!(!agent.log().contains("0123456789abcdef"), "a key is in the log");
    agent.ok(&json!({"op": "forget", "instance": ONE}), None)?;
    agent.stop()
}

#[test]
fn rotations_beyond_the_limit_wait_for_their_turn() -> Result<()> {
    let mut agent = Agent::start(false, "", "[rotation]\nmax_running = 1")?;
    for (instance, volume, name) in [(ONE, VOLUME, "a"), (TWO, OTHER, "b")] {
        let path = agent.disk(name, SIZE + 16 * MIB)?;
        agent.ok(&attach(instance, volume, &path), Some(KEY))?;
    }
    let start = json!({"op": "rotate", "select": {"all": true},
                       "order": {"action": "start", "rate_bytes": 4 * MIB}});
    let started = agent.ok(&start, None)?;
    let queued: Vec<_> = started["volumes"].as_array().context("no volumes")?.iter().collect();
    ensure!(queued.len() == 2, "{started}");
    ensure!(queued[0]["queued"] == false && queued[1]["queued"] == true, "{started}");
    ensure!(queued.iter().all(|one| one["error"].is_null()), "{started}");
    // The next agent goes on with the queue.
    agent.kill()?;
    agent.run()?;
    let state = |status: &Value, at: usize| {
        let rotation = &status["instances"][at]["status"]["volumes"][0]["rotation"];
        rotation["state"].as_str().unwrap_or_default().to_owned()
    };
    let under_way = ["running", "throttled"];
    until("both rotations", LIMIT, || {
        let status = agent.ok(&json!({"op": "status"}), None)?;
        let (one, two) = (state(&status, 0), state(&status, 1));
        let at_once = [&one, &two].iter().filter(|one| under_way.contains(&one.as_str())).count();
        ensure!(at_once <= 1, "more than one at once: {status}");
        ensure!(one != "failed" && two != "failed", "{status}");
        ensure!(two == "none" || one == "completed", "out of order: {status}");
        Ok((one == "completed" && two == "completed").then_some(()))
    })?;
    let status = agent.ok(&json!({"op": "status"}), None)?;
    let rotations = json!({"running": 0, "queued": 0, "limit": 1});
    ensure!(status["rotations"] == rotations, "{status}");
    let mut command = sealblk_command()?;
    command.args(["--node", "rotate", "pause", "--all", "--agent-socket"]).arg(agent.socket());
    ensure!(command.status()?.success());
    let mut command = sealblk_command()?;
    command.args(["--node", "list", "--json", "--agent-socket"]).arg(agent.socket());
    let listed: Value = serde_json::from_slice(&command.output()?.stdout)?;
    ensure!(listed == agent.ok(&json!({"op": "list"}), None)?);
    for instance in [ONE, TWO] {
        agent.ok(&json!({"op": "forget", "instance": instance}), None)?;
    }
    agent.must_be_idle()?;
    agent.stop()
}

#[test]
fn who_is_not_allowed_is_refused() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    // The socket lets the group in, so that the credentials decide.
    let group = format!("socket_group = \"{NOBODY}\"\n");
    let ask = |agent: &Agent| {
        let mut client = Command::new("setpriv");
        let id = NOBODY.to_string();
        client.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]);
        client.arg(sealblk_command()?.get_program());
        client.args(["--node", "list", "--agent-socket"]).arg(agent.socket());
        Ok::<_, anyhow::Error>(client.output()?)
    };
    let agent = Agent::start(false, &format!("{group}allow_users = []"), "")?;
    let output = ask(&agent)?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success() && words.contains("allow_users"), "{words}");
    let agent = Agent::start(false, &format!("{group}allow_users = [\"{NOBODY}\"]"), "")?;
    let output = ask(&agent)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
