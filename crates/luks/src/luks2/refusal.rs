//! What this build will not serve or change, though the header is valid.
//!
//! The storage is not trusted and LUKS2 does not authenticate its header, so the header may not
//! choose its cipher: everything but the one allow-listed encryption is refused, plain segments
//! too. Reasons say which tool can help.

use super::Luks2;
use super::model::{Af, DigestKind, KeyslotKind, Luks2Keyslot, SegmentKind};
use super::reencrypt::{Reencryption, State};
use super::rules::REENCRYPT;
use crate::af;
use crate::hash::Hash;
use crate::kdf::{Kdf, KdfLimits, check_iterations};
use crate::material::{ENCRYPTION, algorithm};

impl Luks2 {
    /// Every reason not to serve the volume; empty when there is none.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let mut reasons = self.refusals_of_any_kind();
        if let Ok(Some(found)) = Reencryption::of(&self.metadata)
            && let State::Crash { start, len, .. } = found.state()
        {
            reasons.push(format!(
                "a re-encryption was interrupted while it rewrote {len} bytes at {start} of the \
                 data, which must be recovered first: sealblkd does that when it serves the volume \
                 with the right to write, and so does 'cryptsetup repair', after a header backup"
            ));
        }
        reasons
    }

    /// Reasons not even to recover an interrupted re-encryption.
    pub(crate) fn refusals_of_any_kind(&self) -> Vec<String> {
        let reencryption = Reencryption::of(&self.metadata);
        let mut reasons = Vec::new();
        for requirement in &self.metadata.config.requirements {
            if !requirement.starts_with(REENCRYPT) {
                reasons.push(format!(
                    "the header requires {requirement:?}, which this build does not know: use the \
                     tool that set it"
                ));
            }
        }
        match reencryption {
            Ok(None) => self.refuse_segments(&mut reasons),
            // Its segments have been checked, each for the place it may have.
            Ok(Some(_)) => {}
            Err(reason) => reasons.push(format!(
                "a re-encryption is under way that this build cannot handle: {reason}. 'cryptsetup \
                 reencrypt --resume-only' may be able to end it, after a header backup"
            )),
        }
        reasons
    }

    /// Reasons not to add or remove keyslots although the volume may be served.
    pub(crate) fn refusals_to_edit(&self) -> Vec<String> {
        if matches!(Reencryption::of(&self.metadata), Ok(None)) && !self.has_rotation_token() {
            if !self.has_origin_token() {
                return Vec::new();
            }
            return vec![
                "the volume is LUKS2 only for the time of a rotation: keyslots stay as they are \
                 until it is LUKS1 again"
                    .into(),
            ];
        }
        vec!["a re-encryption is under way: keyslots stay as they are until it has ended".into()]
    }

    fn refuse_segments(&self, reasons: &mut Vec<String>) {
        let mut end = None;
        for (id, segment) in self.metadata.live_segments() {
            let mut refuse = |reason: String| reasons.push(format!("segment {id}: {reason}"));
            match &segment.kind {
                SegmentKind::Crypt { integrity: true, .. } => {
                    refuse("has dm-integrity tags, which are not supported".into());
                }
                SegmentKind::Crypt { encryption, .. } if encryption != ENCRYPTION => {
                    refuse(format!("cipher {encryption:?} is not allowed, only {ENCRYPTION}"));
                }
                SegmentKind::Crypt { .. } => {}
                SegmentKind::Linear => refuse("is not encrypted (type \"linear\")".into()),
                SegmentKind::Unknown(kind) if kind.starts_with("hw-opal") => {
                    refuse(format!("is encrypted by the drive itself (OPAL, type {kind:?})"));
                }
                SegmentKind::Unknown(kind) => refuse(format!("has the unknown type {kind:?}")),
            }
            if !segment.flags.is_empty() {
                refuse(format!(
                    "has the flags {:?}, which this build does not know",
                    segment.flags
                ));
            }
            if self.metadata.digest_of_segment(id).is_none() {
                refuse("is not owned by exactly one digest".into());
            } else if self.metadata.digest_of_segment(id) != self.metadata.digest_of_segment(0) {
                refuse("has another volume key than segment 0".into());
            }
            if end.is_some_and(|end| end != segment.offset) {
                refuse("does not begin where the one before ends".into());
            }
            end = segment.size.map(|size| segment.offset.saturating_add(size));
        }
    }

    /// As [`Self::usable`], for somebody who has not named this keyslot.
    pub(super) fn usable_unnamed(
        &self,
        slot: u32,
        limits: &KdfLimits,
    ) -> Result<UsableKeyslot<'_>, String> {
        match self.metadata.keyslots.get(&slot) {
            Some(keyslot) if keyslot.priority == 0 => {
                Err("has priority 0: used only when named".into())
            }
            _ => self.usable(slot, limits),
        }
    }

    /// What is needed to get a volume key of the data from a keyslot; the reason if we cannot or may
    /// not.
    pub(super) fn usable(
        &self,
        slot: u32,
        limits: &KdfLimits,
    ) -> Result<UsableKeyslot<'_>, String> {
        let usable = self.usable_bound_or_not(slot, limits)?;
        if self.metadata.is_of_data(usable.digest) {
            Ok(usable)
        } else {
            Err("holds a key that is not the volume's (unbound)".into())
        }
    }

    /// As [`Self::usable`], also for a key that has no data yet.
    pub(super) fn usable_bound_or_not(
        &self,
        slot: u32,
        limits: &KdfLimits,
    ) -> Result<UsableKeyslot<'_>, String> {
        let Some(keyslot) = self.metadata.keyslots.get(&slot) else {
            return Err("does not exist".into());
        };
        let luks2 = match &keyslot.kind {
            KeyslotKind::Luks2(luks2) => luks2,
            KeyslotKind::Reencrypt { .. } => return Err("belongs to a re-encryption".into()),
            KeyslotKind::Unknown(kind) => return Err(format!("unknown type {kind:?}")),
        };
        let Luks2Keyslot { af, area_type, encryption, area_key_size, kdf } = luks2;
        if area_type != "raw" {
            return Err(format!("unknown area type {area_type:?}"));
        }
        if encryption != ENCRYPTION {
            return Err(format!("its cipher {encryption:?} is not allowed, only {ENCRYPTION}"));
        }
        for (what, key_size) in [("key", keyslot.key_size), ("area key", *area_key_size)] {
            if algorithm(key_size).is_none() {
                return Err(format!("{what} of {key_size} bytes, not 32 or 64"));
            }
        }
        let af_hash = match af {
            Af::Luks1 { stripes: af::STRIPES, hash } => Hash::from_name(hash)
                .ok_or_else(|| format!("unknown anti-forensic hash {hash:?}"))?,
            Af::Luks1 { stripes, .. } => {
                return Err(format!("{stripes} anti-forensic stripes, not {}", af::STRIPES));
            }
            Af::Unknown(kind) => return Err(format!("unknown anti-forensic type {kind:?}")),
        };
        let area = keyslot.area.ok_or("has no area")?;
        let (digest, digest_iterations) = self.digest_for(slot, limits)?;
        kdf.check(limits)?;
        Ok(UsableKeyslot {
            key_bytes: keyslot.key_size,
            area_key_bytes: *area_key_size,
            area_offset: area.offset,
            af_hash,
            kdf,
            digest,
            digest_iterations,
        })
    }

    /// The digest a keyslot's key is told by, and what that costs.
    fn digest_for(&self, slot: u32, limits: &KdfLimits) -> Result<(u32, u32), String> {
        let digest = self.metadata.digest_of_keyslot(slot).ok_or("is in no digest")?;
        match &self.metadata.digests[&digest].kind {
            DigestKind::Pbkdf2 { hash, iterations, .. } => {
                Hash::from_name(hash)
                    .ok_or_else(|| format!("its digest has the unknown hash {hash:?}"))?;
                check_iterations(*iterations, limits).map_err(|r| format!("its digest: {r}"))?;
                Ok((digest, *iterations))
            }
            DigestKind::Unknown(kind) => Err(format!("its digest has the unknown type {kind:?}")),
        }
    }
}

/// A keyslot of which we know every part.
pub(super) struct UsableKeyslot<'a> {
    pub(super) key_bytes: u32,
    pub(super) area_key_bytes: u32,
    pub(super) area_offset: u64,
    pub(super) af_hash: Hash,
    pub(super) kdf: &'a Kdf,
    pub(super) digest: u32,
    pub(super) digest_iterations: u32,
}
