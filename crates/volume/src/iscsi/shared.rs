//! What the handles of a volume share: how to log in, what the unit is, the claim on it, and its
//! news.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::claim::Claim;
use super::login::Login;
use super::unit::Unit;
use crate::{Listener, Size, VolumeEvent};

/// Shared by the control handle and the lanes.
pub(super) struct Shared {
    pub(super) login: Arc<Login>,
    /// As it was opened; how much of it is in use is [`Self::size`].
    pub(super) unit: Unit,
    pub(super) size: Size,
    pub(super) io_timeout: Option<Duration>,
    pub(super) durability: Durability,
    pub(super) news: News,
    /// Held as long as I/O is possible.
    pub(super) _claim: Claim,
}

/// Tells the listener.
pub(super) struct News {
    state: Mutex<State>,
    fenced: AtomicBool,
}

#[derive(Default)]
struct State {
    listener: Option<Listener>,
    /// Lanes without a connection, and since when there has been one.
    lost: usize,
    since: Option<Instant>,
    /// As told last.
    size_bytes: u64,
    why: String,
}

impl News {
    /// Nobody listens yet, and the unit has this size.
    pub(super) fn new(size_bytes: u64) -> Self {
        let state = State { size_bytes, ..State::default() };
        Self { state: Mutex::new(state), fenced: AtomicBool::new(false) }
    }

    pub(super) fn listen(&self, listener: Listener) {
        self.lock().listener = Some(listener);
    }

    /// A lane lost its connection. The volume's path is lost with the first, and back with the last.
    pub(super) fn lost(&self, why: &str) {
        let mut state = self.lock();
        state.lost += 1;
        if state.lost == 1 {
            state.since = Some(Instant::now());
            let listener = state.listener.clone();
            drop(state);
            tell(listener, || VolumeEvent::PathLost { why: why.to_owned() });
        }
    }

    /// A lane can't have its connection again for a reason that only an operator can remove: told
    /// once more, if it is news.
    pub(super) fn stays_lost(&self, why: &str) {
        let mut state = self.lock();
        if state.why != why {
            why.clone_into(&mut state.why);
            let listener = state.listener.clone();
            drop(state);
            tell(listener, || VolumeEvent::PathLost { why: why.to_owned() });
        }
    }

    /// A lane without a connection is closed: the path is as it was.
    pub(super) fn left(&self) {
        let mut state = self.lock();
        state.lost = state.lost.saturating_sub(1);
        if state.lost == 0 {
            state.why.clear();
            state.since = None;
        }
    }

    /// It has one again.
    pub(super) fn back(&self) {
        let mut state = self.lock();
        state.lost = state.lost.saturating_sub(1);
        if state.lost == 0 {
            state.why.clear();
            let after = state.since.take().map(|since| since.elapsed()).unwrap_or_default();
            let listener = state.listener.clone();
            drop(state);
            tell(listener, || VolumeEvent::PathBack { after });
        }
    }

    /// The unit says that it has this size; each lane learns of it, it is told once.
    pub(super) fn resized(&self, size_bytes: u64) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.size_bytes, size_bytes) != size_bytes {
            let listener = state.listener.clone();
            drop(state);
            tell(listener, || VolumeEvent::Resized { size_bytes });
        }
    }

    /// Another initiator has reserved the unit.
    pub(super) fn fenced(&self) {
        if !self.fenced.swap(true, Ordering::Relaxed) {
            let why = "another initiator has reserved the logical unit (RESERVATION CONFLICT)";
            let listener = self.lock().listener.clone();
            tell(listener, || VolumeEvent::Fenced { why: why.to_owned() });
        }
    }

    /// Whether another initiator has reserved it: nothing is sent any more.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(listener: Option<Listener>, event: impl FnOnce() -> VolumeEvent) {
    if let Some(listener) = listener {
        listener(event());
    }
}

/// Whether completed writes may be gone.
///
/// A lost connection alone loses nothing: what a unit has completed is in its cache, and a flush
/// afterwards makes it durable. A unit that was powered on has lost its volatile cache; if there
/// were completed writes without a flush after them, the next flush fails, so that the guest knows
/// (a disk in a machine would have lost its power together with the guest, which then replays its
/// journal; here the guest lives on). Only POWER ON OCCURRED (29h 01h) says that, and only from
/// units that don't tell it to everybody who logs in: the general 29h 00h, which most targets give
/// every new session, tells nothing.
#[derive(Debug, Default)]
pub(super) struct Durability {
    /// Writes completed.
    written: AtomicU64,
    /// How many of them are durable.
    flushed: AtomicU64,
    gone: AtomicBool,
}

impl Durability {
    /// A write has completed that may be in the unit's cache.
    pub(super) fn wrote(&self) {
        self.written.fetch_add(1, Ordering::Relaxed);
    }

    /// To be taken when a flush is submitted, for `flushed`.
    pub(super) fn mark(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// A flush has completed; false: writes before it were lost.
    pub(super) fn flushed(&self, mark: u64) -> bool {
        self.flushed.fetch_max(mark, Ordering::Relaxed);
        !self.gone.swap(false, Ordering::Relaxed)
    }

    /// The unit was powered on.
    pub(super) fn powered_on(&self) {
        let written = self.mark();
        if self.flushed.fetch_max(written, Ordering::Relaxed) < written {
            self.gone.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_fails_once_after_writes_were_lost() {
        let durability = Durability::default();
        durability.wrote();
        durability.powered_on();
        assert!(!durability.flushed(durability.mark()));
        assert!(durability.flushed(durability.mark()));
        durability.powered_on();
        assert!(durability.flushed(durability.mark()), "nothing was lost");
        durability.wrote();
        let mark = durability.mark();
        durability.wrote();
        assert!(durability.flushed(mark));
        durability.powered_on();
        assert!(!durability.flushed(mark), "the second write came after the flush");
    }

    #[test]
    fn the_path_is_lost_with_the_first_lane_and_back_with_the_last() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let news = News::new(5);
        let heard = told.clone();
        news.listen(Arc::new(move |event| heard.lock().unwrap().push(event)));
        news.lost("a");
        news.lost("b");
        news.back();
        assert_eq!(told.lock().unwrap().len(), 1);
        news.back();
        news.lost("c");
        news.left();
        news.resized(5);
        news.resized(7);
        news.resized(7);
        news.fenced();
        news.fenced();
        let told = told.lock().unwrap();
        assert!(matches!(told[0], VolumeEvent::PathLost { .. }));
        assert!(matches!(told[1], VolumeEvent::PathBack { .. }));
        assert!(matches!(told[2], VolumeEvent::PathLost { .. }), "and nothing when it is closed");
        assert_eq!(told[3], VolumeEvent::Resized { size_bytes: 7 });
        assert!(matches!(told[4], VolumeEvent::Fenced { .. }));
        assert_eq!(told.len(), 5);
    }
}
