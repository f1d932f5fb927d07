//! The digest that binds a re-encryption's metadata to both volume keys (cryptsetup's answer to
//! CVE-2021-4122: without it the storage could start a re-encryption, and so a decryption, itself).
//!
//! It covers both keys, mode, direction, the area and the two backup segments; not the live segments
//! and not the progress, which change with every range. It is constant during a rotation, so it is
//! computed once.

use sealblk_secret::SecretBytes;

use super::state::Reencryption;
use crate::error::LuksError;
use crate::kdf::{KdfLimits, check_iterations};
use crate::luks2::Luks2;
use crate::luks2::model::{
    Area, DigestKind, KeyslotKind, Metadata, Protection, Segment, SegmentKind,
};

/// Both ends of a rotation.
pub(crate) struct KeyPair<'a> {
    pub(crate) old: &'a SecretBytes,
    pub(crate) new: &'a SecretBytes,
}

/// What is digested. Strings without their NUL, numbers big-endian, nothing between them.
pub(super) fn bound_bytes(
    keys: &KeyPair<'_>,
    metadata: &Metadata,
    found: &Reencryption,
) -> Result<SecretBytes, LuksError> {
    let mut public = Vec::new();
    let keyslot = metadata.keyslots.get(&found.slot);
    if let Some(KeyslotKind::Reencrypt { mode, direction, protection }) =
        keyslot.map(|keyslot| &keyslot.kind)
    {
        public.extend_from_slice(mode.as_bytes());
        public.extend_from_slice(direction.as_bytes());
        put_area(&mut public, protection, found.area);
    }
    for backup in [found.old.backup, found.new.backup] {
        put_segment(&mut public, &metadata.segments[&backup]);
    }
    let parts = [b"v2".as_slice(), keys.old.expose(), keys.new.expose(), &public];
    let mut bytes = SecretBytes::zeroed(parts.iter().map(|part| part.len()).sum())?;
    let mut rest = bytes.expose_mut();
    for part in parts {
        let (here, after) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = after;
    }
    Ok(bytes)
}

fn put_area(into: &mut Vec<u8>, protection: &Protection, area: Area) {
    let kind = match protection {
        Protection::Checksum { .. } => "checksum",
        Protection::Journal => "journal",
        Protection::Other(kind) => kind,
    };
    into.extend_from_slice(kind.as_bytes());
    into.extend_from_slice(&area.offset.to_be_bytes());
    into.extend_from_slice(&area.size.to_be_bytes());
    if let Protection::Checksum { hash, block_bytes } = protection {
        into.extend_from_slice(hash.as_bytes());
        into.extend_from_slice(&block_bytes.to_be_bytes());
    }
}

fn put_segment(into: &mut Vec<u8>, segment: &Segment) {
    if let SegmentKind::Crypt { iv_tweak, encryption, sector_bytes, .. } = &segment.kind {
        into.extend_from_slice(b"crypt");
        into.extend_from_slice(&segment.offset.to_be_bytes());
        match segment.size {
            Some(size) => into.extend_from_slice(&size.to_be_bytes()),
            None => into.extend_from_slice(b"dynamic"),
        }
        into.extend_from_slice(&iv_tweak.to_be_bytes());
        into.extend_from_slice(encryption.as_bytes());
        into.extend_from_slice(&sector_bytes.to_be_bytes());
    }
}

impl Luks2 {
    /// Whether the header's re-encryption is the one that was begun with these keys.
    ///
    /// # Errors
    /// [`LuksError::Refused`] when it is not.
    pub(crate) fn check_binding(
        &self,
        found: &Reencryption,
        keys: &KeyPair<'_>,
    ) -> Result<(), LuksError> {
        let refuse = |reason: &str| {
            let reason = format!(
                "its re-encryption is not to be trusted: {reason}. Put back no header from before \
                 it, which would destroy the volume: see docs/operations.md, Header backup"
            );
            Err(LuksError::Refused(vec![reason]))
        };
        let mut digests =
            self.metadata.digests.iter().filter(|(_, d)| d.keyslots.contains(&found.slot));
        let (Some((id, digest)), None) = (digests.next(), digests.next()) else {
            return refuse("the reencrypt keyslot has not exactly one digest");
        };
        if !digest.segments.is_empty() {
            return refuse("the digest of the reencrypt keyslot is one of segments");
        }
        if let DigestKind::Pbkdf2 { iterations, .. } = digest.kind
            && let Err(reason) = check_iterations(iterations, &KdfLimits::default())
        {
            return refuse(&format!("the digest of the reencrypt keyslot: {reason}"));
        }
        let bytes = bound_bytes(keys, &self.metadata, found)?;
        if self.is_key_of(*id, &bytes) {
            Ok(())
        } else {
            refuse("its digest does not match the keys and the metadata")
        }
    }
}
