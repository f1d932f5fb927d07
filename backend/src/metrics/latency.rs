//! How long requests take, and how large they are: the engine's histograms, summed up over a volume's
//! queues.

use std::sync::Arc;

use sealblk_engine::{HistogramCounts, Kind as Request, QueueStats, Stage, TIMED_ONE_IN};

use super::page::{Kind, Page};

/// One volume and its queues.
pub(crate) struct VolumeLatency {
    /// The volume's name.
    pub(crate) name: String,
    /// What its queues count.
    pub(crate) queues: Vec<Arc<QueueStats>>,
}

impl VolumeLatency {
    /// A histogram over all queues; none without a queue.
    fn sum(&self, of: impl Fn(&QueueStats) -> HistogramCounts) -> Option<HistogramCounts> {
        let mut each = self.queues.iter().map(|queue| of(queue));
        let mut all = each.next()?;
        each.for_each(|one| all.add(&one));
        Some(all)
    }
}

const NANOSECONDS: f64 = 1e9;

pub(super) fn write(page: &mut Page, volumes: &[VolumeLatency]) {
    let sampled = format!(
        "One request in {TIMED_ONE_IN} is timed, chosen at random: quantiles and means are those of \
         all requests, the count is not."
    );
    let help =
        format!("Time from taking a request out of the available ring to answering it. {sampled}");
    page.family("sealblk_request_duration_seconds", Kind::Histogram, &help);
    for volume in volumes {
        for kind in Request::ALL {
            if let Some(counts) = volume.sum(|queue| queue.latency.total(kind)) {
                let labels = [("volume", volume.name.as_str()), ("type", word(kind))];
                page.histogram(&labels, &counts, NANOSECONDS);
            }
        }
    }
    let help = format!(
        "The part of a request's time that it waited (queue: for room, its turn, a rotation, another \
         attempt), was encrypted or decrypted (cipher), had I/O at the volume (volume). {sampled}"
    );
    page.family("sealblk_request_stage_seconds", Kind::Histogram, &help);
    for volume in volumes {
        for kind in Request::ALL {
            for stage in Stage::ALL {
                if stage == Stage::Cipher && !kind.moves_data() {
                    continue;
                }
                if let Some(counts) = volume.sum(|queue| queue.latency.stage(kind, stage)) {
                    let name = volume.name.as_str();
                    let labels = [("volume", name), ("type", word(kind)), ("stage", part(stage))];
                    page.histogram(&labels, &counts, NANOSECONDS);
                }
            }
        }
    }
    let help = format!("Size of requests that move data. {sampled}");
    page.family("sealblk_request_size_bytes", Kind::Histogram, &help);
    for volume in volumes {
        for kind in Request::ALL.into_iter().filter(|kind| kind.moves_data()) {
            if let Some(counts) = volume.sum(|queue| queue.latency.bytes(kind)) {
                let labels = [("volume", volume.name.as_str()), ("type", word(kind))];
                page.histogram(&labels, &counts, 1.0);
            }
        }
    }
}

fn word(kind: Request) -> &'static str {
    match kind {
        Request::Read => "read",
        Request::Write => "write",
        Request::Flush => "flush",
        Request::Discard => "discard",
    }
}

fn part(stage: Stage) -> &'static str {
    match stage {
        Stage::Queue => "queue",
        Stage::Cipher => "cipher",
        Stage::Volume => "volume",
    }
}
