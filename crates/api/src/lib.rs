//! The control API's types, shared by the daemon and the command: plain data, serde only.
//!
//! Contract: HTTP/1.1 and JSON over a Unix socket. The path carries the version ([`STATUS_PATH`]);
//! within a version fields are only added, so a reader ignores what it doesn't know and fills what
//! it misses with its default. Sizes are in bytes, counters start at the daemon's start.
//!
//! Deliberately absent: keys, passphrases, and anything derived from them.

pub mod agent;
mod limits;
mod openapi;
mod resize;
mod rotation;

pub use limits::{Limits, LimitsError, RateLimit};
pub use openapi::{DOCUMENT, OPENAPI_PATH};
pub use resize::{Resize, resize_path};
pub use rotation::{KeyAge, Rotation, RotationOrder, RotationState, rotation_path};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `GET`: the daemon and its volumes, as [`Status`].
pub const STATUS_PATH: &str = "/v1/status";
/// `GET`: 200 with [`Health`] while the daemon serves. Unversioned: probes don't follow versions.
pub const HEALTH_PATH: &str = "/healthz";
/// `GET`: counters for Prometheus, in its text format. Unversioned: scrapers don't follow versions.
pub const METRICS_PATH: &str = "/metrics";

/// Answer of [`HEALTH_PATH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `"ok"`; anything else means that the daemon is up but not serving.
    pub status: String,
}

/// Answer of the API to a request that it refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, for a person.
    pub error: String,
}

/// Answer of [`STATUS_PATH`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it was ready.
    pub uptime_seconds: u64,
    /// How keys lie in memory: `memfd_secret`, `mlock`, or `not locked (WHY)`.
    pub secret_protection: String,
    /// Every volume, in the order of the configuration.
    pub volumes: Vec<VolumeStatus>,
}

/// One volume and its session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    /// The name that the configuration gives it.
    pub name: String,
    /// Where the ciphertext lies.
    pub uri: String,
    /// The vhost-user socket.
    pub socket: String,
    /// What QEMU is doing with it.
    pub state: SessionState,
    /// What encrypts it; none for a volume served with `plain`.
    pub encryption: Option<Encryption>,
    /// Size of the disk that the guest sees, in bytes.
    pub capacity_bytes: u64,
    /// The disk's logical block, in bytes.
    pub block_bytes: u32,
    /// The guest may not write.
    pub read_only: bool,
    /// The guest may discard.
    pub discard: bool,
    /// The guest's write cache: on means that only a flush makes writes durable.
    pub writeback: bool,
    /// The disk's serial as the guest reads it.
    pub serial: String,
    /// Whether the storage answers.
    pub storage: StorageStatus,
    /// Every queue, in order.
    pub queues: Vec<QueueStatus>,
    /// Its rotation: under way, or the last one of this daemon's life; none for a volume that can't
    /// be rotated.
    pub rotation: Option<Rotation>,
    /// How old its keys are, as far as anybody knows.
    pub key_age: Option<KeyAge>,
    /// What the guest may do per second: the fields of [`Limits`] that are set.
    pub limits: BTreeMap<String, u64>,
}

/// How a volume is encrypted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Encryption {
    /// 1 or 2.
    pub luks_version: u8,
    /// UUID in the LUKS header.
    pub uuid: String,
    /// The cipher in cryptsetup's words, e.g. `aes-xts-plain64`.
    pub cipher: String,
    /// Bits of volume key, both halves of XTS together: 256 or 512.
    pub key_bits: u32,
    /// Encryption sector, in bytes.
    pub sector_bytes: u32,
    /// Who computes it: `AWS-LC` or `portable`.
    pub implementation: String,
}

/// Whether QEMU is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// The socket listens and nobody is connected.
    #[default]
    Waiting,
    /// A front-end is connected.
    Connected,
    /// The daemon is ending; the session takes no new front-end.
    Stopping,
    /// A state that a newer daemon knows.
    #[serde(other)]
    Unknown,
}

impl SessionState {
    /// Those that a daemon of this version tells.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Connected, Self::Stopping];

    /// The state as the JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Connected => "connected",
            Self::Stopping => "stopping",
            Self::Unknown => "unknown",
        }
    }
}

