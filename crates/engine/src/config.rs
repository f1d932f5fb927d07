//! What an operator can choose about the data path.

use std::time::Duration;

use sealblk_cipher::Implementation;

use crate::Limits;

/// What to do with an I/O that the volume failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// Tell the guest: IOERR.
    #[default]
    Report,
    /// Keep the request and try again until it works: the guest waits while a storage path fails
    /// over.
    Hold,
}

/// How to run a disk's queues.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Queues, each with a thread of its own.
    pub queues: u16,
    /// Most descriptors a queue may have.
    pub queue_size_max: u16,
    /// Bounce buffer of each queue in bytes.
    pub bounce_bytes: usize,
    /// How long to poll at most before sleeping. Zero: never poll.
    pub poll_max: Duration,
    /// Failed I/O.
    pub on_error: OnError,
    /// With [`OnError::Hold`]: how long the volume may fail before what is held ends with an error,
    /// and further failures are reported until it works again. None: for ever.
    pub hold_limit: Option<Duration>,
    /// How long nothing may come back from the volume before it counts as silent; less only in
    /// tests.
    pub silence: Duration,
    /// How much the guest may do.
    pub limits: Limits,
    /// Which cipher code to use.
    pub implementation: Implementation,
    /// Best io_uring set-up to try; lower only in tests.
    pub ring_level: sealblk_ring::Level,
    /// Name of the disk, for thread names and the log.
    pub name: String,
}

impl EngineConfig {
    /// What [`Self::bounce_bytes`] is by default: a queue of 128 requests of 16 KiB.
    pub const BOUNCE_BYTES: usize = 2 << 20;
    /// What [`Self::poll_max`] is by default: about what sleeping and waking costs.
    pub const POLL_MAX: Duration = Duration::from_micros(32);
    /// What [`Self::silence`] is by default: longer than healthy storage takes for anything.
    pub const SILENCE: Duration = Duration::from_secs(5);
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size_max: 256,
            bounce_bytes: Self::BOUNCE_BYTES,
            poll_max: Self::POLL_MAX,
            on_error: OnError::default(),
            hold_limit: None,
            silence: Self::SILENCE,
            limits: Limits::default(),
            implementation: Implementation::Auto,
            ring_level: sealblk_ring::Level::Deferred,
            name: "disk".to_owned(),
        }
    }
}
