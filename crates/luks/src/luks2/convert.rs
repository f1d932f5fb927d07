//! LUKS1 metadata as LUKS2's and back. Which bytes are written in which order is
//! [`crate::luks1`]'s: there the moment lies at which one format becomes the other.
//!
//! Contract: a keyslot is the same in both, material, salt and iterations untouched, so nothing here
//! needs a passphrase. What cannot be said in the other format is refused with the reason.

use serde_json::{Value, json};

use super::binary::{BINARY_BYTES, Binary, Place};
use super::edit::{AREA_ALIGN, area_bytes, revalidated};
use super::format::{HEADER_BYTES, new_digest};
use super::model::{Af, KeyslotKind, Luks2Keyslot, Segment, SegmentKind};
use super::node::to_base64;
use super::origin::{OUR_TOKENS, Origin, mark};
use super::{Luks2, Metadata};
use crate::af;
use crate::error::LuksError;
use crate::hash::Hash;
use crate::header::Unlocked;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::Kdf;
use crate::luks1::{GridSlot, Luks1, Parts};
use crate::material::ENCRYPTION;
use sealblk_secret::SecretBytes;

/// The largest keyslots area that LUKS2 has; nobody's LUKS1 payload begins later.
const MAX_KEYSLOTS_SIZE: u64 = 128 << 20;

/// Bytes of each header copy of a converted volume.
pub(crate) const CONVERTED_HEADER_BYTES: u64 = HEADER_BYTES;

/// Both header copies, primary first, of the volume that `parts` describe. `remember`: with the mark
/// that it is to end as LUKS1.
pub(crate) fn from_luks1(
    parts: &Parts,
    key: &SecretBytes,
    remember: bool,
    random: &mut Random<'_>,
) -> Result<[Vec<u8>; 2], LuksError> {
    let key_bytes = u32::try_from(key.len()).unwrap_or(0);
    let origin = Origin { hash: parts.hash, grid: parts.grid };
    let payload = u64::from(parts.payload_sectors) * 512;
    let keyslots_size = payload.saturating_sub(2 * HEADER_BYTES) / AREA_ALIGN * AREA_ALIGN;
    let numbers: Vec<u32> = parts.slots.iter().map(|slot| slot.number).collect();
    let keyslots = parts.slots.iter().map(|slot| {
        let area = origin.place(slot.number as usize, key_bytes);
        let keyslot = json!({
            "type": "luks2",
            "key_size": key_bytes,
            "af": {"type": "luks1", "stripes": af::STRIPES, "hash": parts.hash.name()},
            "area": {
                "type": "raw",
                "offset": area.offset.to_string(),
                "size": area_bytes(key_bytes).to_string(),
                "encryption": ENCRYPTION,
                "key_size": key_bytes,
            },
            "kdf": {
                "type": "pbkdf2", "hash": parts.hash.name(), "iterations": slot.iterations,
                "salt": to_base64(&slot.salt),
            },
        });
        (slot.number.to_string(), keyslot)
    });
    let mut raw = json!({
        "keyslots": keyslots.collect::<Value>(),
        "tokens": {},
        "segments": {"0": {
            "type": "crypt",
            "offset": payload.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": ENCRYPTION,
            "sector_size": 512,
        }},
        "digests": {"0": new_digest(key, &numbers, &[0], random)?},
        "config": {
            "json_size": (HEADER_BYTES - BINARY_BYTES as u64).to_string(),
            "keyslots_size": keyslots_size.min(MAX_KEYSLOTS_SIZE).to_string(),
        },
    });
    if remember {
        mark(&mut raw, 0, &origin)?;
    }
    let metadata = revalidated(raw, HEADER_BYTES)?;
    if remember {
        // What would stop the rotation is to be known before anything is written.
        origin.free_place(&metadata, HEADER_BYTES, key_bytes)?;
    }
    let json = metadata.to_text();
    if json.len() as u64 >= metadata.config.json_size {
        return Err(LuksError::NoRoom("the JSON of so many keyslots".into()));
    }
    let binary = Binary {
        hdr_size: HEADER_BYTES,
        seqid: 1,
        label: [0; 48],
        uuid: parts.uuid,
        subsystem: [0; 48],
    };
    let mut image = |offset_bytes| {
        let mut salt = [0; 64];
        random(&mut salt).map_err(LuksError::Random)?;
        let image = binary.image(&Place { offset_bytes, salt }, &json);
        // What we write must be what we would read.
        Binary::parse(&image, offset_bytes)
            .map_err(|flaw| LuksError::Refused(vec![format!("as LUKS2 its {flaw}")]))?;
        Ok::<_, LuksError>(image)
    };
    Ok([image(0)?, image(HEADER_BYTES)?])
}

