//! How many rotations may run at once.

use std::collections::BTreeMap;

use sealblk_api::RotationState;

/// Whether it loads the node and the storage.
pub(super) fn is_running(state: RotationState) -> bool {
    matches!(state, RotationState::Running | RotationState::Throttled | RotationState::Stuck)
}

/// Whether it has begun and not ended.
pub(super) fn is_under_way(state: RotationState) -> bool {
    is_running(state) || matches!(state, RotationState::Paused | RotationState::Scheduled)
}

/// What is left of the limits.
#[derive(Debug)]
pub(super) struct Room {
    /// 0: no limit.
    most: u32,
    /// Of each backend; 0: no limit.
    most_of_each: u32,
    running: u32,
    each: BTreeMap<String, u32>,
}

impl Room {
    pub(super) fn new(most: u32, most_of_each: u32) -> Self {
        Self { most, most_of_each, running: 0, each: BTreeMap::new() }
    }

    /// One more runs.
    pub(super) fn take(&mut self, backend: &str) {
        self.running += 1;
        *self.each.entry(backend.to_owned()).or_default() += 1;
    }

    /// Whether one more may.
    pub(super) fn has(&self, backend: &str) -> bool {
        let below = |count: u32, most: u32| most == 0 || count < most;
        let of_this = self.each.get(backend).copied().unwrap_or_default();
        below(self.running, self.most) && below(of_this, self.most_of_each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold() {
        let mut room = Room::new(3, 1);
        assert!(room.has("a"));
        room.take("a");
        assert!(!room.has("a") && room.has("b"));
        room.take("b");
        room.take("c");
        assert!(!room.has("d"));
    }

    #[test]
    fn without_limits_there_is_always_room() {
        let mut room = Room::new(0, 0);
        for _ in 0..1000 {
            assert!(room.has("a"));
            room.take("a");
        }
    }

    #[test]
    fn what_an_operator_paused_takes_no_room() {
        assert!(!is_running(RotationState::Paused) && is_under_way(RotationState::Paused));
        assert!(!is_under_way(RotationState::Completed) && !is_under_way(RotationState::None));
    }
}
