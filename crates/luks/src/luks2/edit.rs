//! Adding and removing keyslots.
//!
//! Order: what a header names must be durable before the header is, and stay until no header names
//! it. So material comes before the commit when adding, and is wiped after it when removing.

use sealblk_secret::SecretBytes;
use serde_json::{Value, json};

use super::model::Area;
use super::node::to_base64;
use super::rules::MAX_KEYSLOTS;
use super::{KMS_TOKEN, KeyAge, Luks2, Metadata, age};
use crate::error::LuksError;
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::{Kdf, KdfLimits, SlotKdf};
use crate::{af, material};

/// A keyslot to be created.
#[derive(Debug, Clone, Default)]
pub struct NewKeyslot {
    /// Its number; `None` takes the lowest free one.
    pub slot: Option<u32>,
    /// How the passphrase is stretched.
    pub kdf: SlotKdf,
    /// A `sealblk-kms` token that names the secret; LUKS2 only.
    pub token: Option<super::KmsToken>,
}

/// Keyslot areas start and end at multiples of this (specification section 2).
pub(super) const AREA_ALIGN: u64 = 4096;

/// Of the keyslots that we make, unless they are to become LUKS1's.
pub(super) const SLOT_HASH: Hash = Hash::Sha256;
pub(super) const SALT_BYTES: usize = 32;

/// Bytes of the area for a key of `key_bytes`.
pub(super) fn area_bytes(key_bytes: u32) -> u64 {
    material::material_bytes(key_bytes).next_multiple_of(AREA_ALIGN)
}

/// The encrypted material of a new keyslot, and its JSON; `hash` is that of splitter and PBKDF2.
pub(super) fn make_keyslot(
    volume_key: &SecretBytes,
    passphrase: &SecretBytes,
    kdf: SlotKdf,
    hash: Hash,
    area: Area,
    random: &mut Random<'_>,
) -> Result<(Vec<u8>, Value), LuksError> {
    kdf.check_minimum()?;
    let mut salt = vec![0; SALT_BYTES];
    random(&mut salt).map_err(LuksError::Random)?;
    let kdf = kdf.with_salt(hash, salt);
    let key_bytes = volume_key.expose().len();
    let slot_key = kdf.derive(passphrase, key_bytes, &KdfLimits::default())?;
    let data = material::seal(volume_key, &slot_key, hash, random)?;
    let kdf_json = match &kdf {
        Kdf::Pbkdf2 { hash, iterations, salt } => json!({
            "type": kdf.name(), "hash": hash, "iterations": iterations, "salt": to_base64(salt),
        }),
        Kdf::Argon2 { passes, memory_kib, lanes, salt, .. } => json!({
            "type": kdf.name(), "time": passes, "memory": memory_kib, "cpus": lanes,
            "salt": to_base64(salt),
        }),
        Kdf::Unknown(name) => return Err(LuksError::Kdf(format!("unknown {name:?}"))),
    };
    let keyslot = json!({
        "type": "luks2",
        "key_size": key_bytes,
        "af": {"type": "luks1", "stripes": af::STRIPES, "hash": hash.name()},
        "area": {
            "type": "raw",
            "offset": area.offset.to_string(),
            "size": area.size.to_string(),
            "encryption": material::ENCRYPTION,
            "key_size": key_bytes,
        },
        "kdf": kdf_json,
    });
    Ok((data, keyslot))
}

