//! The engine by itself: requests through virtqueue, cipher and io_uring, with no storage behind
//! and no vhost-user session before it.
//!
//! Two kinds of driver, for two questions. *Polling*: a driver on another processor that makes
//! every finished request available again at once; the queue thread is then the bottleneck, and
//! requests per second tell what one costs. *Batch*: all requests at once, then the driver sleeps
//! until the last is done, and the engine never polls; the queue thread's own processor time tells
//! what a request costs, and two queues on two processors can be compared with one, since the
//! drivers, which share the processors, cost almost nothing.
//!
//! Contract: paths take turns within a round; the cost of encryption is the difference of
//! processor time per request within a round. Requests lie in memory that the processor's caches
//! hold or not as their number and size say: the same for all paths.

mod driver;
mod null;
mod processor;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealblk_cipher::{Algorithm, Implementation, SegmentSpec};
use sealblk_engine::{Disk, EngineConfig};
use sealblk_secret::SecretBytes;
use sealblk_virtqueue::QueueHost;
use sealblk_virtqueue::blk::DiskProfile;
use sealblk_volume::Volume;

use self::driver::{Driver, QUEUE_SIZE, Requests};
use self::null::NullVolume;
use self::processor::{Thread, pin_this};
use super::samples::Samples;
use crate::results::LayerFigure;

const CAPACITY_SECTORS: u64 = 1 << 30;
const HEADER_SECTORS: u64 = 32 << 10;
/// A sample's beginning, which doesn't count.
const WARM_UP: Duration = Duration::from_millis(20);

/// What happens to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Plain,
    /// Encryption sectors of so many bytes.
    Encrypted(u32, Implementation),
}

impl Path {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Plain => "plain".to_owned(),
            Self::Encrypted(bytes, Implementation::Auto) => {
                format!("encrypted, {bytes} B sectors")
            }
            Self::Encrypted(bytes, which) => format!("encrypted, {bytes} B sectors, {which}"),
        }
    }

    fn block_bytes(self) -> u32 {
        match self {
            Self::Plain => 512,
            Self::Encrypted(bytes, _) => bytes,
        }
    }
}

/// What asks for requests (see the module).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverKind {
    Polling,
    Batch,
}

/// A kind of work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) write: bool,
    pub(crate) block_bytes: u32,
    /// In flight in each queue.
    pub(crate) depth: u16,
    pub(crate) queues: u16,
    pub(crate) driver: DriverKind,
}

impl Work {
    /// `4 KiB read, qd 32, queues 1, driver batch`
    pub(crate) fn name(&self) -> String {
        let [size, what, rest @ ..] = self.parameters();
        let rest = rest.map(|(name, value)| format!("{name} {value}")).join(", ");
        format!("{} {}, {rest}", size.1, what.1)
    }

    fn parameters(&self) -> [(&'static str, String); 5] {
        let what = if self.write { "write" } else { "read" };
        let driver = match self.driver {
            DriverKind::Polling => "polling",
            DriverKind::Batch => "batch",
        };
        [
            ("size", format!("{} KiB", self.block_bytes / 1024)),
            ("what", what.to_owned()),
            ("qd", self.depth.to_string()),
            ("queues", self.queues.to_string()),
            ("driver", driver.to_owned()),
        ]
    }

    /// Everything that is measured by default.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (block_bytes, depths) in [(4096, [1, 32, 128].as_slice()), (65536, &[32])] {
            for &depth in depths {
                for driver in [DriverKind::Polling, DriverKind::Batch] {
                    for write in [false, true] {
                        all.push(Self { write, block_bytes, depth, queues: 1, driver });
                    }
                }
            }
        }
        for queues in [1, 2] {
            let driver = DriverKind::Batch;
            all.push(Self { write: false, block_bytes: 4096, depth: QUEUE_SIZE, queues, driver });
        }
        all
    }
}

/// How to measure.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) works: Vec<Work>,
    pub(crate) paths: Vec<Path>,
    pub(crate) rounds: usize,
    /// Length of a sample; or
    pub(crate) sample: Duration,
    /// so many requests per queue instead: for tools that count instructions.
    pub(crate) requests: Option<u64>,
    /// Queue threads' processors; the first queue's is also the one that a single queue uses.
    pub(crate) queue_processors: [usize; 2],
    /// The polling driver's.
    pub(crate) driver_processor: usize,
}

impl Plan {
    /// Everything, with queue threads on `server`'s processor.
    pub(crate) fn usual(server: usize, client: usize) -> Self {
        Self {
            works: Work::all(),
            paths: vec![
                Path::Plain,
                Path::Encrypted(4096, Implementation::Auto),
                Path::Encrypted(512, Implementation::Auto),
            ],
            rounds: 5,
            sample: Duration::from_millis(100),
            requests: None,
            queue_processors: [server, client],
            driver_processor: client,
        }
    }
}

