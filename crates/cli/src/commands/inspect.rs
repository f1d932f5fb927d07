//! `sealblk inspect`: a header, for a person or as JSON. Needs no key and takes no lock.

use anyhow::Context;
use sealblk_block::in_one_line;
use sealblk_luks::{Header, KeyAge, Policy, ReadAt, Report, RotationStatus};
use serde::Serialize;

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::size::human;
use crate::table::{Align, Table};
use crate::target::Glance;
use crate::time::{ago, now};

/// The JSON: the header's report, and where it lies.
#[derive(Serialize)]
struct Inspection<'a> {
    volume: &'a str,
    size_bytes: u64,
    #[serde(flatten)]
    header: &'a Report,
    /// How old the header says that its keys are; none: it says nothing.
    key_age: Option<KeyAge>,
    /// Why what it says can't be understood.
    key_age_trouble: Option<String>,
    /// Where its rotation is; none if there is none.
    rotation: Option<RotationView>,
    /// Why a daemon would not serve it: the header's refusals, and what is wrong with header and
    /// volume together.
    obstacles: Vec<String>,
}

/// A rotation as the header has it.
#[derive(Debug, Serialize)]
struct RotationView {
    /// `staged`, `clean`, `crash`, `finished`, `wipe-pending`, `convert-back`, or why it can't be told.
    status: String,
    /// Bytes of data that have the new key; of one that was interrupted in a range: those before it.
    done_bytes: u64,
    /// Bytes of data.
    total_bytes: u64,
    /// The range in which it was interrupted.
    interrupted_bytes: Option<u64>,
    old_volume_key: Option<String>,
    new_volume_key: Option<String>,
    old_secret: Option<String>,
    new_secret: Option<String>,
    /// Seconds since 1970, UTC.
    started_at: Option<u64>,
}

impl RotationView {
    fn of(header: &Header, volume_bytes: u64) -> Option<Self> {
        let report = header.report();
        let start = report.segments.iter().map(|segment| segment.offset_bytes).min().unwrap_or(0);
        let total_bytes = volume_bytes.saturating_sub(start);
        let (status, done_bytes, interrupted_bytes) = match header.rotation_status() {
            Ok(RotationStatus::None) => return None,
            Ok(RotationStatus::ConvertBack) => ("convert-back".to_owned(), total_bytes, None),
            Ok(RotationStatus::Staged) => ("staged".to_owned(), 0, None),
            Ok(RotationStatus::Clean { done_bytes }) => ("clean".to_owned(), done_bytes, None),
            Ok(RotationStatus::Crash { start_bytes, len_bytes }) => {
                ("crash".to_owned(), start_bytes, Some(len_bytes))
            }
            Ok(RotationStatus::Finished) => ("finished".to_owned(), total_bytes, None),
            Ok(RotationStatus::WipePending) => ("wipe-pending".to_owned(), total_bytes, None),
            Err(error) => (in_one_line(&error), 0, None),
        };
        let notes = header.rotation_notes().ok().flatten();
        let (old_volume_key, new_volume_key) = fingerprints(&report);
        Some(Self {
            status,
            done_bytes,
            total_bytes,
            interrupted_bytes,
            old_volume_key,
            new_volume_key,
            old_secret: notes.as_ref().and_then(|notes| notes.old_key_id.clone()),
            new_secret: notes.as_ref().and_then(|notes| notes.new_key_id.clone()),
            started_at: notes.map(|notes| notes.started_at).filter(|&at| at > 0),
        })
    }

