//! What the queues count.

use sealblk_api::{QueueStatus, VolumeStatus};

use super::page::{Kind, Page};

/// A label's words and the part of a queue's counters that each stands for.
type Parts = &'static [(&'static str, fn(&QueueStatus) -> u64)];

pub(super) fn write(page: &mut Page, volumes: &[VolumeStatus]) {
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
    family(
        "sealblk_queue_parked_total",
        Kind::Counter,
        "Requests that had to wait because a rotation had their range in work.",
        "",
        &[("", |queue| queue.parked)],
    );
    family(
        "sealblk_queue_parked",
        Kind::Gauge,
        "Requests that wait now because a rotation has their range in work.",
        "",
        &[("", |queue| queue.parked_now)],
    );
    family(
        "sealblk_queue_throttled_total",
        Kind::Counter,
        "Requests that waited for a limit of the disk.",
        "",
        &[("", |queue| queue.throttled)],
    );
    family(
        "sealblk_queue_replayed_total",
        Kind::Counter,
        "Requests of a daemon that died, done again by this one.",
        "",
        &[("", |queue| queue.replayed)],
    );
    family(
        "sealblk_queue_broken",
        Kind::Gauge,
        "1 after the guest broke the queue: it is not served until the guest's driver resets it.",
        "",
        &[("", |queue| u64::from(queue.broken))],
    );
    page.family(
        "sealblk_queue_throttled_seconds_total",
        Kind::Counter,
        "How long requests waited for a limit of the disk; those that wait now are not in it yet.",
    );
    for volume in volumes {
        for queue in &volume.queues {
            let index = queue.index.to_string();
            let labels = [("volume", volume.name.as_str()), ("queue", &index)];
            page.sample(&labels, queue.throttled_us as f64 / 1e6);
        }
    }
}
