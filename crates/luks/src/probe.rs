//! What lies on a volume: LUKS, something else with a known signature, or nothing known.
//!
//! Contract: for people who are about to overwrite it, so a false "nothing" is the bad answer.
//! Signatures are those of the formats' own documents and of `libblkid`'s probes.

use std::fmt;

use crate::error::LuksError;
use crate::io::ReadAt;
use crate::luks2::{HEADER_SIZES, PRIMARY_MAGIC, SECONDARY_MAGIC};
use crate::read_vec;

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

/// Signatures at fixed offsets, the specific before the vague: a boot sector (`0x55aa`) may precede
/// nearly anything.
const SIGNATURES: &[(u64, &[u8], &str)] = &[
    (0, b"QFI\xfb", "qcow2"),
    (0, b"KDMV", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"XFSB", "xfs"),
    (0, b"bluestore block device", "Ceph BlueStore"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (65536 + 64, b"_BHRfS_M", "btrfs"),
    (32768 + 1, b"CD001", "ISO 9660"),
    (24, b"\xc6\x85\x73\xf6", "bcache"),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache"),
    (0, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (4096, b"\xfc\x4e\x2b\xa9", "Linux RAID"),
    (4096 - 10, b"SWAPSPACE2", "Linux swap"),
    (4096 - 10, b"SWAP-SPACE", "Linux swap"),
    (65536 - 10, b"SWAPSPACE2", "Linux swap"),
    (3, b"-FVE-FS-", "BitLocker"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (54, b"FAT1", "FAT"),
    (82, b"FAT32", "FAT"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (510, b"\x55\xaa", "a boot sector or MBR partition table"),
];

/// Covers every offset of [`SIGNATURES`].
const PROBED_BYTES: u64 = 65536 + 4096;

/// Tells what the volume holds.
///
/// # Errors
/// [`LuksError::Read`] only.
pub fn probe(io: &mut dyn ReadAt) -> Result<Found, LuksError> {
    let head = head(io)?;
    let version = head.starts_with(PRIMARY_MAGIC).then(|| head.get(6..8)).flatten();
    match version {
        Some([0, 1]) => return Ok(Found::Luks1),
        Some([0, 2]) => return Ok(Found::Luks2),
        _ => {}
    }
    for offset in HEADER_SIZES {
        if io.size_bytes() >= offset + 8 {
            let bytes = read_vec(io, offset, 8)?;
            if bytes.starts_with(SECONDARY_MAGIC) && bytes[6..] == [0, 2] {
                return Ok(Found::Luks2);
            }
        }
    }
    if version.is_some() {
        return Ok(Found::Other("a LUKS header of an unknown version"));
    }
    Ok(match foreign_in(&head) {
        Some(name) => Found::Other(name),
        None => trailing(io)?.map_or(Found::Nothing, Found::Other),
    })
}

/// A signature other than LUKS at the start of the volume.
pub(crate) fn foreign(io: &mut dyn ReadAt) -> Result<Option<&'static str>, LuksError> {
    Ok(foreign_in(&head(io)?))
}

fn head(io: &mut dyn ReadAt) -> Result<Vec<u8>, LuksError> {
    let len = io.size_bytes().min(PROBED_BYTES) as usize;
    read_vec(io, 0, len)
}

fn foreign_in(head: &[u8]) -> Option<&'static str> {
    let at = |offset: usize, len: usize| head.get(offset..offset + len);
    // ext2/3/4: s_magic at 0x38 of the superblock at 1024 (kernel, fs/ext4/ext4.h).
    if at(1024 + 0x38, 2) == Some(b"\x53\xef") {
        let has_journal = at(1024 + 0x5c, 1).is_some_and(|byte| byte[0] & 4 != 0);
        let extents = at(1024 + 0x60, 1).is_some_and(|byte| byte[0] & 0x40 != 0);
        return Some(match (has_journal, extents) {
            (_, true) => "ext4",
            (true, false) => "ext3",
            (false, false) => "ext2",
        });
    }
    // An LVM2 label may lie in any of the first four sectors.
    let label = |sector: usize| {
        at(sector * 512, 8) == Some(b"LABELONE") && at(sector * 512 + 24, 8) == Some(b"LVM2 001")
    };
    if (0..4).any(label) {
        return Some("an LVM2 physical volume");
    }
    SIGNATURES
        .iter()
        .find(|(offset, magic, _)| at(*offset as usize, magic.len()) == Some(*magic))
        .map(|(_, _, name)| *name)
}

/// Signatures at the end: the backup GPT, a fixed VHD's footer.
fn trailing(io: &mut dyn ReadAt) -> Result<Option<&'static str>, LuksError> {
    let Some(last) = io.size_bytes().checked_sub(512) else { return Ok(None) };
    let bytes = read_vec(io, last, 8)?;
    Ok(match bytes.as_slice() {
        b"EFI PART" => Some("a GPT partition table (its backup, at the end)"),
        b"conectix" => Some("VHD"),
        _ => None,
    })
}
