use proptest::prelude::*;

use super::*;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Monday 2026-11-23, 00:00 UTC.
const MONDAY: u64 = 1_795_392_000;
const SATURDAY: u64 = MONDAY + 5 * DAY;

fn windows(list: &[&str]) -> Windows {
    Windows::new(list.iter().map(|text| text.parse().unwrap()).collect())
}

fn every(max_age: u64, list: &[&str]) -> Schedule {
    Schedule {
        max_key_age: Some(Duration::from_secs(max_age)),
        windows: windows(list),
        unknown_age: UnknownAge::Due,
    }
}

#[test]
fn windows_open_and_close_when_they_say() {
    assert_eq!(utc_time(MONDAY), "2026-11-23 00:00 UTC");
    for (text, begin, end) in [
        ("Sat..Sun 01:00-05:00", SATURDAY + HOUR, SATURDAY + 5 * HOUR),
        ("sat 1:00-05:00 UTC", SATURDAY + HOUR, SATURDAY + 5 * HOUR),
        ("Saturday 01:00-05:00 +02:00", SATURDAY - HOUR, SATURDAY + 3 * HOUR),
        ("Sat 01:00-05:00 UTC-05:30", SATURDAY + 390 * MINUTE, SATURDAY + 630 * MINUTE),
        ("Sat,Mon 22:00-04:00", MONDAY + 22 * HOUR, MONDAY + 28 * HOUR),
        ("Sun 22:00-04:00", MONDAY + 6 * DAY + 22 * HOUR, MONDAY + 7 * DAY + 4 * HOUR),
        // Into the week before.
        ("Mon 01:00-05:00 +02:00", MONDAY + 7 * DAY - HOUR, MONDAY + 7 * DAY + 3 * HOUR),
        ("Wed 00:00-24:00", MONDAY + 2 * DAY, MONDAY + 3 * DAY),
        ("22:30-24:00", MONDAY + 22 * HOUR + 30 * MINUTE, MONDAY + DAY),
        ("Tue..Wed 00:00-24:00", MONDAY + DAY, MONDAY + 3 * DAY),
    ] {
        let windows = windows(&[text]);
        // From noon on: "Mon 01:00 +02:00" is open in the night before.
        let noon = MONDAY + 12 * HOUR;
        assert_eq!(windows.next_open(noon), Some(begin), "{text}");
        assert!(!windows.are_open_at(begin - 1), "{text}");
        assert_eq!(windows.open_until(begin - 1), None, "{text}");
        assert_eq!(windows.open_until(begin), Some(end), "{text}");
        assert_eq!(windows.open_until(end - 1), Some(end), "{text}");
        assert!(!windows.are_open_at(end), "{text}");
    }
}

#[test]
fn windows_that_touch_are_one_and_some_never_close() {
    let night = windows(&["Sat 22:00-24:00", "Sun 00:00-04:00", "Sun 03:00-05:00"]);
    let begin = SATURDAY + 22 * HOUR;
    assert_eq!(night.open_until(begin), Some(SATURDAY + 29 * HOUR));
    for whole in [&["00:00-24:00"][..], &["Mon..Fri 00:00-24:00", "Sat..Sun 00:00-24:00"], &[]] {
        let windows = windows(whole);
        assert!(windows.are_open_at(begin));
        assert_eq!(windows.open_until(begin), None);
        assert_eq!(windows.next_open(begin), Some(begin));
    }
    assert_eq!(night.to_string(), "Sat 22:00-24:00, Sun 00:00-04:00, Sun 03:00-05:00");
    assert_eq!(Windows::default().to_string(), "always");
}

#[test]
fn what_is_no_window_is_refused_with_the_reason_and_an_example() {
    for (text, reason) in [
        ("", "no times of day"),
        ("Sat", "no times of day"),
        ("Sat..Sun 01:00", "no begin and end"),
        ("Sam 01:00-05:00", "\"Sam\" is no day"),
        ("Sat.. 01:00-05:00", "\"\" is no day"),
        ("Sat,Fri..Sun 01:00-05:00", "a day twice"),
        ("Mon..Sun,Mon 01:00-05:00", "a day twice"),
        ("25:00-26:00", "\"25:00\" is no time"),
        ("01:60-02:00", "\"01:60\" is no time"),
        ("1-5", "\"1\" is no time"),
        ("01:0-05:00", "\"01:0\" is no time"),
        ("+1:00-05:00", "\"+1:00\" is no time"),
        ("05:00-05:00", "00:00-24:00"),
        ("24:00-05:00", "day after"),
        ("01:00-05:00 CET", "names of time zones"),
        ("01:00-05:00 Europe/Paris", "names of time zones"),
        ("01:00-05:00 +15:00", "no offset"),
        ("01:00-05:00 UTC+", "no offset"),
        ("01:00-05:00 UTC daily", "\"daily\" is too much"),
    ] {
        let error = text.parse::<Window>().unwrap_err();
        assert!(error.contains(reason), "{text:?}: {error}");
        assert!(error.contains("Sat..Sun 01:00-05:00\" (UTC"), "{text:?}: {error}");
    }
}

