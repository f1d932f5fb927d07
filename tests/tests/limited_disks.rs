//! Disks with limits, as their clients and operators see them. What is asserted of time is only how
//! much may have been moved in it; a wait that must not be waited out would last an hour.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, ClientOptions, Daemon, Pattern, TestVolume, sealblk};
use serde_json::{Value, json};

const DISK: u64 = 16 << 20;
const BLOCK: usize = 16 << 10;

struct World {
    daemon: Daemon,
    control: PathBuf,
    config: PathBuf,
    // Dropped last: the directory.
    volume: TestVolume,
}

impl World {
    fn new(queues: u16, limits: &str) -> Result<Self> {
        let volume = TestVolume::formatted(DISK, 512)?;
        let control = volume.scratch.file("control.sock");
        let config = volume.scratch.file("sealblkd.toml");
        let socket = volume.scratch.file("vu.sock");
        let text = format!(
            "[daemon]\ncontrol = {control:?}\n[[volume]]\nname = \"vda\"\nuri = {:?}\nkey = {:?}\n\
             socket = {socket:?}\nqueues = {queues}\n[volume.limits]\n{limits}\n",
            volume.uri(),
            volume.key_uri(),
        );
        std::fs::write(&config, text)?;
        let daemon = Daemon::exactly(&socket, vec!["--config".into(), config.clone().into()])?;
        Ok(Self { daemon, control, config, volume })
    }

    fn status(&self) -> Result<Value> {
        let control = self.control.to_str().context("path")?;
        let status = sealblk(["status", "--json", "--control", control])?;
        let status: Value = serde_json::from_slice(&status.stdout)?;
        Ok(status["volumes"][0].clone())
    }
}

/// The sum of a counter over the queues.
fn sum(status: &Value, pointer: &str) -> u64 {
    let queues = status["queues"].as_array().into_iter().flatten();
    queues.filter_map(|queue| queue.pointer(pointer)?.as_u64()).sum()
}

