//! The metadata that a header has at each point of a rotation, made from the metadata before.
//!
//! Live segments are cut from the two backup segments, so that fields we don't know survive. The
//! tail stays "dynamic": the volume may grow meanwhile, and no header changes for it.

use serde_json::{Value, json};

use super::super::age;
use super::super::edit::{drop_keyslot, free_slot, free_token, insert, remove, revalidated};
use super::super::format::new_digest;
use super::super::model::{Area, Metadata};
use super::super::rules::REENCRYPT;
use super::binding::{KeyPair, bound_bytes};
use super::stage::areas;
use super::state::{
    DIRECTION, FINAL, IN_WORK, MODE, PREVIOUS, REQUIREMENT, Reencryption, Resilience,
};
use super::token::{RotationNotes, RotationToken, Stage};
use crate::error::LuksError;
use crate::io::Random;

/// Which live segments there are. Lengths in bytes from the start of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// New below, old above.
    Clean { done: u64 },
    /// New below, `len` bytes in work, old above unless they are the last.
    Hot { start: u64, len: u64, last: bool },
}

/// What the area of the reencrypt keyslot says.
fn area_json(area: Area, resilience: Resilience) -> Value {
    let (offset, size) = (area.offset.to_string(), area.size.to_string());
    match resilience {
        Resilience::Checksum { hash, block_bytes } => json!({
            "type": "checksum", "offset": offset, "size": size,
            "hash": hash.name(), "sector_size": block_bytes,
        }),
        Resilience::Journal => json!({"type": "journal", "offset": offset, "size": size}),
    }
}

/// The metadata of step R2: flag, reencrypt keyslot, backup segments and binding digest in one.
pub(super) fn begun(
    staged: &Metadata,
    hdr_size: u64,
    digests: (u32, u32),
    area: Area,
    resilience: Resilience,
    keys: &KeyPair<'_>,
    random: &mut Random<'_>,
) -> Result<Metadata, LuksError> {
    let mut raw = staged.raw.clone();
    let segment = raw.pointer("/segments/0").cloned().unwrap_or(Value::Null);
    let (previous, last) = (flagged(&segment, Some(PREVIOUS)), flagged(&segment, Some(FINAL)));
    let live = vec![(segment, vec![digests.0])];
    put_segments(&mut raw, live, previous, last, digests);
    let slot = free_slot(staged)?;
    insert(
        &mut raw,
        "keyslots",
        slot,
        json!({
            "type": "reencrypt", "key_size": 1, "mode": MODE, "direction": DIRECTION,
            "priority": 0, "area": area_json(area, resilience),
        }),
    )?;
    add_requirement(&mut raw)?;
    if let Some((id, mut token)) = RotationToken::of(staged).map_err(refused)? {
        token.stage = Stage::Running;
        insert(&mut raw, "tokens", id, token.to_json())?;
    }
    bound(raw, hdr_size, slot, keys, random)
}

/// The metadata with another kind of protection of the range in work, of which there is none now.
pub(super) fn protected_by(
    metadata: &Metadata,
    hdr_size: u64,
    found: &Reencryption,
    resilience: Resilience,
    keys: &KeyPair<'_>,
    random: &mut Random<'_>,
) -> Result<Metadata, LuksError> {
    let mut raw = metadata.raw.clone();
    raw["keyslots"][found.slot.to_string()]["area"] = area_json(found.area, resilience);
    if let Some(digest) = metadata.digest_of_keyslot(found.slot) {
        remove(&mut raw, "digests", digest);
    }
    bound(raw, hdr_size, found.slot, keys, random)
}

/// Adds the digest that binds the re-encryption to its keys.
fn bound(
    mut raw: Value,
    hdr_size: u64,
    slot: u32,
    keys: &KeyPair<'_>,
    random: &mut Random<'_>,
) -> Result<Metadata, LuksError> {
    let unbound = revalidated(raw.clone(), hdr_size)?;
    let found = understood(&unbound)?;
    let bytes = bound_bytes(keys, &unbound, &found)?;
    let id = (0..).find(|id| !unbound.digests.contains_key(id)).unwrap_or(u32::MAX);
    insert(&mut raw, "digests", id, new_digest(&bytes, &[slot], &[], random)?)?;
    revalidated(raw, hdr_size)
}

/// The metadata with other live segments.
pub(super) fn moved_on(
    metadata: &Metadata,
    hdr_size: u64,
    found: &Reencryption,
    form: Form,
) -> Result<Metadata, LuksError> {
    let mut raw = metadata.raw.clone();
    let backup = |id: u32| raw.pointer(&format!("/segments/{id}")).cloned().unwrap_or(Value::Null);
    let (previous, last) = (backup(found.old.backup), backup(found.new.backup));
    let (old, new) = found.digests();
    let cut = |from: &Value, iv_tweak: u64, at: u64, len: Option<u64>, flag: Option<&str>| {
        let mut segment = flagged(from, flag);
        segment["offset"] = Value::String((found.data_offset + at).to_string());
        segment["size"] = Value::String(len.map_or("dynamic".into(), |len| len.to_string()));
        segment["iv_tweak"] = Value::String((iv_tweak + at / 512).to_string());
        segment
    };
    let (start, len, has_tail) = match form {
        Form::Clean { done } => (done, 0, true),
        Form::Hot { start, len, last } => (start, len, !last),
    };
    let mut live = Vec::new();
    if start > 0 {
        live.push((cut(&last, found.new.iv_tweak, 0, Some(start), None), vec![new]));
    }
    if len > 0 {
        let hot = cut(&last, found.new.iv_tweak, start, Some(len), Some(IN_WORK));
        live.push((hot, vec![old, new]));
    }
    if has_tail {
        let tail = cut(&previous, found.old.iv_tweak, start + len, None, None);
        live.push((tail, vec![old]));
    }
    put_segments(&mut raw, live, previous, last, (old, new));
    let metadata = revalidated(raw, hdr_size)?;
    // What we write must be what we would go on from.
    understood(&metadata)?;
    Ok(metadata)
}