#[test]
fn a_key_is_due_when_it_is_as_old_as_it_may_become_and_waits_for_its_window() {
    let schedule = every(30 * DAY, &["Sat..Sun 01:00-05:00"]);
    let since = MONDAY - 30 * DAY;
    let early = decide(MONDAY - 1, Some(since), &schedule, false);
    assert_eq!((early.due, early.due_at, early.run_now), (Due::No, Some(MONDAY), false));
    assert_eq!(early.next_run_at, Some(SATURDAY + HOUR));
    let due = decide(MONDAY, Some(since), &schedule, false);
    assert_eq!((due.due, due.run_now, due.stop_at), (Due::Yes, false, None));
    assert_eq!(due.next_run_at, Some(SATURDAY + HOUR));
    let now = SATURDAY + HOUR;
    let run = decide(now, Some(since), &schedule, false);
    assert!(run.run_now);
    assert_eq!((run.next_run_at, run.stop_at), (Some(now), Some(SATURDAY + 5 * HOUR)));
    // Not yet done at the window's end: the next one is Sunday's.
    let stop = decide(SATURDAY + 5 * HOUR, Some(since), &schedule, true);
    assert_eq!((stop.run_now, stop.next_run_at), (false, Some(SATURDAY + DAY + HOUR)));
    assert!(decide(SATURDAY + DAY + HOUR, Some(since), &schedule, true).run_now);
    // Without a window there is nothing to wait for.
    let run = decide(MONDAY, Some(since), &every(30 * DAY, &[]), false);
    assert_eq!((run.run_now, run.stop_at, run.next_run_at), (true, None, Some(MONDAY)));
}

#[test]
fn without_a_limit_nothing_begins_and_what_has_begun_ends() {
    let never = Schedule { max_key_age: None, ..every(1, &["Sat 01:00-05:00"]) };
    let at = |now, under_way| decide(now, Some(0), &never, under_way);
    let idle = at(SATURDAY + HOUR, false);
    assert_eq!((idle.due, idle.run_now, idle.next_run_at), (Due::No, false, None));
    assert!(at(SATURDAY + HOUR, true).run_now);
    assert_eq!(at(MONDAY, true).next_run_at, Some(SATURDAY + HOUR));
}

#[test]
fn an_unknown_age_counts_as_configured() {
    let due = every(30 * DAY, &["Sat 01:00-05:00"]);
    let decision = decide(MONDAY, None, &due, false);
    assert_eq!((decision.due, decision.due_at), (Due::Yes, None));
    assert_eq!(decision.next_run_at, Some(SATURDAY + HOUR));
    assert_eq!(decision.remember_since, None);
    let first_sight = Schedule { unknown_age: UnknownAge::FirstSight, ..due };
    let decision = decide(MONDAY, None, &first_sight, false);
    assert_eq!((decision.due, decision.due_at), (Due::No, Some(MONDAY + 30 * DAY)));
    assert_eq!(decision.remember_since, Some(MONDAY));
    let later = decide(MONDAY + DAY, Some(MONDAY), &first_sight, false);
    assert_eq!((later.remember_since, later.due_at), (None, decision.due_at));
}

#[test]
fn a_clock_that_was_never_set_begins_nothing_and_stops_what_needs_a_window() {
    for now in [0, 1, DAY, CLOCK_SET_AFTER - 1] {
        for since in [None, Some(0), Some(now), Some(MONDAY)] {
            for list in [&[][..], &["00:00-24:00"]] {
                let decision = decide(now, since, &every(1, list), false);
                assert_eq!((decision.due, decision.run_now), (Due::Unknown, false));
                assert_eq!(decision.oddity, Some(Oddity::ClockNotSet { now }));
                assert_eq!((decision.remember_since, decision.next_run_at), (None, None));
                assert_eq!(decide(now, since, &every(1, list), true).run_now, list.is_empty());
            }
        }
    }
    let text = Oddity::ClockNotSet { now: 60 }.to_string();
    assert!(text.contains("1970-01-01 00:01 UTC"), "{text}");
}

#[test]
fn a_key_from_the_future_is_a_new_one_and_told_of() {
    let schedule = every(30 * DAY, &[]);
    for since in [MONDAY + 1, MONDAY + 1000 * DAY, u64::MAX] {
        let decision = decide(MONDAY, Some(since), &schedule, false);
        assert_eq!((decision.due, decision.due_at), (Due::No, Some(MONDAY + 30 * DAY)));
        assert_eq!(decision.oddity, Some(Oddity::SinceInFuture { since, now: MONDAY }));
        // The clock has come back.
        assert_eq!(decide(since, Some(since), &schedule, false).oddity, None);
    }
}

/// A window by its numbers, and the text that means it.
fn spans() -> impl Strategy<Value = (Vec<(u64, u64)>, Vec<String>)> {
    const NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let one = (0..7_usize, 0..24 * 60_u64, 1..24 * 60_u64).prop_map(|(day, begin, len)| {
        let end = (begin + len) % (24 * 60);
        let clock = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
        let text = format!("{} {}-{}", NAMES[day], clock(begin), clock(end));
        ((day as u64 * 24 * 60 + begin, len), text)
    });
    proptest::collection::vec(one, 1..4).prop_map(|list| list.into_iter().unzip())
}