/// The storage path of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageStatus {
    /// What the guest gets from it.
    pub state: StorageState,
    /// For how long it has not been `ok`; none: it is.
    pub since_seconds: Option<u64>,
    /// Times that it was lost, the present one included.
    pub losses: u64,
    /// How long that was in all, the present loss included.
    pub lost_seconds_total: u64,
    /// I/Os (a long request is several) that are held, or stuck in a volume that doesn't answer, now.
    pub waiting: u64,
}

/// What a guest gets from the storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageState {
    /// It answers.
    #[default]
    Ok,
    /// Requests at the volume neither complete nor fail.
    Silent,
    /// They fail, and are kept to be tried again (`on_error = "hold"`).
    Holding,
    /// They fail, and the guest is told.
    Reporting,
    /// Another client has taken the volume: nothing is written any more.
    Fenced,
    /// A state that a newer daemon knows.
    #[serde(other)]
    Unknown,
}

impl StorageState {
    /// Those that a daemon of this version tells.
    pub const ALL: [Self; 5] =
        [Self::Ok, Self::Silent, Self::Holding, Self::Reporting, Self::Fenced];

    /// The state as the JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Silent => "silent",
            Self::Holding => "holding",
            Self::Reporting => "reporting",
            Self::Fenced => "fenced",
            Self::Unknown => "unknown",
        }
    }
}

/// Counters of one queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueStatus {
    /// The queue's number.
    pub index: u16,
    /// Started by the front-end.
    pub running: bool,
    /// The guest broke the ring; the queue takes no requests until it is started anew.
    pub broken: bool,
    /// Requests completed without an error.
    pub requests: Requests,
    /// Bytes that reads gave to the guest.
    pub read_bytes: u64,
    /// Bytes that writes took from the guest.
    pub written_bytes: u64,
    /// Requests answered with an error.
    pub errors: Errors,
    /// Requests taken and not yet answered, now.
    pub inflight: u64,
    /// Requests found in the in-flight region and done again after a restart.
    pub replayed: u64,
    /// I/Os that the volume failed and that were kept to be tried again (`on_error = "hold"`).
    pub held: u64,
    /// Requests that waited for a limit of the disk.
    pub throttled: u64,
    /// How long they waited in all, in microseconds; those that wait now are not in it yet.
    pub throttled_us: u64,
    /// Requests that had to wait because a rotation had their range in work.
    pub parked: u64,
    /// Those that wait for that reason now.
    pub parked_now: u64,
}

/// Completed requests by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// `VIRTIO_BLK_T_IN`
    pub read: u64,
    /// `VIRTIO_BLK_T_OUT` and `VIRTIO_BLK_T_WRITE_ZEROES`
    pub write: u64,
    /// `VIRTIO_BLK_T_FLUSH`
    pub flush: u64,
    /// `VIRTIO_BLK_T_DISCARD`
    pub discard: u64,
}

impl Requests {
    /// All kinds together.
    pub const fn total(&self) -> u64 {
        self.read + self.write + self.flush + self.discard
    }
}

/// Requests that ended badly, by whose fault it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Errors {
    /// The volume failed.
    pub volume: u64,
    /// The guest asked for what can't be (past the end, misaligned, a broken descriptor chain) or
    /// for what the disk doesn't offer.
    pub guest: u64,
}

impl Errors {
    /// All kinds together.
    pub const fn total(&self) -> u64 {
        self.volume + self.guest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_takes_answers_of_newer_and_older_daemons() {
        let newer = r#"{"version":"9","colour":"blue",
            "volumes":[{"name":"a","state":"migrating","queues":[{"index":3}]}]}"#;
        let status: Status = serde_json::from_str(newer).unwrap();
        assert_eq!(status.pid, 0);
        assert_eq!(status.volumes[0].state, SessionState::Unknown);
        assert_eq!(status.volumes[0].queues[0], QueueStatus { index: 3, ..Default::default() });
    }

    #[test]
    fn states_are_written_as_their_name() {
        for state in SessionState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
        for state in StorageState::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.as_str());
        }
    }
}
