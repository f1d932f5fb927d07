//! `sealblk inspect`: a header, for a person or as JSON. Needs no key and takes no lock.

use anyhow::Context;
use sealblk_luks::{Header, KeyAge, Policy, ReadAt, Report};
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
    /// Why a daemon would not serve it: the header's refusals, and what is wrong with header and
    /// volume together.
    obstacles: Vec<String>,
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
    text.push_str(&format!("\nsegments\n{}", segments(inspection).render(2)));
    text.push_str(&format!("\nkeyslots\n{}", keyslots(report).render(2)));
    for token in &report.tokens {
        let id = token.key_id.as_ref().map_or_else(String::new, |id| format!(", key {id}"));
        let slots = list(&token.keyslots);
        text.push_str(&format!("token {}: {}, keyslots {slots}{id}\n", token.id, token.kind));
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
