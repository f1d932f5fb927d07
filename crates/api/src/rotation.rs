//! Rotation of a volume's key: what may be ordered, and what is told of it.

use serde::{Deserialize, Serialize};

/// `GET`: the volume's [`Rotation`]. `POST` of a [`RotationOrder`]: the [`Rotation`] after it. The
/// name is percent-encoded where a path needs that.
pub fn rotation_path(volume: &str) -> String {
    volume_path(volume, "rotation")
}

/// The path of something of a volume.
pub(crate) fn volume_path(volume: &str, what: &str) -> String {
    let mut path = String::from("/v1/volumes/");
    for byte in volume.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                path.push(char::from(byte));
            }
            other => path.push_str(&format!("%{other:02X}")),
        }
    }
    path.push('/');
    path.push_str(what);
    path
}

/// What to do with a volume's rotation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "lowercase", deny_unknown_fields)]
pub enum RotationOrder {
    /// Replace the volume key, and the secret with it if there is a new one.
    Start {
        /// Where the new secret is, e.g. `file:PATH` as the daemon sees it; none: the secret stays.
        #[serde(default)]
        new_key: Option<String>,
        /// Most bytes to re-encrypt per second; none: as the guest's load allows.
        #[serde(default)]
        rate_bytes: Option<u64>,
        /// Longest range to be in work at a time; none: the daemon's choice.
        #[serde(default)]
        hotzone_bytes: Option<u64>,
        /// File for the header as it was before; none: the daemon's choice.
        #[serde(default)]
        header_backup: Option<String>,
        /// A LUKS1 volume stays on LUKS2 afterwards.
        #[serde(default)]
        keep_luks2: bool,
    },
    /// Stop between two ranges, and stay so, also over restarts of the daemon.
    Pause,
    /// Go on.
    Resume,
    /// Another limit, from now on.
    Throttle {
        /// Most bytes per second; none: no limit but the guest's load.
        #[serde(default)]
        rate_bytes: Option<u64>,
    },
}

/// Where a rotation is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// What it is doing.
    pub state: RotationState,
    /// Bytes that have the new key.
    pub done_bytes: u64,
    /// Bytes altogether.
    pub total_bytes: u64,
    /// Bytes per second, lately.
    pub rate_bytes: u64,
    /// The operator's limit on that.
    pub limit_bytes: Option<u64>,
    /// Seconds that it will still take at this rate.
    pub eta_seconds: Option<u64>,
    /// Longest range in work at a time.
    pub hotzone_bytes: u64,
    /// How an interrupted range is protected: `checksum` or `journal`.
    pub resilience: String,
    /// Fingerprint of the old volume key: what its digest in the header begins with, in hex.
    pub old_volume_key: String,
    /// The same of the new one.
    pub new_volume_key: String,
    /// Name of the secret that opened the volume before.
    pub old_secret: String,
    /// Name of the one that opens it afterwards.
    pub new_secret: String,
    /// When it began, in seconds since 1970, UTC.
    pub started_at: Option<u64>,
    /// When it ended.
    pub ended_at: Option<u64>,
    /// Longest time that writes to a range were held, in microseconds: no request is parked longer.
    pub parked_us_max: u64,
    /// The file with the header as it was before.
    pub header_backup: Option<String>,
    /// What is wrong, for a person; also why it waits.
    pub trouble: Option<String>,
    /// Rotations of this volume that failed or could not begin, in this daemon's life.
    pub failures: u64,
}

/// What a rotation is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RotationState {
    /// There is none.
    #[default]
    None,
    /// It will begin (or go on) when its window opens.
    Scheduled,
    /// Under way.
    Running,
    /// Under way, held back by a limit or the guest's load.
    Throttled,
    /// Stopped by an operator between two ranges.
    Paused,
    /// The storage fails: it tries again and again to recover.
    Stuck,
    /// Done.
    Completed,
    /// Given up; the volume is as `trouble` says.
    Failed,
    /// A state that a newer daemon knows.
    #[serde(other)]
    Unknown,
}

impl RotationState {
    /// Those that a daemon of this version tells.
    pub const ALL: [Self; 8] = [
        Self::None,
        Self::Scheduled,
        Self::Running,
        Self::Throttled,
        Self::Paused,
        Self::Stuck,
        Self::Completed,
        Self::Failed,
    ];

    /// The state as the JSON has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Scheduled => "scheduled",
            Self::Running => "running",
            Self::Throttled => "throttled",
            Self::Paused => "paused",
            Self::Stuck => "stuck",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

/// How old the keys of a volume are. Times in seconds since 1970, UTC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyAge {
    /// Since when the volume key has been in use.
    pub volume_key_since: Option<u64>,
    /// Since when the secret has been in use.
    pub secret_since: Option<u64>,
    /// When the volume key is due to be rotated, if there is a limit to its age.
    pub due_at: Option<u64>,
    /// When the last rotation ended; when it began, if only the header tells of it.
    pub last_rotation_at: Option<u64>,
    /// When the next one will begin or go on.
    pub next_run_at: Option<u64>,
}
