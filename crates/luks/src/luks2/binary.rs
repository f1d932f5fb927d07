//! The 4096-byte binary header in front of each JSON area (LUKS2 specification 1.1 section 2.1).
//!
//! Contract: all fields are big-endian; bytes that the specification leaves zero are written as
//! zero. A copy is one image of `hdr_size` bytes, so that one write carries header, JSON and the
//! checksum over both: a torn write is caught by the checksum.

use super::SECONDARY_MAGIC;
use crate::error::Flaw;
use crate::hash::sha256;
use crate::text::{shown, until_nul};

/// Magic of the copy at offset 0, and of LUKS1.
pub(crate) const PRIMARY_MAGIC: &[u8; 6] = b"LUKS\xba\xbe";

/// Length of the binary header.
pub(crate) const BINARY_BYTES: usize = 4096;

/// Every `hdr_size` the specification allows: the secondary copy starts at that offset.
pub(crate) const HEADER_SIZES: [u64; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];

const CHECKSUM: std::ops::Range<usize> = 448..512;

/// What both copies have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    pub(crate) hdr_size: u64,
    pub(crate) seqid: u64,
    pub(crate) label: [u8; 48],
    pub(crate) uuid: [u8; 40],
    pub(crate) subsystem: [u8; 48],
}

/// What is each copy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// 0 for the primary, `hdr_size` for the secondary.
    pub(crate) offset_bytes: u64,
    pub(crate) salt: [u8; 64],
}

impl Binary {
    /// Reads the binary header that should lie at `offset_bytes`. The checksum is
    /// [`verify_checksum`]'s: it needs the whole copy.
    pub(crate) fn parse(bytes: &[u8], offset_bytes: u64) -> Result<(Self, Place), Flaw> {
        assert!(bytes.len() >= BINARY_BYTES, "a whole binary header");
        let magic = if offset_bytes == 0 { PRIMARY_MAGIC } else { SECONDARY_MAGIC };
        if !bytes.starts_with(magic) {
            return Err(Flaw::new("magic", "not there"));
        }
        let version = u16::from_be_bytes(array(bytes, 6));
        if version != 2 {
            return Err(Flaw::new("version", format!("is {version}, not 2")));
        }
        let hdr_size = u64::from_be_bytes(array(bytes, 8));
        if !HEADER_SIZES.contains(&hdr_size) {
            return Err(Flaw::new(
                "hdr_size",
                format!("is {hdr_size}, which LUKS2 does not allow"),
            ));
        }
        let hdr_offset = u64::from_be_bytes(array(bytes, 256));
        if hdr_offset != offset_bytes {
            return Err(Flaw::new(
                "hdr_offset",
                format!("is {hdr_offset}, but the copy lies at {offset_bytes}"),
            ));
        }
        if offset_bytes != 0 && offset_bytes != hdr_size {
            return Err(Flaw::new(
                "hdr_size",
                format!("is {hdr_size}, so that no copy belongs at {offset_bytes}"),
            ));
        }
        let checksum_algorithm: [u8; 32] = array(bytes, 72);
        if until_nul(&checksum_algorithm) != Some(b"sha256") {
            return Err(Flaw::new(
                "csum_alg",
                format!("is {:?}, only sha256 is supported", shown(&checksum_algorithm)),
            ));
        }
        let uuid: [u8; 40] = array(bytes, 168);
        if !until_nul(&uuid).is_some_and(|uuid| uuid.iter().all(u8::is_ascii_graphic)) {
            return Err(Flaw::new("uuid", "is no NUL-terminated ASCII text"));
        }
        let binary = Self {
            hdr_size,
            seqid: u64::from_be_bytes(array(bytes, 16)),
            label: array(bytes, 24),
            uuid,
            subsystem: array(bytes, 208),
        };
        Ok((binary, Place { offset_bytes, salt: array(bytes, 104) }))
    }

    /// The image of one whole copy, checksum included. `json` with a NUL fits behind the header.
    pub(crate) fn image(&self, place: &Place, json: &[u8]) -> Vec<u8> {
        let mut image = vec![0; self.hdr_size as usize];
        assert!(BINARY_BYTES + json.len() < image.len(), "JSON and its NUL fit the area");
        let magic = if place.offset_bytes == 0 { PRIMARY_MAGIC } else { SECONDARY_MAGIC };
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, magic);
        put(6, &2_u16.to_be_bytes());
        put(8, &self.hdr_size.to_be_bytes());
        put(16, &self.seqid.to_be_bytes());
        put(24, &self.label);
        put(72, b"sha256");
        put(104, &place.salt);
        put(168, &self.uuid);
        put(208, &self.subsystem);
        put(256, &place.offset_bytes.to_be_bytes());
        put(BINARY_BYTES, json);
        let checksum = checksum(&image);
        image[CHECKSUM.start..CHECKSUM.start + checksum.len()].copy_from_slice(&checksum);
        image
    }
}

/// Checks the checksum of a whole copy (`hdr_size` bytes).
pub(crate) fn verify_checksum(copy: &[u8]) -> Result<(), Flaw> {
    let expected = checksum(copy);
    if copy[CHECKSUM.start..CHECKSUM.start + expected.len()] == expected {
        Ok(())
    } else {
        Err(Flaw::new("csum", "does not match the header and JSON area"))
    }
}

/// Of the binary header with the checksum field zeroed, then the JSON area with its padding.
fn checksum(copy: &[u8]) -> [u8; 32] {
    sha256(&[&copy[..CHECKSUM.start], &[0; 64], &copy[CHECKSUM.end..]])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// The JSON text of a copy's JSON area: from `{` to the first NUL, after which only NULs follow.
pub(crate) fn json_text(area: &[u8]) -> Result<&[u8], Flaw> {
    let text = until_nul(area).ok_or_else(|| Flaw::new("JSON area", "lacks the NUL at its end"))?;
    if text.first() != Some(&b'{') {
        return Err(Flaw::new("JSON area", "does not start with '{'"));
    }
    if let Some(beyond) = area[text.len()..].iter().position(|byte| *byte != 0) {
        return Err(Flaw::new(
            "JSON area",
            format!("has a byte other than NUL at {}, beyond the JSON text", text.len() + beyond),
        ));
    }
    Ok(text)
}
