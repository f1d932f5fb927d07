//! `GET /metrics`: what [`Status`] counts, in Prometheus' text format (version 0.0.4).
//!
//! Contract: names and units after Prometheus' conventions: `sealblk_` in front, base units, counters
//! end with `_total` and begin at the daemon's start. A name that was given away keeps its meaning.
//! Written by hand: the format is a few lines, and every value is there already.
//!
//! Deliberately absent: latencies and rotations, which need histograms; URIs, which may name hosts
//! and pools and change with them.

use std::fmt::Write;

use sealblk_api::{QueueStatus, Status, StorageState, VolumeStatus};

/// The format, for `Content-Type`.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The whole answer.
pub(crate) fn render(status: &Status) -> String {
    let mut page = Page::default();
    page.family("sealblk_build_info", Kind::Gauge, "Version of the daemon; always 1.");
    page.sample(&[("version", &status.version)], 1);
    volumes(&mut page, &status.volumes);
    queues(&mut page, &status.volumes);
    page.0
}

fn volumes(page: &mut Page, volumes: &[VolumeStatus]) {
    let mut family = |name, kind, help, value: fn(&VolumeStatus) -> u64| {
        page.family(name, kind, help);
        for volume in volumes {
            page.sample(&[("volume", &volume.name)], value(volume));
        }
    };
    family(
        "sealblk_volume_capacity_bytes",
        Kind::Gauge,
        "Size of the disk that the guest sees.",
        |volume| volume.capacity_bytes,
    );
    family(
        "sealblk_storage_losses_total",
        Kind::Counter,
        "Times that the storage path was lost.",
        |volume| volume.storage.losses,
    );
    family(
        "sealblk_storage_lost_seconds_total",
        Kind::Counter,
        "How long the storage path was lost in all, the present loss included.",
        |volume| volume.storage.lost_seconds_total,
    );
    family(
        "sealblk_storage_waiting",
        Kind::Gauge,
        "I/Os that are held, or stuck in a volume that does not answer.",
        |volume| volume.storage.waiting,
    );
    page.family(
        "sealblk_storage_state",
        Kind::Gauge,
        "1 for the state that the storage path is in, 0 for the others.",
    );
    for volume in volumes {
        for state in StorageState::ALL {
            let is = u64::from(volume.storage.state == state);
            page.sample(&[("volume", &volume.name), ("state", state.as_str())], is);
        }
    }
}

fn queues(page: &mut Page, volumes: &[VolumeStatus]) {
    /// A label and its values: each with its part of the queue's counters.
    type Parts = &'static [(&'static str, fn(&QueueStatus) -> u64)];
    let mut family = |name, kind, help, label: &str, parts: Parts| {
        page.family(name, kind, help);
        for volume in volumes {
            for queue in &volume.queues {
                let index = queue.index.to_string();
                for (word, value) in parts {
                    let labels =
                        [("volume", volume.name.as_str()), ("queue", &index), (label, word)];
                    let used = if label.is_empty() { 2 } else { 3 };
                    page.sample(&labels[..used], value(queue));
                }
            }
        }
    };
    family(
        "sealblk_queue_requests_total",
        Kind::Counter,
        "Requests completed without an error.",
        "type",
        &[
            ("read", |queue| queue.requests.read),
            ("write", |queue| queue.requests.write),
            ("flush", |queue| queue.requests.flush),
            ("discard", |queue| queue.requests.discard),
        ],
    );
    family(
        "sealblk_queue_bytes_total",
        Kind::Counter,
        "Bytes that the guest read and wrote.",
        "direction",
        &[("read", |queue| queue.read_bytes), ("write", |queue| queue.written_bytes)],
    );
    family(
        "sealblk_queue_errors_total",
        Kind::Counter,
        "Requests answered with an error, by whose fault it was.",
        "by",
        &[("volume", |queue| queue.errors.volume), ("guest", |queue| queue.errors.guest)],
    );
    family(
        "sealblk_queue_held_total",
        Kind::Counter,
        "Failed I/Os that were kept to be tried again, each attempt counted.",
        "",
        &[("", |queue| queue.held)],
    );
    family(
        "sealblk_queue_in_flight",
        Kind::Gauge,
        "Requests taken and not yet answered.",
        "",
        &[("", |queue| queue.inflight)],
    );
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// A page of families; samples belong to the last one.
#[derive(Default)]
struct Page(String, &'static str);

impl Page {
    /// Begins a family. `help` has no backslash and no line break.
    fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.1 = name;
        // Nothing fails when a string is written to.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(self.1);
        for (index, (name, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{name}=\"{}\"", escaped(text));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests;