/// Reads and writes turn by turn on all queues, eight at a time on each, until so many are done.
fn work(client: &mut Client, queues: usize, count: usize) -> Result<()> {
    const DEPTH: usize = 8;
    let start = |client: &mut Client, queue: usize, tag: usize| {
        let at = (queue * DEPTH + tag) * BLOCK;
        if (queue + tag).is_multiple_of(2) {
            client.start_write(queue, at as u64, at, BLOCK, tag)
        } else {
            client.start_read(queue, at as u64, at, BLOCK, tag)
        }
    };
    for queue in 0..queues {
        for tag in 0..DEPTH {
            start(client, queue, tag)?;
        }
    }
    let (mut started, mut done) = (queues * DEPTH, 0);
    let mut out = vec![DEPTH; queues];
    while done < count {
        for (queue, out) in out.iter_mut().enumerate() {
            for completed in client.complete(queue, (*out).min(1))? {
                ensure!(completed.result == 0, "{completed:?}");
                done += 1;
                if started < count {
                    started += 1;
                    start(client, queue, completed.tag)?;
                } else {
                    *out -= 1;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_client_never_moves_more_than_its_limit() -> Result<()> {
    const COUNT: u64 = 384;
    let block = BLOCK as u64;
    // What is limited, how much of it a request is, the rate, and what the bucket holds.
    for (limits, each, rate, bucket) in [
        (json!({"total_bytes_sec": 8 << 20}), block, 8 << 20, (8 << 20) / 10),
        (json!({"total_iops_sec": 400}), 1, 400, 40),
        (
            json!({"total_bytes_sec": 4 << 20, "total_bytes_sec_max": 5 << 20,
                   "total_iops_sec": 1_000_000}),
            block,
            4 << 20,
            5 << 20,
        ),
        (json!({"total_iops_sec": 400, "size_iops_sec": 8192}), 2, 400, 40),
    ] {
        let fields = limits.as_object().context("no object")?;
        let lines: Vec<String> = fields.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        let world = World::new(2, &lines.join("\n"))?;
        let options = ClientOptions { queues: 2, ..ClientOptions::default() };
        let mut client = Client::connect(world.daemon.socket(), options)?;
        let began = Instant::now();
        work(&mut client, 2, COUNT as usize)?;
        let elapsed = began.elapsed();
        let allowed = (bucket + each) as f64 + rate as f64 * elapsed.as_secs_f64();
        ensure!((COUNT * each) as f64 <= allowed, "{limits}: {COUNT} requests in {elapsed:?}");

        let status = world.status()?;
        ensure!(status["limits"] == limits, "{status}");
        ensure!(sum(&status, "/read_bytes") + sum(&status, "/written_bytes") == COUNT * block);
        ensure!(sum(&status, "/throttled") > 0 && sum(&status, "/throttled_us") > 0, "{status}");
        let shown = sealblk(["status", "--control", world.control.to_str().context("path")?])?;
        let shown = String::from_utf8(shown.stdout)?;
        for (name, value) in fields {
            ensure!(shown.contains(&format!("{name} {value}")), "{name}: {shown}");
        }
    }
    Ok(())
}

/// Starts eight writes, of which one goes, and waits for that one.
fn stand(client: &mut Client) -> Result<Vec<u8>> {
    let data = Pattern(7).bytes(0, 8 * BLOCK);
    client.fill(0, &data)?;
    for tag in 0..8 {
        client.start_write(0, (tag * BLOCK) as u64, tag * BLOCK, BLOCK, tag)?;
    }
    let done = client.complete(0, 1)?;
    ensure!(done.len() == 1 && done[0].tag == 0 && done[0].result == 0, "{done:?}");
    Ok(data)
}

#[test]
fn reads_and_flushes_pass_a_limit_of_writes() -> Result<()> {
    let world = World::new(1, "write_bytes_sec = 1")?;
    let mut client = Client::simple(world.daemon.socket())?;
    stand(&mut client)?;
    client.start_read(0, 4 << 20, 4 << 20, BLOCK, 20)?;
    client.start_flush(0, 21)?;
    let mut done = client.complete(0, 2)?;
    done.sort_by_key(|completed| completed.tag);
    let tags: Vec<_> = done.iter().map(|completed| (completed.tag, completed.result)).collect();
    ensure!(tags == [(20, 0), (21, 0)], "{done:?}");
    let status = world.status()?;
    ensure!(sum(&status, "/requests/write") == 1 && sum(&status, "/inflight") == 7, "{status}");
    ensure!(sum(&status, "/throttled") == 7, "{status}");
    Ok(())
}

#[test]
fn a_daemon_that_ends_finishes_what_waits_for_a_limit() -> Result<()> {
    let mut world = World::new(1, "total_bytes_sec = 1")?;
    let mut client = Client::simple(world.daemon.socket())?;
    let data = stand(&mut client)?;
    let exit = world.daemon.stop()?;
    ensure!(exit.status.success(), "{}", exit.log);
    let done = client.complete(0, 7)?;
    ensure!(done.len() == 7 && done.iter().all(|completed| completed.result == 0), "{done:?}");
    drop(client);
    let daemon = Daemon::serve(&world.volume, &[])?;
    ensure!(Client::simple(daemon.socket())?.read(0, data.len())? == data);
    Ok(())
}

#[test]
fn a_client_that_leaves_is_not_held_up_and_its_successor_owes() -> Result<()> {
    let world = World::new(1, "write_bytes_sec = 1")?;
    let mut client = Client::simple(world.daemon.socket())?;
    let data = stand(&mut client)?;
    drop(client);
    let mut client = Client::simple(world.daemon.socket())?;
    ensure!(client.read(0, data.len())? == data, "what it had asked for was done");
    client.start_write(0, 0, 0, BLOCK, 1)?;
    client.start_read(0, 0, BLOCK, BLOCK, 2)?;
    let done = client.complete(0, 1)?;
    ensure!(done.len() == 1 && done[0].tag == 2, "{done:?}");
    Ok(())
}

#[test]
fn limits_that_make_no_sense_are_refused_by_name() -> Result<()> {
    let world = World::new(1, "total_iops_sec = 100")?;
    let good = std::fs::read_to_string(&world.config)?;
    for (line, word) in [
        ("read_iops_sec = 1", "`total_iops_sec` and `read_iops_sec` exclude each other"),
        ("total_iops_sec_max = 99", "`total_iops_sec_max` is 99, less than"),
        ("total_iops = 1", "unknown field `total_iops`"),
    ] {
        std::fs::write(&world.config, format!("{good}{line}\n"))?;
        let exit = Daemon::run_to_end(&["--config".as_ref(), world.config.as_os_str()])?;
        ensure!(exit.status.code() == Some(2), "{}: {}", exit.status, exit.log);
        ensure!(exit.log.contains(word), "{}", exit.log);
    }
    Ok(())
}
