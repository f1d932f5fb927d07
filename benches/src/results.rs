//! The result file: everything that a run of `make bench` measured, as one JSON document.
//!
//! Contract: what writes it (the layers and the whole-system runner) and what reads it (the
//! report) share only these types. Each is complete by itself: a file with one class or with one
//! layer is a valid file, so `default` stands for "not measured". Units are in the names.
//! Deliberately absent: how anything was measured (docs/benchmarks.md), and conclusions that
//! can't be drawn again from the samples.

use serde::{Deserialize, Serialize};

/// Raised when a reader of the old file would misread the new one.
pub(crate) const FORMAT: u32 = 2;

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`FORMAT`] of the program that wrote it.
    pub(crate) format: u32,
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    /// Whole system: one entry per kind of storage.
    #[serde(default)]
    pub(crate) classes: Vec<Class>,
    #[serde(default)]
    pub(crate) layers: Layers,
    /// fio inside a QEMU guest.
    #[serde(default)]
    pub(crate) guest: Vec<GuestWork>,
    /// Key rotations.
    #[serde(default)]
    pub(crate) rotations: Vec<RotationCase>,
    /// Many idle daemons at once.
    #[serde(default)]
    pub(crate) idle_daemons: Option<IdleDaemons>,
}

/// Where the figures come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// `2026-11-24 06:30 UTC`
    pub(crate) date: String,
    /// Model name, family, model number.
    pub(crate) processor: String,
    /// Processors that the program may use.
    pub(crate) processors: usize,
    /// What of the instruction set AES-XTS can use: `aes vaes vpclmulqdq avx2 avx512f`.
    pub(crate) instructions: String,
    /// Decides which of issue 5's limits hold.
    pub(crate) cipher_class: CipherClass,
    pub(crate) kernel: String,
    pub(crate) qemu: String,
    /// `git describe` of the tree.
    pub(crate) sealblk: String,
}

/// What the processor offers to AES.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CipherClass {
    /// VAES with 512-bit registers.
    Vaes512,
    /// VAES with 256-bit registers only.
    Vaes256,
    /// AES-NI alone.
    AesNi,
    /// Nothing of it.
    None,
}

/// How it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Rounds that a noisy work may get on top.
    pub(crate) extra_rounds: usize,
    /// Length of a sample.
    pub(crate) seconds: f64,
    pub(crate) warm_up_seconds: f64,
    pub(crate) full: bool,
    /// The client polls for completions instead of sleeping.
    pub(crate) client_polls: bool,
    pub(crate) client_processor: usize,
    pub(crate) server_processor: usize,
    /// From this A/A difference on something counts as noisy (0.05 = 5 %).
    pub(crate) noise_limit: f64,
}

/// Median and extremes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// All works on one kind of storage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Class {
    /// `disk`, `memory`, `zram`, `rbd` or `iscsi`.
    pub(crate) class: String,
    pub(crate) storage: String,
    /// Every server measured, in the order of the tables.
    pub(crate) servers: Vec<Server>,
    pub(crate) works: Vec<Work>,
    /// Over all works of the class.
    pub(crate) noise: Noise,
}

/// A server on one kind of storage, and what it takes while it has nothing to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Server {
    /// Stable: `sealblk-4096`, `sealblk-512`, `sealblk-plain`, `qemu-plain-io_uring`,
    /// `qemu-plain-native`, `qemu-luks-io_uring`, `qemu-luks-native`, `textbook-4096`, `raw`, or
    /// the name from `--server`; on storage in the network `qemu-plain`, `qemu-luks`,
    /// `qemu-librbd-luks`, `fio-rbd`, `iscsi-perf`.
    pub(crate) id: String,
    /// For tables.
    pub(crate) name: String,
    /// Not for `raw`, which is no process.
    pub(crate) idle: Option<Idle>,
}

