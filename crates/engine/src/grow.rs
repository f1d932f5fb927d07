//! A disk that gets larger while its queues run.
//!
//! Contract: [`Grower::grow`] returns once every queue takes requests up to the new end, so the guest
//! may be told then and not before. Sectors that were there keep their place and key.
//! Not while a rotation is under way: it publishes key maps of the size that it began with.

use std::sync::mpsc::sync_channel;

use crate::SwitchError;
use crate::control::{Command, Mailbox};
use crate::worker::Worker;

/// The hand on a disk's queues that makes it larger; may outlive the disk, its calls then fail.
#[derive(Clone)]
pub struct Grower {
    queues: Vec<Mailbox>,
}

impl Grower {
    pub(crate) fn new(queues: Vec<Mailbox>) -> Self {
        Self { queues }
    }

    /// Gives the disk `capacity_sectors` of 512 bytes; at least as many as it has, and whole
    /// blocks. What lies behind the present end belongs to the last segment's key.
    ///
    /// # Errors
    /// [`SwitchError::Ended`]
    pub fn grow(&self, capacity_sectors: u64) -> Result<(), SwitchError> {
        let (answer, answered) = sync_channel(self.queues.len());
        for mailbox in &self.queues {
            let command = Command::Grow(capacity_sectors, answer.clone());
            mailbox.send(command).map_err(|_| SwitchError::Ended)?;
        }
        drop(answer);
        for _ in &self.queues {
            answered.recv().map_err(|_| SwitchError::Ended)?;
        }
        Ok(())
    }
}

impl Worker {
    /// Takes requests up to the new end from now on.
    pub(super) fn grow(&mut self, capacity_sectors: u64) {
        if capacity_sectors < self.profile.capacity_sectors {
            crate::broken("a disk is to shrink");
        }
        // The map may already reach a part of a block further than the disk.
        if capacity_sectors > self.keys.capacity() && self.keys.grow(capacity_sectors).is_err() {
            crate::broken("a disk is to grow to where its key map can't");
        }
        self.profile.capacity_sectors = capacity_sectors;
    }
}
