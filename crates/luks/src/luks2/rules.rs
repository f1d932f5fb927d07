//! Rules between the objects of LUKS2 metadata: sizes, overlaps, references.
//!
//! These decide whether a header is *valid*; breaking one makes the copy count as damaged. They are
//! those of the specification (section 3) and of cryptsetup's own validation, written anew.

use super::model::{Af, DigestKind, KeyslotKind, Luks2Keyslot, Metadata, Segment, SegmentKind};
use crate::af;
use crate::error::Flaw;

/// `LUKS2_KEYSLOTS_MAX`: more would only multiply what a hostile header can cost us.
pub(crate) const MAX_KEYSLOTS: usize = 32;

/// 128 MiB, cryptsetup's ceiling for the keyslots area.
const MAX_KEYSLOTS_SIZE: u64 = 128 << 20;

/// Sector sizes dm-crypt knows.
pub(crate) const SECTOR_SIZES: [u32; 4] = [512, 1024, 2048, 4096];

/// A digest shorter than this (the LUKS1 digest) tells too little about a key; an empty one would
/// accept any.
pub(crate) const MIN_DIGEST_BYTES: usize = 20;

/// The prefix of the requirements of a running re-encryption (`online-reencrypt`, `-v2`, `-v3`).
pub(crate) const REENCRYPT: &str = "online-reencrypt";

pub(super) fn check(metadata: &Metadata, hdr_size: u64) -> Result<(), Flaw> {
    config(metadata, hdr_size)?;
    keyslots(metadata, hdr_size)?;
    segments(metadata, hdr_size)?;
    references(metadata)?;
    reencryption(metadata)
}

fn config(metadata: &Metadata, hdr_size: u64) -> Result<(), Flaw> {
    let json_size = metadata.config.json_size;
    if json_size != hdr_size - super::binary::BINARY_BYTES as u64 {
        return Err(Flaw::new(
            "config.json_size",
            format!("is {json_size}, but the JSON area has {} bytes", hdr_size - 4096),
        ));
    }
    let keyslots_size = metadata.config.keyslots_size;
    if !keyslots_size.is_multiple_of(4096) || keyslots_size > MAX_KEYSLOTS_SIZE {
        return Err(Flaw::new(
            "config.keyslots_size",
            format!("is {keyslots_size}: no multiple of 4096 up to 128 MiB"),
        ));
    }
    Ok(())
}

fn keyslots(metadata: &Metadata, hdr_size: u64) -> Result<(), Flaw> {
    if metadata.keyslots.len() > MAX_KEYSLOTS {
        return Err(Flaw::new("keyslots", format!("has more than {MAX_KEYSLOTS} members")));
    }
    let start = 2 * hdr_size;
    let end = start + metadata.config.keyslots_size;
    let mut areas = Vec::new();
    for (id, keyslot) in &metadata.keyslots {
        let Some(area) = keyslot.area else { continue };
        let flaw = |problem: String| Flaw::new(format!("keyslots.{id}.area"), problem);
        let area_end = area
            .offset
            .checked_add(area.size)
            .ok_or_else(|| flaw("offset and size overflow".into()))?;
        if area.size == 0 {
            return Err(flaw("is empty".into()));
        }
        if !area.offset.is_multiple_of(512) || !area.size.is_multiple_of(512) {
            return Err(flaw("does not consist of whole sectors".into()));
        }
        if area.offset < start || area_end > end {
            return Err(flaw(format!(
                "{}..{area_end} is outside the keyslots area {start}..{end}",
                area.offset
            )));
        }
        for (other, other_start, other_end) in &areas {
            if area.offset < *other_end && *other_start < area_end {
                return Err(flaw(format!("overlaps that of keyslot {other}")));
            }
        }
        areas.push((id, area.offset, area_end));
        if let KeyslotKind::Luks2(Luks2Keyslot { af: Af::Luks1 { .. }, .. }) = keyslot.kind
            && area.size < af::split_bytes(keyslot.key_size)
        {
            return Err(flaw(format!(
                "has {} bytes, too few for a key of {} bytes in {} stripes",
                area.size,
                keyslot.key_size,
                af::STRIPES
            )));
        }
    }
    Ok(())
}

fn segments(metadata: &Metadata, hdr_size: u64) -> Result<(), Flaw> {
    let data_start = 2 * hdr_size + metadata.config.keyslots_size;
    for (id, segment) in &metadata.segments {
        one_segment(*id, segment)?;
        if segment.offset < data_start {
            return Err(Flaw::new(
                format!("segments.{id}.offset"),
                format!(
                    "is {}, inside the header and keyslots area, which end at {data_start}",
                    segment.offset
                ),
            ));
        }
    }
    let live: Vec<_> = metadata.live_segments().collect();
    if live.is_empty() {
        return Err(Flaw::new("segments", "has no member that maps data"));
    }
    for (expected, id) in (0_u32..).zip(metadata.segments.keys()) {
        if expected != *id {
            return Err(Flaw::new("segments", format!("lacks number {expected} in the row")));
        }
    }
    for (position, (id, segment)) in live.iter().enumerate() {
        let flaw = |problem: String| Flaw::new(format!("segments.{id}"), problem);
        if *id as usize != position {
            return Err(flaw("comes after a backup segment".into()));
        }
        if segment.size.is_none() && position + 1 != live.len() {
            return Err(flaw("is dynamic, but not the last".into()));
        }
        // Saturating: whether the end lies on the volume is asked when its size is known.
        let end = |s: &Segment| s.size.map_or(u64::MAX, |size| s.offset.saturating_add(size));
        for (other, before) in &live[..position] {
            if segment.offset < end(before) && before.offset < end(segment) {
                return Err(flaw(format!("overlaps segment {other}")));
            }
        }
    }
    Ok(())
}