/// What an idle server takes, its client connected, after load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Its processor time within `window_ns`.
    pub(crate) cpu_ns: u64,
    pub(crate) window_ns: u64,
    /// Resident, everything.
    pub(crate) rss_bytes: u64,
    /// Of that: memory that the client shares (a guest's memory in real life).
    pub(crate) client_bytes: u64,
    /// Of that: pages of files, that is of the program and its libraries.
    pub(crate) file_bytes: u64,
    /// From starting the process until its socket takes a connection; the median of some starts.
    pub(crate) start_ms: f64,
    /// From the moment the volume's key is known until it is ready, where the server says so.
    pub(crate) ready_after_key_ms: Option<f64>,
}

impl Idle {
    /// Resident memory without the client's.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.rss_bytes.saturating_sub(self.client_bytes)
    }
}

/// One kind of work with all servers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Work {
    /// `4 KiB random read, qd 32`, unique within the class.
    pub(crate) name: String,
    pub(crate) pattern: Pattern,
    pub(crate) block_bytes: usize,
    /// Requests in flight, all queues together.
    pub(crate) depth: usize,
    pub(crate) queues: usize,
    /// The server may use both processors, which it then shares with the client.
    pub(crate) both_processors: bool,
    pub(crate) servers: Vec<ServerSamples>,
    /// The first server once more in every round: it differs from itself by the noise.
    pub(crate) again: ServerSamples,
    pub(crate) ratios: Vec<Ratio>,
    pub(crate) noise: Noise,
}

/// What requests do and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pattern {
    /// Of 100 requests so many write: 0, 30 or 100.
    pub(crate) writes_percent: u8,
    /// At random offsets, else one after the other.
    pub(crate) random: bool,
}

/// One server with one work: a sample per round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ServerSamples {
    /// [`Server::id`]
    pub(crate) server: String,
    pub(crate) samples: Vec<Sample>,
}

/// One sample.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Requests per second.
    pub(crate) iops: f64,
    /// Latencies as the client sees them; 0 where it doesn't tell.
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p999_ns: u64,
    /// Requests behind these figures.
    pub(crate) requests: u64,
    pub(crate) cpu: CpuNs,
}

/// Processor time of one sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct CpuNs {
    /// The server's process: all its threads, its io_uring workers included.
    pub(crate) server: u64,
    /// All of the kernel's own threads (kworker, ksoftirqd, jbd2, ...): whoever they worked for.
    pub(crate) workers: u64,
    /// The process that keeps the data of storage in the network (OSD, target); else 0.
    #[serde(default)]
    pub(crate) service: u64,
}

/// One server beside another in the same rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ratio {
    /// `sealblk encrypted, 4096 B sectors / sealblk --plain`
    pub(crate) name: String,
    /// [`Server::id`] of the server above and below the line; the better of several is named
    /// `qemu-plain` or `qemu-luks`.
    pub(crate) server: String,
    pub(crate) other: String,
    pub(crate) quantity: Quantity,
    pub(crate) spread: Spread,
    /// A value per round.
    pub(crate) rounds: Vec<f64>,
    /// Issue 5's target, where it has one for this.
    pub(crate) target: Option<Target>,
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    /// Requests per second of `server` over those of `other`.
    Iops,
    /// Median latency of `server` over that of `other`.
    Latency,
    /// Server's processor time per request, `server` minus `other`, in microseconds.
    CpuUs,
    /// Requests per second with two queues over those with one, of `server` itself.
    Scaling,
}

/// A target and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) limit: f64,
    /// Else at most.
    pub(crate) at_least: bool,
    pub(crate) verdict: Verdict,
}

/// What became of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Ok,
    Missed,
    /// The noise is larger than the distance to the limit.
    Undecided,
}

/// How far figures of the same thing differ, and who else was on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Noise {
    /// A/A: median and worst of |ratio - 1| of a server with itself.
    pub(crate) median: f64,
    pub(crate) worst: f64,
    /// `median` is over the plan's limit.
    pub(crate) noisy: bool,
    /// Part of all processors' time that the hypervisor gave to others, 0 to 1.
    pub(crate) steal: f64,
    /// Part of all processors' time that went to processes that are neither client nor server nor
    /// the kernel's threads, 0 to 1.
    pub(crate) foreign: f64,
}

