//! What a disk's guest may do per second, in plain numbers.
//!
//! Semantics are those of QEMU's throttle groups, which a guest has where QEMU opens the volume: a
//! rate, and optionally a higher one for a burst of some seconds. Whether numbers make sense
//! together is checked where they are read from; here a rate of zero is no limit.

/// Limits of a disk; its queues share them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read and written, together.
    pub total_bytes: Option<Rate>,
    /// Bytes read.
    pub read_bytes: Option<Rate>,
    /// Bytes written, zeroes included.
    pub write_bytes: Option<Rate>,
    /// Requests of all kinds but flushes.
    pub total_requests: Option<Rate>,
    /// Read requests.
    pub read_requests: Option<Rate>,
    /// Write, write-zeroes and discard requests.
    pub write_requests: Option<Rate>,
    /// A request of more bytes than this counts as several of this size. Zero: each counts as one.
    pub request_bytes: u64,
}

/// So much per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// In the long run.
    pub per_second: u64,
    /// And for a while, after less than that was asked for. None: a tenth of a second's worth at
    /// once.
    pub burst: Option<Burst>,
}

/// More than the rate, for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Burst {
    /// So much per second, at least the rate.
    pub per_second: u64,
    /// For so many seconds, at least one.
    pub seconds: u64,
}
