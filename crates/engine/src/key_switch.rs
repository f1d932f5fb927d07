//! The rotation's hand on a disk's queues: which zone it has in work, and which keys own what.
//!
//! Contract: one switch per disk at a time, on one thread; calls block until every queue has obeyed.
//! The order of calls is that of [`crate::fence`]. While a switch lives, the queues take the time of
//! some requests. It may outlive the disk: its calls then fail.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use sealblk_block::Extent;
use sealblk_cipher::{CipherError, Implementation, KeyMap, SegmentSpec};
use sealblk_volume::AlignedBuf;

use crate::control::{Command, Mailbox, Order};
use crate::loss::StoragePath;
use crate::stats::QueueStats;

/// When requests that a rotation waits for take longer than this, the storage is slow or away, and
/// queues that are to stop don't wait for what is parked.
const DELAYED: Duration = Duration::from_secs(1);

/// The queues didn't obey.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwitchError {
    /// They have ended.
    #[error("the disk is no longer served")]
    Ended,
    /// The segments don't make a key map.
    #[error("the segments make no key map")]
    Keys(#[from] CipherError),
}

/// Time and number of requests since the last time somebody asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuestLoad {
    /// Requests completed without an error.
    pub requests: u64,
    /// Requests whose time was taken.
    pub timed: u64,
    /// Sum of those times in nanoseconds.
    pub timed_ns: u64,
}

/// Where a hand on a disk's queues is to be had, by whoever doesn't hold the disk.
#[derive(Clone)]
pub struct Switchboard {
    queues: Vec<(Mailbox, Arc<QueueStats>)>,
    path: Arc<StoragePath>,
    implementation: Implementation,
}

impl Switchboard {
    pub(crate) fn new(
        queues: Vec<(Mailbox, Arc<QueueStats>)>,
        path: Arc<StoragePath>,
        implementation: Implementation,
    ) -> Self {
        Self { queues, path, implementation }
    }

    /// The hand: one at a time.
    pub fn key_switch(&self) -> KeySwitch {
        KeySwitch::new(self.clone())
    }
}

/// The hand on the queues.
pub struct KeySwitch {
    queues: Vec<(Mailbox, Arc<QueueStats>)>,
    path: Arc<StoragePath>,
    implementation: Implementation,
    seen: GuestLoad,
}

impl KeySwitch {
    fn new(board: Switchboard) -> Self {
        let Switchboard { queues, path, implementation } = board;
        let mut switch = Self { queues, path, implementation, seen: GuestLoad::default() };
        switch.seen = switch.counted();
        switch.tell(|| Order::TakeTimes(true));
        switch
    }

    /// Remembers writes to `zone` from now on; returns once none that was begun before is in work.
    ///
    /// # Errors
    /// [`SwitchError::Ended`]
    pub fn watch(&mut self, zone: Extent) -> Result<(), SwitchError> {
        self.ask(|answer| Order::Watch(zone, answer)).map(|_| ())
    }

    /// Parks writes to `zone` from now on; returns once none that was begun before is in work.
    /// Whether the zone was written to since [`Self::watch`] was called for it; true without that.
    ///
    /// # Errors
    /// [`SwitchError::Ended`]
    pub fn hold_writes(&mut self, zone: Extent) -> Result<bool, SwitchError> {
        self.ask(|answer| Order::Hold(zone, answer))
    }

    /// Serves reads of the zone from `old_ciphertext` from now on; returns once none that was begun
    /// before is in work.
    ///
    /// # Errors
    /// [`SwitchError::Ended`]
    pub fn serve_from(&mut self, old_ciphertext: &Arc<AlignedBuf>) -> Result<(), SwitchError> {
        self.ask(|answer| Order::Serve(old_ciphertext.clone(), answer)).map(|_| ())
    }

    /// Gives every queue ciphers for `segments`; what was parked goes on. Returns once no queue has
    /// the old ones, or memory of a zone.
    ///
    /// # Errors
    /// [`SwitchError::Ended`], [`SwitchError::Keys`].
    pub fn publish(&mut self, segments: &[SegmentSpec]) -> Result<(), SwitchError> {
        let maps = self.queues.iter().map(|_| KeyMap::new(segments, self.implementation));
        let mut maps = maps.collect::<Result<Vec<_>, _>>()?;
        self.ask(|answer| match maps.pop() {
            Some(keys) => Order::Publish(Box::new(keys), answer),
            None => crate::broken("there are more queues than key maps made for them"),
        })
        .map(|_| ())
    }

    /// The rotation can't go on for now: what touches the zone waits, or fails, as `on_error` says.
    pub fn stuck(&mut self) {
        self.tell(|| Order::Stuck);
    }

    /// Another client has taken the volume: everything fails from now on, what is parked too.
    pub fn fenced(&mut self) {
        self.path.fence();
        self.tell(|| Order::Stuck);
    }

    /// The next flush of every queue fails: one of the rotation did, and the system tells of what
    /// was lost only once.
    pub fn flush_failed(&mut self) {
        // Where no queue is left nobody flushes.
        let _ = self.ask(Order::FlushFailed);
    }

    /// How many flushes at the volume have failed so far, in all queues.
    pub fn failed_flushes(&self) -> u64 {
        self.queues.iter().map(|(_, stats)| stats.failed_flushes.get()).sum()
    }

    /// What guests did since the last call.
    pub fn load(&mut self) -> GuestLoad {
        let (before, now) = (self.seen, self.counted());
        self.seen = now;
        GuestLoad {
            requests: now.requests.wrapping_sub(before.requests),
            timed: now.timed.wrapping_sub(before.timed),
            timed_ns: now.timed_ns.wrapping_sub(before.timed_ns),
        }
    }

    fn counted(&self) -> GuestLoad {
        let mut sum = GuestLoad::default();
        for (_, stats) in &self.queues {
            let counts = stats.counts();
            sum.requests += counts.reads + counts.writes + counts.flushes + counts.discards;
            sum.timed += counts.timed;
            sum.timed_ns += counts.timed_ns;
        }
        sum
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for (mailbox, _) in &self.queues {
            // Gone only while the process ends.
            let _ = mailbox.send(Command::Rotation(order()));
        }
    }

    /// Gives an order to every queue; whether one of them answered yes.
    fn ask(&self, mut order: impl FnMut(SyncSender<bool>) -> Order) -> Result<bool, SwitchError> {
        let (answer, answered) = sync_channel(self.queues.len());
        for (mailbox, _) in &self.queues {
            let order = Command::Rotation(order(answer.clone()));
            mailbox.send(order).map_err(|_| SwitchError::Ended)?;
        }
        drop(answer);
        let mut any = false;
        for _ in &self.queues {
            any |= match answered.recv_timeout(DELAYED) {
                Ok(word) => word,
                Err(RecvTimeoutError::Disconnected) => return Err(SwitchError::Ended),
                Err(RecvTimeoutError::Timeout) => {
                    self.tell(|| Order::Delayed);
                    answered.recv().map_err(|_| SwitchError::Ended)?
                }
            };
        }
        Ok(any)
    }
}

impl Drop for KeySwitch {
    fn drop(&mut self) {
        self.tell(|| Order::TakeTimes(false));
    }
}
