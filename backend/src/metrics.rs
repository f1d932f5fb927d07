//! `GET /metrics`: what [`Status`] and the queues count, in Prometheus' text format.
//!
//! Contract: names and units after Prometheus' conventions: `sealblk_` in front, base units, counters
//! end with `_total` and begin at the daemon's start. A name that was given away keeps its meaning.
//! docs/observability.md lists them all; a test holds it to that.
//!
//! Deliberately absent: URIs, which may name hosts and pools and change with them; whatever a volume
//! doesn't have a value for.

mod keys;
mod latency;
mod page;
mod queues;
mod volumes;

use sealblk_api::Status;

pub(crate) use self::latency::VolumeLatency;
use self::page::{Kind, Page};

/// The format, for `Content-Type`.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Ways in which keys may lie in memory, as a label says them.
const PROTECTIONS: [&str; 3] = ["memfd_secret", "mlock", "none"];

/// The whole answer; `now` is in seconds since 1970, UTC.
pub(crate) fn render(status: &Status, latencies: &[VolumeLatency], now: u64) -> String {
    let mut page = Page::default();
    daemon(&mut page, status);
    volumes::write(&mut page, &status.volumes);
    queues::write(&mut page, &status.volumes);
    latency::write(&mut page, latencies);
    keys::write(&mut page, &status.volumes, now);
    page.text()
}

fn daemon(page: &mut Page, status: &Status) {
    page.family("sealblk_build_info", Kind::Gauge, "Version of the daemon; always 1.");
    page.sample(&[("version", &status.version)], 1);
    page.family("sealblk_uptime_seconds", Kind::Gauge, "How long the daemon has been ready.");
    page.sample(&[], status.uptime_seconds);
    page.family(
        "sealblk_secret_protection",
        Kind::Gauge,
        "1 for how keys lie in memory, 0 for the other ways; none: they may be swapped out.",
    );
    let protection = PROTECTIONS.into_iter().find(|word| *word == status.secret_protection);
    for word in PROTECTIONS {
        let is = word == protection.unwrap_or("none");
        page.sample(&[("kind", word)], u64::from(is));
    }
}

#[cfg(test)]
mod tests;
