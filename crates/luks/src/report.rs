//! What `inspect` shows. Public data only: no salts, digests or material.

use serde::Serialize;

/// A header in words and numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// 1 or 2.
    pub version: u8,
    /// As text.
    pub uuid: String,
    /// LUKS2; may be empty.
    pub label: String,
    /// LUKS2; may be empty.
    pub subsystem: String,
    /// LUKS2: grows with each change.
    pub seqid: Option<u64>,
    /// The header's copies: one in LUKS1, two in LUKS2.
    pub copies: Vec<CopyReport>,
    /// Ranges of data.
    pub segments: Vec<SegmentReport>,
    /// Ways to the volume key.
    pub keyslots: Vec<KeyslotReport>,
    /// What volume keys are told by.
    pub digests: Vec<DigestReport>,
    /// LUKS2.
    pub tokens: Vec<TokenReport>,
    /// LUKS2: activation flags (`allow-discards` ...), which this build ignores.
    pub flags: Vec<String>,
    /// LUKS2: mandatory requirements.
    pub requirements: Vec<String>,
    /// Why this build serves no volume with this header. What depends on the volume's size and on
    /// its keyslots, [`crate::Header::obstacles`] adds.
    pub refusals: Vec<String>,
}

/// A copy of the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Where.
    pub offset_bytes: u64,
    /// `None` when it is good; otherwise what is wrong: `repair` helps.
    pub damage: Option<String>,
}

/// A range of data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SegmentReport {
    /// Number.
    pub id: u32,
    /// `crypt`, `linear` ...
    #[serde(rename = "type")]
    pub kind: String,
    /// On the volume.
    pub offset_bytes: u64,
    /// `None`: to the volume's end.
    pub size_bytes: Option<u64>,
    /// E.g. `aes-xts-plain64`.
    pub encryption: Option<String>,
    /// Of the volume key: 32 is AES-128-XTS, 64 AES-256-XTS.
    pub key_bytes: Option<u32>,
    /// Encryption sector.
    pub sector_bytes: Option<u32>,
    /// IV of the first sector.
    pub iv_start: Option<u64>,
    /// LUKS2 flags.
    pub flags: Vec<String>,
}

/// A keyslot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyslotReport {
    /// Number.
    pub id: u32,
    /// `luks1`, `luks2`, `reencrypt` ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Length of the key it holds.
    pub key_bytes: u32,
    /// LUKS2: 2 is tried first, 0 only when named.
    pub priority: Option<u32>,
    /// The derivation and its costs, e.g. `argon2id t=4 m=1048576 p=4`.
    pub kdf: Option<String>,
    /// Its place on the volume.
    pub offset_bytes: Option<u64>,
    /// Length of that place.
    pub size_bytes: Option<u64>,
    /// Why it cannot be used with the default limits; `None` when it can.
    pub unusable: Option<String>,
}

/// A digest of a volume key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DigestReport {
    /// Number.
    pub id: u32,
    /// `pbkdf2` with its costs, or an unknown type.
    #[serde(rename = "type")]
    pub kind: String,
    /// What the key may be called: the first bytes of its digest, in hex. Says nothing about the key.
    pub fingerprint: String,
    /// Keyslots that hold this key.
    pub keyslots: Vec<u32>,
    /// Segments under this key.
    pub segments: Vec<u32>,
}

/// Bytes of a digest that name a key.
const FINGERPRINT_BYTES: usize = 8;

/// The name of the key whose digest this is.
pub(crate) fn fingerprint(digest: &[u8]) -> String {
    digest.iter().take(FINGERPRINT_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenReport {
    /// Number.
    pub id: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Keyslots it is for.
    pub keyslots: Vec<u32>,
    /// Of `sealblk-kms` tokens: the key manager's name for the secret. Other tokens' content is
    /// theirs and not shown.
    pub key_id: Option<String>,
}
