//! `[rotation]` and `[volume.rotation]`: what an operator says about rotations, field by field.
//!
//! A field of a volume's own section wins over that of the section for all; each field has a word
//! that takes back what the section for all says.

use std::time::Duration;

use sealblk_rotation::{Schedule, UnknownAge, Window, Windows, parse_duration, parse_size};
use serde::{Deserialize, Serialize};

/// Least rate: below it a disk of some TiB takes years.
const RATE_MIN: u64 = 64 << 10;
/// Hot zones: each costs two header changes, and parks the guest's writes to it while it is in work.
const HOTZONES: std::ops::RangeInclusive<u64> = 64 << 10..=256 << 20;
/// A hot zone holds whole encryption sectors, whatever their size.
const HOTZONE_UNIT: u64 = 4096;
/// Latencies below can't be told from noise, those above are no limit.
const LATENCIES: std::ops::RangeInclusive<Duration> =
    Duration::from_micros(100)..=Duration::from_secs(10);
/// Ages above mean `never`.
const AGE_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The section as it is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RotationSection {
    max_key_age: Option<String>,
    window: Option<OneOrMore>,
    rate: Option<Size>,
    hotzone: Option<Size>,
    guest_latency_max: Option<String>,
    unknown_age: Option<Unknown>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a window such as \"Sat..Sun 01:00-05:00\", or a list of them")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a size such as \"200M\", or a number of bytes")]
enum Size {
    Text(String),
    Bytes(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Unknown {
    Due,
    FirstSight,
}

/// How a volume is rotated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RotationPolicy {
    /// When by itself.
    pub(crate) schedule: Schedule,
    /// Most bytes to re-encrypt per second; none: as the guest's load allows.
    pub(crate) rate_bytes: Option<u64>,
    /// Longest range in work at a time; none: the rotation's own choice.
    pub(crate) hotzone_bytes: Option<u64>,
    /// The guest's mean latency above which a rotation holds back; none: the rotation's own choice.
    pub(crate) guest_latency_max: Option<Duration>,
}

impl RotationSection {
    /// These fields, and the others from the section for all volumes.
    pub(super) fn over(self, all: &Self) -> Self {
        let all = all.clone();
        Self {
            max_key_age: self.max_key_age.or(all.max_key_age),
            window: self.window.or(all.window),
            rate: self.rate.or(all.rate),
            hotzone: self.hotzone.or(all.hotzone),
            guest_latency_max: self.guest_latency_max.or(all.guest_latency_max),
            unknown_age: self.unknown_age.or(all.unknown_age),
        }
    }

    /// These fields without those that say when a rotation begins: somebody else sees to that.
    pub(crate) fn without_schedule(&self) -> Self {
        Self { max_key_age: None, window: None, unknown_age: None, ..self.clone() }
    }

    /// Checks the fields.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(crate) fn policy(&self) -> Result<RotationPolicy, String> {
        Ok(RotationPolicy {
            schedule: Schedule {
                max_key_age: field("max_key_age", "never", &self.max_key_age, max_key_age)?,
                windows: windows(self.window.as_ref()).map_err(|e| format!("`window`: {e}"))?,
                unknown_age: match self.unknown_age {
                    None | Some(Unknown::Due) => UnknownAge::Due,
                    Some(Unknown::FirstSight) => UnknownAge::FirstSight,
                },
            },
            rate_bytes: size("rate", self.rate.as_ref(), rate)?,
            hotzone_bytes: size("hotzone", self.hotzone.as_ref(), hotzone)?,
            guest_latency_max: field(
                "guest_latency_max",
                "none",
                &self.guest_latency_max,
                latency,
            )?,
        })
    }
}

/// A field as text, in which `off` is as good as nothing.
fn field<T>(
    name: &str,
    off: &str,
    text: &Option<String>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    match text.as_deref() {
        None => Ok(None),
        Some(text) if text == off => Ok(None),
        Some(text) => {
            read(text).map(Some).map_err(|e| format!("`{name}`: {e}; {off:?} is possible, too"))
        }
    }
}

fn size(
    name: &str,
    size: Option<&Size>,
    check: impl Fn(u64) -> Result<u64, String>,
) -> Result<Option<u64>, String> {
    match size {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => check(*bytes).map(Some).map_err(|e| format!("`{name}`: {e}")),
        Some(Size::Text(text)) => {
            field(name, "none", &Some(text.clone()), |text| check(parse_size(text)?))
        }
    }
}

fn max_key_age(text: &str) -> Result<Duration, String> {
    let age = parse_duration(text)?;
    if age < Duration::from_secs(1) || age > AGE_MAX {
        return Err(format!("{text:?} is out of range; possible are 1s to 36500d"));
    }
    Ok(age)
}

fn latency(text: &str) -> Result<Duration, String> {
    let latency = parse_duration(text)?;
    if !LATENCIES.contains(&latency) {
        return Err(format!("{text:?} is out of range; possible are 100us to 10s"));
    }
    Ok(latency)
}

fn rate(bytes: u64) -> Result<u64, String> {
    if bytes < RATE_MIN {
        return Err(format!("{bytes} bytes per second are too few; at least 64K are possible"));
    }
    Ok(bytes)
}

fn hotzone(bytes: u64) -> Result<u64, String> {
    if !HOTZONES.contains(&bytes) || !bytes.is_multiple_of(HOTZONE_UNIT) {
        return Err(format!("{bytes} bytes; possible are the multiples of 4K from 64K to 256M"));
    }
    Ok(bytes)
}

fn windows(written: Option<&OneOrMore>) -> Result<Windows, String> {
    let texts = match written {
        None => return Ok(Windows::default()),
        Some(OneOrMore::One(text)) if text == "always" => return Ok(Windows::default()),
        Some(OneOrMore::One(text)) => std::slice::from_ref(text),
        // Nobody means that nothing may ever run, nor that everything may.
        Some(OneOrMore::More(texts)) if texts.is_empty() => {
            return Err("the list is empty; \"always\" lets rotations run at any time".into());
        }
        Some(OneOrMore::More(texts)) => texts,
    };
    let each: Result<Vec<Window>, String> = texts.iter().map(|text| text.parse()).collect();
    each.map(Windows::new)
}
