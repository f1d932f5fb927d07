//! The client's side of one server: a third party's client that keeps a kind of work at its depth.
//!
//! Completions are polled for, or the client sleeps in the library until its eventfd wakes it; the
//! same for all servers. With two queues it always polls, and yields the processor when nothing
//! has come: a thread can't sleep on both.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sealblk_tests::{Client, ClientOptions, Completed, Pattern};

use crate::interrupt;
use crate::statistics::percentile;
use crate::work::{DISK_BYTES, MEMORY_BYTES, Request, Requests, Work};

/// No request takes longer, or the server hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks at a ring without completions: some 100 ns, so that the server doesn't have
/// to wait for the cache line that the client keeps reading.
const PAUSES: usize = 8;

/// What requests of one sample took, from the client's side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    pub(crate) requests: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    pub(crate) max_ns: u64,
}

impl Outcome {
    /// Of latencies in nanoseconds, which it may sort.
    pub(crate) fn of(elapsed: Duration, latencies: &mut [u32]) -> Result<Self> {
        let requests = latencies.len() as u64;
        let mut at = |permille| percentile(latencies, permille).context("no request came back");
        let (p50_ns, p99_ns, p999_ns, max_ns) = (at(500)?, at(990)?, at(999)?, at(1000)?);
        Ok(Self { elapsed, requests, p50_ns, p99_ns, p999_ns, max_ns })
    }
}

/// A connected client.
pub(crate) struct Load {
    client: Client,
    polls: bool,
    requests: Requests,
    latencies: Vec<u32>,
    completed: Vec<Completed>,
}

impl Load {
    /// Connects and fills disk and memory with noise: no server reads holes, and what is written
    /// can't be compressed, encrypted or not.
    pub(crate) fn connect(socket: &std::path::Path, queues: u16, polls: bool) -> Result<Self> {
        let options = ClientOptions { memory_bytes: MEMORY_BYTES, queues, ..Default::default() };
        let mut client = Client::connect(socket, options)?;
        ensure!(client.capacity_bytes()? >= DISK_BYTES, "the disk is too small");
        let step = MEMORY_BYTES as u64;
        for (seed, at) in (0..DISK_BYTES).step_by(MEMORY_BYTES).enumerate() {
            interrupt::check()?;
            client.write(at, &Pattern(seed as u64).bytes(at, step as usize))?;
        }
        client.flush()?;
        client.fill(0, &Pattern(u64::MAX).bytes(0, MEMORY_BYTES))?;
        let (latencies, completed) = (Vec::with_capacity(1 << 20), Vec::with_capacity(256));
        Ok(Self { client, polls, requests: Requests::new(1), latencies, completed })
    }

    /// Keeps the depth for `duration`, then lets the requests in flight come home.
    pub(crate) fn drive(&mut self, work: &Work, duration: Duration) -> Result<Outcome> {
        self.latencies.clear();
        let polls = self.polls || work.queues > 1;
        let begin = Instant::now();
        let mut started = vec![begin; work.depth];
        for slot in 0..work.depth {
            self.start(work, slot)?;
        }
        let mut open = work.depth;
        let (mut last, mut empty) = (begin, 0_u32);
        while open > 0 {
            let mut some = false;
            for queue in 0..work.queues {
                let min = usize::from(!polls);
                self.completed.clear();
                self.client.complete_into(queue, min, PATIENCE, &mut self.completed)?;
                if self.completed.is_empty() {
                    continue;
                }
                some = true;
                let now = Instant::now();
                last = now;
                let go_on = now - begin < duration;
                for index in 0..self.completed.len() {
                    let Some(&done) = self.completed.get(index) else { break };
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
            if !some {
                empty = empty.wrapping_add(1);
                if empty.is_multiple_of(1 << 16) && last.elapsed() > PATIENCE {
                    bail!("no request came back within {} s", PATIENCE.as_secs());
                }
                if work.queues > 1 {
                    std::thread::yield_now();
                } else {
                    (0..PAUSES).for_each(|_| std::hint::spin_loop());
                }
            }
        }
        Outcome::of(begin.elapsed(), &mut self.latencies)
    }

    /// Requests that come at a steady rate whether or not others are done, up to the work's depth in
    /// flight; one for which there is no room waits, and its time counts from when it was due.
    pub(crate) fn drive_paced(
        &mut self,
        work: &Work,
        per_second: f64,
        duration: Duration,
    ) -> Result<Outcome> {
        self.latencies.clear();
        let interval = Duration::from_secs_f64(1.0 / per_second.max(1.0));
        let begin = Instant::now();
        let (mut due, mut last) = (begin, begin);
        let mut since = vec![begin; work.depth];
        let mut free: Vec<usize> = (0..work.depth).collect();
        loop {
            let now = Instant::now();
            let over = now - begin >= duration;
            if over && free.len() == work.depth {
                break;
            }
            while !over
                && due <= now
                && let Some(slot) = free.pop()
            {
                *since.get_mut(slot).context("a slot that we never had")? = due;
                due += interval;
                self.start(work, slot)?;
            }
            self.completed.clear();
            self.client.complete_into(0, 0, PATIENCE, &mut self.completed)?;
            if self.completed.is_empty() {
                ensure!(free.len() == work.depth || last.elapsed() < PATIENCE, "the server hangs");
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
                continue;
            }
            last = Instant::now();
            for done in &self.completed {
                ensure!(done.result == 0, "a request failed: {done:?}");
                let due = *since.get(done.tag).context("a tag that we never gave")?;
                let nanoseconds = (last - due).as_nanos();
                self.latencies.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
                free.push(done.tag);
            }
        }
        Outcome::of(begin.elapsed(), &mut self.latencies)
    }

    fn start(&mut self, work: &Work, slot: usize) -> Result<()> {
        let Request { write, offset } = self.requests.next(work);
        let (queue, at, len) = (slot % work.queues, slot * work.block_bytes, work.block_bytes);
        if write {
            self.client.start_write(queue, offset, at, len, slot)
        } else {
            self.client.start_read(queue, offset, at, len, slot)
        }
    }
}
