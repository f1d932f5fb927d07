//! Kinds of work, and the requests that each consists of.
//!
//! Invariant: the same work makes the same stream of requests for every server.

use crate::results::Pattern;

/// Bytes of each server's disk; all of them are written before anything is measured.
pub(crate) const DISK_BYTES: u64 = 256 << 20;
/// Bytes of the client's memory, a part for each request in flight.
pub(crate) const MEMORY_BYTES: usize = 16 << 20;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) pattern: Pattern,
    /// Bytes of a request, its offset's alignment too.
    pub(crate) block_bytes: usize,
    /// Requests in flight, all queues together.
    pub(crate) depth: usize,
    pub(crate) queues: usize,
    /// Client and server may use both processors.
    pub(crate) both_processors: bool,
}

const READ: u8 = 0;
const WRITE: u8 = 100;
const MIXED: u8 = 30;

impl Work {
    fn one(writes_percent: u8, random: bool, block_bytes: usize, depth: usize) -> Self {
        let pattern = Pattern { writes_percent, random };
        Self { pattern, block_bytes, depth, queues: 1, both_processors: false }
    }

    /// What is measured with one queue.
    pub(crate) fn all(full: bool) -> Vec<Self> {
        let mut all = Vec::new();
        let depths: &[usize] = if full { &[1, 4, 32, 128] } else { &[1, 32, 128] };
        for &depth in depths {
            all.extend([READ, WRITE].map(|writes| Self::one(writes, true, 4 << 10, depth)));
            if full || depth == 32 {
                all.push(Self::one(MIXED, true, 4 << 10, depth));
            }
        }
        all.extend([READ, WRITE].map(|writes| Self::one(writes, false, 64 << 10, 16)));
        if full {
            all.extend([READ, WRITE].map(|writes| Self::one(writes, false, 1 << 20, 8)));
        }
        all
    }

    /// What is measured on storage in the network.
    pub(crate) fn network() -> Vec<Self> {
        let sizes =
            [(true, 4 << 10, 1), (true, 4 << 10, 32), (false, 64 << 10, 8), (false, 1 << 20, 4)];
        let both = |(random, bytes, depth)| {
            [READ, WRITE].map(|writes| Self::one(writes, random, bytes, depth))
        };
        sizes.into_iter().flat_map(both).collect()
    }

    /// What a guest does beside a rotation: mixed, or writes alone.
    pub(crate) fn beside_a_rotation(writes_only: bool, depth: usize) -> Self {
        Self::one(if writes_only { WRITE } else { MIXED }, true, 4 << 10, depth)
    }

    /// What is measured with two queues; before each, the same with one.
    pub(crate) fn two_queues(full: bool) -> Vec<[Self; 2]> {
        let writes: &[u8] = if full { &[READ, WRITE] } else { &[READ] };
        let pair = |&writes: &u8| {
            let one = Self { both_processors: true, ..Self::one(writes, true, 4 << 10, 32) };
            [one, Self { queues: 2, ..one }]
        };
        writes.iter().map(pair).collect()
    }

    /// The work in words.
    pub(crate) fn name(&self) -> String {
        let order = if self.pattern.random { "random" } else { "sequential" };
        let what = match self.pattern.writes_percent {
            READ => "read",
            WRITE => "write",
            _ => "mixed 70/30",
        };
        let (mut size, mut unit) = (self.block_bytes >> 10, "KiB");
        if size >= 1024 {
            (size, unit) = (size >> 10, "MiB");
        }
        let mut name = format!("{size} {unit} {order} {what}, qd {}", self.depth);
        if self.both_processors {
            let many = if self.queues == 1 { "queue" } else { "queues" };
            name += &format!(", {} {many} on both processors", self.queues);
        }
        name
    }

    /// Whether the user asked for it: no filter, or one that is part of the name.
    pub(crate) fn is_wanted(&self, filters: &[String]) -> bool {
        filters.is_empty() || filters.iter().any(|filter| self.name().contains(filter.as_str()))
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) write: bool,
    /// In bytes.
    pub(crate) offset: u64,
}

/// Where requests come from; it goes on from sample to sample.
#[derive(Debug)]
pub(crate) struct Requests {
    seed: u64,
    next: u64,
}

impl Requests {
    /// Each seed has a stream of its own.
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, next: 0 }
    }

    /// The next one of this work.
    pub(crate) fn next(&mut self, work: &Work) -> Request {
        let blocks = DISK_BYTES / work.block_bytes as u64;
        // Knuth's MMIX generator; its upper bits are the good ones.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005);
        self.seed = self.seed.wrapping_add(1_442_695_040_888_963_407);
        let block = if work.pattern.random {
            (self.seed >> 33) % blocks
        } else {
            self.next = (self.next + 1) % blocks;
            self.next
        };
        let dice = (self.seed >> 57) * 100 / 128;
        let write = dice < work.pattern.writes_percent.into();
        Request { write, offset: block * work.block_bytes as u64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_fits_into_the_shared_memory_and_the_queue() {
        let (network, two_queues) = (Work::network(), Work::two_queues(true));
        for work in Work::all(true).iter().chain(two_queues.as_flattened()).chain(&network) {
            assert!(work.block_bytes * work.depth <= MEMORY_BYTES, "{}", work.name());
            // A request takes three descriptors at most of a queue of 256 without indirect ones.
            assert!(work.depth <= 128, "{}", work.name());
            assert_eq!(work.depth % work.queues, 0, "{}", work.name());
        }
    }

    #[test]
    fn works_have_names_of_their_own() {
        let mut names: Vec<String> = Work::all(true).iter().map(Work::name).collect();
        names.extend(Work::two_queues(true).as_flattened().iter().map(Work::name));
        assert!(names.contains(&"4 KiB random write, qd 32".to_owned()), "{names:?}");
        assert!(names.contains(&"1 MiB sequential read, qd 8".to_owned()), "{names:?}");
        assert!(Work::all(false).iter().all(|work| Work::all(true).contains(work)));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn requests_are_what_the_work_says() {
        let mixed = Work::one(MIXED, true, 4 << 10, 1);
        let mut requests = Requests::new(1);
        let writes = (0..10_000).filter(|_| requests.next(&mixed).write).count();
        assert!((2800..3200).contains(&writes), "{writes} of 10000 write");
        for (percent, writes) in [(READ, false), (WRITE, true)] {
            let work = Work::one(percent, false, 64 << 10, 1);
            let mut requests = Requests::new(2);
            let (first, second) = (requests.next(&work), requests.next(&work));
            assert_eq!(second, Request { write: writes, offset: first.offset + (64 << 10) });
            assert!((0..10_000).all(|_| requests.next(&work).write == writes));
        }
    }
}
