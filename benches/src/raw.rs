//! The ceiling: the same work on the same storage through io_uring, with no server in between.
//!
//! What a server could give if it cost nothing. One thread per queue; file and buffers are
//! registered, SINGLE_ISSUER and DEFER_TASKRUN set; it runs on the *server's* processor, where
//! the storage's work would be done for a server too, and sleeps in the kernel when nothing has
//! come. Deliberately absent: SQPOLL and IOPOLL, which no server here uses.
// UNSAFETY: io_uring is handed pointers to buffers, which live as long as the ring.
#![expect(unsafe_code, reason = "io_uring entries carry raw pointers")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use sealblk_tests::Pattern;

use crate::interrupt;
use crate::load::Outcome;
use crate::work::{DISK_BYTES, MEMORY_BYTES, Request, Requests, Work};

/// As wide as a page, which every storage here can take.
const ALIGNMENT: usize = 4096;
/// More than any depth.
const ENTRIES: u32 = 256;

/// A file or device, filled, with a queue per thread.
pub(crate) struct Raw {
    lanes: Vec<Lane>,
}

impl Raw {
    /// Opens it with O_DIRECT and fills it with noise.
    pub(crate) fn open(path: &Path, queues: usize) -> Result<Self> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let open = || OpenOptions::new().read(true).write(true).custom_flags(direct).open(path);
        let fill = OpenOptions::new().write(true).open(path)?;
        for (seed, at) in (0..DISK_BYTES).step_by(MEMORY_BYTES).enumerate() {
            interrupt::check()?;
            let noise = Pattern(seed as u64).bytes(at, MEMORY_BYTES);
            std::os::unix::fs::FileExt::write_all_at(&fill, &noise, at)?;
        }
        fill.sync_all()?;
        let lanes = (0..queues).map(|lane| Lane::new(open()?, lane as u64)).collect::<Result<_>>();
        Ok(Self { lanes: lanes.with_context(|| path.display().to_string())? })
    }

    /// Keeps the depth for `duration` on the processors that the calling thread may use.
    pub(crate) fn drive(&mut self, work: &Work, duration: Duration) -> Result<Outcome> {
        let elapsed = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .lanes
                .iter_mut()
                .take(work.queues)
                .map(|lane| scope.spawn(move || lane.drive(work, duration)))
                .collect();
            let mut longest = Duration::ZERO;
            for thread in threads {
                let one = thread.join().unwrap_or_else(|_| Err(anyhow!("the client panicked")))?;
                longest = longest.max(one);
            }
            Ok::<_, anyhow::Error>(longest)
        })?;
        let mut all: Vec<u32> = Vec::new();
        for lane in self.lanes.iter_mut().take(work.queues) {
            all.append(&mut lane.latencies);
        }
        Outcome::of(elapsed, &mut all)
    }
}

/// What one thread uses.
struct Lane {
    file: File,
    /// Longer than [`MEMORY_BYTES`], for an aligned part of that length in it.
    memory: Vec<u8>,
    requests: Requests,
    latencies: Vec<u32>,
}

impl Lane {
    fn new(file: File, lane: u64) -> Result<Self> {
        let memory = Pattern(u64::MAX - lane).bytes(0, MEMORY_BYTES + ALIGNMENT);
        let latencies = Vec::with_capacity(1 << 20);
        Ok(Self { file, memory, requests: Requests::new(1 + lane), latencies })
    }

    /// On a ring of its own: only the thread that enabled a ring may use it.
    fn drive(&mut self, work: &Work, duration: Duration) -> Result<Duration> {
        let pad = self.memory.as_ptr().align_offset(ALIGNMENT);
        let memory = self.memory.get_mut(pad..pad + MEMORY_BYTES).context("no aligned memory")?;
        let memory = memory.as_mut_ptr();
        let mut ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES)
            .context("no io_uring")?;
        ring.submitter().register_files(&[self.file.as_raw_fd()])?;
        let all = libc::iovec { iov_base: memory.cast(), iov_len: MEMORY_BYTES };
        // SAFETY: `self.memory` outlives the ring, which is dropped when this function returns.
        unsafe { ring.submitter().register_buffers(&[all]) }.context("no registered buffers")?;

        self.latencies.clear();
        let depth = work.depth / work.queues;
        let begin = Instant::now();
        let mut started = vec![begin; depth];
        let mut go = |ring: &mut IoUring, slot: usize| -> Result<()> {
            let request = self.requests.next(work);
            let entry = entry(request, memory, slot * work.block_bytes, work.block_bytes);
            let entry = entry.user_data(slot as u64);
            // SAFETY: each slot has a part of the memory of its own, which lives until the ring
            // is gone; `depth * block_bytes` fits into it (work.rs tests that).
            unsafe { ring.submission().push(&entry) }.ok().context("the ring is full")
        };
        for slot in 0..depth {
            go(&mut ring, slot)?;
        }
        let mut open = depth;
        let mut finished = Vec::with_capacity(ENTRIES as usize);
        while open > 0 {
            ring.submit_and_wait(1)?;
            let now = Instant::now();
            finished.extend(ring.completion().map(|done| (done.user_data(), done.result())));
            for (tag, result) in finished.drain(..) {
                ensure!(usize::try_from(result) == Ok(work.block_bytes), "I/O gave {result}");
                let slot = usize::try_from(tag)?;
                let since = started.get_mut(slot).context("a tag that we never gave")?;
                let nanoseconds = (now - *since).as_nanos();
                self.latencies.push(u32::try_from(nanoseconds).unwrap_or(u32::MAX));
                if now - begin < duration {
                    *since = now;
                    go(&mut ring, slot)?;
                } else {
                    open -= 1;
                }
            }
        }
        Ok(begin.elapsed())
    }
}

fn entry(request: Request, memory: *mut u8, at: usize, len: usize) -> squeue::Entry {
    let (file, buffer) = (types::Fixed(0), memory.wrapping_add(at));
    // No request is longer than 1 MiB.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    if request.write {
        opcode::WriteFixed::new(file, buffer, len, 0).offset(request.offset).build()
    } else {
        opcode::ReadFixed::new(file, buffer, len, 0).offset(request.offset).build()
    }
}
