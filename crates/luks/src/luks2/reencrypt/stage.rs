//! Before a rotation: a new volume key gets its keyslots. And the way back, as long as no data has
//! the new key.
//!
//! Invariant R2: from the first commit to the last, each passphrase that opens the volume opens both
//! keys. When the secret stays, the new key gets a keyslot under it. When it changes, three keyslots
//! are made: the new key under the new secret, which stays, and two for the time of the rotation,
//! the new key under the old secret and the old key under the new one. cryptsetup resumes with one
//! passphrase only; so does a daemon that knows but one of the two.
//!
//! R12: of a volume that began as LUKS1 the keyslot that stays is made so that it can be LUKS1's.

use sealblk_secret::SecretBytes;
use serde_json::Value;

use super::super::edit::{
    SLOT_HASH, area_bytes, drop_keyslot, free_area, free_slot, free_token, gaps, insert,
    make_keyslot, push_id, remove, revalidated,
};
use super::super::format::{KmsToken, new_digest, new_volume_key};
use super::super::model::Area;
use super::super::{KMS_TOKEN, Luks2, Metadata};
use super::token::{RotationNotes, RotationToken, Stage};
use super::wipe::put_noise;
use crate::error::LuksError;
use crate::header::Unlocked;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::SlotKdf;

/// What a re-encryption notes has at least this much room, or it is not begun: with less it would
/// crawl, range by tiny range.
const LEAST_AREA_BYTES: u64 = 64 << 10;

/// What a rotation starts with.
#[derive(Debug)]
pub struct StageParams<'a> {
    /// Opens the volume now; the caller has just unlocked it with this.
    pub passphrase: &'a SecretBytes,
    /// Opens it afterwards; `None`: the secret stays, and only the volume key is replaced.
    pub new_passphrase: Option<&'a SecretBytes>,
    /// How the new keyslots stretch their passphrases.
    pub kdf: SlotKdf,
    /// For the token.
    pub notes: RotationNotes,
}

/// A keyslot to be made.
struct Wanted<'a> {
    key: &'a SecretBytes,
    digest: u32,
    passphrase: &'a SecretBytes,
    /// Under the new secret.
    is_new: bool,
    temporary: bool,
}

impl Luks2 {
    /// Plans the new volume key with its keyslots and its digest.
    pub(crate) fn stage_rotation(
        &self,
        io: &mut dyn ReadAt,
        unlocked: &Unlocked,
        params: &StageParams<'_>,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        self.check_copies()?;
        if !self.is_key_of(unlocked.digest, &unlocked.key) {
            return Err(LuksError::ForeignKey);
        }
        let [segment] = &self.metadata.segments.values().collect::<Vec<_>>()[..] else {
            return Err(LuksError::Rotation("the data is in several segments".into()));
        };
        if segment.size.is_some() {
            return Err(LuksError::Rotation("the segment of the data has a fixed size".into()));
        }
        let hdr_size = self.binary.hdr_size;
        let old_digest = unlocked.digest;
        let new_digest_id =
            (0..).find(|id| !self.metadata.digests.contains_key(id)).unwrap_or(u32::MAX);
        let key = new_volume_key(unlocked.key.len(), random)?;
        let slot = |key, digest, passphrase, is_new, temporary| Wanted {
            key,
            digest,
            passphrase,
            is_new,
            temporary,
        };
        let wanted = match params.new_passphrase {
            None => vec![slot(&key, new_digest_id, params.passphrase, false, false)],
            Some(new) => vec![
                slot(&key, new_digest_id, new, true, false),
                slot(&key, new_digest_id, params.passphrase, false, true),
                slot(&unlocked.key, old_digest, new, true, true),
            ],
        };

        let mut raw = self.metadata.raw.clone();
        insert(&mut raw, "digests", new_digest_id, new_digest(&key, &[], &[], random)?)?;
        let mut metadata = self.metadata.clone();
        let (mut temporary, mut of_new_secret) = (Vec::new(), Vec::new());
        let mut script = self.script(random)?;
        let origin = self.origin()?;
        let hash = origin.as_ref().map_or(SLOT_HASH, |origin| origin.hash);
        if origin.is_some() && !matches!(params.kdf, SlotKdf::Pbkdf2Sha256 { .. }) {
            return Err(LuksError::BadParameter(
                "the volume is to end as LUKS1, which knows no Argon2: use pbkdf2".into(),
            ));
        }
        for wanted in &wanted {
            let key_bytes = u32::try_from(wanted.key.len()).unwrap_or(0);
            let slot = free_slot(&metadata)?;
            let area = match &origin {
                Some(origin) if !wanted.temporary => {
                    origin.free_place(&metadata, hdr_size, key_bytes)?
                }
                _ => free_area(&metadata, hdr_size, area_bytes(key_bytes))?,
            };
            let (material, keyslot) =
                make_keyslot(wanted.key, wanted.passphrase, params.kdf, hash, area, random)?;
            script.write(area.offset, material);
            insert(&mut raw, "keyslots", slot, keyslot)?;
            push_id(&mut raw, &format!("/digests/{}/keyslots", wanted.digest), slot);
            if wanted.is_new {
                of_new_secret.push(slot);
            } else {
                self.share_kms_token(&mut raw, unlocked.slot, slot);
            }
            if wanted.temporary {
                temporary.push(slot);
            }
            metadata = revalidated(raw.clone(), hdr_size)?;
        }
        if let (Some(key_id), [first, rest @ ..]) = (&params.notes.new_key_id, &of_new_secret[..]) {
            let id = free_token(&metadata);
            insert(&mut raw, "tokens", id, KmsToken { key_id: key_id.clone() }.to_json(*first))?;
            rest.iter()
                .for_each(|slot| push_id(&mut raw, &format!("/tokens/{id}/keyslots"), *slot));
            metadata = revalidated(raw.clone(), hdr_size)?;
        }
        let token = RotationToken {
            stage: Stage::Staged,
            digest: new_digest_id,
            temporary,
            notes: params.notes.clone(),
            wipe: Vec::new(),
        };
        insert(&mut raw, "tokens", free_token(&metadata), token.to_json())?;
        let metadata = revalidated(raw, hdr_size)?;
        if gaps(&metadata, hdr_size).iter().all(|gap| gap.size < LEAST_AREA_BYTES) {
            return Err(LuksError::NoRoom("what a re-encryption notes beside the keyslots".into()));
        }
        script.flush();
        script.commit(&metadata)?;
        script.flush();
        Ok(script.finish().0)
    }

