//! A rotation for a person: a bar, a phrase, a block of lines.
//!
//! Contract: pure text of an API [`Rotation`]; sizes and shares are rounded down, so that nothing
//! looks more done than it is.

use sealblk_api::{Rotation, RotationState};

use crate::size::human;
use crate::time::duration;

/// Longest line with a bar: a terminal's usual width less one, where a full line would wrap and
/// could not be drawn over.
const LINE: usize = 79;

/// Shortest and longest bar.
const BAR: (usize, usize) = (5, 30);

/// Whole thousandths that are done; all of an empty disk.
pub(crate) fn thousandths(rotation: &Rotation) -> u64 {
    let done = u128::from(rotation.done_bytes.min(rotation.total_bytes));
    let share = (done * 1000).checked_div(u128::from(rotation.total_bytes));
    u64::try_from(share.unwrap_or(0)).unwrap_or(0)
}

/// State, share, amounts, rate, time left: `running, 37.5 %, 3 GiB of 8 GiB, 100 MiB/s, 52 s left`.
pub(crate) fn phrase(rotation: &Rotation) -> String {
    let mut text = format!("{}, {}, {}", rotation.state.as_str(), share(rotation), rest(rotation));
    if let Some(trouble) = &rotation.trouble {
        text.push_str(&format!(" ({trouble})"));
    }
    text
}

/// The same with a bar, at most [`LINE`] characters.
pub(crate) fn bar_line(rotation: &Rotation) -> String {
    let state = format!("{:<9}", rotation.state.as_str());
    let text = format!("{:>7}  {}", share(rotation), rest(rotation));
    let room = LINE.saturating_sub(state.len() + text.len() + " []  ".len());
    let cells = room.clamp(BAR.0, BAR.1);
    let full = usize::try_from(thousandths(rotation)).unwrap_or(0) * cells / 1000;
    let (done, open) = ("#".repeat(full), "-".repeat(cells - full));
    let line = format!("{state} [{done}{open}] {text}");
    line.chars().take(LINE).collect()
}

fn share(rotation: &Rotation) -> String {
    let share = thousandths(rotation);
    format!("{}.{} %", share / 10, share % 10)
}

fn rest(rotation: &Rotation) -> String {
    let mut text = format!("{} of {}", human(rotation.done_bytes), human(rotation.total_bytes));
    if is_moving(rotation.state) {
        text.push_str(&format!(", {}/s", human(rotation.rate_bytes)));
        if let Some(seconds) = rotation.eta_seconds {
            text.push_str(&format!(", {} left", duration(seconds)));
        }
    }
    text
}

fn is_moving(state: RotationState) -> bool {
    matches!(state, RotationState::Running | RotationState::Throttled)
}

/// Whose keys: lines that stay the same during a rotation.
pub(crate) fn identity(rotation: &Rotation) -> String {
    let known = |text: &str| if text.is_empty() { "?".to_owned() } else { text.to_owned() };
    let (old, new) = (known(&rotation.old_secret), known(&rotation.new_secret));
    let secret = if old == new { format!("{old}, stays") } else { format!("{old} -> {new}") };
    let mut text = format!(
        "  volume key  {} -> {}\n  secret      {secret}\n",
        known(&rotation.old_volume_key),
        known(&rotation.new_volume_key),
    );
    if let Some(file) = &rotation.header_backup {
        text.push_str(&format!("  backup      {file}\n"));
    }
    text
}

