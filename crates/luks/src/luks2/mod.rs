//! LUKS2 headers: two copies, JSON metadata, keyslots.
//!
//! Contract: a [`Luks2`] holds the copy that counts (of the valid ones that with the higher
//! `seqid`) and knows in what state the other is. Nothing here writes: changes are plans.
//! Invariant of every plan: at each point at least one copy is valid and durable; the copy that
//! counts is written last.

mod age;
mod binary;
mod commit;
mod convert;
mod copies;
mod edit;
mod format;
mod model;
mod node;
mod origin;
mod reencrypt;
mod refusal;
mod renew;
mod repair;
mod report;
mod rules;
mod unlock;

pub(crate) use binary::{Binary, HEADER_SIZES, PRIMARY_MAGIC, Place};
pub(crate) use convert::{CONVERTED_HEADER_BYTES, from_luks1};
pub(crate) use copies::CopyState;
pub(crate) use format::DIGEST_ITERATIONS;
pub(crate) use model::Metadata;
pub(crate) use repair::repair;

pub use age::KeyAge;
pub use edit::NewKeyslot;
pub use format::{FormatParams, KmsToken, format};
pub use reencrypt::{
    Armed, Finished, Pending, Progress, Protection, Protector, Recovery, RecoveryStep, Recryptor,
    Release, Resume, Rotation, RotationNotes, RotationParams, StageParams, Zone,
};
pub use repair::RepairReport;

/// Magic of the copy at offset `hdr_size`.
pub(crate) const SECONDARY_MAGIC: &[u8; 6] = b"SKUL\xba\xbe";

/// The type of the token that names the key manager's secret of a keyslot. `luks2-` prefixes are
/// reserved (specification section 3.5).
pub(crate) const KMS_TOKEN: &str = "sealblk-kms";

/// A valid LUKS2 header.
#[derive(Debug, PartialEq)]
pub(crate) struct Luks2 {
    pub(crate) binary: Binary,
    pub(crate) metadata: Metadata,
    /// Primary and secondary.
    pub(crate) copies: [CopyState; 2],
}