    fn render(&self) -> String {
        let share = |done: u64| {
            let tenths = u128::from(done) * 1000 / u128::from(self.total_bytes.max(1));
            format!(
                "re-encrypted up to {} of {} ({}.{} %)",
                human(done),
                human(self.total_bytes),
                tenths / 10,
                tenths % 10,
            )
        };
        let state = match (self.status.as_str(), self.interrupted_bytes) {
            ("staged", _) => "staged: a new volume key is there, no data has it".to_owned(),
            ("convert-back", _) => {
                "none; LUKS2 only for one, it becomes LUKS1 again when it is served".to_owned()
            }
            ("clean", _) => format!("{}, CLEAN", share(self.done_bytes)),
            ("crash", len) => {
                let len = human(len.unwrap_or(0));
                format!("{}, interrupted in a range of {len}", share(self.done_bytes))
            }
            ("finished", _) => "all data re-encrypted, the header not ended".to_owned(),
            ("wipe-pending", _) => {
                "all data re-encrypted, what is left of the old key is still to be wiped".to_owned()
            }
            (other, _) => other.to_owned(),
        };
        let mut text = format!("rotation  {state}\n");
        if let (Some(old), Some(new)) = (&self.old_volume_key, &self.new_volume_key) {
            text.push_str(&format!("          volume key {old} -> {new}\n"));
        }
        let known = |secret: &Option<String>| secret.clone().unwrap_or_else(|| "?".to_owned());
        if self.old_secret.is_some() || self.new_secret.is_some() {
            let (old, new) = (known(&self.old_secret), known(&self.new_secret));
            let secret =
                if old == new { format!("{old}, stays") } else { format!("{old} -> {new}") };
            text.push_str(&format!("          secret {secret}\n"));
        }
        if let Some(at) = self.started_at {
            text.push_str(&format!("          started {}\n", sealblk_rotation::utc_time(at)));
        }
        text
    }
}

/// Of the old and the new volume key of a rotation: they own the segments that keep the parameters of
/// before and after.
pub(super) fn fingerprints(report: &Report) -> (Option<String>, Option<String>) {
    let owner = |flag: &str| {
        let backup =
            report.segments.iter().find(|segment| segment.flags.iter().any(|f| f == flag))?;
        let digest = report.digests.iter().find(|digest| digest.segments.contains(&backup.id))?;
        Some(digest.fingerprint.clone())
    };
    (owner("backup-previous"), owner("backup-final"))
}

pub(crate) fn run(args: &args::Inspect, console: &mut Console<'_>) -> Result<(), Failure> {
    let mut volume = Glance::open(&args.volume)?;
    let header =
        Header::load(&mut volume, &Policy::default()).with_context(|| args.volume.clone())?;
    let key_age = header.key_age();
    let inspection = Inspection {
        key_age: key_age.clone().unwrap_or_default(),
        key_age_trouble: key_age.err(),
        volume: &args.volume,
        size_bytes: volume.size_bytes(),
        header: &header.report(),
        rotation: RotationView::of(&header, volume.size_bytes()),
        obstacles: header.obstacles(volume.size_bytes()),
    };
    if args.json {
        let json = serde_json::to_string_pretty(&inspection)?;
        writeln!(console.out, "{json}")?;
    } else {
        console.out.write_all(render(&inspection, now()).as_bytes())?;
    }
    Ok(())
}

fn render(inspection: &Inspection<'_>, now: u64) -> String {
    let report = inspection.header;
    let mut text = format!(
        "volume    {}, {}\nformat    LUKS{}, UUID {}\n",
        inspection.volume,
        human(inspection.size_bytes),
        report.version,
        report.uuid,
    );
    for (name, value) in [("label", &report.label), ("subsystem", &report.subsystem)] {
        if !value.is_empty() {
            text.push_str(&format!("{name:<8}  {value}\n"));
        }
    }
    for copy in &report.copies {
        let state = match &copy.damage {
            None => "good".to_owned(),
            Some(damage) => format!("DAMAGED: {damage} (`sealblk repair` mends it)"),
        };
        text.push_str(&format!("header    at offset {}: {state}\n", copy.offset_bytes));
    }
    for (name, values) in [("flags", &report.flags), ("requires", &report.requirements)] {
        if !values.is_empty() {
            text.push_str(&format!("{name:<8}  {}\n", values.join(", ")));
        }
    }
    if let Some(age) = key_age(inspection, now) {
        text.push_str(&format!("age       {age}\n"));
    }
    if let Some(rotation) = &inspection.rotation {
        text.push_str(&rotation.render());
    }
    text.push_str(&format!("\nsegments\n{}", segments(inspection).render(2)));
    text.push_str(&format!("\nkeyslots\n{}", keyslots(report).render(2)));
    for token in &report.tokens {
        let id = token.key_id.as_ref().map_or_else(String::new, |id| format!(", key {id}"));
        let slots = match token.keyslots.as_slice() {
            [] => String::new(),
            slots => format!(", keyslots {}", list(slots)),
        };
        text.push_str(&format!("token {}: {}{slots}{id}\n", token.id, token.kind));
    }
    if inspection.obstacles.is_empty() {
        text.push_str("\nsealblkd serves this volume\n");
    } else {
        text.push_str("\nsealblkd REFUSES this volume:\n");
        for obstacle in &inspection.obstacles {
            text.push_str(&format!("  {obstacle}\n"));
        }
    }
    text
}

