use super::scale::Scale;
use super::text::{escape, number, time};
use super::*;
use crate::results::*;

fn spread(median: f64) -> Spread {
    Spread { median, min: median * 0.95, max: median * 1.05 }
}

fn samples(server: &str, requests: u64, latency: u64) -> ServerSamples {
    let sample = Sample {
        iops: requests as f64,
        p50_ns: latency,
        p99_ns: latency * 3,
        p999_ns: latency * 9,
        requests,
        cpu: CpuNs { server: requests * 2000, workers: requests * 700, service: 0 },
    };
    ServerSamples { server: server.to_owned(), samples: vec![sample; 3] }
}

/// A result with everything in it.
pub(crate) fn example() -> Results {
    let noise = Noise { median: 0.02, worst: 0.06, noisy: false, steal: 0.01, foreign: 0.0 };
    let ids = ["sealblk-4096", "sealblk-plain", "qemu-luks-io_uring", "a<b>&\"c\""];
    let servers = ids.map(|id| Server { id: id.into(), name: format!("{id} named"), idle: None });
    let ratio = |other: &str, value: f64, verdict| Ratio {
        name: format!("sealblk encrypted / {other}"),
        server: "sealblk-4096".into(),
        other: other.into(),
        quantity: Quantity::Iops,
        spread: spread(value),
        rounds: vec![value],
        target: Some(Target { limit: 0.97, at_least: true, verdict }),
    };
    let work = |depth: usize| Work {
        name: format!("4 KiB random read, qd {depth}"),
        pattern: Pattern { writes_percent: 0, random: true },
        block_bytes: 4096,
        depth,
        queues: 1,
        both_processors: false,
        servers: (1..)
            .zip(ids)
            .map(|(n, id)| samples(id, 100_000 / n, 9000 * n * depth as u64))
            .collect(),
        again: samples("sealblk-4096", 99_000, 9100),
        ratios: vec![
            ratio("sealblk-plain", 0.98, Verdict::Ok),
            ratio("raw", 0.9, Verdict::Missed),
            ratio("qemu-luks", 4.2, Verdict::Undecided),
        ],
        noise,
    };
    let figure = |name: &str, unit: &str, value: f64| LayerFigure {
        name: name.into(),
        parameters: vec![("sector".into(), "4096 B".into())],
        unit: unit.into(),
        value: spread(value),
    };
    Results {
        format: FORMAT,
        machine: Machine {
            date: "2026-11-24 06:30 UTC".into(),
            processor: "Example".into(),
            processors: 2,
            instructions: "aes vaes".into(),
            cipher_class: CipherClass::Vaes256,
            kernel: "6.1".into(),
            qemu: "10".into(),
            sealblk: "v0".into(),
        },
        plan: Plan {
            rounds: 5,
            extra_rounds: 3,
            seconds: 0.25,
            warm_up_seconds: 0.05,
            full: false,
            client_polls: true,
            client_processor: 0,
            server_processor: 1,
            noise_limit: 0.05,
        },
        classes: vec![Class {
            class: "memory".into(),
            storage: "zram".into(),
            servers: servers.to_vec(),
            works: [1, 4, 32, 128].map(work).to_vec(),
            noise,
        }],
        layers: Layers {
            cipher: vec![figure("aws-lc", "GB/s", 4.0), figure("portable", "GB/s", 0.5)],
            engine: vec![figure("plain", "requests/s", 2.5e6)],
        },
        rotations: Vec::new(),
        guest: vec![GuestWork {
            work: "4 KiB random read, qd 1".into(),
            server: "sealblk-4096".into(),
            iops: spread(5000.0),
            p50_ns: spread(1.5e5),
            p99_ns: spread(9e5),
            over_plain: Some(spread(0.96)),
            accelerator: "tcg".into(),
        }],
        idle_daemons: None,
    }
}

#[test]
fn a_linear_axis_ends_at_a_round_value_beyond_the_data() {
    assert_eq!(Scale::linear(4.2).ticks, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(Scale::linear(1.0).ticks.last(), Some(&1.0));
    for most in [0.003, 0.97, 7.0, 99.0, 1234.5, 2.6e6] {
        let scale = Scale::linear(most);
        assert!((3..=7).contains(&scale.ticks.len()), "{most}: {:?}", scale.ticks);
        assert!(*scale.ticks.last().unwrap() >= most);
        assert!(scale.at(most) > 0.5 && scale.at(most) <= 1.0);
    }
    assert_eq!(Scale::linear(10.0).at(5.0), 0.5);
    assert_eq!(Scale::linear(f64::NAN).at(f64::NAN), 0.0);
}

#[test]
fn a_logarithmic_axis_gives_each_decade_the_same_room() {
    let scale = Scale::log(9_000.0, 3_000_000.0);
    assert_eq!(scale.ticks, [1e3, 1e4, 1e5, 1e6, 1e7]);
    assert!((scale.at(1e4) - 0.25).abs() < 1e-9);
    assert_eq!((scale.at(1.0), scale.at(1e9)), (0.0, 1.0));
    assert_eq!(Scale::log(0.0, 0.0).ticks, [1.0, 10.0]);
}

#[test]
fn numbers_are_short() {
    assert_eq!(
        [1234.5, 12.34, 1.234, 0.0, 0.012].map(number),
        ["1234", "12.3", "1.23", "0", "0.012"]
    );
    assert_eq!([500.0, 1500.0, 2e6, 3e9].map(time), ["500 ns", "1.50 µs", "2.00 ms", "3.00 s"]);
}

#[test]
fn the_page_stands_by_itself_and_names_are_no_markup() {
    let page = html(&example());
    assert!(!page.contains("<script") && !page.contains("http") && !page.contains("NaN"));
    assert!(!page.contains("a<b>") && page.contains(&escape("a<b>&\"c\"")));
    let count = |what: &str| page.matches(what).count();
    for tag in ["svg", "table", "h2", "div", "text", "desc"] {
        assert_eq!(
            count(&format!("<{tag} ")) + count(&format!("<{tag}>")),
            count(&format!("</{tag}>")),
            "{tag}"
        );
    }
    // Overhead, latency, processor time, cipher, engine.
    assert_eq!(count("<svg "), 5);
    assert_eq!(count("role=\"img\"><title>"), 5);
    for words in ["✓ reached", "✗ missed", "? undecided", "fio inside a guest", "qd 128"] {
        assert!(page.contains(words), "{words}");
    }
}

#[test]
fn a_result_with_nothing_in_it_is_a_page_too() {
    let mut results = example();
    results.classes.clear();
    results.guest.clear();
    results.layers = Layers::default();
    let page = html(&results);
    assert!(page.contains("Example") && !page.contains("<svg") && !page.contains("<table"));
}

#[test]
fn the_page_can_be_made_again_from_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let (json, page) = (directory.path().join("r.json"), directory.path().join("new/r.html"));
    let text = serde_json::to_string(&example()).unwrap();
    std::fs::write(&json, &text).unwrap();
    from_file(&json, &page).unwrap();
    // Reading a number back may change its last bit.
    let read = serde_json::from_str(&text).unwrap();
    assert!(std::fs::read_to_string(&page).unwrap() == html(&read));
    std::fs::write(&json, "{}").unwrap();
    assert!(from_file(&json, &page).is_err());
}
