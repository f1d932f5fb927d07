//! What a queue has done, for `status`: written by its thread alone, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::latency::Latency;

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A queue's counters. One writer: adding is a load and a store, not a locked instruction.
        #[derive(Debug, Default)]
        pub struct QueueStats {
            $($(#[$doc])* pub $name: Counter,)*
            /// How long requests took.
            pub latency: Latency,
        }

        /// The counters at one moment (each by itself; not a consistent cut).
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct QueueCounts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl QueueStats {
            /// Reads all counters.
            pub fn counts(&self) -> QueueCounts {
                QueueCounts { $($name: self.$name.get(),)* }
            }
        }
    };
}

counters! {
    /// Read requests completed without an error.
    reads,
    /// Bytes read by them.
    read_bytes,
    /// Write (and write-zeroes) requests completed without an error.
    writes,
    /// Bytes written by them.
    written_bytes,
    /// Flush requests completed without an error.
    flushes,
    /// Discard requests completed without an error.
    discards,
    /// Requests that the volume failed, seen by the guest as IOERR.
    volume_errors,
    /// Requests refused because they made no sense, or asked for what the disk doesn't do.
    refused,
    /// Requests replayed from the in-flight region after a restart.
    replayed,
    /// I/Os that failed and were held back to be tried again (`on_error = "hold"`).
    held,
    /// Requests that were parked because they touched the zone that a rotation had in work.
    parked,
    /// Requests that waited for a limit of the disk.
    throttled,
    /// How long they waited, in nanoseconds; those that still wait are not in it.
    throttled_ns,
    /// Requests that are parked now.
    parked_now,
    /// Requests whose time was taken, while a rotation asks for it.
    timed,
    /// Sum of those times in nanoseconds.
    timed_ns,
    /// Flushes that the volume failed.
    failed_flushes,
    /// I/Os that are held, or stuck in a volume that doesn't answer, now.
    waiting,
    /// Requests in work now.
    in_flight,
    /// Times the thread went to sleep.
    sleeps,
    /// Times the guest was notified.
    calls,
    /// 1 after the guest broke the ring itself; the queue takes no requests until it is restarted.
    broken,
}

/// A number with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning thread may.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets; only the owning thread may.
    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
