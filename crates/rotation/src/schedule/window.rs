//! Windows of time that come back every week.
//!
//! Contract: a window belongs to the days on which it begins; one that passes midnight ends on the
//! day after. Without an offset it is meant in UTC, and an offset is fixed: nothing here knows of
//! summer time. No windows at all mean: at any time.

use std::fmt;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;
const WEEK: u64 = 7 * DAY;
/// 1970-01-01 was a Thursday, and weeks begin with Monday.
const EPOCH_IN_WEEK: u64 = 3 * DAY;

const DAYS: [&str; 7] =
    ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

/// Times of day end with it: `24:00` is midnight at the day's end.
const DAY_MINUTES: u64 = 24 * 60;

/// Largest offset from UTC in minutes: that of no place on Earth is larger.
const OFFSET_MAX: u64 = 14 * 60;

/// One window as written, e.g. `Sat..Sun 01:00-05:00`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    text: String,
    /// Begin in seconds of the week in UTC, and length in seconds: once for each day.
    spans: Vec<(u64, u64)>,
}

/// All windows of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<Window>);

impl std::str::FromStr for Window {
    type Err = String;

    /// Reads `[DAYS] HH:MM-HH:MM [UTC[±HH:MM]]`, e.g. `Sat..Sun 01:00-05:00`, `22:00-04:00 UTC`,
    /// `Mon,Wed..Fri 01:00-03:30 +02:00`.
    fn from_str(text: &str) -> Result<Self, String> {
        let trouble = |what: String| {
            format!(
                "{text:?} is no window: {what}; write e.g. \"Sat..Sun 01:00-05:00\" (UTC; days may \
                 be left out, \"Mon,Wed..Fri\" names several, \"01:00-05:00 +02:00\" has another \
                 offset)"
            )
        };
        let mut words = text.split_whitespace().peekable();
        let days = match words.peek() {
            Some(word) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                let days = days(word).map_err(trouble)?;
                words.next();
                days
            }
            _ => vec![0, 1, 2, 3, 4, 5, 6],
        };
        let times = words.next().ok_or_else(|| trouble("it has no times of day".into()))?;
        let (begin, minutes) = times_of_day(times).map_err(trouble)?;
        let east = match words.next() {
            None => 0,
            Some(offset) => offset_minutes(offset).map_err(trouble)?,
        };
        if let Some(more) = words.next() {
            return Err(trouble(format!("{more:?} is too much")));
        }
        let spans = days.into_iter().map(|day| {
            let local = day * DAY_MINUTES + begin;
            let utc = (local as i64 - east).rem_euclid(7 * DAY_MINUTES as i64) as u64;
            (utc * MINUTE, minutes * MINUTE)
        });
        Ok(Self { text: text.to_owned(), spans: spans.collect() })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Days of the week, 0 is Monday, from `Mon`, `Sat..Sun`, `Fri..Mon`, `Mon,Wed..Fri`.
fn days(text: &str) -> Result<Vec<u64>, String> {
    let mut listed = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once("..") {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let mut at = first;
        loop {
            if listed.contains(&at) {
                return Err(format!("{text:?} names a day twice"));
            }
            listed.push(at);
            if at == last {
                break;
            }
            at = (at + 1) % 7;
        }
    }
    Ok(listed)
}

fn day(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let found = DAYS.iter().position(|name| *name == lower || name[..3] == *lower);
    found.map(|day| day as u64).ok_or_else(|| format!("{text:?} is no day such as Mon"))
}

/// Begin in minutes of the day, and length in minutes.
fn times_of_day(text: &str) -> Result<(u64, u64), String> {
    let (begin, end) =
        text.split_once('-').ok_or_else(|| format!("{text:?} has no begin and end"))?;
    let (begin, end) = (clock(begin)?, clock(end)?);
    if begin == DAY_MINUTES {
        return Err("nothing begins at 24:00, but the day after at 00:00".into());
    }
    if begin == end {
        return Err("it ends when it begins (a whole day is 00:00-24:00)".into());
    }
    Ok((begin, if end > begin { end - begin } else { end + DAY_MINUTES - begin }))
}

/// `HH:MM` in minutes, up to `24:00`.
fn clock(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time of day such as 05:00");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let two_digits = |digits: &str| {
        let fine = matches!(digits.len(), 1..=2) && digits.bytes().all(|b| b.is_ascii_digit());
        fine.then(|| digits.parse::<u64>().ok()).flatten()
    };
    match (two_digits(hours), two_digits(minutes).filter(|_| minutes.len() == 2)) {
        (Some(hours @ 0..=23), Some(minutes @ 0..=59)) => Ok(hours * 60 + minutes),
        (Some(24), Some(0)) => Ok(DAY_MINUTES),
        _ => Err(wrong()),
    }
}