    /// Whoever opened `slot` by a token of ours opens `further` by it, too.
    fn share_kms_token(&self, raw: &mut Value, slot: u32, further: u32) {
        let ours = self
            .metadata
            .tokens
            .iter()
            .filter(|(_, token)| token.kind == KMS_TOKEN && token.keyslots.contains(&slot));
        for (id, _) in ours {
            push_id(raw, &format!("/tokens/{id}/keyslots"), further);
        }
    }

    /// Plans the way back from [`Self::stage_rotation`].
    pub(crate) fn abandon_rotation(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        let (old, new) = self.staged_digests()?;
        let Some((token_id, token)) = self.rotation_token()? else {
            return Err(LuksError::Rotation("none is staged".into()));
        };
        let mut doomed = self.metadata.digests[&new].keyslots.clone();
        doomed.extend(&token.temporary);
        doomed.sort_unstable();
        doomed.dedup();
        let kept = &self.metadata.digests[&old].keyslots;
        if kept.iter().all(|slot| doomed.contains(slot)) {
            return Err(LuksError::Rotation("no keyslot would remain".into()));
        }
        let mut raw = self.metadata.raw.clone();
        doomed.iter().for_each(|slot| drop_keyslot(&mut raw, *slot));
        remove(&mut raw, "digests", new);
        remove(&mut raw, "tokens", token_id);
        let metadata = revalidated(raw, self.binary.hdr_size)?;
        let mut script = self.script(random)?;
        script.commit(&metadata)?;
        script.flush();
        put_noise(&mut script, &areas(&self.metadata, &doomed), random)?;
        script.flush();
        Ok(script.finish().0)
    }

    /// The digests of the data's key and of the one that a staged rotation has made.
    pub(crate) fn staged_digests(&self) -> Result<(u32, u32), LuksError> {
        let Some((_, RotationToken { stage: Stage::Staged, digest: new, .. })) =
            self.rotation_token()?
        else {
            return Err(LuksError::Rotation("none is staged or under way".into()));
        };
        let unused = self.metadata.digests.get(&new).is_some_and(|d| d.segments.is_empty());
        match self.metadata.digest_of_segment(0) {
            Some(old) if unused => Ok((old, new)),
            _ => Err(LuksError::Refused(vec![format!(
                "digest {new} is not that of a new key without data"
            )])),
        }
    }

    pub(super) fn rotation_token(&self) -> Result<Option<(u32, RotationToken)>, LuksError> {
        RotationToken::of(&self.metadata).map_err(|reason| LuksError::Refused(vec![reason]))
    }

    /// A rotation relies on both copies.
    pub(crate) fn check_copies(&self) -> Result<(), LuksError> {
        if self.copies.iter().all(super::super::CopyState::is_good) {
            return Ok(());
        }
        Err(LuksError::Rotation("a header copy is damaged or outdated: repair it first".into()))
    }
}

/// The areas of these keyslots.
pub(super) fn areas(metadata: &Metadata, slots: &[u32]) -> Vec<Area> {
    slots.iter().filter_map(|slot| metadata.keyslots.get(slot)?.area).collect()
}
