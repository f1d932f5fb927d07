//! Which of the two header copies counts.
//!
//! Each copy is valid or damaged on its own, and one that cannot be read is damaged; of two valid
//! ones the higher `seqid` counts, the primary when equal. When the primary is bad nothing tells
//! the header's size, so the secondary is looked for at all nine offsets. An old header left behind
//! must not come back to life: several secondaries without a primary are ambiguous and refused, and
//! one with another UUID than a valid primary does not count, whatever its `seqid`.

use super::binary::{self, BINARY_BYTES, Binary, HEADER_SIZES, Place};
use super::model::Metadata;
use super::{Luks2, SECONDARY_MAGIC};
use sealblk_block::in_one_line;

use crate::error::{Flaw, LuksError};
use crate::io::ReadAt;
use crate::text::shown;
use crate::{probe, read_vec};

/// The state of one header copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CopyState {
    /// Valid; its content is what counts.
    Good(Place),
    /// Valid, but older than the other copy, or different from it.
    Stale { place: Place, seqid: u64 },
    /// Not valid: why.
    Damaged { offset_bytes: u64, reason: String },
}

impl CopyState {
    pub(crate) fn offset_bytes(&self) -> u64 {
        match self {
            Self::Good(place) | Self::Stale { place, .. } => place.offset_bytes,
            Self::Damaged { offset_bytes, .. } => *offset_bytes,
        }
    }

    pub(crate) fn is_good(&self) -> bool {
        matches!(self, Self::Good(_))
    }
}

struct Copy {
    binary: Binary,
    place: Place,
    metadata: Metadata,
}

impl Luks2 {
    /// Reads both copies and decides.
    ///
    /// # Errors
    /// [`LuksError::BothCopiesBad`] names what is wrong with each, be it that it cannot be read.
    pub(crate) fn load(io: &mut dyn ReadAt) -> Result<Self, LuksError> {
        match read_copy(io, 0) {
            Ok(primary) => {
                let secondary = read_copy(io, primary.binary.hdr_size);
                let secondary = secondary.and_then(|copy| of_the_same_volume(&primary, copy));
                Ok(Self::choose(primary, secondary))
            }
            Err(flaw) => {
                let mut reason = flaw.to_string();
                if let Some(name) = probe::foreign(io) {
                    reason = format!("{reason}; {name} lies there");
                }
                Self::from_secondary(io, reason)
            }
        }
    }

    fn choose(primary: Copy, secondary: Result<Copy, Flaw>) -> Self {
        let first = CopyState::Good(primary.place);
        match secondary {
            Err(flaw) => {
                let offset_bytes = primary.binary.hdr_size;
                let second = CopyState::Damaged { offset_bytes, reason: flaw.to_string() };
                Self::of(primary, [first, second])
            }
            Ok(secondary) if secondary.binary.seqid > primary.binary.seqid => {
                let first = CopyState::Stale { place: primary.place, seqid: primary.binary.seqid };
                let second = CopyState::Good(secondary.place);
                Self::of(secondary, [first, second])
            }
            Ok(secondary) => {
                let same = secondary.binary == primary.binary
                    && secondary.metadata.raw == primary.metadata.raw;
                let second = if same {
                    CopyState::Good(secondary.place)
                } else {
                    CopyState::Stale { place: secondary.place, seqid: secondary.binary.seqid }
                };
                Self::of(primary, [first, second])
            }
        }
    }

    fn from_secondary(io: &mut dyn ReadAt, primary_reason: String) -> Result<Self, LuksError> {
        let mut found = Vec::new();
        let mut rejected = Vec::new();
        for offset in HEADER_SIZES {
            match read_copy(io, offset) {
                Ok(copy) => found.push(copy),
                Err(flaw) if flaw.at == "magic" => {}
                Err(flaw) => rejected.push(format!("at offset {offset}: {flaw}")),
            }
        }
        let both_bad =
            |secondary| LuksError::BothCopiesBad { primary: primary_reason.clone(), secondary };
        match (found.pop(), found.is_empty()) {
            (Some(copy), true) => {
                let first = CopyState::Damaged { offset_bytes: 0, reason: primary_reason };
                let second = CopyState::Good(copy.place);
                Ok(Self::of(copy, [first, second]))
            }
            (Some(last), false) => {
                let offsets: Vec<_> = found
                    .iter()
                    .chain([&last])
                    .map(|copy| copy.place.offset_bytes.to_string())
                    .collect();
                Err(both_bad(format!(
                    "several valid ones, at offsets {}: one must be a leftover",
                    offsets.join(", ")
                )))
            }
            (None, _) if rejected.is_empty() => {
                Err(both_bad("none at any of the nine offsets from 16 KiB to 4 MiB".into()))
            }
            (None, _) => Err(both_bad(rejected.join("; "))),
        }
    }

    fn of(copy: Copy, copies: [CopyState; 2]) -> Self {
        Self { binary: copy.binary, metadata: copy.metadata, copies }
    }
}

fn of_the_same_volume(primary: &Copy, secondary: Copy) -> Result<Copy, Flaw> {
    if secondary.binary.uuid == primary.binary.uuid {
        return Ok(secondary);
    }
    let (theirs, ours) = (shown(&secondary.binary.uuid), shown(&primary.binary.uuid));
    Err(Flaw::new("uuid", format!("is {theirs}, another volume's: the primary has {ours}")))
}

/// Reads and validates the copy at `offset_bytes`.
fn read_copy(io: &mut dyn ReadAt, offset_bytes: u64) -> Result<Copy, Flaw> {
    let magic = if offset_bytes == 0 { binary::PRIMARY_MAGIC } else { SECONDARY_MAGIC };
    let volume_bytes = io.size_bytes();
    let mut read = |len| {
        read_vec(io, offset_bytes, len).map_err(|error| Flaw::new("storage", in_one_line(&error)))
    };
    let end = offset_bytes + BINARY_BYTES as u64;
    if volume_bytes < end || !read(magic.len())?.starts_with(magic) {
        return Err(Flaw::new("magic", "not there"));
    }
    let (binary, place) = Binary::parse(&read(BINARY_BYTES)?, offset_bytes)?;
    if volume_bytes < offset_bytes + binary.hdr_size {
        return Err(Flaw::new("hdr_size", "reaches past the end of the volume"));
    }
    let metadata = validate(&read(binary.hdr_size as usize)?, &binary)?;
    Ok(Copy { binary, place, metadata })
}

fn validate(copy: &[u8], binary: &Binary) -> Result<Metadata, Flaw> {
    binary::verify_checksum(copy)?;
    let text = binary::json_text(&copy[BINARY_BYTES..])?;
    let value = serde_json::from_slice(text)
        .map_err(|error| Flaw::new("JSON area", format!("is no JSON: {error}")))?;
    Metadata::from_json(value, binary.hdr_size)
}
