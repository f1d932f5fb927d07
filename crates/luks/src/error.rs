//! What can go wrong, in words for the operator. Never holds secret bytes; text that comes from a
//! header is escaped before it gets here. A cause is the error's source and not in its text: print
//! the whole chain.

use crate::probe::Found;

/// One rule that a header breaks, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {problem}")]
pub struct Flaw {
    /// The field, e.g. `keyslots.3.area.offset`.
    pub at: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Flaw {
    pub(crate) fn new(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { at: at.into(), problem: problem.into() }
    }
}

/// A keyslot that was not tried, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its number.
    pub slot: u32,
    /// Why.
    pub reason: String,
}

/// That no keyslot can be tried at all, and why.
pub(crate) fn no_keyslot(unusable: &[Skipped]) -> String {
    format!("there is no keyslot that could open it{}", skipped_list(unusable))
}

fn skipped_list(skipped: &[Skipped]) -> String {
    if skipped.is_empty() {
        return String::new();
    }
    let each: Vec<_> =
        skipped.iter().map(|skip| format!("keyslot {}: {}", skip.slot, skip.reason)).collect();
    format!(" ({})", each.join("; "))
}

/// Failures of this crate.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// The volume could not be read.
    #[error("cannot read {len_bytes} bytes at offset {offset_bytes}")]
    Read {
        /// Where.
        offset_bytes: u64,
        /// How much.
        len_bytes: usize,
        /// What the storage said.
        source: std::io::Error,
    },
    /// There is no LUKS header.
    #[error("the volume holds no LUKS header but {0}")]
    NotLuks(Found),
    /// The caller pinned another LUKS version.
    #[error(
        "the volume holds LUKS{found}, which the configuration does not allow here: if it should \
         be of the other version, somebody replaced its header"
    )]
    VersionNotAllowed {
        /// What lies there.
        found: u8,
    },
    /// No usable LUKS2 header copy.
    #[error(
        "both LUKS2 header copies are unusable; primary (offset 0): {primary}; secondary: \
         {secondary}. Restore the header from a backup (cryptsetup luksHeaderRestore)"
    )]
    BothCopiesBad {
        /// What is wrong with the copy at offset 0.
        primary: String,
        /// What is wrong at each secondary offset where something was found.
        secondary: String,
    },
    /// The LUKS1 header breaks a rule.
    #[error("the LUKS1 header at offset 0 is invalid: {0}. Restore it from a backup")]
    InvalidLuks1(Flaw),
    /// The header is valid, but this build will not serve or change the volume.
    #[error("this volume is refused: {}", .0.join("; "))]
    Refused(Vec<String>),
    /// The passphrase is wrong for every keyslot that could be tried.
    #[error(
        "no keyslot opens with this passphrase: {tried} tried, {} skipped{}",
        skipped.len(), skipped_list(skipped)
    )]
    NoKeyslotOpens {
        /// Keyslots that were tried.
        tried: u32,
        /// Keyslots that were not, and why.
        skipped: Vec<Skipped>,
    },
    /// The keyslot number names nothing.
    #[error("there is no keyslot {0}")]
    NoSuchKeyslot(u32),
    /// The keyslot number is taken.
    #[error("keyslot {0} is in use: remove it first or choose another number")]
    KeyslotInUse(u32),
    /// The volume would be lost.
    #[error(
        "keyslot {0} is the last one that opens the volume: without it all data is lost. Add \
         another first, or force it"
    )]
    LastKeyslot(u32),
    /// The header has no place for it.
    #[error("the header has no room for {0}")]
    NoRoom(String),
    /// A parameter of the caller's makes no sense.
    #[error("{0}")]
    BadParameter(String),
    /// Somebody else wrote the header.
    #[error("the header on the volume changed since it was loaded: start again")]
    Changed,
    /// The unlocked key is not this header's.
    #[error("the unlocked volume key belongs to another header or segment")]
    ForeignKey,
    /// A segment does not lie on the volume.
    #[error("segment {segment} does not fit the volume of {volume_bytes} bytes: {problem}")]
    SegmentOutside {
        /// Segment number.
        segment: u32,
        /// The volume's size in bytes.
        volume_bytes: u64,
        /// How.
        problem: String,
    },
    /// Nothing that [`crate::repair()`] could do.
    #[error("cannot repair: {0}")]
    CannotRepair(String),
    /// This step of a rotation makes no sense for this header.
    #[error("no rotation: {0}")]
    Rotation(String),
    /// The volume cannot be made LUKS2 or LUKS1, or is not to.
    #[error("no conversion: {0}")]
    Conversion(String),
    /// The random generator failed.
    #[error("the random generator failed")]
    Random(#[source] std::io::Error),
    /// Key memory could not be had.
    #[error("key memory could not be had")]
    Secret(#[from] sealblk_secret::SecretError),
    /// The cipher refused the key.
    #[error("the cipher refused the key")]
    Cipher(#[from] sealblk_cipher::CipherError),
    /// A key derivation failed.
    #[error("key derivation: {0}")]
    Kdf(String),
}
