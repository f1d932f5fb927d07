//! `sealblk status`: what a daemon says about itself.

use sealblk_api::{
    KeyAge, QueueStatus, RotationState, STATUS_PATH, Status, StorageState, StorageStatus,
    VolumeStatus,
};

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::http;
use crate::progress;
use crate::size::human;
use crate::table::{Align, Table};
use crate::time::{ago, ahead, duration, now};

pub(crate) fn run(args: &args::Status, console: &mut Console<'_>) -> Result<(), Failure> {
    if args.json {
        // What the daemon said, with what this command doesn't know.
        let status: serde_json::Value = http::get(&args.control, STATUS_PATH)?;
        writeln!(console.out, "{status:#}")?;
    } else {
        let status: Status = http::get(&args.control, STATUS_PATH)?;
        console.out.write_all(render(&status, now()).as_bytes())?;
    }
    Ok(())
}

fn render(status: &Status, now: u64) -> String {
    let mut text = format!(
        "sealblkd {}, pid {}, up {}; keys in memory: {}\n",
        status.version,
        status.pid,
        duration(status.uptime_seconds),
        status.secret_protection,
    );
    for volume in &status.volumes {
        text.push('\n');
        text.push_str(&render_volume(volume, now));
    }
    text
}

fn render_volume(volume: &VolumeStatus, now: u64) -> String {
    let encryption = volume.encryption.as_ref().map_or_else(
        || "NONE: served with `plain`".to_owned(),
        |e| {
            format!(
                "LUKS{} {}, {}-bit key, {}-byte sectors, by {}; UUID {}",
                e.luks_version, e.cipher, e.key_bits, e.sector_bytes, e.implementation, e.uuid,
            )
        },
    );
    let on_off = |on| if on { "on" } else { "off" };
    let disk = format!(
        "{}, {}-byte blocks, {}, write cache {}, discard {}, serial {}",
        human(volume.capacity_bytes),
        volume.block_bytes,
        if volume.read_only { "read-only" } else { "read-write" },
        on_off(volume.writeback),
        on_off(volume.discard),
        if volume.serial.is_empty() { "none" } else { &volume.serial },
    );
    let rotation = volume.rotation.as_ref().filter(|r| r.state != RotationState::None);
    let rotation = rotation.map_or_else(String::new, |rotation| {
        format!("  rotation    {}\n", progress::phrase(rotation))
    });
    format!(
        "{}: {}\n  volume      {}\n  socket      {}\n  encryption  {encryption}\n{}  disk        {disk}\n\
         {}{rotation}{}",
        volume.name,
        volume.state.as_str(),
        volume.uri,
        volume.socket,
        volume.key_age.as_ref().map_or_else(String::new, |age| render_age(age, now)),
        render_storage(&volume.storage) + &render_limits(volume),
        render_queues(&volume.queues),
    )
}

/// What is wrong with the storage path, if something is.
fn render_storage(storage: &StorageStatus) -> String {
    let waiting = storage.waiting;
    let what = match storage.state {
        StorageState::Ok => return String::new(),
        StorageState::Silent => {
            format!("SILENT: the volume doesn't answer, {waiting} I/Os wait in it")
        }
        StorageState::Holding => {
            format!("HOLDING: the volume fails, {waiting} I/Os are held and tried again")
        }
        StorageState::Reporting => "REPORTING: the volume fails, and the guest is told".to_owned(),
        StorageState::Fenced => {
            "FENCED: another client has taken the volume, nothing is written any more".to_owned()
        }
        StorageState::Unknown => "in a state that this command doesn't know".to_owned(),
    };
    let since =
        storage.since_seconds.map_or_else(String::new, |s| format!("; for {}", duration(s)));
    format!("  storage     {what}{since}\n")
}

/// What the guest may do per second, if it is limited, and what that cost it.
fn render_limits(volume: &VolumeStatus) -> String {
    if volume.limits.is_empty() {
        return String::new();
    }
    let limits: Vec<String> =
        volume.limits.iter().map(|(name, value)| format!("{name} {value}")).collect();
    let sum = |of: fn(&QueueStatus) -> u64| volume.queues.iter().map(of).sum::<u64>();
    format!(
        "  limits      {}; {} requests waited, {:.1} s in all\n",
        limits.join(", "),
        sum(|queue| queue.throttled),
        sum(|queue| queue.throttled_us) as f64 / 1e6,
    )
}

