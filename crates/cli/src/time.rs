//! Times as people read them. Dates are in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use sealblk_rotation::utc_date;

const DAY: u64 = 86400;

/// The wall clock, in seconds since 1970; 0 if it says less.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The two largest units of a time in seconds.
pub(crate) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / DAY);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// A date that has been, and how long ago: `2026-11-12 (12 d)`.
pub(crate) fn ago(at: u64, now: u64) -> String {
    match now.checked_sub(at) {
        Some(seconds) => format!("{} ({})", utc_date(at), roughly(seconds)),
        None => format!("{} (in the FUTURE: a clock was wrong)", utc_date(at)),
    }
}

/// A date that will be, and when: `2027-11-12 (in 353 d)`.
pub(crate) fn ahead(at: u64, now: u64) -> String {
    format!("{} (in {})", utc_date(at), roughly(at.saturating_sub(now)))
}

/// Days, when there are some.
fn roughly(seconds: u64) -> String {
    if seconds >= DAY { format!("{} d", seconds / DAY) } else { duration(seconds) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_in_their_two_largest_units() {
        for (seconds, text) in
            [(0, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")]
        {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn dates_are_shown_with_their_distance() {
        let now = 1_795_514_100;
        assert_eq!(ago(now - 12 * DAY, now), "2026-11-12 (12 d)");
        assert_eq!(ago(now - 90, now), "2026-11-24 (1 min 30 s)");
        assert!(ago(now + 1, now).contains("FUTURE"));
        assert_eq!(ahead(now + 12 * DAY, now), "2026-12-06 (in 12 d)");
    }
}
