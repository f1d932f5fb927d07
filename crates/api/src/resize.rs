//! A volume that has another size: asking the daemon to look.

use serde::{Deserialize, Serialize};

use crate::rotation::volume_path;

/// `POST`, without a body: the daemon asks the volume how large it is, and the disk follows if it has
/// grown; the answer is [`Resize`]. The name is percent-encoded where a path needs that.
pub fn resize_path(volume: &str) -> String {
    volume_path(volume, "resize")
}

/// How large a volume and its disk are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resize {
    /// Size of the volume, in whole blocks, in bytes.
    pub volume_bytes: u64,
    /// Size of the disk that the guest sees, in bytes.
    pub capacity_bytes: u64,
    /// The volume has grown, and the disk will when the rotation that is under way has ended.
    pub waits_for_rotation: bool,
}
