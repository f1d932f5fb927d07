//! The time between two moments that a server tells.

use std::time::Duration;

/// From `2026-11-24T16:29:00.000000Z` to another such moment; none if they aren't such, or not in
/// this order.
pub(crate) fn between(earlier: &str, later: &str) -> Option<Duration> {
    seconds(later)?.checked_sub(seconds(earlier)?).map(Duration::from_secs)
}

/// Seconds since some moment long ago, in UTC (RFC 3339, `Z` only).
fn seconds(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time.split('.').next()?, ':')?;
    let fine = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !fine {
        return None;
    }
    // Days of the Gregorian calendar, with March as the first month, so that the day which leap
    // years have more comes last.
    let (years, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| {
        let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if digits { part.parse().ok() } else { None }
    });
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_counts_leap_days() {
        for (earlier, later, expected) in [
            ("2026-11-24T16:29:00.000000Z", "2026-11-24T17:29:01.500000Z", 3601),
            ("2026-12-31T23:59:59Z", "2027-01-01T00:00:00Z", 1),
            ("2028-02-28T00:00:00Z", "2028-03-01T00:00:00Z", 2 * 86_400),
            ("2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z", 86_400),
            ("2000-01-01T00:00:00Z", "2001-01-01T00:00:00Z", 366 * 86_400),
            ("2100-01-01T00:00:00Z", "2101-01-01T00:00:00Z", 365 * 86_400),
        ] {
            assert_eq!(between(earlier, later), Some(Duration::from_secs(expected)), "{later}");
        }
    }

    #[test]
    fn nonsense_is_none() {
        let good = "2026-11-24T16:29:00Z";
        for bad in [
            "",
            "Z",
            "2026-11-24T16:29:00",
            "2026-11-24T16:29:00+01:00",
            "2026-13-24T16:29:00Z",
            "2026-11-24T25:29:00Z",
            "0000-01-01T00:00:00Z",
            "2026-11-24-1T16:29:00Z",
            "2026-11-24T99999999999999999999:29:00Z",
            "2025-11-24T16:29:00Z",
        ] {
            assert_eq!(between(good, bad), None, "{bad}");
        }
    }
}