/// The metadata of the end: one segment with the new key, nothing of the old one, and a token that
/// lists what is to be wiped.
pub(super) fn ended(
    metadata: &Metadata,
    hdr_size: u64,
    found: &Reencryption,
) -> Result<Metadata, LuksError> {
    let (old, new) = found.digests();
    let known = RotationToken::of(metadata).map_err(refused)?;
    let new_secret = known.as_ref().is_some_and(|(_, token)| token.changes_secret());
    let (token_id, notes, mut doomed) = match known {
        Some((id, token)) => (id, token.notes, token.temporary),
        // Begun by cryptsetup.
        None => (free_token(metadata), RotationNotes::default(), Vec::new()),
    };
    doomed.push(found.slot);
    doomed.extend(&metadata.digests[&old].keyslots);
    doomed.sort_unstable();
    doomed.dedup();
    let kept = &metadata.digests[&new].keyslots;
    if kept.iter().all(|slot| doomed.contains(slot)) {
        return Err(LuksError::Rotation("no keyslot would remain".into()));
    }
    let wipe = areas(metadata, &doomed);

    let mut raw = metadata.raw.clone();
    let last = raw.pointer(&format!("/segments/{}", found.new.backup)).cloned();
    raw["segments"] = json!({"0": flagged(&last.unwrap_or(Value::Null), None)});
    doomed.iter().for_each(|slot| drop_keyslot(&mut raw, *slot));
    remove(&mut raw, "digests", old);
    if let Some(digest) = metadata.digest_of_keyslot(found.slot) {
        remove(&mut raw, "digests", digest);
    }
    raw["digests"][new.to_string()]["segments"] = json!(["0"]);
    drop_requirement(&mut raw);
    let started_at = notes.started_at;
    let token =
        RotationToken { stage: Stage::Wiping, digest: new, temporary: Vec::new(), notes, wipe };
    insert(&mut raw, "tokens", token_id, token.to_json())?;
    age::after_rotation(&mut raw, metadata, started_at, new_secret);
    revalidated(raw, hdr_size)
}

/// The re-encryption in metadata that should have one.
pub(super) fn understood(metadata: &Metadata) -> Result<Reencryption, LuksError> {
    Reencryption::of(metadata)
        .map_err(refused)?
        .ok_or_else(|| LuksError::Rotation("none is under way".into()))
}

fn refused(reason: String) -> LuksError {
    LuksError::Refused(vec![reason])
}

/// The segment with this flag and no other.
fn flagged(segment: &Value, flag: Option<&str>) -> Value {
    let mut segment = segment.clone();
    if let Some(fields) = segment.as_object_mut() {
        fields.shift_remove("flags");
        if let Some(flag) = flag {
            fields.insert("flags".into(), json!([flag]));
        }
    }
    segment
}

/// Numbers the segments, live ones first, and tells the digests.
fn put_segments(
    raw: &mut Value,
    mut live: Vec<(Value, Vec<u32>)>,
    previous: Value,
    last: Value,
    (old, new): (u32, u32),
) {
    live.push((previous, vec![old]));
    live.push((last, vec![new]));
    for digest in [old, new] {
        let owned = live.iter().enumerate().filter(|(_, (_, owners))| owners.contains(&digest));
        let ids: Vec<String> = owned.map(|(id, _)| id.to_string()).collect();
        raw["digests"][digest.to_string()]["segments"] = json!(ids);
    }
    let numbered = live.into_iter().enumerate();
    raw["segments"] =
        Value::Object(numbered.map(|(id, (segment, _))| (id.to_string(), segment)).collect());
}

fn add_requirement(raw: &mut Value) -> Result<(), LuksError> {
    let missing = || LuksError::BadParameter("the header has no config".into());
    let config = raw.get_mut("config").and_then(Value::as_object_mut).ok_or_else(missing)?;
    let requirements = config.entry("requirements").or_insert_with(|| json!({}));
    let requirements = requirements.as_object_mut().ok_or_else(missing)?;
    let mandatory = requirements.entry("mandatory").or_insert_with(|| json!([]));
    mandatory.as_array_mut().ok_or_else(missing)?.push(json!(REQUIREMENT));
    Ok(())
}

fn drop_requirement(raw: &mut Value) {
    let Some(config) = raw.get_mut("config").and_then(Value::as_object_mut) else { return };
    let Some(requirements) = config.get_mut("requirements").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(mandatory) = requirements.get_mut("mandatory").and_then(Value::as_array_mut) {
        mandatory.retain(|name| !name.as_str().is_some_and(|name| name.starts_with(REENCRYPT)));
        if mandatory.is_empty() {
            requirements.shift_remove("mandatory");
        }
    }
    if requirements.is_empty() {
        config.shift_remove("requirements");
    }
}
