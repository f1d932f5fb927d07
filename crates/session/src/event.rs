//! What happened on the socket, for the log and the status page.
//!
//! Contract: the observer runs on the session's thread and must not block. A front-end cannot flood
//! it: past a burst, events are counted and the count comes with the next one.

use std::fmt;
use std::time::{Duration, Instant};

/// Something a person may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A front-end connected and sent its first message.
    Connected,
    /// The front-end is gone or was sent away; all queues are stopped, the socket is closed.
    Disconnected {
        /// Why, in words.
        reason: String,
    },
    /// A message was answered with an error, or ended the connection.
    Refused {
        /// The message's name in the vhost-user specification.
        message: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The front-end was told that the disk has another size.
    SizeTold {
        /// In 512-byte sectors.
        sectors: u64,
    },
    /// The front-end's channel for such news doesn't work; it is let go.
    ChannelFailed {
        /// The system's reason.
        reason: String,
    },
    /// No new client can be accepted for now.
    AcceptFailed {
        /// The system's reason.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected => f.write_str("front-end connected"),
            Self::Disconnected { reason } => write!(f, "front-end disconnected: {reason}"),
            Self::Refused { message, reason } => write!(f, "{message} refused: {reason}"),
            Self::SizeTold { sectors } => {
                write!(f, "front-end told of the disk's size: {sectors} sectors of 512 bytes")
            }
            Self::ChannelFailed { reason } => {
                write!(f, "the front-end can't be told of the disk's size: {reason}")
            }
            Self::AcceptFailed { reason } => write!(f, "cannot accept a front-end: {reason}"),
        }
    }
}

/// Takes events and the number of events dropped before each.
pub type Observer<'a> = dyn Fn(&Event, u64) + 'a;

/// Events that may come at once.
const BURST: u32 = 20;
/// One more may come after each of these.
const REFILL: Duration = Duration::from_secs(3);

/// A token bucket before an observer.
pub(crate) struct Reporter<'a> {
    observer: &'a Observer<'a>,
    tokens: u32,
    refilled: Instant,
    dropped: u64,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(observer: &'a Observer<'a>) -> Self {
        Self { observer, tokens: BURST, refilled: Instant::now(), dropped: 0 }
    }

    pub(crate) fn report(&mut self, event: &Event) {
        self.report_at(event, Instant::now());
    }

    fn report_at(&mut self, event: &Event, now: Instant) {
        let periods = now.saturating_duration_since(self.refilled).as_nanos() / REFILL.as_nanos();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(more).min(BURST);
            self.refilled = now;
        }
        if let Some(left) = self.tokens.checked_sub(1) {
            self.tokens = left;
            (self.observer)(event, std::mem::take(&mut self.dropped));
        } else {
            self.dropped += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_flood_of_events_is_cut_and_counted() {
        let seen = RefCell::new(Vec::new());
        let observer = |_: &Event, dropped| seen.borrow_mut().push(dropped);
        let mut reporter = Reporter::new(&observer);
        let start = reporter.refilled;
        for _ in 0..BURST + 100 {
            reporter.report_at(&Event::Connected, start);
        }
        assert_eq!(seen.borrow().len(), BURST as usize);
        reporter.report_at(&Event::Connected, start + REFILL);
        assert_eq!(seen.borrow().last(), Some(&100));
        reporter.report_at(&Event::Connected, start + REFILL);
        assert_eq!(seen.borrow().len(), BURST as usize + 1);
    }
}
