//! When the storage fails a rotation: recovering from what the header on the volume says, again and
//! again until that works, while writes to the zone in work are held.

use std::time::{Duration, Instant};

use sealblk_block::in_one_line;
use sealblk_luks::{Header, Policy, Rotation};

use super::{Driver, Held, Outcome};
use crate::controls::Phase;
use crate::error::{RotationError, Trouble};
use crate::mover::Way;
use crate::recover::{TakenUp, params, try_take_up};
use crate::storage::{Reader, carry_out_or_trouble, was_taken};

/// What recovery came to.
pub(super) enum Recovered {
    /// What is to be gone on with; none: nothing is left to be moved.
    Rotation(Option<Box<Rotation>>),
    /// There was no recovery.
    Left(Outcome),
}

impl Driver<'_> {
    /// Recovery found nothing left to be moved, and has wiped what was to be wiped.
    pub(super) fn conclude(&mut self) -> Result<Outcome, Trouble> {
        self.watch.update(|progress| {
            progress.done_bytes = progress.total_bytes;
            progress.phase = Phase::Done;
            progress.trouble = None;
        });
        Ok(Outcome::Completed)
    }

    /// After trouble with the storage: until it works, or until told to stop.
    pub(super) fn recover(&mut self, what: &str, flush: bool) -> Result<Recovered, RotationError> {
        self.note_flush(flush);
        // Nothing of ours may arrive at the volume later.
        for way in [Way::In, Way::Out] {
            if let Some((buf, _)) = self.mover.wait(way) {
                self.spare.push(buf);
            }
        }
        self.ahead = None;
        tracing::warn!(
            volume = self.volume.uri(),
            what,
            "the storage fails a rotation: recovering"
        );
        self.watch.update(|progress| {
            progress.phase = Phase::Stuck;
            progress.trouble = Some(format!("{}: {what}; trying again", self.volume.uri()));
        });
        // The header can be had and yet a zone not, with a bad sector in it.
        let again = self.back_off.has_begun();
        loop {
            match self.try_recover() {
                Ok(rotation) => {
                    // After the zone was released: guests must not wait for this.
                    if self.rest_before_retry(again) {
                        return Ok(Recovered::Left(Outcome::Stopped));
                    }
                    tracing::info!(volume = self.volume.uri(), "the rotation has recovered");
                    // The trouble is over when a zone has been moved.
                    self.watch.update(|progress| progress.phase = Phase::Running);
                    return Ok(Recovered::Rotation(rotation.map(Box::new)));
                }
                Err(Trouble::Ended) => return Ok(Recovered::Left(Outcome::Ended)),
                Err(Trouble::Hopeless(error)) => {
                    self.hopeless(&error);
                    return Err(error);
                }
                Err(Trouble::Storage { .. }) if was_taken(&**self.volume) => {
                    self.hopeless(&RotationError::Fenced);
                    return Err(RotationError::Fenced);
                }
                Err(Trouble::Storage { what, flush }) => {
                    self.note_flush(flush);
                    let uri = self.volume.uri();
                    self.watch.update(|progress| {
                        progress.trouble = Some(format!("{uri}: {what}; trying again"));
                    });
                }
            }
            if self.rest_before_retry(true) {
                return Ok(Recovered::Left(Outcome::Stopped));
            }
        }
    }

    fn note_flush(&mut self, failed: bool) {
        if failed {
            self.gate.flush_failed();
            self.flush_failed = true;
        }
    }

    /// Waits longer each time, or the first time not at all; whether to stop instead.
    fn rest_before_retry(&mut self, again: bool) -> bool {
        let wait = self.back_off.next();
        let end = Instant::now() + if again { wait } else { Duration::ZERO };
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if self.controls.rest(left).stop {
                return true;
            }
            if left.is_zero() {
                return false;
            }
        }
    }

    fn try_recover(&mut self) -> Result<Option<Rotation>, Trouble> {
        if let Some(zone) = self.in_doubt
            && self.held.is_none()
        {
            // It was released already; recovery must not race with its guests.
            self.gate.hold_writes(zone)?;
            let since = Instant::now();
            self.held = Some(Held { since, old: None, served: true });
        }
        self.serve_from_memory()?;
        if self.held.is_some() {
            self.gate.stuck();
        }
        let policy = Policy::default();
        let zone_bytes = self.controls.wishes().zone_bytes;
        let params = params(&**self.volume, zone_bytes);
        let TakenUp { segments, rotation, .. } = {
            let _lock = self.header_lock();
            if self.flush_failed {
                let header = Header::load(&mut Reader(&**self.volume), &policy)?;
                let again = header.renew(&mut Reader(&**self.volume))?;
                carry_out_or_trouble(&**self.volume, &again)?;
                // The zone in work is all written again, too, by what follows.
                self.flush_failed = false;
            }
            try_take_up(&**self.volume, self.unlocked, params, self.ages)?
        };
        self.in_doubt = None;
        self.release(&segments)?;
        Ok(rotation)
    }

    /// The rotation ends without an end. Guests must not wait for it: they go on with what the header
    /// says, if it can be had.
    pub(super) fn hopeless(&mut self, error: &RotationError) {
        let what = in_one_line(error);
        tracing::error!(volume = self.volume.uri(), what, "the rotation can't go on");
        self.give_up_reading();
        let _ = self.mover.wait(Way::Out);
        if matches!(error, RotationError::Fenced) {
            // Guests must not go on with a volume that is somebody else's, nor wait for it.
            self.gate.fenced();
        } else if self.in_doubt.is_none() && self.held.is_some() {
            let policy = Policy::default();
            let header = Header::load(&mut Reader(&**self.volume), &policy);
            let size_bytes = self.volume.geometry().size_bytes;
            let segments = header.and_then(|header| header.segments(self.unlocked, size_bytes));
            match segments {
                Ok(segments) => drop(self.release(&segments)),
                Err(_) => self.gate.stuck(),
            }
        } else if self.held.is_some() {
            self.gate.stuck();
        }
        self.watch.update(|progress| progress.trouble = Some(what));
    }
}
