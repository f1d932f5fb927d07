//! After a rotation: what could still open the old data is destroyed.
//!
//! The final header no longer names the old keyslots but their areas still hold the old key's
//! material; the token lists them until they are overwritten. Wiping is done again as often as it
//! is interrupted. Invariant R8: nothing is wiped that a header names as a keyslot's, whatever the
//! list says.

use super::super::age;
use super::super::commit::Script;
use super::super::edit::{drop_keyslot, insert, remove, revalidated};
use super::super::model::Area;
use super::super::{Luks2, Metadata};
use super::stage::areas;
use super::state::Reencryption;
use super::token::{RotationToken, Stage};
use crate::error::LuksError;
use crate::io::{Plan, Random, ReadAt};
use crate::kdf::KdfLimits;

/// Noise is written in pieces of this size.
const PIECE_BYTES: u64 = 1 << 20;

/// More areas than this the list of no rotation has.
const MAX_AREAS: usize = 64;

/// Overwrites areas.
pub(super) fn put_noise(
    script: &mut Script,
    areas: &[Area],
    random: &mut Random<'_>,
) -> Result<(), LuksError> {
    for area in areas {
        let mut at = 0;
        while at < area.size {
            let len = (area.size - at).min(PIECE_BYTES);
            let mut noise = vec![0; usize::try_from(len).unwrap_or(0)];
            random(&mut noise).map_err(LuksError::Random)?;
            script.write(area.offset + at, noise);
            at += len;
        }
    }
    Ok(())
}

/// Appends the wiping of what the token lists, and the removal of the token. The header with the
/// token is made durable first: only then nothing needs the areas any more.
pub(super) fn wipe(
    mut script: Script,
    metadata: &Metadata,
    hdr_size: u64,
    random: &mut Random<'_>,
) -> Result<Plan, LuksError> {
    let token = RotationToken::of(metadata).map_err(|reason| LuksError::Refused(vec![reason]))?;
    let Some((id, token)) = token else {
        return Err(LuksError::Rotation("nothing is left to be wiped".into()));
    };
    script.flush();
    let free = unused(&token.wipe, metadata, hdr_size);
    if !free.is_empty() {
        put_noise(&mut script, &free, random)?;
        script.flush();
    }
    let mut raw = metadata.raw.clone();
    remove(&mut raw, "tokens", id);
    if token.stage == Stage::Running {
        // cryptsetup ended it, and knows nothing of ages.
        age::after_rotation(&mut raw, metadata, token.notes.started_at, false);
    }
    script.commit(&revalidated(raw, hdr_size)?)?;
    script.flush();
    Ok(script.finish().0)
}

/// Those areas of the list in which nothing lies.
fn unused(list: &[Area], metadata: &Metadata, hdr_size: u64) -> Vec<Area> {
    let start = 2 * hdr_size;
    let end = start + metadata.config.keyslots_size;
    let taken: Vec<Area> = metadata.keyslots.values().filter_map(|k| k.area).collect();
    let free = |area: &&Area| {
        let Some(area_end) = area.offset.checked_add(area.size) else { return false };
        let aligned = area.offset.is_multiple_of(512) && area.size.is_multiple_of(512);
        let overlaps = |other: &Area| {
            area.offset < other.offset.saturating_add(other.size) && other.offset < area_end
        };
        aligned && area.offset >= start && area_end <= end && !taken.iter().any(overlaps)
    };
    list.iter().take(MAX_AREAS).filter(free).copied().collect()
}

impl Luks2 {
    /// Plans what is left to do when all data has the new key: removes temporary keyslots (if it was
    /// cryptsetup that ended the rotation) and wipes what the token lists.
    pub(crate) fn clean_up_rotation(
        &self,
        io: &mut dyn ReadAt,
        random: &mut Random<'_>,
    ) -> Result<Plan, LuksError> {
        self.check_unchanged(io)?;
        let refuse = |reason: String| LuksError::Refused(vec![reason]);
        let (id, mut token) = match (Reencryption::of(&self.metadata), self.rotation_token()?) {
            (Err(reason), _) => return Err(refuse(reason)),
            (Ok(None), Some((id, token))) if token.stage != Stage::Staged => (id, token),
            _ => return Err(LuksError::Rotation("there is none whose data is all done".into())),
        };
        if self.metadata.digest_of_segment(0) != Some(token.digest) {
            return Err(refuse(format!(
                "token {id} says that a rotation to digest {} was under way, but the data is not \
                 of that key",
                token.digest
            )));
        }
        let hdr_size = self.binary.hdr_size;
        let mut script = self.script(random)?;
        if token.temporary.is_empty() {
            return wipe(script, &self.metadata, hdr_size, random);
        }
        let limits = KdfLimits::default();
        let opens = |slot: &u32| {
            !token.temporary.contains(slot) && self.usable_unnamed(*slot, &limits).is_ok()
        };
        if !self.metadata.digests[&token.digest].keyslots.iter().any(opens) {
            return Err(refuse("no keyslot would remain that opens the volume".into()));
        }
        let mut raw = self.metadata.raw.clone();
        if token.stage == Stage::Running {
            let new_secret = token.changes_secret();
            age::after_rotation(&mut raw, &self.metadata, token.notes.started_at, new_secret);
        }
        token.wipe.extend(areas(&self.metadata, &token.temporary));
        for slot in std::mem::take(&mut token.temporary) {
            drop_keyslot(&mut raw, slot);
        }
        token.stage = Stage::Wiping;
        insert(&mut raw, "tokens", id, token.to_json())?;
        let metadata = revalidated(raw, hdr_size)?;
        script.commit(&metadata)?;
        wipe(script, &metadata, hdr_size, random)
    }
}
