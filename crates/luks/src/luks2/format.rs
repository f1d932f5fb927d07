//! Making a new LUKS2 volume.
//!
//! Order: old headers go first (with their keyslots still whole: until that is durable the old
//! volume opens), then everything up to the data is zeroed, so that no old secondary header
//! survives at any of the nine offsets; then the keyslot's material, the secondary, the primary,
//! each durable before the next. Invariant: a crash leaves the old volume, nothing valid, or the
//! complete new volume. Data is not touched: what was there before reads as noise.

use sealblk_cipher::Algorithm;
use sealblk_secret::SecretBytes;
use serde_json::{Value, json};

use super::binary::{BINARY_BYTES, HEADER_SIZES};
use super::edit::{SALT_BYTES, SLOT_HASH, area_bytes, make_keyslot};
use super::model::Area;
use super::node::to_base64;
use super::rules::SECTOR_SIZES;
use super::{Binary, KMS_TOKEN, KeyAge, Metadata, Place, age};
use crate::error::LuksError;
use crate::hash::Hash;
use crate::io::{Plan, Random};
use crate::kdf::{SlotKdf, key_digest};
use crate::material::ENCRYPTION;
use crate::text::field;

/// Size of each header copy, the smallest and cryptsetup's default.
pub(super) const HEADER_BYTES: u64 = 16 << 10;

/// Where data begins, cryptsetup's default: leaves room for keyslots and a re-encryption's needs.
const DATA_OFFSET_BYTES: u64 = 16 << 20;

/// Zeroes are written in pieces of this size.
const WIPE_BYTES: u64 = 1 << 20;

/// The volume key has its own entropy: cryptsetup's minimum is enough.
pub(crate) const DIGEST_ITERATIONS: u32 = 1000;

/// What a new volume should be like.
#[derive(Debug, Clone)]
pub struct FormatParams {
    /// Size of the volume in bytes, header included.
    pub volume_bytes: u64,
    /// The cipher; decides the key's length.
    pub algorithm: Algorithm,
    /// Encryption sector in bytes: 512, 1024, 2048 or 4096.
    pub sector_bytes: u32,
    /// How the first keyslot stretches its passphrase.
    pub kdf: SlotKdf,
    /// Up to 47 bytes, may be empty.
    pub label: String,
    /// Up to 47 bytes, may be empty.
    pub subsystem: String,
    /// Names the key manager's secret.
    pub token: Option<KmsToken>,
    /// The time, in seconds since 1970, UTC: since when the keys are in use. `None`: the header says
    /// nothing about it.
    pub created_at: Option<u64>,
}

/// The `sealblk-kms` token: which secret of a key manager opens a keyslot. Public.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsToken {
    /// The key manager's name for the secret.
    pub key_id: String,
}

impl KmsToken {
    pub(super) fn to_json(&self, slot: u32) -> Value {
        json!({"type": KMS_TOKEN, "keyslots": [slot.to_string()], "kid": self.key_id})
    }
}