/// Minutes east of UTC from `UTC`, `+02:00`, `UTC-05:30`.
fn offset_minutes(text: &str) -> Result<i64, String> {
    let wrong = || {
        format!("{text:?} is no offset from UTC such as +02:00 (names of time zones aren't known)")
    };
    let is_utc = text.get(..3).is_some_and(|name| name.eq_ignore_ascii_case("utc"));
    let rest = if is_utc { &text[3..] } else { text };
    if rest.is_empty() {
        return Ok(0);
    }
    let (sign, rest) = match (rest.strip_prefix('+'), rest.strip_prefix('-')) {
        (Some(rest), _) => (1, rest),
        (_, Some(rest)) => (-1, rest),
        _ => return Err(wrong()),
    };
    let minutes = clock(rest).ok().filter(|minutes| *minutes <= OFFSET_MAX).ok_or_else(wrong)?;
    Ok(sign * minutes as i64)
}

impl Window {
    /// The end of the window that `now` is in.
    fn open_until(&self, now: u64) -> Option<u64> {
        let ends = self.spans.iter().filter_map(|(begin, len)| {
            let into = into_week(now, *begin);
            (into < *len).then(|| now.saturating_add(*len - into))
        });
        ends.max()
    }

    /// The next begin, after `now`.
    fn next_begin(&self, now: u64) -> Option<u64> {
        let begins = self.spans.iter().map(|(begin, _)| WEEK - into_week(now, *begin));
        begins.min().map(|ahead| now.saturating_add(ahead))
    }
}

/// Seconds since the last time that the week was at `begin`.
fn into_week(now: u64, begin: u64) -> u64 {
    let at = (now % WEEK + EPOCH_IN_WEEK) % WEEK;
    (at + WEEK - begin) % WEEK
}

impl Windows {
    /// These windows; none of them: at any time.
    pub fn new(windows: Vec<Window>) -> Self {
        Self(windows)
    }

    /// Whether there are none, so that nothing ever closes.
    pub fn are_any_time(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one is open.
    pub fn are_open_at(&self, now: u64) -> bool {
        self.are_any_time() || self.0.iter().any(|window| window.open_until(now).is_some())
    }

    /// When no window is open any more, if one is open at `now`: where one ends as another begins,
    /// that is the end of the other. None: nothing is open, or nothing ever closes.
    pub fn open_until(&self, now: u64) -> Option<u64> {
        let mut end = now;
        while let Some(later) = self.0.iter().filter_map(|w| w.open_until(end)).max() {
            end = later;
            if end >= now.saturating_add(WEEK) {
                return None;
            }
        }
        (end > now).then_some(end)
    }

    /// The first time from `now` on at which one is open.
    pub fn next_open(&self, now: u64) -> Option<u64> {
        if self.are_open_at(now) {
            return Some(now);
        }
        self.0.iter().filter_map(|window| window.next_begin(now)).min()
    }
}

impl fmt::Display for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.are_any_time() {
            return f.write_str("always");
        }
        let each: Vec<&str> = self.0.iter().map(|window| window.text.as_str()).collect();
        f.write_str(&each.join(", "))
    }
}