/// What is below the whole system.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Layers {
    #[serde(default)]
    pub(crate) cipher: Vec<LayerFigure>,
    #[serde(default)]
    pub(crate) engine: Vec<LayerFigure>,
}

/// A figure of a layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerFigure {
    /// What is measured: an implementation, a path.
    pub(crate) name: String,
    /// In the order in which they are shown: `[["sector", "4096"], ["direction", "seal"]]`.
    pub(crate) parameters: Vec<(String, String)>,
    /// `GB/s`, `requests/s`, `ns/request`, ...
    pub(crate) unit: String,
    pub(crate) value: Spread,
}

/// fio inside a QEMU guest, with one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct GuestWork {
    /// `4 KiB random read, qd 32`
    pub(crate) work: String,
    /// [`Server::id`]; the first server's second turn, which shows the noise, has ` again` behind.
    pub(crate) server: String,
    pub(crate) iops: Spread,
    pub(crate) p50_ns: Spread,
    pub(crate) p99_ns: Spread,
    /// Requests per second over those of `sealblk-plain` in the same rounds.
    #[serde(default)]
    pub(crate) over_plain: Option<Spread>,
    /// How the guest ran: `tcg`, `kvm`.
    pub(crate) accelerator: String,
}

/// Many idle encrypted daemons at once, a volume each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdleDaemons {
    pub(crate) count: usize,
    /// Processor time of all together within `window_ns`.
    pub(crate) cpu_ns: u64,
    pub(crate) window_ns: u64,
    /// Resident memory of each.
    pub(crate) rss_bytes: Spread,
    /// Proportional share of each: shared pages counted once over all.
    pub(crate) pss_bytes: Spread,
}

/// Rotations of the key of one kind of volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RotationCase {
    /// As [`Class::class`].
    pub(crate) class: String,
    /// Of the encryption.
    pub(crate) sector_bytes: u32,
    /// How a range in work is protected, as the daemon said: `checksum` or `journal`.
    pub(crate) resilience: String,
    /// Nobody uses the disk.
    pub(crate) idle: Vec<IdleRotation>,
    /// Most 4 KiB requests per second (70 % random reads) without a rotation, at depth 32.
    pub(crate) most_iops: f64,
    /// Half of them, beside a rotation and without.
    pub(crate) half_load: Vec<HalfLoad>,
    /// Bursts of writes that hit a rotation at full speed.
    pub(crate) parked: Vec<Parked>,
    /// What follows from the above.
    pub(crate) figures: Vec<RotationFigure>,
}

/// One rotation of an idle volume.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct IdleRotation {
    /// The storage copied onto itself, before and after.
    pub(crate) copy_bytes_per_second: [f64; 2],
    /// From 5 to 95 % of the volume.
    pub(crate) bytes_per_second: f64,
    /// The daemon's, all threads, in the same time.
    pub(crate) cpu_ns_per_mib: f64,
}

/// What a paced client saw.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct PacedSample {
    pub(crate) iops: f64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) max_ns: u64,
}

/// One round at half the load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct HalfLoad {
    /// The rotation paused, before and after.
    pub(crate) paused: [PacedSample; 2],
    pub(crate) rotating: PacedSample,
    /// How fast the rotation went meanwhile.
    pub(crate) bytes_per_second: f64,
}

/// One rotation under bursts of writes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parked {
    /// Longest range in work.
    pub(crate) hotzone_bytes: u64,
    /// Longest that the daemon held writes, as it tells.
    pub(crate) held_us: u64,
    /// Longest that a request of the client took.
    pub(crate) client_us: u64,
}

/// A figure of the rounds of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RotationFigure {
    pub(crate) name: String,
    pub(crate) value: Spread,
    /// The same of what should make no difference: median of |ratio - 1| of the two turns without.
    pub(crate) noise: Option<f64>,
    pub(crate) target: Option<Target>,
}