/// Everything, in lines.
pub(crate) fn block(name: &str, rotation: &Rotation) -> String {
    if rotation.state == RotationState::None {
        return format!("{name}: no rotation\n");
    }
    let mut text = format!("{name}: {}\n{}", bar_line(rotation), identity(rotation));
    let mut line = |what: &str, value: String| text.push_str(&format!("  {what:<10}  {value}\n"));
    if let Some(limit) = rotation.limit_bytes {
        line("limit", format!("{}/s", human(limit)));
    }
    if rotation.hotzone_bytes > 0 {
        let protected = match rotation.resilience.as_str() {
            "" => String::new(),
            resilience => format!(", protected by {resilience}"),
        };
        line("range", format!("up to {}{protected}", human(rotation.hotzone_bytes)));
    }
    if let Some(at) = rotation.started_at {
        line("started", sealblk_rotation::utc_time(at));
    }
    if let Some(at) = rotation.ended_at {
        line("ended", sealblk_rotation::utc_time(at));
    }
    if rotation.parked_us_max > 0 {
        let us = rotation.parked_us_max;
        line("parked", format!("{}.{} ms at most", us / 1000, us % 1000 / 100));
    }
    if let Some(trouble) = &rotation.trouble {
        line("trouble", trouble.clone());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rotation() -> Rotation {
        Rotation {
            state: RotationState::Running,
            done_bytes: 3 << 30,
            total_bytes: 8 << 30,
            rate_bytes: 210 << 20,
            limit_bytes: Some(300 << 20),
            eta_seconds: Some(92),
            hotzone_bytes: 8 << 20,
            resilience: "checksum".into(),
            old_volume_key: "0123456789abcdef".into(),
            new_volume_key: "fedcba9876543210".into(),
            old_secret: "file:/old".into(),
            new_secret: "file:/new".into(),
            started_at: Some(1_795_516_200),
            ended_at: None,
            parked_us_max: 3210,
            failures: 0,
            header_backup: Some("/etc/sealblk/u.luks-header".into()),
            trouble: None,
        }
    }

    #[test]
    fn everything_is_shown_in_a_block() {
        let expected = "\
vda: running   [#####---------]  37.5 %  3 GiB of 8 GiB, 210 MiB/s, 1 min 32 s left
  volume key  0123456789abcdef -> fedcba9876543210
  secret      file:/old -> file:/new
  backup      /etc/sealblk/u.luks-header
  limit       300 MiB/s
  range       up to 8 MiB, protected by checksum
  started     2026-11-24 10:30 UTC
  parked      3.2 ms at most
";
        assert_eq!(block("vda", &rotation()), expected);
        assert_eq!(block("vda", &Rotation::default()), "vda: no rotation\n");
    }

    #[test]
    fn a_secret_that_stays_is_named_once() {
        let same = Rotation { new_secret: "file:/old".into(), ..rotation() };
        assert!(identity(&same).contains("secret      file:/old, stays\n"), "{}", identity(&same));
        let unknown = Rotation { old_secret: String::new(), ..rotation() };
        assert!(identity(&unknown).contains("secret      ? -> file:/new\n"));
    }

    #[test]
    fn a_line_with_a_bar_never_wraps() {
        for (done, total) in [(0, 1), (1 << 20, 1 << 30), (u64::MAX - 1, u64::MAX), (0, 0)] {
            for state in [RotationState::Scheduled, RotationState::Throttled] {
                let rotation = Rotation {
                    state,
                    done_bytes: done,
                    total_bytes: total,
                    rate_bytes: 1023 << 30,
                    eta_seconds: Some(u64::MAX),
                    ..rotation()
                };
                let line = bar_line(&rotation);
                assert!(line.chars().count() <= LINE, "{line}");
                assert!(line.contains(" [") && line.contains("] "), "{line}");
            }
        }
    }

    #[test]
    fn nothing_looks_more_done_than_it_is() {
        let almost = Rotation { done_bytes: (8 << 30) - 1, ..rotation() };
        assert!(phrase(&almost).contains(", 99.9 %, 7.99 GiB of 8 GiB,"), "{}", phrase(&almost));
        assert!(bar_line(&almost).contains("#-]"), "{}", bar_line(&almost));
        let all = Rotation { done_bytes: 8 << 30, state: RotationState::Completed, ..rotation() };
        assert_eq!(phrase(&all), "completed, 100.0 %, 8 GiB of 8 GiB");
        assert!(bar_line(&all).contains("#]"));
    }

    #[test]
    fn trouble_stands_beside_the_state() {
        let stuck = Rotation {
            state: RotationState::Stuck,
            trouble: Some("flushing: I/O error".into()),
            ..rotation()
        };
        assert_eq!(phrase(&stuck), "stuck, 37.5 %, 3 GiB of 8 GiB (flushing: I/O error)");
        assert!(block("a", &stuck).ends_with("  trouble     flushing: I/O error\n"));
    }
}
