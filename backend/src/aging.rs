//! How old a disk's keys are, and what its schedule makes of that, for `status`.
//!
//! Contract: what was noted when the disk was opened; asking reads no storage.
//! Deliberately absent: acting on it, and noting it anew.

use std::time::{SystemTime, UNIX_EPOCH};

use sealblk_luks::KeyAge;
use sealblk_rotation::{Schedule, decide};

/// The wall clock, in seconds since 1970; 0 if it says less.
pub(crate) fn wall_clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// One disk's.
#[derive(Debug, Clone)]
pub(crate) struct Aging {
    /// What is noted of its keys.
    pub(crate) age: KeyAge,
    pub(crate) schedule: Schedule,
    /// A rotation has begun and not ended.
    pub(crate) under_way: bool,
}

impl Aging {
    /// What `status` tells at `now`.
    pub(crate) fn status(&self, now: u64) -> sealblk_api::KeyAge {
        let KeyAge { volume_key_since, secret_since, rotations } = self.age;
        let decision = decide(now, volume_key_since, &self.schedule, self.under_way);
        sealblk_api::KeyAge {
            volume_key_since,
            secret_since,
            due_at: decision.due_at,
            last_rotation_at: volume_key_since.filter(|_| rotations > 0),
            next_run_at: decision.next_run_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: u64 = 86_400;
    const NOW: u64 = 1_795_514_100;

    fn status(age: KeyAge, max_days: Option<u64>) -> sealblk_api::KeyAge {
        let max_key_age = max_days.map(|days| Duration::from_secs(days * DAY));
        let schedule = Schedule { max_key_age, ..Schedule::default() };
        Aging { age, schedule, under_way: false }.status(NOW)
    }

    #[test]
    fn status_tells_the_age_and_what_the_schedule_makes_of_it() {
        let age = KeyAge { volume_key_since: Some(NOW - DAY), secret_since: None, rotations: 0 };
        let told = status(age, Some(30));
        assert_eq!((told.volume_key_since, told.secret_since), (Some(NOW - DAY), None));
        assert_eq!((told.due_at, told.next_run_at), (Some(NOW + 29 * DAY), Some(NOW + 29 * DAY)));
        assert_eq!(told.last_rotation_at, None);
        let told = status(KeyAge { rotations: 1, ..age }, None);
        assert_eq!((told.due_at, told.next_run_at), (None, None));
        assert_eq!(told.last_rotation_at, Some(NOW - DAY));
        let told = status(KeyAge::default(), Some(30));
        assert_eq!((told.due_at, told.next_run_at), (None, Some(NOW)));
    }
}
