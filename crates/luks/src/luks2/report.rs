//! LUKS2 in words.

use serde_json::Value;

use super::model::{DigestKind, KeyslotKind, SegmentKind};
use super::{CopyState, KMS_TOKEN, Luks2};
use crate::kdf::{Kdf, KdfLimits};
use crate::report::{
    CopyReport, DigestReport, KeyslotReport, Report, SegmentReport, TokenReport, fingerprint,
};
use crate::text::{printable, shown};

impl Luks2 {
    pub(crate) fn uuid(&self) -> String {
        shown(&self.binary.uuid)
    }

    pub(crate) fn report(&self) -> Report {
        let strings = |list: &[String]| list.iter().map(|text| printable(text)).collect();
        Report {
            version: 2,
            uuid: self.uuid(),
            label: shown(&self.binary.label),
            subsystem: shown(&self.binary.subsystem),
            seqid: Some(self.binary.seqid),
            copies: self.copies.iter().map(|copy| self.copy_report(copy)).collect(),
            segments: self.segment_reports(),
            keyslots: self.keyslot_reports(),
            digests: self.digest_reports(),
            tokens: self.token_reports(),
            flags: strings(&self.metadata.config.flags),
            requirements: strings(&self.metadata.config.requirements),
            refusals: self.refusals(),
        }
    }

    fn copy_report(&self, copy: &CopyState) -> CopyReport {
        let damage = match copy {
            CopyState::Good(_) => None,
            CopyState::Stale { seqid, .. } => Some(format!(
                "differs from the other copy: its seqid is {seqid}, the other's {}",
                self.binary.seqid
            )),
            CopyState::Damaged { reason, .. } => Some(reason.clone()),
        };
        CopyReport { offset_bytes: copy.offset_bytes(), damage }
    }

    fn segment_reports(&self) -> Vec<SegmentReport> {
        let each = self.metadata.segments.iter().map(|(id, segment)| {
            let mut report = SegmentReport {
                id: *id,
                kind: "linear".into(),
                offset_bytes: segment.offset,
                size_bytes: segment.size,
                encryption: None,
                key_bytes: self.key_bytes_of_segment(*id),
                sector_bytes: None,
                iv_start: None,
                flags: segment.flags.iter().map(|flag| printable(flag)).collect(),
            };
            match &segment.kind {
                SegmentKind::Crypt { iv_tweak, encryption, sector_bytes, .. } => {
                    report.kind = "crypt".into();
                    report.encryption = Some(printable(encryption));
                    report.sector_bytes = Some(*sector_bytes);
                    report.iv_start = Some(*iv_tweak);
                }
                SegmentKind::Linear => {}
                SegmentKind::Unknown(kind) => report.kind = printable(kind),
            }
            report
        });
        each.collect()
    }

    fn key_bytes_of_segment(&self, id: u32) -> Option<u32> {
        let digest = self.metadata.digest_of_segment(id)?;
        let slot = self.metadata.digests[&digest].keyslots.first()?;
        Some(self.metadata.keyslots.get(slot)?.key_size)
    }

    fn keyslot_reports(&self) -> Vec<KeyslotReport> {
        let limits = KdfLimits::default();
        let each = self.metadata.keyslots.iter().map(|(id, keyslot)| {
            let (kind, kdf) = match &keyslot.kind {
                KeyslotKind::Luks2(luks2) => ("luks2".into(), Some(luks2.kdf.describe())),
                KeyslotKind::Reencrypt { mode, direction, .. } => {
                    (format!("reencrypt ({} {})", printable(mode), printable(direction)), None)
                }
                KeyslotKind::Unknown(kind) => (printable(kind), None),
            };
            KeyslotReport {
                id: *id,
                kind,
                key_bytes: keyslot.key_size,
                priority: Some(keyslot.priority),
                kdf,
                offset_bytes: keyslot.area.map(|area| area.offset),
                size_bytes: keyslot.area.map(|area| area.size),
                unusable: self.usable(*id, &limits).err(),
            }
        });
        each.collect()
    }

    fn digest_reports(&self) -> Vec<DigestReport> {
        let each = self.metadata.digests.iter().map(|(id, digest)| DigestReport {
            id: *id,
            kind: match &digest.kind {
                DigestKind::Pbkdf2 { hash, iterations, .. } => {
                    format!("pbkdf2-{} {iterations} iterations", printable(hash))
                }
                DigestKind::Unknown(kind) => printable(kind),
            },
            fingerprint: match &digest.kind {
                DigestKind::Pbkdf2 { digest, .. } => fingerprint(digest),
                DigestKind::Unknown(_) => String::new(),
            },
            keyslots: digest.keyslots.clone(),
            segments: digest.segments.clone(),
        });
        each.collect()
    }

    fn token_reports(&self) -> Vec<TokenReport> {
        let each = self.metadata.tokens.iter().map(|(id, token)| TokenReport {
            id: *id,
            kind: printable(&token.kind),
            keyslots: token.keyslots.clone(),
            key_id: (token.kind == KMS_TOKEN)
                .then(|| self.metadata.raw.pointer(&format!("/tokens/{id}/kid")))
                .flatten()
                .and_then(Value::as_str)
                .map(printable),
        });
        each.collect()
    }
}

impl Kdf {
    /// For people: name and costs.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Pbkdf2 { hash, iterations, .. } => {
                format!("pbkdf2-{} {iterations} iterations", printable(hash))
            }
            Self::Argon2 { passes, memory_kib, lanes, .. } => {
                format!("{} t={passes} m={memory_kib} p={lanes}", self.name())
            }
            Self::Unknown(name) => printable(name),
        }
    }
}
