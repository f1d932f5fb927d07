use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use super::*;

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_line_says_when_what_and_who() {
    let event = Event::VolumeUnlocked {
        volume: "od\"d\nname",
        key: "file:/etc/key",
        luks_uuid: "5b0f",
        luks_version: 2,
        cipher: "aes-xts-plain64",
        key_bits: 512,
        volume_key: "00ff",
    };
    let text = line(&event, Some("7c"));
    assert_eq!(text.matches('\n').count(), 1, "one line");
    let value: Value = serde_json::from_str(&text).unwrap();
    let fields: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "time",
        "event",
        "volume",
        "key",
        "luks_uuid",
        "luks_version",
        "cipher",
        "key_bits",
        "volume_key",
        "instance",
        "pid",
    ];
    assert_eq!(fields, expected);
    assert_eq!(value["event"], "volume_unlocked");
    assert_eq!(value["volume"], "od\"d\nname");
    assert_eq!(value["pid"], std::process::id());
    let time = value["time"].as_str().unwrap();
    assert!(time.len() == "2026-11-24T09:55:00.000Z".len() && time.ends_with('Z'), "{time}");
}

#[test]
fn times_are_rfc_3339() {
    let at = Duration::from_millis(1_795_514_100_042);
    assert_eq!(rfc3339(at), "2026-11-24T09:55:00.042Z");
    assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000Z");
}

#[test]
fn a_target_is_a_path_or_the_journal() {
    assert_eq!("journal".parse(), Ok(Target::Journal));
    assert_eq!("/var/log/a".parse(), Ok(Target::File("/var/log/a".into())));
    assert!("audit.log".parse::<Target>().is_err());
}

#[test]
fn what_was_recorded_is_in_the_file_when_the_guard_is_gone_and_is_appended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    for round in 1..=2 {
        let (audit, guard) = Audit::open(&Target::File(path.clone()), None).unwrap();
        audit.record(&Event::DaemonStarted { version: "1" });
        audit.record(&Event::DaemonEnded);
        drop(guard);
        assert_eq!(lines(&path).len(), 2 * round);
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(lines(&path)[0].get("instance").is_none());
}

#[test]
fn logrotate_takes_the_file_away_and_gets_a_new_one() {
    for told in [true, false] {
        rotate(told);
    }
}

fn rotate(told: bool) {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    let (audit, guard) = Audit::open(&Target::File(path.clone()), None).unwrap();
    audit.record(&Event::DaemonStarted { version: "1" });
    while !fs::metadata(&path).is_ok_and(|file| file.len() > 0) {
        thread::yield_now();
    }
    fs::rename(&path, &old).unwrap();
    if told {
        audit.lines.send(Message::Reopen).unwrap();
    }
    audit.record(&Event::DaemonEnded);
    drop(guard);
    assert_eq!(lines(&old)[0]["event"], "daemon_started");
    assert_eq!(lines(&path)[0]["event"], "daemon_ended");
}

/// A file that was opened for reading fails every write; its name is still its own.
#[test]
fn lines_that_are_lost_are_counted_and_told_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("audit.log"), dir.path().join("other"));
    fs::write(&path, "").unwrap();
    let unwritable = fs::File::open(&path).unwrap();
    let mut sink = Sink::File { path: path.clone(), file: Some(unwritable), failing: false };
    let lost = AtomicU64::new(0);
    let (send, queue) = sync_channel(8);
    for name in ["a", "b"] {
        send.send(Message::Line(line(&Event::VolumeUnencrypted { volume: name }, None))).unwrap();
    }
    send.send(Message::End).unwrap();
    write_all(&mut sink, &queue, &lost, None);
    assert_eq!((lost.load(Relaxed), fs::read(&path).unwrap().len()), (2, 0));
    fs::rename(&path, &other).unwrap();
    send.send(Message::Line(line(&Event::DaemonEnded, None))).unwrap();
    send.send(Message::End).unwrap();
    write_all(&mut sink, &queue, &lost, None);
    let lines = lines(&path);
    assert_eq!((lines[0]["event"].as_str(), lines[0]["lines"].as_u64()), (Some("lost"), Some(2)));
    assert_eq!(lines[1]["event"], "daemon_ended");
    assert_eq!(lost.load(Relaxed), 0);
}

#[test]
fn a_sink_that_is_no_file_or_has_no_directory_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
    for path in [dir.path().join("no/audit.log"), dir.path().to_owned(), link, "/dev/null".into()] {
        assert!(Audit::open(&Target::File(path.clone()), None).is_err(), "{}", path.display());
    }
}

#[test]
fn a_queue_that_is_full_costs_lines_and_no_time() {
    let (lines, _queue) = sync_channel(1);
    let audit = Audit { lines, lost: Arc::default(), instance: None };
    for _ in 0..3 {
        audit.record(&Event::DaemonEnded);
    }
    assert_eq!(audit.lost.load(Relaxed), 2);
}

#[test]
fn only_orders_and_refusals_of_the_api_are_recorded() {
    assert!(record_of("GET", 200).is_none() && record_of("HEAD", 404).is_none());
    assert!(record_of("GET", 403).is_some() && record_of("POST", 409).is_some());
}

fn record_of(method: &str, status: u16) -> Option<Event<'_>> {
    event::order(Some(0), method, "/", None, status)
}

/// The schema is documented: every event and every field that some event has.
#[test]
fn every_event_and_field_is_documented() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");
    let docs = fs::read_to_string(docs).unwrap();
    for event in event::one_of_each() {
        let value: Value = serde_json::from_str(&line(&event, Some("7c"))).unwrap();
        let name = value["event"].as_str().unwrap();
        let row = docs.lines().find(|row| row.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("{name} is not documented"));
        let common = ["time", "event", "instance", "pid"];
        for field in value.as_object().unwrap().keys() {
            let place = if common.contains(&field.as_str()) { docs.as_str() } else { row };
            assert!(place.contains(&format!("`{field}`")), "{field} of {name}");
        }
    }
}
