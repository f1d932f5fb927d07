//! How long requests took, and where: histograms of one queue, for Prometheus.
//!
//! Contract: written by the queue's thread alone, read by anyone, like [`crate::stats`]. They hold the
//! requests whose time was taken (see `timing`), a random choice among all: quantiles and means of
//! them are those of all requests, their number is not.
//! Deliberately absent: formatting, and a consistent cut over several histograms.

use crate::stats::Counter;

/// Upper bounds of the buckets for times, in nanoseconds: 1 µs to 16.8 s by powers of four. Sealing
/// 4 KiB takes less than the first, a storage path that fails over longer than the last.
const TIME_BOUNDS_NS: [u64; 13] = {
    let mut bounds = [1000; 13];
    let mut index = 1;
    while index < bounds.len() {
        bounds[index] = bounds[index - 1] * 4;
        index += 1;
    }
    bounds
};

/// Upper bounds of the buckets for sizes, in bytes.
const SIZE_BOUNDS_BYTES: [u64; 7] = [512, 4096, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `VIRTIO_BLK_T_IN`
    Read,
    /// `VIRTIO_BLK_T_OUT` and `VIRTIO_BLK_T_WRITE_ZEROES`
    Write,
    /// `VIRTIO_BLK_T_FLUSH`
    Flush,
    /// `VIRTIO_BLK_T_DISCARD`
    Discard,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Discard];

    /// Whether it moves data, and so has a size and passes through the cipher.
    pub const fn moves_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// Where a request's time goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Neither in the cipher nor at the volume: waiting for room, for its turn, for a rotation, for
    /// the next attempt of what failed; and our own code.
    Queue,
    /// Being encrypted or decrypted (on a plain disk: copied).
    Cipher,
    /// At least one of its I/Os is at the volume.
    Volume,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Queue, Self::Cipher, Self::Volume];
}

/// One request's times, in nanoseconds. The parts of a long request may pass through the cipher while
/// others are at the volume, so the stages may add up to more than the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) total_ns: u64,
    pub(crate) queue_ns: u64,
    pub(crate) cipher_ns: u64,
    pub(crate) volume_ns: u64,
}

/// The histograms of one queue.
#[derive(Debug)]
pub struct Latency {
    kinds: [KindLatency; 4],
}

#[derive(Debug)]
struct KindLatency {
    total: Histogram,
    stages: [Histogram; 3],
    bytes: Histogram,
}

impl Default for Latency {
    fn default() -> Self {
        let times = || Histogram::new(&TIME_BOUNDS_NS);
        let kind = |_| KindLatency {
            total: times(),
            stages: [times(), times(), times()],
            bytes: Histogram::new(&SIZE_BOUNDS_BYTES),
        };
        Self { kinds: std::array::from_fn(kind) }
    }
}

impl Latency {
    /// A request has ended; `bytes` is its size.
    pub(crate) fn add(&self, kind: Kind, bytes: u64, taken: &Taken) {
        let of = &self.kinds[kind as usize];
        of.total.add(taken.total_ns);
        let stages = [taken.queue_ns, taken.cipher_ns, taken.volume_ns];
        for (histogram, ns) in of.stages.iter().zip(stages) {
            histogram.add(ns);
        }
        of.bytes.add(bytes);
    }

    /// From being taken from the available ring to the used ring, in nanoseconds.
    pub fn total(&self, kind: Kind) -> HistogramCounts {
        self.kinds[kind as usize].total.counts()
    }

    /// The part of it that was spent in a stage, in nanoseconds.
    pub fn stage(&self, kind: Kind, stage: Stage) -> HistogramCounts {
        self.kinds[kind as usize].stages[stage as usize].counts()
    }

    /// Sizes, in bytes.
    pub fn bytes(&self, kind: Kind) -> HistogramCounts {
        self.kinds[kind as usize].bytes.counts()
    }
}

/// Numbers by size. One writer.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [u64],
    /// One for each bound and one for what is beyond the last; made once.
    counts: Box<[Counter]>,
    sum: Counter,
}

impl Histogram {
    fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| Counter::default()).collect();
        Self { bounds, counts, sum: Counter::default() }
    }

    fn add(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.add(1);
        }
        self.sum.add(value);
    }

    fn counts(&self) -> HistogramCounts {
        HistogramCounts {
            bounds: self.bounds,
            counts: self.counts.iter().map(Counter::get).collect(),
            sum: self.sum.get(),
        }
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramCounts {
    /// Upper bound of each bucket, which belongs to it.
    pub bounds: &'static [u64],
    /// How many are in each bucket (not: up to it), and in the end those beyond the last bound.
    pub counts: Vec<u64>,
    /// Sum of all values.
    pub sum: u64,
}

impl HistogramCounts {
    /// Adds another queue's, of the same kind.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.counts.iter_mut().zip(&other.counts) {
            *to += from;
        }
        self.sum += other.sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_in_the_first_bucket_that_reaches_it() {
        let histogram = Histogram::new(&SIZE_BOUNDS_BYTES);
        for bytes in [0, 512, 513, 4096, 4 << 20, (4 << 20) + 1] {
            histogram.add(bytes);
        }
        let counts = histogram.counts();
        assert_eq!(counts.counts, [2, 2, 0, 0, 0, 0, 1, 1]);
        assert_eq!(counts.sum, 512 + 513 + 4096 + (8 << 20) + 1);
    }

    #[test]
    fn bounds_reach_from_a_microsecond_to_seconds_that_no_healthy_storage_takes() {
        assert_eq!((TIME_BOUNDS_NS[0], TIME_BOUNDS_NS[12]), (1000, 16_777_216_000));
        assert!(SIZE_BOUNDS_BYTES.is_sorted());
    }

    #[test]
    fn queues_add_up() {
        let (one, two) = (Latency::default(), Latency::default());
        let taken = Taken { total_ns: 9000, queue_ns: 1000, cipher_ns: 3000, volume_ns: 5000 };
        one.add(Kind::Read, 4096, &taken);
        two.add(Kind::Read, 512, &taken);
        two.add(Kind::Flush, 0, &taken);
        let mut total = one.total(Kind::Read);
        total.add(&two.total(Kind::Read));
        assert_eq!((total.counts.iter().sum::<u64>(), total.sum), (2, 18_000));
        assert_eq!(two.stage(Kind::Flush, Stage::Volume).sum, 5000);
        assert_eq!(two.bytes(Kind::Read).counts[0], 1);
        assert_eq!(one.total(Kind::Write).sum, 0);
    }
}