/// Measures; `progress` hears what is measured next.
pub(crate) fn measure(plan: &Plan, mut progress: impl FnMut(&str)) -> Result<Vec<LayerFigure>> {
    let mut samples = Samples::default();
    for work in &plan.works {
        progress(&work.name());
        let mut rigs = plan.paths.iter().map(|&path| Rig::new(path, *work, plan));
        let mut rigs: Vec<Rig> = rigs.by_ref().collect::<Result<_>>()?;
        for _ in 0..plan.rounds {
            let mut plain = None;
            for rig in &mut rigs {
                let sample = rig.sample(plan).with_context(|| work.name())?;
                let parameters = work.parameters();
                let parameters = parameters.each_ref().map(|(name, value)| (*name, value.as_str()));
                let mut add = |unit, value| samples.add(&rig.name, &parameters, unit, value);
                add("requests/s", sample.requests as f64 / sample.time.as_secs_f64());
                let cpu_ns = sample.cpu.as_nanos() as f64 / sample.requests as f64;
                add("ns CPU/request", cpu_ns);
                add("sleeps/request", sample.sleeps as f64 / sample.requests as f64);
                match (rig.path, plain) {
                    (Path::Plain, _) => plain = Some(cpu_ns),
                    (_, Some(plain)) => add("ns CPU/request over plain", cpu_ns - plain),
                    _ => {}
                }
            }
        }
    }
    Ok(samples.figures())
}

/// What a sample counted, all queues together.
#[derive(Debug, Clone, Copy)]
struct Sample {
    requests: u64,
    time: Duration,
    /// Of the queue threads.
    cpu: Duration,
    sleeps: u64,
}

/// A disk with drivers, ready to be measured.
struct Rig {
    name: String,
    path: Path,
    kind: DriverKind,
    disk: Disk,
    threads: Vec<Thread>,
    drivers: Vec<Driver>,
    processors: Vec<usize>,
}

impl Rig {
    fn new(path: Path, work: Work, plan: &Plan) -> Result<Self> {
        let volume: Arc<dyn Volume> = Arc::new(NullVolume {
            size_bytes: (CAPACITY_SECTORS + HEADER_SECTORS) * 512,
            block_bytes: path.block_bytes(),
        });
        let mut config = EngineConfig { queues: work.queues, ..EngineConfig::default() };
        if work.driver == DriverKind::Batch {
            config.poll_max = Duration::ZERO;
        }
        if let Path::Encrypted(_, which) = path {
            config.implementation = which;
        }
        // Threads are named by their queue alone, and other disks have such threads, too.
        let (mut threads, mut before) = (Vec::new(), Vec::new());
        for index in 0..work.queues {
            before.extend(Thread::named(&format!("queue-{index}"))?);
        }
        let mut disk = Disk::new(&volume, &[segment(path)?], &profile(path, work.queues), &config)?;
        let mut drivers = Vec::new();
        let mut processors = Vec::new();
        for (index, processor) in (0..work.queues).zip(plan.queue_processors) {
            let mut now = Thread::named(&format!("queue-{index}"))?;
            now.retain(|thread| !before.iter().any(|other| thread.is(*other)));
            let [thread] = now[..] else { anyhow::bail!("no thread of queue {index}") };
            thread.pin(processor)?;
            threads.push(thread);
            let driver = Driver::new(Requests {
                write: work.write,
                block_bytes: work.block_bytes,
                depth: work.depth,
                capacity_sectors: CAPACITY_SECTORS,
            })?;
            disk.start(index, driver.setup()?)?;
            drivers.push(driver);
            processors.push(match work.driver {
                DriverKind::Batch => processor,
                DriverKind::Polling => plan.driver_processor,
            });
        }
        ensure!(drivers.len() == usize::from(work.queues), "a processor for each queue");
        Ok(Self { name: path.name(), path, kind: work.driver, disk, threads, drivers, processors })
    }

