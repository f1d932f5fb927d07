//! One sample: a kind of work, kept at its depth against one server for some time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, ClientOptions, Daemon, Pattern};

use crate::machine::cpu_time;
use crate::statistics::percentile;

/// Bytes of each server's disk; all of them are written before anything is measured.
pub(crate) const DISK_BYTES: u64 = 256 << 20;
const MEMORY_BYTES: usize = 16 << 20;
/// A sample's beginning, which doesn't count: processors and pollers wake up.
const WARM_UP: Duration = Duration::from_millis(100);

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) write: bool,
    /// At random offsets, else one after the other.
    pub(crate) random: bool,
    /// Bytes of a request, its offset's alignment too.
    pub(crate) block_bytes: usize,
    /// Requests in flight.
    pub(crate) depth: usize,
}

impl Work {
    /// What is measured, each with reads and writes.
    pub(crate) fn all(full: bool) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |random, block_bytes, depth| {
            all.extend([false, true].map(|write| Self { write, random, block_bytes, depth }));
        };
        add(true, 4 << 10, 1);
        add(true, 4 << 10, 32);
        if full {
            add(true, 4 << 10, 128);
        }
        add(false, 64 << 10, 16);
        if full {
            add(false, 1 << 20, 8);
        }
        all
    }

    /// The work in words.
    pub(crate) fn name(&self) -> String {
        let order = if self.random { "random" } else { "sequential" };
        let what = if self.write { "write" } else { "read" };
        let (mut size, mut unit) = (self.block_bytes >> 10, "KiB");
        if size >= 1024 {
            (size, unit) = (size >> 10, "MiB");
        }
        format!("{size} {unit} {order} {what}, qd {}", self.depth)
    }
}

/// What one sample gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// Requests per second.
    pub(crate) iops: f64,
    /// Latencies as the client sees them, in nanoseconds.
    pub(crate) p50: u32,
    pub(crate) p99: u32,
    /// Requests behind these figures.
    pub(crate) requests: usize,
    /// The server's processor time for them.
    pub(crate) cpu: Duration,
}

/// The client's side of one server.
pub(crate) struct Load {
    client: Client,
    pid: u32,
    seed: u64,
    next: u64,
    latencies: Vec<u32>,
}

impl Load {
    /// Connects and fills the disk with noise, so that no server reads holes.
    pub(crate) fn connect(server: &Daemon) -> Result<Self> {
        let options = ClientOptions { memory_bytes: MEMORY_BYTES, ..ClientOptions::default() };
        let mut client = Client::connect(server.socket(), options)?;
        ensure!(client.capacity_bytes()? >= DISK_BYTES, "the disk is too small");
        for at in (0..DISK_BYTES).step_by(1 << 20) {
            client.write(at, &Pattern(1).bytes(at, 1 << 20))?;
        }
        client.flush()?;
        let latencies = Vec::with_capacity(1 << 20);
        Ok(Self { client, pid: server.pid()?, seed: 1, next: 0, latencies })
    }

    /// Takes one sample.
    pub(crate) fn sample(&mut self, work: &Work, duration: Duration) -> Result<Sample> {
        self.drive(work, WARM_UP)?;
        let before = cpu_time(self.pid)?;
        let elapsed = self.drive(work, duration)?;
        let cpu = cpu_time(self.pid)?.saturating_sub(before);
        let requests = self.latencies.len();
        let mut at = |percent| percentile(&mut self.latencies, percent).context("no request");
        let (p50, p99) = (at(50)?, at(99)?);
        Ok(Sample { iops: requests as f64 / elapsed.as_secs_f64(), p50, p99, requests, cpu })
    }

    /// Keeps the depth for `duration`, then lets the requests in flight come home. The latencies
    /// of all are in `self.latencies` afterwards.
    fn drive(&mut self, work: &Work, duration: Duration) -> Result<Duration> {
        self.latencies.clear();
        let begin = Instant::now();
        let mut started = vec![begin; work.depth];
        for slot in 0..work.depth {
            self.start(work, slot)?;
        }
        let mut open = work.depth;
        while open > 0 {
            let completed = self.client.complete(0, 1)?;
            let now = Instant::now();
            let go_on = now - begin < duration;
            for done in completed {
                ensure!(done.result == 0, "a request failed: {done:?}");
                let since = started.get_mut(done.tag).context("a tag that we never gave")?;
                let nanoseconds = (now - *since).as_nanos();
                self.latencies.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
                if go_on {
                    *since = now;
                    self.start(work, done.tag)?;
                } else {
                    open -= 1;
                }
            }
        }
        Ok(begin.elapsed())
    }

    fn start(&mut self, work: &Work, slot: usize) -> Result<()> {
        let blocks = DISK_BYTES / work.block_bytes as u64;
        let block = if work.random {
            // Knuth's MMIX generator; its upper bits are the good ones.
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005);
            self.seed = self.seed.wrapping_add(1_442_695_040_888_963_407);
            (self.seed >> 33) % blocks
        } else {
            self.next = (self.next + 1) % blocks;
            self.next
        };
        let (offset, at, len) =
            (block * work.block_bytes as u64, slot * work.block_bytes, work.block_bytes);
        if work.write {
            self.client.start_write(0, offset, at, len, slot)
        } else {
            self.client.start_read(0, offset, at, len, slot)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_fits_into_the_shared_memory_and_the_queue() {
        for work in Work::all(true) {
            assert!(work.block_bytes * work.depth <= MEMORY_BYTES, "{}", work.name());
            // A request takes three descriptors at most of a queue of 256 without indirect ones.
            assert!(work.depth <= 128, "{}", work.name());
        }
    }

    #[test]
    fn works_have_names_of_their_own() {
        let names: Vec<String> = Work::all(true).iter().map(Work::name).collect();
        assert!(names.contains(&"4 KiB random write, qd 32".to_owned()), "{names:?}");
        assert!(names.contains(&"1 MiB sequential read, qd 8".to_owned()), "{names:?}");
        assert!(Work::all(false).iter().all(|work| Work::all(true).contains(work)));
    }
}