/// Whether a minute is in one of the windows: the slow way.
fn is_in(spans: &[(u64, u64)], now: u64) -> bool {
    let week = 7 * 24 * 60;
    let minute = (now - MONDAY + 1000 * 7 * DAY) / MINUTE % week;
    spans.iter().any(|(begin, len)| (0..*len).any(|at| (begin + at) % week == minute))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn windows_are_open_exactly_when_the_slow_way_says(
        (spans, texts) in spans(),
        now in MONDAY..MONDAY + 30 * DAY,
    ) {
        let windows = Windows::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        let open = is_in(&spans, now);
        prop_assert_eq!(windows.are_open_at(now), open);
        prop_assert_eq!(windows.next_open(now) == Some(now), open);
        let change = if open { windows.open_until(now) } else { windows.next_open(now) };
        if let Some(change) = change {
            prop_assert!(change > now);
            prop_assert_eq!(is_in(&spans, change), !open);
            for between in (now..change).step_by(MINUTE as usize) {
                prop_assert_eq!(is_in(&spans, between), open);
            }
        }
    }

    /// Many months of a volume, asked about now and then: it runs when due and in its window only,
    /// begins each window's work where the last one ended, and the key becomes a new one.
    #[test]
    fn a_due_volume_runs_in_its_windows_only_and_never_loses_its_place(
        (spans, texts) in spans(),
        max_age in DAY..60 * DAY,
        work in 1..2000_u64,
        ticks in proptest::collection::vec(20..=60_u64, 1..20),
    ) {
        let windows = Windows::new(texts.iter().map(|text| text.parse().unwrap()).collect());
        let schedule =
            Schedule { max_key_age: Some(Duration::from_secs(max_age)), windows, ..every(1, &[]) };
        let (mut now, mut since, mut place) = (MONDAY, MONDAY, None::<(u64, u64)>);
        let (mut rotations, mut promised, mut stop) = (0, None, None);
        for tick in ticks.iter().cycle().take(100_000) {
            let decision = decide(now, Some(since), &schedule, place.is_some());
            prop_assert_eq!(decision.due == Due::Yes, now >= since + max_age);
            if decision.run_now {
                prop_assert!(is_in(&spans, now));
                prop_assert!(place.is_some() || now >= since + max_age);
                prop_assert_eq!(decision.next_run_at, Some(now));
                // What was announced came no earlier than that, and no window was missed.
                if let Some(promised) = promised.take() {
                    prop_assert!((promised..=promised + 60).contains(&now));
                }
                let (begun, done) = place.unwrap_or((now, 0));
                place = Some((begun, done + 1));
                stop = decision.stop_at;
                if done + 1 == work {
                    (since, place) = (begun, None);
                    rotations += 1;
                }
            } else {
                if let (Some(at), true) = (stop.take(), place.is_some()) {
                    prop_assert!((at..=at + 60).contains(&now));
                }
                let next = decision.next_run_at.unwrap();
                prop_assert!(next > now);
                if place.is_some() || decision.due == Due::Yes {
                    promised = Some(next);
                }
            }
            if rotations == 2 {
                return Ok(());
            }
            // Nothing happens until then.
            let idle = place.is_none() && decision.due == Due::No;
            now = if idle { decision.due_at.unwrap() } else { now + tick };
        }
        // Windows of minutes and much work: not done, but on its way.
        prop_assert!(rotations > 0 || place.is_some());
    }

    #[test]
    fn no_jump_of_the_clock_and_no_age_does_harm(
        nows in proptest::collection::vec(any::<u64>(), 1..20),
        since in proptest::option::of(any::<u64>()),
        max_age in any::<u64>(),
        under_way in any::<bool>(),
        (_, texts) in spans(),
        any_time in any::<bool>(),
        unknown in any::<bool>(),
    ) {
        let windows = texts.iter().map(|text| text.parse().unwrap()).collect();
        let schedule = Schedule {
            max_key_age: Some(Duration::from_secs(max_age)),
            windows: if any_time { Windows::default() } else { Windows::new(windows) },
            unknown_age: if unknown { UnknownAge::Due } else { UnknownAge::FirstSight },
        };
        for now in nows.into_iter().flat_map(|now| [now, now % (2 * CLOCK_SET_AFTER), now % DAY]) {
            let decision = decide(now, since, &schedule, under_way);
            if now < CLOCK_SET_AFTER {
                prop_assert_eq!(decision.due, Due::Unknown);
                prop_assert_eq!(decision.run_now, under_way && any_time);
                continue;
            }
            let due = match since {
                None => unknown || max_age == 0,
                Some(since) => now.checked_sub(since).is_some_and(|age| age >= max_age)
                    || max_age == 0,
            };
            prop_assert_eq!(decision.due == Due::Yes, due);
            prop_assert_eq!(
                decision.run_now,
                (due || under_way) && schedule.windows.are_open_at(now)
            );
            prop_assert!(decision.stop_at.is_none_or(|stop| decision.run_now && stop > now));
        }
    }
}
