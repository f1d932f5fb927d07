use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use sealblk_api::{
    Encryption, Errors, KeyAge, QueueStatus, Requests, Rotation, RotationState, StorageState,
    StorageStatus, VolumeStatus,
};
use sealblk_engine::{HistogramCounts, QueueStats};

use super::*;

const NOW: u64 = 1_795_514_100;

/// One line: a family's name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads a page and insists on the format: every family has its HELP and its TYPE, once and in this
/// order, its samples follow them, and no sample comes twice.
fn parse(page: &str) -> Vec<Sample> {
    assert!(page.ends_with('\n') && !page.contains("\n\n"), "whole lines, none of them empty");
    let (mut families, mut seen, mut samples) = (HashSet::new(), HashSet::new(), Vec::new());
    let (mut helped, mut typed) = ("", ("", ""));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(families.insert(name), "{name} comes twice");
            assert!(!help.is_empty() && !help.contains('\\'), "{line}");
            helped = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "TYPE follows HELP");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            typed = (name, kind);
        } else {
            let (name, labels, value) = sample(line);
            let part = match (typed.1, name.strip_prefix(typed.0)) {
                ("histogram", Some(suffix)) => ["_bucket", "_sum", "_count"].contains(&suffix),
                (_, suffix) => suffix == Some(""),
            };
            assert!(part, "a sample of another family: {line}");
            assert!(value >= 0.0 || typed.1 == "gauge", "{line}");
            assert!(seen.insert((name.clone(), format!("{labels:?}"))), "twice: {line}");
            samples.push((name, labels, value));
        }
    }
    samples
}

fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).unwrap();
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name) && name.starts_with("sealblk_"), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next().unwrap() {
                    (_, '\\') => text.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        plain @ ('\\' | '"') => plain,
                        other => panic!("\\{other} is no escape: {line}"),
                    }),
                    (at, '"') => break at,
                    (_, plain) => text.push(plain),
                }
            };
            assert!(labels.insert(label.to_owned(), text).is_none(), "{line}");
            rest = &value[end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').unwrap();
    }
    let value = rest.strip_prefix(' ').unwrap();
    (name.to_owned(), labels, value.parse().unwrap())
}

fn status() -> Status {
    let queue = |index, held| QueueStatus {
        index,
        requests: Requests { read: 1, write: 2, flush: 3, discard: 4 },
        read_bytes: 5,
        written_bytes: 6,
        errors: Errors { volume: 7, guest: 8 },
        inflight: 9,
        held,
        throttled: 15,
        throttled_us: 2_500_000,
        parked: 12,
        parked_now: 13,
        replayed: 14,
        broken: true,
        running: true,
    };
    let volume = |name: &str, state| VolumeStatus {
        name: name.to_owned(),
        capacity_bytes: 1 << 40,
        storage: StorageStatus {
            state,
            losses: 2,
            lost_seconds_total: 30,
            waiting: 4,
            ..StorageStatus::default()
        },
        queues: vec![queue(0, 10), queue(1, 11)],
        encryption: Some(Encryption {
            luks_version: 2,
            uuid: "5b0f".to_owned(),
            cipher: "aes-xts-plain64".to_owned(),
            key_bits: 512,
            sector_bytes: 4096,
            implementation: "vaes".to_owned(),
        }),
        rotation: Some(Rotation {
            state: RotationState::Running,
            done_bytes: 100,
            total_bytes: 1000,
            rate_bytes: 10,
            limit_bytes: Some(20),
            started_at: Some(NOW - 7),
            ended_at: Some(NOW - 5),
            parked_us_max: 1500,
            failures: 3,
            ..Rotation::default()
        }),
        key_age: Some(KeyAge {
            volume_key_since: Some(NOW - 100),
            secret_since: Some(NOW - 200),
            due_at: Some(NOW + 50),
            last_rotation_at: Some(NOW - 100),
            next_run_at: Some(NOW + 60),
        }),
        ..VolumeStatus::default()
    };
    let odd = "od\"d \\ {name}, with\nall, ü";
    Status {
        version: "1.2.3".to_owned(),
        volumes: vec![volume("vda", StorageState::Holding), volume(odd, StorageState::Ok)],
        ..Status::default()
    }
}