impl Luks2 {
    /// Plans a keyslot for the unlocked key; gives its number.
    pub(crate) fn add_keyslot(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        passphrase: &SecretBytes,
        new: &NewKeyslot,
        random: &mut Random<'_>,
    ) -> Result<(u32, Plan), LuksError> {
        self.check_unchanged(io)?;
        if !self.is_key_of(unlocked.digest, &unlocked.key) {
            return Err(LuksError::ForeignKey);
        }
        let slots = &self.metadata.keyslots;
        let slot = match new.slot {
            Some(slot) if slots.contains_key(&slot) => return Err(LuksError::KeyslotInUse(slot)),
            Some(slot) if slot as usize >= MAX_KEYSLOTS => {
                return Err(LuksError::BadParameter(format!(
                    "keyslot numbers go from 0 to {}",
                    MAX_KEYSLOTS - 1
                )));
            }
            Some(slot) => slot,
            None => free_slot(&self.metadata)?,
        };
        let key_bytes = u32::try_from(unlocked.key.expose().len()).unwrap_or(0);
        let area = free_area(&self.metadata, self.binary.hdr_size, area_bytes(key_bytes))?;
        let (data, keyslot) =
            make_keyslot(&unlocked.key, passphrase, new.kdf, SLOT_HASH, area, random)?;

        let mut raw = self.metadata.raw.clone();
        insert(&mut raw, "keyslots", slot, keyslot)?;
        push_id(&mut raw, &format!("/digests/{}/keyslots", unlocked.digest), slot);
        if let Some(token) = &new.token {
            insert(&mut raw, "tokens", free_token(&self.metadata), token.to_json(slot))?;
        }
        let metadata = self.revalidated(raw)?;

        let mut script = self.script(random)?;
        script.write(area.offset, data);
        script.flush();
        script.commit(&metadata)?;
        script.flush();
        Ok((slot, script.finish().0))
    }

    /// Plans the removal of a keyslot; `force` allows to remove the last that opens the volume. The
    /// same header notes `age`, if there is one.
    pub(crate) fn remove_keyslot(
        &self,
        io: &mut dyn ReadAt,
        slot: u32,
        force: bool,
        age: Option<KeyAge>,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        let keyslot = self.metadata.keyslots.get(&slot).ok_or(LuksError::NoSuchKeyslot(slot))?;
        // Slots that unlocking would skip don't count: they might be forged.
        let limits = KdfLimits::default();
        let opens = |id: &u32| self.usable_unnamed(*id, &limits).is_ok();
        let others = self.metadata.keyslots.keys().filter(|id| **id != slot).any(opens);
        if !others && !force {
            return Err(LuksError::LastKeyslot(slot));
        }

        let mut raw = self.metadata.raw.clone();
        drop_keyslot(&mut raw, slot);
        if let Some(age) = age {
            age::put(&mut raw, age)?;
        }
        let metadata = self.revalidated(raw)?;

        let mut script = self.script(random)?;
        script.commit(&metadata)?;
        script.flush();
        if let Some(area) = keyslot.area {
            let mut noise = vec![0; usize::try_from(area.size).unwrap_or(0)];
            random(&mut noise).map_err(LuksError::Random)?;
            script.write(area.offset, noise);
            script.flush();
        }
        Ok(script.finish().0)
    }

    /// A plan made from an outdated header would undo what happened since.
    pub(super) fn check_unchanged(&self, io: &mut dyn ReadAt) -> Result<(), LuksError> {
        if Self::load(io)? == *self { Ok(()) } else { Err(LuksError::Changed) }
    }

    pub(super) fn revalidated(&self, raw: Value) -> Result<Metadata, LuksError> {
        revalidated(raw, self.binary.hdr_size)
    }
}

/// What we write must be what we would read.
pub(super) fn revalidated(raw: Value, hdr_size: u64) -> Result<Metadata, LuksError> {
    Metadata::from_json(raw, hdr_size)
        .map_err(|flaw| LuksError::BadParameter(format!("the header would be invalid: {flaw}")))
}