/// Plans a new LUKS2 volume with a fresh random volume key and one keyslot, number 0. Whatever the
/// volume held is lost: ask [`crate::probe()`] first. The plan empties everything before the data;
/// the last [`crate::PROBED_TAIL_BYTES`] of the volume, where others keep signatures, are the
/// caller's to zero.
///
/// # Errors
/// [`LuksError::BadParameter`]; failures of the random generator and of key memory.
pub fn format(
    params: &FormatParams,
    passphrase: &SecretBytes,
    random: &mut Random<'_>,
) -> Result<Plan, LuksError> {
    let bad = |reason: String| Err(LuksError::BadParameter(reason));
    if !SECTOR_SIZES.contains(&params.sector_bytes) {
        return bad(format!(
            "an encryption sector of {} bytes: not 512 to 4096",
            params.sector_bytes
        ));
    }
    if params.volume_bytes < DATA_OFFSET_BYTES + u64::from(params.sector_bytes) {
        return bad(format!(
            "a volume of {} bytes is too small: the header takes {DATA_OFFSET_BYTES}",
            params.volume_bytes
        ));
    }
    let (Some(label), Some(subsystem)) = (field(&params.label), field(&params.subsystem)) else {
        return bad("label and subsystem hold up to 47 bytes, without NUL".into());
    };

    let key_bytes = params.algorithm.key_bytes();
    let volume_key = new_volume_key(key_bytes, random)?;
    let area = Area { offset: 2 * HEADER_BYTES, size: area_bytes(key_bytes as u32) };
    let (material, keyslot) =
        make_keyslot(&volume_key, passphrase, params.kdf, SLOT_HASH, area, random)?;
    let digest = new_digest(&volume_key, &[0], &[0], random)?;
    let tokens = match &params.token {
        Some(token) => json!({"0": token.to_json(0)}),
        None => json!({}),
    };
    let mut raw = json!({
        "keyslots": {"0": keyslot},
        "tokens": tokens,
        "segments": {"0": {
            "type": "crypt",
            "offset": DATA_OFFSET_BYTES.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": ENCRYPTION,
            "sector_size": params.sector_bytes,
        }},
        "digests": {"0": digest},
        "config": {
            "json_size": (HEADER_BYTES - BINARY_BYTES as u64).to_string(),
            "keyslots_size": (DATA_OFFSET_BYTES - 2 * HEADER_BYTES).to_string(),
        },
    });
    if let Some(now) = params.created_at {
        age::put(&mut raw, KeyAge::new_at(now))?;
    }
    let metadata = Metadata::from_json(raw, HEADER_BYTES)
        .map_err(|flaw| LuksError::BadParameter(format!("the header would be invalid: {flaw}")))?;
    let json = metadata.to_text();
    if json.len() as u64 >= metadata.config.json_size {
        return bad("the token is too long for the header".into());
    }
    let mut uuid = [0; 16];
    random(&mut uuid).map_err(LuksError::Random)?;
    let uuid = uuid::Builder::from_random_bytes(uuid).into_uuid().to_string();
    let binary = Binary {
        hdr_size: HEADER_BYTES,
        seqid: 1,
        label,
        uuid: field(&uuid).unwrap_or([0; 40]),
        subsystem,
    };

    let mut plan = Plan::default();
    wipe(&mut plan);
    plan.write(area.offset, material);
    plan.flush();
    for offset_bytes in [HEADER_BYTES, 0] {
        let mut salt = [0; 64];
        random(&mut salt).map_err(LuksError::Random)?;
        plan.write(offset_bytes, binary.image(&Place { offset_bytes, salt }, &json));
        plan.flush();
    }
    Ok(plan)
}

/// A fresh volume key.
pub(super) fn new_volume_key(
    key_bytes: usize,
    random: &mut Random<'_>,
) -> Result<SecretBytes, LuksError> {
    let mut key = SecretBytes::zeroed(key_bytes)?;
    random(key.expose_mut()).map_err(LuksError::Random)?;
    if key.expose().chunks_exact(key_bytes / 2).all(|half| key.expose().starts_with(half)) {
        return Err(LuksError::BadParameter(
            "the random generator repeats itself: both halves of the key are equal".into(),
        ));
    }
    Ok(key)
}

/// The digest by which `key` is told, for these keyslots and segments.
pub(super) fn new_digest(
    key: &SecretBytes,
    keyslots: &[u32],
    segments: &[u32],
    random: &mut Random<'_>,
) -> Result<Value, LuksError> {
    let mut salt = [0; SALT_BYTES];
    random(&mut salt).map_err(LuksError::Random)?;
    let hash = Hash::Sha256;
    let digest = key_digest(hash, key, &salt, DIGEST_ITERATIONS, hash.bytes());
    let ids = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>();
    Ok(json!({
        "type": "pbkdf2",
        "keyslots": ids(keyslots),
        "segments": ids(segments),
        "hash": hash.name(),
        "iterations": DIGEST_ITERATIONS,
        "salt": to_base64(&salt),
        "digest": to_base64(&digest),
    }))
}

fn wipe(plan: &mut Plan) {
    // Upwards, one at a time: with headers of size H keyslots begin at 2H, so that an old volume's
    // headers at 0 and H are gone before the first byte of its key material is.
    for offset in [0].into_iter().chain(HEADER_SIZES) {
        plan.write(offset, vec![0; BINARY_BYTES]);
        plan.flush();
    }
    for offset in (0..DATA_OFFSET_BYTES).step_by(WIPE_BYTES as usize) {
        plan.write(offset, vec![0; WIPE_BYTES as usize]);
    }
    plan.flush();
}
