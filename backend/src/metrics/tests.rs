use std::collections::{BTreeMap, HashSet};

use sealblk_api::{Errors, Requests, StorageStatus};

use super::*;

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
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            typed = (name, kind);
        } else {
            let (name, labels, value) = sample(line);
            assert_eq!(name, typed.0, "a sample of another family: {line}");
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
        ..QueueStatus::default()
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
    let samples = parse(&render(&status));
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
    }
    let holding = [("volume", "vda"), ("state", "holding")];
    assert_eq!(value("sealblk_storage_state", &holding), 1.0);
}

#[test]
fn every_metric_is_documented() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let docs = std::fs::read_to_string(docs).unwrap();
    for (name, labels, _) in parse(&render(&status())) {
        assert!(docs.contains(&format!("`{name}`")), "{name}");
        assert!(labels.keys().all(|label| docs.contains(&format!("`{label}`"))), "{name}");
    }
}

#[test]
#[should_panic(expected = "comes twice")]
fn the_parser_is_strict() {
    parse("# HELP sealblk_a A.\n# TYPE sealblk_a gauge\nsealblk_a 1\n# HELP sealblk_a A.\n");
}
