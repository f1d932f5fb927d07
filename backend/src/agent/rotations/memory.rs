//! What an agent leaves to the next one about rotations: a file.
//!
//! Contract: the file is written anew and exchanged, so it is whole; one that makes no sense counts
//! as none, with a word in the log: then what waited doesn't come back, and the schedule begins again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sealblk_api::RotationOrder;
use serde::{Deserialize, Serialize};

/// An order whose time comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) instance: String,
    pub(super) volume: String,
    pub(super) order: RotationOrder,
    /// Nobody ordered it.
    pub(super) by_schedule: bool,
}

/// What is remembered, by volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// In the order in which they begin.
    pub(super) waiting: Vec<Waiting>,
    /// Rotations that the schedule has begun and that haven't ended.
    pub(super) scheduled: BTreeSet<String>,
    /// Those of them that wait for their window.
    pub(super) held: BTreeSet<String>,
    /// Before this time the schedule doesn't try again, after a failure.
    pub(super) not_before: BTreeMap<String, u64>,
    /// When a key of unknown age was seen first.
    pub(super) first_seen: BTreeMap<String, u64>,
}

impl Memory {
    pub(super) fn load(path: &Path) -> Self {
        match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "makes no sense: nothing waits");
                Self::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "can't be read: nothing waits");
                Self::default()
            }
        }
    }

    pub(super) fn save(&self, path: &Path) {
        let next = path.with_extension("next");
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&next, bytes))
            .and_then(|()| std::fs::rename(&next, path));
        if let Err(error) = written {
            tracing::error!(path = %path.display(), %error, "can't be written: a restart forgets");
        }
    }

    /// Nothing has to be looked after.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.scheduled.is_empty()
    }

    pub(super) fn waits(&self, volume: &str) -> bool {
        self.waiting.iter().any(|one| one.volume == volume)
    }

    /// Joins the queue; who waits already keeps the place, and has the newer order.
    pub(super) fn wait(&mut self, waiting: Waiting) {
        match self.waiting.iter_mut().find(|one| one.volume == waiting.volume) {
            Some(one) => *one = waiting,
            None => self.waiting.push(waiting),
        }
    }

    pub(super) fn done_waiting(&mut self, volume: &str) {
        self.waiting.retain(|one| one.volume != volume);
    }

    /// Neither waits nor is the schedule's.
    pub(super) fn forget(&mut self, volume: &str) {
        self.done_waiting(volume);
        self.scheduled.remove(volume);
        self.held.remove(volume);
        self.not_before.remove(volume);
    }

    /// Keeps what is known of these.
    pub(super) fn retain(&mut self, keep: impl Fn(&String) -> bool) {
        self.waiting.retain(|one| keep(&one.volume));
        self.scheduled.retain(|volume| keep(volume));
        self.held.retain(|volume| keep(volume));
        self.not_before.retain(|volume, _| keep(volume));
        self.first_seen.retain(|volume, _| keep(volume));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(volume: &str, order: RotationOrder) -> Waiting {
        Waiting { instance: "i".into(), volume: volume.into(), order, by_schedule: false }
    }

    #[test]
    fn another_agent_reads_what_this_one_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rotations.json");
        assert!(Memory::load(&path).is_empty());
        let mut memory = Memory::default();
        memory.wait(waiting("a", RotationOrder::Resume));
        memory.wait(waiting("b", RotationOrder::Resume));
        memory.wait(waiting("a", RotationOrder::Throttle { rate_bytes: Some(1) }));
        memory.held.insert("c".into());
        memory.save(&path);
        let next = Memory::load(&path);
        assert_eq!(next, memory);
        let order: Vec<_> = next.waiting.iter().map(|one| one.volume.as_str()).collect();
        assert_eq!(order, ["a", "b"]);
        std::fs::write(&path, "{").unwrap();
        assert!(Memory::load(&path).is_empty());
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut memory = Memory::default();
        memory.wait(waiting("a", RotationOrder::Resume));
        memory.first_seen.insert("a".into(), 1);
        memory.first_seen.insert("b".into(), 1);
        memory.retain(|volume| volume == "b");
        assert!(memory.waiting.is_empty());
        assert_eq!(memory.first_seen.keys().collect::<Vec<_>>(), ["b"]);
    }
}