/// The gaps of the keyslots area, from multiples of 4096 on.
pub(super) fn gaps(metadata: &Metadata, hdr_size: u64) -> Vec<Area> {
    let mut taken: Vec<Area> = metadata.keyslots.values().filter_map(|k| k.area).collect();
    taken.sort_by_key(|area| area.offset);
    let end = 2 * hdr_size + metadata.config.keyslots_size;
    taken.push(Area { offset: end, size: 0 });
    let mut offset = 2 * hdr_size;
    let mut gaps = Vec::new();
    for area in taken {
        if offset < area.offset {
            gaps.push(Area { offset, size: area.offset - offset });
        }
        offset = (area.offset + area.size).next_multiple_of(AREA_ALIGN);
    }
    gaps
}

/// The first gap of the keyslots area that holds `size` bytes.
pub(super) fn free_area(metadata: &Metadata, hdr_size: u64, size: u64) -> Result<Area, LuksError> {
    let gap = gaps(metadata, hdr_size).into_iter().find(|gap| gap.size >= size);
    gap.map(|gap| Area { offset: gap.offset, size }).ok_or_else(|| {
        LuksError::NoRoom(format!(
            "another keyslot: no gap of {size} bytes in the keyslots area {}..{}",
            2 * hdr_size,
            2 * hdr_size + metadata.config.keyslots_size
        ))
    })
}

/// The lowest number that no keyslot has.
pub(super) fn free_slot(metadata: &Metadata) -> Result<u32, LuksError> {
    (0..MAX_KEYSLOTS as u32)
        .find(|slot| !metadata.keyslots.contains_key(slot))
        .ok_or_else(|| LuksError::NoRoom("another keyslot: all 32 are taken".into()))
}

/// The lowest number that no token has.
pub(super) fn free_token(metadata: &Metadata) -> u32 {
    (0..).find(|id| !metadata.tokens.contains_key(id)).unwrap_or(0)
}

/// Takes a keyslot out of the JSON, and out of what refers to it.
pub(super) fn drop_keyslot(raw: &mut Value, slot: u32) {
    if let Some(keyslots) = raw.get_mut("keyslots").and_then(Value::as_object_mut) {
        keyslots.shift_remove(&slot.to_string());
    }
    for referrers in ["digests", "tokens"] {
        forget_slot(raw, referrers, slot);
    }
}

/// Adds `id` to a list of identifiers in the JSON.
pub(super) fn push_id(raw: &mut Value, pointer: &str, id: u32) {
    if let Some(Value::Array(list)) = raw.pointer_mut(pointer) {
        list.push(Value::String(id.to_string()));
    }
}

pub(super) fn insert(
    raw: &mut Value,
    object: &str,
    id: u32,
    value: Value,
) -> Result<(), LuksError> {
    match raw.get_mut(object).and_then(Value::as_object_mut) {
        Some(map) => {
            map.insert(id.to_string(), value);
            Ok(())
        }
        None => Err(LuksError::BadParameter(format!("the header has no {object}"))),
    }
}

/// Takes a member out of one of the JSON's objects.
pub(super) fn remove(raw: &mut Value, object: &str, id: u32) {
    if let Some(map) = raw.get_mut(object).and_then(Value::as_object_mut) {
        map.shift_remove(&id.to_string());
    }
}

/// Drops `slot` from the lists of all digests or tokens. A token of ours without a keyslot names
/// nothing any more and goes too; others' stay, as in cryptsetup.
fn forget_slot(raw: &mut Value, referrers: &str, slot: u32) {
    let name = slot.to_string();
    let Some(map) = raw.get_mut(referrers).and_then(Value::as_object_mut) else { return };
    let mut ours_emptied = Vec::new();
    for (id, referrer) in map.iter_mut() {
        let ours = referrer.get("type").and_then(Value::as_str) == Some(KMS_TOKEN);
        let Some(slots) = referrer.get_mut("keyslots").and_then(Value::as_array_mut) else {
            continue;
        };
        let before = slots.len();
        slots.retain(|own| own.as_str() != Some(&name));
        if ours && slots.is_empty() && before > 0 {
            ours_emptied.push(id.clone());
        }
    }
    for id in ours_emptied {
        map.shift_remove(&id);
    }
}