fn one_segment(id: u32, segment: &Segment) -> Result<(), Flaw> {
    let flaw = |field: &str, problem: String| Flaw::new(format!("segments.{id}.{field}"), problem);
    if !segment.offset.is_multiple_of(512) {
        return Err(flaw("offset", format!("{} is no multiple of 512", segment.offset)));
    }
    if segment.size == Some(0) {
        return Err(flaw("size", "is 0".into()));
    }
    let unit = match &segment.kind {
        SegmentKind::Crypt { encryption, sector_bytes, .. } => {
            if !SECTOR_SIZES.contains(sector_bytes) {
                return Err(flaw("sector_size", format!("{sector_bytes} is not supported")));
            }
            if encryption.is_empty() {
                return Err(flaw("encryption", "is empty".into()));
            }
            u64::from(*sector_bytes)
        }
        SegmentKind::Linear | SegmentKind::Unknown(_) => 512,
    };
    if let Some(size) = segment.size.filter(|size| size % unit != 0) {
        return Err(flaw("size", format!("{size} is no multiple of {unit}")));
    }
    Ok(())
}

fn references(metadata: &Metadata) -> Result<(), Flaw> {
    let slot_exists = |at: String, slots: &[u32]| match slots
        .iter()
        .find(|slot| !metadata.keyslots.contains_key(slot))
    {
        Some(slot) => Err(Flaw::new(at, format!("names keyslot {slot}, which does not exist"))),
        None => Ok(()),
    };
    for (id, token) in &metadata.tokens {
        slot_exists(format!("tokens.{id}.keyslots"), &token.keyslots)?;
    }
    for (id, digest) in &metadata.digests {
        slot_exists(format!("digests.{id}.keyslots"), &digest.keyslots)?;
        if let Some(segment) = digest.segments.iter().find(|s| !metadata.segments.contains_key(s)) {
            return Err(Flaw::new(
                format!("digests.{id}.segments"),
                format!("names segment {segment}, which does not exist"),
            ));
        }
        if let DigestKind::Pbkdf2 { digest, .. } = &digest.kind
            && !(MIN_DIGEST_BYTES..=64).contains(&digest.len())
        {
            return Err(Flaw::new(
                format!("digests.{id}.digest"),
                format!("has {} bytes, which is no digest", digest.len()),
            ));
        }
    }
    for (id, keyslot) in &metadata.keyslots {
        if matches!(keyslot.kind, KeyslotKind::Luks2(_)) {
            let digests = metadata.digests.values().filter(|d| d.keyslots.contains(id)).count();
            if digests != 1 {
                return Err(Flaw::new(
                    format!("keyslots.{id}"),
                    format!("is in {digests} digests, not in exactly one"),
                ));
            }
        }
    }
    for (id, segment) in &metadata.segments {
        let crypt = matches!(segment.kind, SegmentKind::Crypt { .. });
        if crypt && !metadata.digests.values().any(|digest| digest.segments.contains(id)) {
            return Err(Flaw::new(format!("segments.{id}"), "is encrypted but in no digest"));
        }
    }
    Ok(())
}

/// The flag, the reencrypt keyslot and the backup segments come and go together.
fn reencryption(metadata: &Metadata) -> Result<(), Flaw> {
    let flags = metadata.config.requirements.iter().filter(|r| r.starts_with(REENCRYPT)).count();
    let slots = metadata
        .keyslots
        .values()
        .filter(|slot| matches!(slot.kind, KeyslotKind::Reencrypt { .. }))
        .count();
    if flags > 1 {
        return Err(Flaw::new(
            "config.requirements.mandatory",
            format!("has {flags} {REENCRYPT} flags"),
        ));
    }
    if flags != slots {
        return Err(Flaw::new(
            "config.requirements.mandatory",
            format!("has {flags} {REENCRYPT} flags for {slots} reencrypt keyslots"),
        ));
    }
    if flags == 0 {
        return Ok(());
    }
    let backups: Vec<_> = metadata
        .segments
        .values()
        .filter(|s| s.has_flag("backup-final") || s.has_flag("backup-previous"))
        .collect();
    for (id, segment) in metadata.live_segments() {
        if !backups.iter().any(|backup| same_parameters(backup, segment)) {
            return Err(Flaw::new(
                format!("segments.{id}"),
                "matches neither the backup-final nor the backup-previous segment",
            ));
        }
    }
    Ok(())
}

fn same_parameters(one: &Segment, other: &Segment) -> bool {
    match (&one.kind, &other.kind) {
        (
            SegmentKind::Crypt { encryption, sector_bytes, .. },
            SegmentKind::Crypt { encryption: other_encryption, sector_bytes: other_bytes, .. },
        ) => encryption == other_encryption && sector_bytes == other_bytes,
        (SegmentKind::Linear, SegmentKind::Linear) => true,
        _ => false,
    }
}