/// What is known of the keys' age; LUKS1 never says anything.
fn key_age(inspection: &Inspection<'_>, now: u64) -> Option<String> {
    if let Some(trouble) = &inspection.key_age_trouble {
        return Some(format!("unknown: {trouble}"));
    }
    let age = inspection.key_age.as_ref()?;
    let since = |since: Option<u64>| {
        since.map_or_else(|| "unknown".to_owned(), |at| format!("since {}", ago(at, now)))
    };
    let count = match age.rotations {
        0 => String::new(),
        1 => ", rotated once".to_owned(),
        times => format!(", rotated {times} times"),
    };
    let (key, secret) = (since(age.volume_key_since), since(age.secret_since));
    Some(format!("volume key {key}, secret {secret}{count}"))
}

fn segments(inspection: &Inspection<'_>) -> Table {
    let mut table = Table::new(&[
        ("#", Align::Right),
        ("TYPE", Align::Left),
        ("OFFSET", Align::Right),
        ("SIZE", Align::Right),
        ("CIPHER", Align::Left),
        ("KEY", Align::Right),
        ("SECTOR", Align::Right),
        ("FLAGS", Align::Left),
    ]);
    for segment in &inspection.header.segments {
        // Without a size of its own it goes to the volume's end.
        let size = segment
            .size_bytes
            .unwrap_or_else(|| inspection.size_bytes.saturating_sub(segment.offset_bytes));
        table.row(vec![
            segment.id.to_string(),
            segment.kind.clone(),
            human(segment.offset_bytes),
            human(size),
            or_dash(segment.encryption.clone()),
            or_dash(segment.key_bytes.map(|bytes| format!("{} bits", u64::from(bytes) * 8))),
            or_dash(segment.sector_bytes.map(|bytes| format!("{bytes} B"))),
            segment.flags.join(","),
        ]);
    }
    table
}

fn keyslots(report: &Report) -> Table {
    let mut table = Table::new(&[
        ("#", Align::Right),
        ("TYPE", Align::Left),
        ("KEY", Align::Right),
        ("DERIVATION", Align::Left),
        ("AREA", Align::Right),
        ("STATE", Align::Left),
    ]);
    for slot in &report.keyslots {
        let state = match (&slot.unusable, slot.priority) {
            (Some(why), _) => format!("unusable: {why}"),
            (None, Some(0)) => "usable when named".to_owned(),
            (None, Some(2)) => "usable, tried first".to_owned(),
            (None, _) => "usable".to_owned(),
        };
        table.row(vec![
            slot.id.to_string(),
            slot.kind.clone(),
            format!("{} bits", u64::from(slot.key_bytes) * 8),
            or_dash(slot.kdf.clone()),
            or_dash(slot.offset_bytes.map(human)),
            state,
        ]);
    }
    table
}

fn or_dash(cell: Option<String>) -> String {
    cell.unwrap_or_else(|| "-".to_owned())
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(status: &str, done_bytes: u64, interrupted_bytes: Option<u64>) -> RotationView {
        RotationView {
            status: status.into(),
            done_bytes,
            total_bytes: 8 << 30,
            interrupted_bytes,
            old_volume_key: Some("aa".into()),
            new_volume_key: Some("bb".into()),
            old_secret: Some("file:/a".into()),
            new_secret: Some("file:/b".into()),
            started_at: Some(1_795_516_200),
        }
    }

    #[test]
    fn a_rotation_is_told_with_its_place_and_its_notes() {
        let expected = "\
rotation  re-encrypted up to 3 GiB of 8 GiB (37.5 %), CLEAN
          volume key aa -> bb
          secret file:/a -> file:/b
          started 2026-11-24 10:30 UTC
";
        assert_eq!(view("clean", 3 << 30, None).render(), expected);
        for (view, line) in [
            (view("crash", 4 << 30, Some(4 << 20)), "(50.0 %), interrupted in a range of 4 MiB\n"),
            (view("staged", 0, None), "rotation  staged: a new volume key is there"),
            (view("wipe-pending", 8 << 30, None), "still to be wiped\n"),
            (view("it is mangled", 0, None), "rotation  it is mangled\n"),
        ] {
            assert!(view.render().contains(line), "{}", view.render());
        }
    }
}
