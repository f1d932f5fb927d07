//! How long requests take, seen on some of them: what a rotation steers by.
//!
//! Contract: costs a comparison per request while nobody asks for it. One request at a time is
//! watched, and only every so many, as reading the clock costs as much as a part of the request.

use std::time::{Duration, Instant};

/// One request of so many is timed.
const EVERY: u32 = 8;

/// The request whose time is taken.
#[derive(Debug, Default)]
pub(crate) struct Sample {
    on: bool,
    passed: u32,
    timed: Option<(u16, Instant)>,
}

impl Sample {
    /// Takes times from now on, or no more.
    pub(crate) fn turn(&mut self, on: bool) {
        *self = Self { on, ..Self::default() };
    }

    /// A request begins.
    #[inline]
    pub(crate) fn begins(&mut self, head: u16) {
        if self.on {
            self.passed += 1;
            if self.timed.is_none() && self.passed >= EVERY {
                self.passed = 0;
                self.timed = Some((head, Instant::now()));
            }
        }
    }

    /// A request ends; its time, if it was taken.
    #[inline]
    pub(crate) fn ends(&mut self, head: u16) -> Option<Duration> {
        let (timed, since) = self.timed?;
        (timed == head).then(|| {
            self.timed = None;
            since.elapsed()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_so_many_is_timed_and_only_when_asked() {
        let mut sample = Sample::default();
        let timed = |sample: &mut Sample| {
            (0..4 * EVERY as u16)
                .filter(|&head| {
                    sample.begins(head);
                    sample.ends(head).is_some()
                })
                .count()
        };
        assert_eq!(timed(&mut sample), 0);
        sample.turn(true);
        assert_eq!(timed(&mut sample), 4);
        sample.turn(false);
        assert_eq!(timed(&mut sample), 0);
    }
}