    fn sample(&mut self, plan: &Plan) -> Result<Sample> {
        let sleeps = |disk: &Disk| disk.stats().iter().map(|one| one.counts().sleeps).sum::<u64>();
        let before = sleeps(&self.disk);
        let kind = self.kind;
        let drivers = self.drivers.iter_mut().zip(&self.threads).zip(&self.processors);
        let parts = std::thread::scope(|scope| {
            let threads = drivers.map(|((driver, thread), processor)| {
                scope.spawn(move || {
                    pin_this(*processor)?;
                    part(driver, kind, *thread, plan)
                })
            });
            let threads: Vec<_> = threads.collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Sample>>| {
                thread.join().map_err(|_| anyhow::anyhow!("a driver panicked"))?
            };
            threads.into_iter().map(join).collect::<Result<Vec<Sample>>>()
        })?;
        let errors = self.disk.stats().into_iter().map(|one| {
            let counts = one.counts();
            counts.volume_errors + counts.refused + counts.broken
        });
        ensure!(errors.sum::<u64>() == 0, "the engine refused or failed requests");
        // Queues run at the same time: their speeds add up.
        let speed: f64 =
            parts.iter().map(|part| part.requests as f64 / part.time.as_secs_f64()).sum();
        let requests = parts.iter().map(|part| part.requests).sum();
        Ok(Sample {
            requests,
            time: Duration::from_secs_f64(requests as f64 / speed),
            cpu: parts.iter().map(|part| part.cpu).sum(),
            sleeps: sleeps(&self.disk) - before,
        })
    }
}

/// One queue's part of a sample.
fn part(driver: &mut Driver, kind: DriverKind, thread: Thread, plan: &Plan) -> Result<Sample> {
    if kind == DriverKind::Polling {
        driver.post_all()?;
    }
    if plan.requests.is_none() {
        run(driver, kind, thread, WARM_UP, None)?;
    }
    let sample = run(driver, kind, thread, plan.sample, plan.requests)?;
    if kind == DriverKind::Polling {
        driver.settle()?;
    }
    driver.check()?;
    Ok(sample)
}

/// Requests, for so long or so many.
fn run(
    driver: &mut Driver,
    kind: DriverKind,
    thread: Thread,
    limit: Duration,
    requests: Option<u64>,
) -> Result<Sample> {
    let (start, cpu) = (Instant::now(), thread.time()?);
    let mut done = 0;
    let goes_on = |done: u64| match requests {
        Some(requests) => done < requests,
        None => done == 0 || start.elapsed() < limit,
    };
    while goes_on(done) {
        match kind {
            DriverKind::Batch => {
                driver.batch()?;
                done += u64::from(driver.depth());
            }
            DriverKind::Polling => {
                let taken = driver.turn(true)?;
                done += u64::from(taken);
                if taken == 0 {
                    std::hint::spin_loop();
                }
            }
        }
    }
    let (time, cpu) = (start.elapsed(), thread.time()?.saturating_sub(cpu));
    Ok(Sample { requests: done.max(1), time, cpu, sleeps: 0 })
}

fn segment(path: Path) -> Result<SegmentSpec> {
    let crypt = match path {
        Path::Plain => None,
        Path::Encrypted(..) => {
            let key: Vec<u8> = (0..64).map(|n: u8| n.wrapping_mul(0x9d) ^ 0x5a).collect();
            Some((Algorithm::Aes256XtsPlain64, Arc::new(SecretBytes::copy_from(&key)?)))
        }
    };
    Ok(SegmentSpec {
        start: 0,
        sectors: CAPACITY_SECTORS,
        volume_start: HEADER_SECTORS,
        iv_start: 0,
        sector_bytes: path.block_bytes(),
        crypt,
    })
}

fn profile(path: Path, queues: u16) -> DiskProfile {
    DiskProfile {
        capacity_sectors: CAPACITY_SECTORS,
        block_bytes: path.block_bytes(),
        physical_block_bytes: 4096,
        queues,
        seg_max: 126,
        size_max_bytes: 16 << 20,
        read_only: false,
        discard: None,
        discard_alignment_sectors: 8,
        write_zeroes: None,
        write_zeroes_may_unmap: false,
        serial: *b"sealblk-bench-engine",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_work_of_every_path_is_carried_out_without_an_error() {
        let plan = Plan {
            works: Work::all(),
            paths: vec![Path::Plain, Path::Encrypted(4096, Implementation::Auto)],
            rounds: 1,
            sample: Duration::ZERO,
            requests: Some(300),
            queue_processors: [0, 0],
            driver_processor: 0,
        };
        let mut names = Vec::new();
        let figures = measure(&plan, |name| names.push(name.to_owned())).unwrap();
        assert_eq!(names.len(), plan.works.len());
        let count = |unit| figures.iter().filter(|figure| figure.unit == unit).count();
        assert_eq!(count("requests/s"), 2 * plan.works.len());
        assert_eq!(count("ns CPU/request over plain"), plan.works.len());
    }

    #[test]
    fn a_work_says_what_it_is() {
        let driver = DriverKind::Batch;
        let work = Work { write: true, block_bytes: 65536, depth: 32, queues: 2, driver };
        assert_eq!(work.name(), "64 KiB write, qd 32, queues 2, driver batch");
    }
}
