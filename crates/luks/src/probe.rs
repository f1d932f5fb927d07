//! What lies on a volume: LUKS, something else with a known signature, or nothing known.
//!
//! Contract: for people who are about to overwrite it, so a false "nothing" is the bad answer.
//! Invariant: LUKS is told by its magics alone; the signatures of everything else are a table.

use std::fmt;

use crate::error::LuksError;
use crate::io::ReadAt;
use crate::luks2::{HEADER_SIZES, PRIMARY_MAGIC, SECONDARY_MAGIC};
use crate::read_vec;
use crate::signatures::{HEAD_BYTES, SIGNATURES, Signature, TAIL_BYTES};

/// What a volume holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A LUKS1 header.
    Luks1,
    /// A LUKS2 header, be it only its secondary copy.
    Luks2,
    /// Another format, by name.
    Other(&'static str),
    /// No signature known to us.
    Nothing,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Luks1 => f.write_str("LUKS1"),
            Self::Luks2 => f.write_str("LUKS2"),
            Self::Other(name) => f.write_str(name),
            Self::Nothing => f.write_str("nothing that has a known signature"),
        }
    }
}

/// Bytes at the end of a volume that [`probe`] looks at: who empties a volume zeroes these, too.
pub const PROBED_TAIL_BYTES: u64 = TAIL_BYTES;

/// Sectors that [`foreign`] finds unreadable before it gives up: each may take the storage long.
const MAX_UNREADABLE: usize = 8;

/// Tells what the volume holds, for somebody who decides by it whether to overwrite it: whatever
/// cannot be read might hold something, so that is an error.
///
/// # Errors
/// [`LuksError::Read`] only.
pub fn probe(io: &mut dyn ReadAt) -> Result<Found, LuksError> {
    match luks(io) {
        (_, Some(error)) => Err(error),
        (Some(found), None) => Ok(found),
        (None, None) => other(io),
    }
}

/// As [`probe`], for somebody who wants to open the volume: unreadable places don't matter if there
/// is LUKS in another.
pub(crate) fn luks_or_other(io: &mut dyn ReadAt) -> Result<Found, LuksError> {
    match luks(io) {
        (Some(found), _) => Ok(found),
        (None, Some(error)) => Err(error),
        (None, None) => other(io),
    }
}

/// The LUKS header that is there, and the first read error that was met looking for it.
fn luks(io: &mut dyn ReadAt) -> (Option<Found>, Option<LuksError>) {
    let mut unreadable = None;
    for offset in [0].into_iter().chain(HEADER_SIZES) {
        if io.size_bytes() < offset + 8 {
            break;
        }
        let magic = if offset == 0 { PRIMARY_MAGIC } else { SECONDARY_MAGIC };
        let found = match read_vec(io, offset, 8) {
            Ok(bytes) if !bytes.starts_with(magic) => None,
            Ok(bytes) => match (offset, &bytes[6..]) {
                (0, [0, 1]) => Some(Found::Luks1),
                (_, [0, 2]) => Some(Found::Luks2),
                _ => None,
            },
            Err(error) => {
                unreadable.get_or_insert(error);
                None
            }
        };
        if found.is_some() {
            return (found, unreadable);
        }
    }
    (None, unreadable)
}

/// What is there if it is not LUKS.
fn other(io: &mut dyn ReadAt) -> Result<Found, LuksError> {
    let volume_bytes = io.size_bytes();
    let head = read_vec(io, 0, volume_bytes.min(HEAD_BYTES) as usize)?;
    if head.starts_with(PRIMARY_MAGIC) {
        return Ok(Found::Other("a LUKS header of an unknown version"));
    }
    let tail = read_vec(io, tail_start(volume_bytes), volume_bytes.min(TAIL_BYTES) as usize)?;
    Ok(foreign_in(&Ends { volume_bytes, head, tail }).map_or(Found::Nothing, Found::Other))
}

/// A signature other than LUKS near the start of the volume, as far as that can be read.
pub(crate) fn foreign(io: &mut dyn ReadAt) -> Option<&'static str> {
    let volume_bytes = io.size_bytes();
    let mut head = vec![0; volume_bytes.min(HEAD_BYTES) as usize];
    if io.read_at(0, &mut head).is_err() {
        let mut unreadable = 0;
        for (number, sector) in (0..).zip(head.chunks_mut(512)) {
            if unreadable >= MAX_UNREADABLE || io.read_at(number * 512, sector).is_err() {
                sector.fill(0);
                unreadable += 1;
            }
        }
    }
    foreign_in(&Ends { volume_bytes, head, tail: Vec::new() })
}

/// The bytes in which signatures lie; a tail that was not read is empty.
struct Ends {
    volume_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

fn tail_start(volume_bytes: u64) -> u64 {
    volume_bytes.saturating_sub(TAIL_BYTES)
}

impl Ends {
    fn at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let within = |bytes: &'_ [u8], offset: u64| {
            let start = usize::try_from(offset).ok()?;
            Some(start..start.checked_add(len)?).filter(|range| range.end <= bytes.len())
        };
        if let Some(range) = within(&self.head, offset) {
            return Some(&self.head[range]);
        }
        let offset = offset.checked_sub(tail_start(self.volume_bytes))?;
        within(&self.tail, offset).map(|range| &self.tail[range])
    }

    fn byte(&self, offset: u64) -> u8 {
        self.at(offset, 1).map_or(0, |bytes| bytes[0])
    }
}

fn foreign_in(ends: &Ends) -> Option<&'static str> {
    // ext2/3/4: s_magic at 0x38 of the superblock at 1024 (kernel, fs/ext4/ext4.h).
    if ends.at(1024 + 0x38, 2) == Some(b"\x53\xef") {
        let has_journal = ends.byte(1024 + 0x5c) & 4 != 0;
        let extents = ends.byte(1024 + 0x60) & 0x40 != 0;
        return Some(match (has_journal, extents) {
            (_, true) => "ext4",
            (true, false) => "ext3",
            (false, false) => "ext2",
        });
    }
    let lies_there = |signature: &&Signature| {
        let mut offsets = signature.offsets(ends.volume_bytes);
        offsets.any(|offset| ends.at(offset, signature.magic.len()) == Some(signature.magic))
    };
    SIGNATURES.iter().find(lies_there).map(|signature| signature.name)
}