impl Luks2 {
    /// Plans the LUKS1 header of this volume, and the end of the LUKS2 ones.
    pub(crate) fn convert_to_luks1(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        self.check_copies()?;
        self.check_convertible()?;
        let Some(origin) = self.origin()? else {
            return Err(LuksError::Conversion("the volume did not begin as LUKS1".into()));
        };
        let is_of_data = self.metadata.digest_of_segment(0) == Some(unlocked.digest);
        if !is_of_data || !self.is_key_of(unlocked.digest, &unlocked.key) {
            return Err(LuksError::ForeignKey);
        }
        let refused = |reason: String| LuksError::Refused(vec![as_luks1(&reason)]);
        let payload_sectors = payload_sectors(&self.metadata).map_err(refused)?;
        check_rest(&self.metadata).map_err(refused)?;
        let key_bytes = u32::try_from(unlocked.key.len()).unwrap_or(0);
        let slots = self.metadata.keyslots.keys();
        let slots: Result<_, _> =
            slots.map(|id| grid_slot(&self.metadata, *id, &origin, key_bytes)).collect();
        let parts = Parts {
            hash: origin.hash,
            payload_sectors,
            uuid: self.binary.uuid,
            grid: origin.grid,
            slots: slots.map_err(refused)?,
        };
        let header = Luks1::assemble(&parts, &unlocked.key, random)?;
        header.plan_over_luks2(self.binary.hdr_size)
    }
}

fn as_luks1(reason: &str) -> String {
    format!("it cannot be LUKS1 again: {reason}. Mend that, or let it stay LUKS2")
}

/// Where the data begins, if it is as LUKS1 has it.
fn payload_sectors(metadata: &Metadata) -> Result<u32, String> {
    let [segment] = &metadata.segments.values().collect::<Vec<&Segment>>()[..] else {
        return Err("its data is in several segments".into());
    };
    let plain = matches!(
        &segment.kind,
        SegmentKind::Crypt { iv_tweak: 0, encryption, sector_bytes: 512, integrity: false }
            if encryption == ENCRYPTION
    );
    if !plain || segment.size.is_some() || !segment.flags.is_empty() {
        return Err("its segment is none that LUKS1 knows".into());
    }
    u32::try_from(segment.offset / 512).map_err(|_| "its data begins too late".into())
}

/// What would be lost.
fn check_rest(metadata: &Metadata) -> Result<(), String> {
    if metadata.digests.len() != 1 {
        return Err("it has keys besides the volume's".into());
    }
    let foreign = metadata.tokens.iter().find(|(_, token)| !token.kind.starts_with(OUR_TOKENS));
    match foreign {
        Some((id, token)) => {
            Err(format!("token {id} ({:?}) would be lost", crate::text::printable(&token.kind)))
        }
        None => Ok(()),
    }
}

/// A keyslot in LUKS1's terms.
fn grid_slot(
    metadata: &Metadata,
    id: u32,
    origin: &Origin,
    key_bytes: u32,
) -> Result<GridSlot, String> {
    let refuse = |what: &str| Err(format!("keyslot {id} {what}"));
    let keyslot = &metadata.keyslots[&id];
    let KeyslotKind::Luks2(Luks2Keyslot { af, area_type, encryption, area_key_size, kdf }) =
        &keyslot.kind
    else {
        return refuse("is of a type that LUKS1 does not know");
    };
    let same_hash = |name: &str| Hash::from_name(name) == Some(origin.hash);
    let af_fits = matches!(af, Af::Luks1 { stripes: af::STRIPES, hash } if same_hash(hash));
    let sizes_fit = keyslot.key_size == key_bytes && *area_key_size == key_bytes;
    if !af_fits || !sizes_fit || area_type != "raw" || encryption != ENCRYPTION {
        return refuse("is not made as LUKS1 makes them");
    }
    let Kdf::Pbkdf2 { hash, iterations, salt } = kdf else {
        return refuse("has a key derivation that LUKS1 does not know");
    };
    let Ok(salt) = <[u8; 32]>::try_from(salt.as_slice()) else {
        return refuse("has a salt of another length than LUKS1's");
    };
    if !same_hash(hash) {
        return refuse("has another hash than the LUKS1 header had");
    }
    let offset = keyslot.area.map(|area| area.offset);
    let number = (0..8).find(|n| offset == Some(origin.place(*n as usize, key_bytes).offset));
    match number {
        Some(number) => Ok(GridSlot { number, iterations: *iterations, salt }),
        None => refuse("does not lie where LUKS1 has one"),
    }
}
