//! LUKS1 in words.

use super::Luks1;
use super::phdr::SLOTS;
use crate::kdf::{KdfLimits, SlotKdf};
use crate::report::{CopyReport, DigestReport, KeyslotReport, Report, SegmentReport, fingerprint};
use crate::text::printable;

impl Luks1 {
    /// How a keyslot stretches its passphrase. The hash is the header's, for all keyslots.
    pub(crate) fn kdf_like(&self, slot: u32) -> Option<SlotKdf> {
        let iterations = self.slots.get(slot as usize)?.iterations;
        Some(SlotKdf::Pbkdf2Sha256 { iterations })
    }

    pub(crate) fn report(&self) -> Report {
        let active: Vec<u32> = (0..SLOTS).filter(|slot| self.is_active(*slot)).collect();
        let keyslots = active.iter().map(|id| {
            let slot = &self.slots[*id as usize];
            let kdf = self.kdf(slot);
            let (start, end) = self.material_range(slot);
            KeyslotReport {
                id: *id,
                kind: "luks1".into(),
                key_bytes: self.key_bytes,
                priority: None,
                kdf: Some(kdf.describe()),
                offset_bytes: Some(start),
                size_bytes: Some(end - start),
                unusable: kdf.check(&KdfLimits::default()).err(),
            }
        });
        Report {
            version: 1,
            uuid: self.uuid(),
            label: String::new(),
            subsystem: String::new(),
            seqid: None,
            copies: vec![CopyReport { offset_bytes: 0, damage: None }],
            segments: vec![SegmentReport {
                id: 0,
                kind: "crypt".into(),
                offset_bytes: self.payload_bytes(),
                size_bytes: None,
                encryption: Some(printable(&self.encryption())),
                key_bytes: Some(self.key_bytes),
                sector_bytes: Some(512),
                iv_start: Some(0),
                flags: Vec::new(),
            }],
            keyslots: keyslots.collect(),
            digests: vec![DigestReport {
                id: 0,
                kind: format!(
                    "pbkdf2-{} {} iterations",
                    printable(&self.hash),
                    self.digest_iterations
                ),
                fingerprint: fingerprint(&self.digest),
                keyslots: active,
                segments: vec![0],
            }],
            tokens: Vec::new(),
            flags: Vec::new(),
            requirements: Vec::new(),
            refusals: self.refusals(),
        }
    }
}
