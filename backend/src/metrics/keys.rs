//! How old the keys are, and where their rotations are.
//!
//! Contract: what nobody knows has no sample: an age that is unknown is not 0. Volumes without keys
//! have none at all.

use sealblk_api::{KeyAge, Rotation, RotationState, VolumeStatus};

use super::page::{Kind, Page};

const MICROSECONDS: f64 = 1e6;

/// `now` is in seconds since 1970, UTC.
pub(super) fn write(page: &mut Page, volumes: &[VolumeStatus], now: u64) {
    page.family(
        "sealblk_key_age_seconds",
        Kind::Gauge,
        "How long the volume key (volume) and the secret that opens it (secret) have been in use.",
    );
    for (name, age) in ages(volumes) {
        for (word, since) in [("volume", age.volume_key_since), ("secret", age.secret_since)] {
            if let Some(since) = since {
                page.sample(&[("volume", name), ("key", word)], now.saturating_sub(since));
            }
        }
    }
    let mut age = |name, help, value: fn(&KeyAge) -> Option<u64>| {
        page.family(name, Kind::Gauge, help);
        for (volume, age) in ages(volumes) {
            if let Some(value) = value(age) {
                page.sample(&[("volume", volume)], value);
            }
        }
    };
    age(
        "sealblk_key_due_timestamp_seconds",
        "When the volume key is due to be rotated, if its age has a limit.",
        |age| age.due_at,
    );
    age(
        "sealblk_rotation_last_timestamp_seconds",
        "When the volume key was last rotated, by whichever daemon.",
        |age| age.last_rotation_at,
    );
    age(
        "sealblk_rotation_next_timestamp_seconds",
        "When the schedule lets the next rotation begin or go on.",
        |age| age.next_run_at,
    );
    page.family(
        "sealblk_rotation_state",
        Kind::Gauge,
        "1 for the state that the volume's rotation is in, 0 for the others.",
    );
    for (name, rotation) in rotations(volumes) {
        for state in RotationState::ALL {
            let is = u64::from(rotation.state == state);
            page.sample(&[("volume", name), ("state", state.as_str())], is);
        }
    }
    let mut family = |name, kind, help, value: fn(&Rotation) -> u64| {
        page.family(name, kind, help);
        for (volume, rotation) in rotations(volumes) {
            page.sample(&[("volume", volume)], value(rotation));
        }
    };
    family(
        "sealblk_rotation_done_bytes",
        Kind::Gauge,
        "Bytes that have the new key.",
        |rotation| rotation.done_bytes,
    );
    family(
        "sealblk_rotation_size_bytes",
        Kind::Gauge,
        "Bytes that the rotation has to re-encrypt altogether.",
        |rotation| rotation.total_bytes,
    );
    family(
        "sealblk_rotation_rate_bytes_per_second",
        Kind::Gauge,
        "How fast the rotation has been lately.",
        |rotation| rotation.rate_bytes,
    );
    family(
        "sealblk_rotation_failures_total",
        Kind::Counter,
        "Rotations that failed or could not begin.",
        |rotation| rotation.failures,
    );
    page.family(
        "sealblk_rotation_parked_seconds_max",
        Kind::Gauge,
        "Longest time that the present or last rotation held writes to a range.",
    );
    for (name, rotation) in rotations(volumes) {
        page.sample(&[("volume", name)], rotation.parked_us_max as f64 / MICROSECONDS);
    }
    let mut known = |name, help, value: fn(&Rotation) -> Option<u64>| {
        page.family(name, Kind::Gauge, help);
        for (volume, rotation) in rotations(volumes) {
            if let Some(value) = value(rotation) {
                page.sample(&[("volume", volume)], value);
            }
        }
    };
    known(
        "sealblk_rotation_limit_bytes_per_second",
        "The operator's limit on the rotation's speed; absent without one.",
        |rotation| rotation.limit_bytes,
    );
    known(
        "sealblk_rotation_start_timestamp_seconds",
        "When the present or last rotation of this daemon's life began.",
        |rotation| rotation.started_at,
    );
    known(
        "sealblk_rotation_end_timestamp_seconds",
        "When the last rotation of this daemon's life ended, well or badly.",
        |rotation| rotation.ended_at,
    );
}

fn ages(volumes: &[VolumeStatus]) -> impl Iterator<Item = (&str, &KeyAge)> {
    volumes.iter().filter_map(|one| Some((one.name.as_str(), one.key_age.as_ref()?)))
}

fn rotations(volumes: &[VolumeStatus]) -> impl Iterator<Item = (&str, &Rotation)> {
    volumes.iter().filter_map(|one| Some((one.name.as_str(), one.rotation.as_ref()?)))
}
