//! What happens to an open volume without anybody having asked.

use std::sync::Arc;
use std::time::Duration;

/// News of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum VolumeEvent {
    /// The storage says that the volume has this size now. Its geometry stays as it is until
    /// [`Volume::grow_to`](crate::Volume::grow_to).
    Resized {
        /// The new size in bytes.
        size_bytes: u64,
    },
    /// Another client has taken the volume: every I/O fails with [`crate::FENCED`] from now on.
    Fenced {
        /// How that was noticed, and who it was if that is known.
        why: String,
    },
    /// The storage can't be reached; I/O waits, or fails after the time limit.
    PathLost {
        /// What was noticed.
        why: String,
    },
    /// It can be reached again.
    PathBack {
        /// How long it could not.
        after: Duration,
    },
}

/// Who is told; called on any thread, also a queue's, and must not block.
pub type Listener = Arc<dyn Fn(VolumeEvent) + Send + Sync>;