/// How old the keys are, and what is to become of them.
fn render_age(age: &KeyAge, now: u64) -> String {
    let since = |since: Option<u64>| {
        since.map_or_else(|| "of unknown age".to_owned(), |at| format!("since {}", ago(at, now)))
    };
    let mut text = format!(
        "  age         volume key {}, secret {}\n",
        since(age.volume_key_since),
        since(age.secret_since),
    );
    let mut plan = Vec::new();
    if let Some(at) = age.last_rotation_at {
        plan.push(format!("last ended {}", ago(at, now)));
    }
    match age.due_at {
        Some(at) if at <= now => plan.push(format!("DUE since {}", ago(at, now))),
        Some(at) => plan.push(format!("due {}", ahead(at, now))),
        None => {}
    }
    match age.next_run_at {
        Some(at) if at <= now => plan.push("may run now".to_owned()),
        Some(at) => plan.push(format!("next run {}", ahead(at, now))),
        None => {}
    }
    if !plan.is_empty() {
        text.push_str(&format!("  rotation    {}\n", plan.join(", ")));
    }
    text
}

fn render_queues(queues: &[QueueStatus]) -> String {
    const RIGHT: Align = Align::Right;
    let mut table = Table::new(&[
        ("QUEUE", RIGHT),
        ("STATE", Align::Left),
        ("READS", RIGHT),
        ("READ", RIGHT),
        ("WRITES", RIGHT),
        ("WRITTEN", RIGHT),
        ("FLUSHES", RIGHT),
        ("DISCARDS", RIGHT),
        ("IN FLIGHT", RIGHT),
        ("REPLAYED", RIGHT),
        ("HELD", RIGHT),
        ("ERRORS", RIGHT),
    ]);
    for queue in queues {
        let requests = &queue.requests;
        table.row(vec![
            queue.index.to_string(),
            match (queue.broken, queue.running) {
                (true, _) => "BROKEN",
                (false, true) => "running",
                (false, false) => "stopped",
            }
            .to_owned(),
            requests.read.to_string(),
            human(queue.read_bytes),
            requests.write.to_string(),
            human(queue.written_bytes),
            requests.flush.to_string(),
            requests.discard.to_string(),
            queue.inflight.to_string(),
            queue.replayed.to_string(),
            queue.held.to_string(),
            queue.errors.total().to_string(),
        ]);
    }
    let mut text = table.render(2);
    for queue in queues.iter().filter(|queue| queue.errors.total() > 0) {
        let errors = &queue.errors;
        text.push_str(&format!(
            "  errors of queue {}: {} by the volume, {} by the guest\n",
            queue.index, errors.volume, errors.guest,
        ));
    }
    for queue in queues.iter().filter(|queue| queue.broken) {
        text.push_str(&format!(
            "  queue {} is broken: the guest's driver wrote nonsense into the ring; it takes no \
             requests until the guest resets the device\n",
            queue.index,
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use sealblk_api::{Encryption, Errors, Requests, Rotation, SessionState};

    use super::*;

    #[test]
    fn a_status_is_shown_whole() {
        let queue = QueueStatus {
            index: 0,
            running: true,
            broken: false,
            requests: Requests { read: 1200, write: 34, flush: 5, discard: 1 },
            read_bytes: 5 << 20,
            written_bytes: 4096,
            errors: Errors { guest: 2, ..Default::default() },
            inflight: 3,
            replayed: 4,
            held: 6,
            ..QueueStatus::default()
        };
        let broken = QueueStatus { index: 1, broken: true, ..QueueStatus::default() };
        let status = Status {
            version: "0.1.0".into(),
            pid: 42,
            uptime_seconds: 3723,
            secret_protection: "memfd_secret".into(),
            volumes: vec![VolumeStatus {
                name: "vda".into(),
                uri: "file:/var/lib/vda.img".into(),
                socket: "/run/vda.sock".into(),
                state: SessionState::Connected,
                encryption: Some(Encryption {
                    luks_version: 2,
                    uuid: "1f3a".into(),
                    cipher: "aes-xts-plain64".into(),
                    key_bits: 512,
                    sector_bytes: 4096,
                    implementation: "AWS-LC".into(),
                }),
                capacity_bytes: 10 << 30,
                block_bytes: 4096,
                read_only: false,
                discard: false,
                writeback: true,
                serial: "1f3a".into(),
                queues: vec![queue, broken],
                ..VolumeStatus::default()
            }],
        };
        let expected = "\
sealblkd 0.1.0, pid 42, up 1 h 2 min; keys in memory: memfd_secret

vda: connected
  volume      file:/var/lib/vda.img
  socket      /run/vda.sock
  encryption  LUKS2 aes-xts-plain64, 512-bit key, 4096-byte sectors, by AWS-LC; UUID 1f3a
  disk        10 GiB, 4096-byte blocks, read-write, write cache on, discard off, serial 1f3a
  QUEUE  STATE    READS   READ  WRITES  WRITTEN  FLUSHES  DISCARDS  IN FLIGHT  REPLAYED  HELD  ERRORS
      0  running   1200  5 MiB      34    4 KiB        5         1          3         4     6       2
      1  BROKEN       0    0 B       0      0 B        0         0          0         0     0       0
  errors of queue 0: 0 by the volume, 2 by the guest
  queue 1 is broken: the guest's driver wrote nonsense into the ring; it takes no requests until \
the guest resets the device
";
        assert_eq!(render(&status, 0), expected);
    }

    #[test]
    fn an_unencrypted_volume_is_not_to_be_overlooked() {
        let text = render_volume(&VolumeStatus::default(), 0);
        assert!(text.contains("encryption  NONE"), "{text}");
    }

    #[test]
    fn a_lost_path_is_shown_in_a_line_and_a_good_one_not_at_all() {
        let shown = |state| {
            let storage =
                StorageStatus { state, since_seconds: Some(65), waiting: 3, ..Default::default() };
            render_volume(&VolumeStatus { storage, ..VolumeStatus::default() }, 0)
        };
        let line = "\n  storage     HOLDING: the volume fails, 3 I/Os are held and tried again; for \
                    1 min 5 s\n";
        assert!(shown(StorageState::Holding).contains(line), "{}", shown(StorageState::Holding));
        for state in StorageState::ALL {
            let lines = shown(state).lines().filter(|line| line.contains("  storage ")).count();
            assert_eq!(lines, usize::from(state != StorageState::Ok));
        }
    }

    #[test]
    fn limits_are_shown_with_what_they_cost() {
        let queue = |throttled, throttled_us| QueueStatus {
            throttled,
            throttled_us,
            ..QueueStatus::default()
        };
        let limits = [("total_iops_sec", 500), ("total_iops_sec_max", 2000)];
        let volume = VolumeStatus {
            limits: limits.map(|(name, value)| (name.to_owned(), value)).into(),
            queues: vec![queue(3, 1_200_000), queue(4, 200_000)],
            ..VolumeStatus::default()
        };
        let line = "\n  limits      total_iops_sec 500, total_iops_sec_max 2000; 7 requests waited, \
                    1.4 s in all\n";
        assert!(render_volume(&volume, 0).contains(line), "{}", render_volume(&volume, 0));
        assert!(!render_volume(&VolumeStatus::default(), 0).contains("limits"));
    }

    #[test]
    fn the_age_of_keys_and_what_is_to_come_are_shown() {
        const NOW: u64 = 1_795_514_100;
        let day = 86400;
        let age = KeyAge {
            volume_key_since: Some(NOW - 12 * day),
            secret_since: None,
            due_at: Some(NOW + 353 * day),
            last_rotation_at: Some(NOW - 11 * day),
            next_run_at: Some(NOW + 356 * day),
        };
        let volume = VolumeStatus { key_age: Some(age.clone()), ..VolumeStatus::default() };
        let expected = "  age         volume key since 2026-11-12 (12 d), secret of unknown age
  rotation    last ended 2026-11-13 (11 d), due 2027-11-12 (in 353 d), next run \
                        2027-11-15 (in 356 d)\n";
        assert!(render_volume(&volume, NOW).contains(expected), "{}", render_volume(&volume, NOW));
        let overdue = KeyAge { due_at: Some(NOW - day), next_run_at: Some(NOW), ..age };
        let text = render_age(&overdue, NOW);
        assert!(text.contains("DUE since 2026-11-23 (1 d), may run now\n"), "{text}");
        let unknown = render_age(&KeyAge::default(), NOW);
        assert_eq!(unknown, "  age         volume key of unknown age, secret of unknown age\n");
    }

    #[test]
    fn a_rotation_is_shown_in_a_line() {
        let rotation = Rotation {
            state: RotationState::Running,
            done_bytes: 3 << 30,
            total_bytes: 8 << 30,
            rate_bytes: 100 << 20,
            eta_seconds: Some(52),
            ..Rotation::default()
        };
        let volume = VolumeStatus { rotation: Some(rotation), ..VolumeStatus::default() };
        let text = render_volume(&volume, 0);
        let line = "\n  rotation    running, 37.5 %, 3 GiB of 8 GiB, 100 MiB/s, 52 s left\n";
        assert!(text.contains(line), "{text}");
        let none = VolumeStatus { rotation: Some(Rotation::default()), ..VolumeStatus::default() };
        assert!(!render_volume(&none, 0).contains("rotation"));
    }
}