#[test]
fn the_page_is_well_formed_and_says_what_the_status_says() {
    let status = status();
    let samples = parse(&render(&status, &[], NOW));
    let value = |name: &str, labels: &[(&str, &str)]| {
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let found = samples.iter().find(|sample| sample.0 == name && sample.1 == labels);
        found.unwrap_or_else(|| panic!("no {name} {labels:?}")).2
    };
    assert_eq!(value("sealblk_build_info", &[("version", "1.2.3")]), 1.0);
    for VolumeStatus { name, .. } in &status.volumes {
        let volume = ("volume", name.as_str());
        assert_eq!(value("sealblk_volume_capacity_bytes", &[volume]), (1u64 << 40) as f64);
        assert_eq!(value("sealblk_storage_losses_total", &[volume]), 2.0);
        assert_eq!(value("sealblk_storage_lost_seconds_total", &[volume]), 30.0);
        assert_eq!(value("sealblk_storage_waiting", &[volume]), 4.0);
        let states = StorageState::ALL
            .map(|state| value("sealblk_storage_state", &[volume, ("state", state.as_str())]));
        assert_eq!(states.iter().sum::<f64>(), 1.0);
        let (queue, each) = (("queue", "1"), "sealblk_queue_requests_total");
        for (word, n) in [("read", 1.0), ("write", 2.0), ("flush", 3.0), ("discard", 4.0)] {
            assert_eq!(value(each, &[volume, queue, ("type", word)]), n);
        }
        let bytes =
            |word| value("sealblk_queue_bytes_total", &[volume, queue, ("direction", word)]);
        assert_eq!((bytes("read"), bytes("write")), (5.0, 6.0));
        let errors = |word| value("sealblk_queue_errors_total", &[volume, queue, ("by", word)]);
        assert_eq!((errors("volume"), errors("guest")), (7.0, 8.0));
        assert_eq!(value("sealblk_queue_held_total", &[volume, queue]), 11.0);
        assert_eq!(value("sealblk_queue_in_flight", &[volume, queue]), 9.0);
        assert_eq!(value("sealblk_queue_throttled_total", &[volume, queue]), 15.0);
        assert_eq!(value("sealblk_queue_throttled_seconds_total", &[volume, queue]), 2.5);
        assert_eq!(value("sealblk_queue_parked_total", &[volume, queue]), 12.0);
        assert_eq!(value("sealblk_queue_parked", &[volume, queue]), 13.0);
        assert_eq!(value("sealblk_queue_replayed_total", &[volume, queue]), 14.0);
        assert_eq!(value("sealblk_queue_broken", &[volume, queue]), 1.0);
        let age = |key| value("sealblk_key_age_seconds", &[volume, ("key", key)]);
        assert_eq!((age("volume"), age("secret")), (100.0, 200.0));
        assert_eq!(value("sealblk_key_due_timestamp_seconds", &[volume]), (NOW + 50) as f64);
        let states = RotationState::ALL
            .map(|state| value("sealblk_rotation_state", &[volume, ("state", state.as_str())]));
        assert_eq!(states, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(value("sealblk_rotation_done_bytes", &[volume]), 100.0);
        assert_eq!(value("sealblk_rotation_parked_seconds_max", &[volume]), 0.0015);
        assert_eq!(value("sealblk_rotation_failures_total", &[volume]), 3.0);
    }
    let holding = [("volume", "vda"), ("state", "holding")];
    assert_eq!(value("sealblk_storage_state", &holding), 1.0);
}

#[test]
fn every_metric_is_documented() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/observability.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    let page = render(&status(), &latencies(), NOW);
    parse(&page);
    let documented: HashSet<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `sealblk_")?.split('`').next())
        .collect();
    let real: HashSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE sealblk_")?.split(' ').next())
        .collect();
    assert_eq!(documented, real);
    for (name, labels, _) in parse(&page) {
        let line = docs.lines().find(|line| {
            let documented = line.strip_prefix("| `").and_then(|rest| rest.split('`').next());
            documented.is_some_and(|documented| name.starts_with(documented))
                && labels.keys().all(|label| label == "le" || line.contains(&format!("`{label}`")))
        });
        assert!(line.is_some(), "{name} {labels:?}");
    }
}

#[test]
fn an_age_that_nobody_knows_has_no_sample() {
    let mut status = status();
    let volume = &mut status.volumes[0];
    (volume.key_age, volume.rotation) = (Some(KeyAge::default()), None);
    status.volumes.truncate(1);
    let page = render(&status, &[], NOW);
    let samples = parse(&page);
    let about = |what: &str| samples.iter().filter(|sample| sample.0.starts_with(what)).count();
    assert_eq!((about("sealblk_key_"), about("sealblk_rotation_")), (0, 0));
}

#[test]
fn memory_protection_is_one_of_its_words() {
    for (told, word) in [("mlock", "mlock"), ("not locked (no right)", "none")] {
        let status = Status { secret_protection: told.to_owned(), ..Status::default() };
        let page = render(&status, &[], NOW);
        assert!(page.contains(&format!("sealblk_secret_protection{{kind=\"{word}\"}} 1\n")));
        assert_eq!(page.matches("sealblk_secret_protection{").count(), 3);
    }
}

/// Buckets are cumulative and in order, the last is the count.
#[test]
fn histograms_are_cumulative() {
    let counts = HistogramCounts { bounds: &[1000, 4000], counts: vec![3, 2, 1], sum: 25_000 };
    let mut page = Page::default();
    page.family("sealblk_x_seconds", Kind::Histogram, "X.");
    page.histogram(&[("volume", "a")], &counts, 1e9);
    let expected = "# HELP sealblk_x_seconds X.\n\
        # TYPE sealblk_x_seconds histogram\n\
        sealblk_x_seconds_bucket{volume=\"a\",le=\"0.000001\"} 3\n\
        sealblk_x_seconds_bucket{volume=\"a\",le=\"0.000004\"} 5\n\
        sealblk_x_seconds_bucket{volume=\"a\",le=\"+Inf\"} 6\n\
        sealblk_x_seconds_sum{volume=\"a\"} 0.000025\n\
        sealblk_x_seconds_count{volume=\"a\"} 6\n";
    assert_eq!(page.text(), expected);
}

fn latencies() -> Vec<VolumeLatency> {
    let queues = vec![Arc::new(QueueStats::default()), Arc::new(QueueStats::default())];
    vec![VolumeLatency { name: "vda".to_owned(), queues }]
}

#[test]
#[should_panic(expected = "comes twice")]
fn the_parser_is_strict() {
    parse("# HELP sealblk_a A.\n# TYPE sealblk_a gauge\nsealblk_a 1\n# HELP sealblk_a A.\n");
}
