//! What a logical unit is and can do.

use std::time::Instant;

use sealblk_block::{ErrorKind, Geometry, VolumeError};

use super::command::Command;
use super::control::{Control, Outcome};
use super::login::{Fault, Login};
use super::session::{IDENTITY_BYTES, IDENTITY_PAGE};

/// How blocks are given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmap {
    /// Not at all.
    No,
    /// UNMAP, at most this many blocks at once.
    List { blocks_max: u32 },
    /// WRITE SAME(16) with the UNMAP bit.
    WriteSame { blocks_max: u32 },
}

/// What we found out about the unit when it was opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub(super) geometry: Geometry,
    /// It takes the FUA bit (DPOFUA, SBC-4 section 6.5.1).
    pub(super) fua: bool,
    /// It may hold writes in a cache (WCE), or doesn't say.
    pub(super) cache: bool,
    /// Bytes of one read or write.
    pub(super) transfer_max_bytes: u32,
    pub(super) unmap: Unmap,
}

/// Where nobody says how much one command may move. Targets take more, but not in one piece.
const TRANSFER_BYTES: u32 = 4 << 20;

/// Asks the unit. `read_only`: as the opener wants it.
pub(super) fn ask(
    uri: &str,
    control: &mut Control,
    login: &Login,
    deadline: Instant,
    read_only: bool,
) -> Result<Unit, VolumeError> {
    let mut questions = Questions { uri, control, deadline };
    questions.is_a_disk()?;
    if let Some(identity) = questions.page::<IDENTITY_BYTES>(IDENTITY_PAGE)? {
        let identity = identity_of(&identity);
        if !identity.is_empty() {
            login.identity.get_or_init(|| identity);
        }
    }
    let capacity = questions.capacity()?;
    let Capacity { blocks, block_bytes, physical_exponent, thin } = capacity;
    if !block_bytes.is_power_of_two() || !(512..=4096).contains(&block_bytes) {
        let what = format!("its blocks have {block_bytes} bytes; 512 to 4096 can be used");
        return Err(VolumeError::new(ErrorKind::Unsupported, uri, what));
    }
    let size_bytes = blocks.checked_mul(u64::from(block_bytes)).ok_or_else(|| {
        VolumeError::new(ErrorKind::Io, uri, "it says that it is larger than 2^64 bytes")
    })?;
    let mode = questions.mode()?;
    if mode.protected && !read_only {
        let what = "the target protects it from writing: have the target allow it, or open it \
                    read-only";
        return Err(VolumeError::new(ErrorKind::Permission, uri, what));
    }
    let limits = questions.page::<64>(0xb0)?.unwrap_or([0; 64]);
    let provisioning = questions.page::<8>(0xb2)?.unwrap_or([0; 8]);
    let transfer_max_bytes = match be32(&limits, 8) {
        0 => TRANSFER_BYTES,
        blocks => blocks.saturating_mul(block_bytes).min(TRANSFER_BYTES),
    };
    Ok(Unit {
        geometry: Geometry {
            size_bytes,
            block_bytes,
            physical_block_bytes: block_bytes << physical_exponent.min(7),
            // What a power cut leaves whole, a target doesn't say (atomic writes of SBC-4 are for
            // their own commands).
            atomic_write_bytes: block_bytes,
            discard: thin && unmap_of(&limits, &provisioning) != Unmap::No,
            read_only: read_only || mode.protected,
        },
        fua: mode.fua,
        cache: mode.cache,
        transfer_max_bytes,
        unmap: if thin { unmap_of(&limits, &provisioning) } else { Unmap::No },
    })
}

/// Asks how large the unit is now, in bytes of whole blocks.
pub(super) fn measure(
    uri: &str,
    control: &mut Control,
    deadline: Instant,
    opened: Geometry,
) -> Result<u64, VolumeError> {
    let capacity = Questions { uri, control, deadline }.capacity()?;
    if capacity.block_bytes != opened.block_bytes {
        let what = format!(
            "its blocks have {} bytes now, and had {} when it was opened: open it anew",
            capacity.block_bytes, opened.block_bytes
        );
        return Err(VolumeError::new(ErrorKind::Io, uri, what));
    }
    Ok(capacity.blocks.saturating_mul(capacity.block_bytes.into()))
}

/// From the pages Block Limits and Logical Block Provisioning (SBC-4 sections 6.6.4 and 6.6.7).
fn unmap_of(limits: &[u8; 64], provisioning: &[u8; 8]) -> Unmap {
    let (blocks_max, descriptors_max) = (be32(limits, 20), be32(limits, 24));
    // LBPU, LBPWS
    if provisioning[5] & 0x80 != 0 && blocks_max != 0 && descriptors_max != 0 {
        return Unmap::List { blocks_max };
    }
    if provisioning[5] & 0x40 != 0 {
        let said = u64::from_be_bytes([36, 37, 38, 39, 40, 41, 42, 43].map(|at| limits[at]));
        let blocks_max = match u32::try_from(said) {
            // No limit of its own: a gibibyte of 512-byte blocks at a time.
            Ok(0) | Err(_) => 1 << 21,
            Ok(blocks) => blocks,
        };
        return Unmap::WriteSame { blocks_max };
    }
    Unmap::No
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([0, 1, 2, 3].map(|n| bytes.get(at + n).copied().unwrap_or_default()))
}

/// What page Device Identification (SPC-5 section 7.7.6) says of the unit itself: others of its
/// designators are the port's, and differ from one portal to the next.
pub(super) fn identity_of(page: &[u8]) -> Vec<u8> {
    let mut identity = Vec::new();
    let said = page.get(2..4).map_or(0, |len| usize::from(u16::from_be_bytes([len[0], len[1]])));
    let mut rest = page.get(4..page.len().min(4 + said)).unwrap_or_default();
    while let Some(len) = rest.get(3) {
        let Some((designator, next)) = rest.split_at_checked(4 + usize::from(*len)) else { break };
        if designator[1] & 0x30 == 0 {
            identity.extend_from_slice(designator);
        }
        rest = next;
    }
    identity
}

/// The answer to READ CAPACITY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) blocks: u64,
    pub(super) block_bytes: u32,
    physical_exponent: u8,
    thin: bool,
}

impl Capacity {
    /// From READ CAPACITY(16)'s data.
    pub(super) fn parse(data: &[u8; 32]) -> Self {
        let last = u64::from_be_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| data[at]));
        Self {
            blocks: last.saturating_add(1),
            block_bytes: be32(data, 8),
            physical_exponent: data[13] & 0x0f,
            thin: data[14] & 0x80 != 0,
        }
    }
}

struct Mode {
    protected: bool,
    fua: bool,
    cache: bool,
}

struct Questions<'a> {
    uri: &'a str,
    control: &'a mut Control,
    deadline: Instant,
}

impl Questions<'_> {
    /// The data of a command that reads; none if the unit doesn't know it or fails it.
    fn read<const N: usize>(&mut self, command: &Command) -> Result<Option<[u8; N]>, VolumeError> {
        let mut data = [0; N];
        match self.control.run(command, &mut data, Some(self.deadline)) {
            Ok(Outcome::Done { missing_bytes }) if (missing_bytes as usize) < N => Ok(Some(data)),
            Ok(Outcome::Failed(crate::FENCED)) => {
                let what = "another initiator has reserved it (RESERVATION CONFLICT)";
                Err(VolumeError::new(ErrorKind::Busy, self.uri, what))
            }
            Ok(_) => Ok(None),
            Err(fault) => Err(told(self.uri, fault)),
        }
    }

    fn is_a_disk(&mut self) -> Result<(), VolumeError> {
        let wrong = |kind, what: &str| Err(VolumeError::new(kind, self.uri, what));
        // 36 bytes: what every unit has (SPC-5 section 6.7.2).
        let Some(data) = self.read::<36>(&Command::inquiry(None, 36))? else {
            return wrong(ErrorKind::Io, "it doesn't say what it is (INQUIRY)");
        };
        match (data[0] >> 5, data[0] & 0x1f) {
            (0, 0x00 | 0x0e) => Ok(()),
            (0, _) => wrong(ErrorKind::Unsupported, "it is no disk"),
            _ => wrong(ErrorKind::NotFound, "the target has no such logical unit"),
        }
    }

    fn capacity(&mut self) -> Result<Capacity, VolumeError> {
        if let Some(data) = self.read::<32>(&Command::read_capacity_16())? {
            return Ok(Capacity::parse(&data));
        }
        if let Some(data) = self.read::<8>(&Command::read_capacity_10())? {
            return Ok(Capacity {
                blocks: u64::from(be32(&data, 0)) + 1,
                block_bytes: be32(&data, 4),
                physical_exponent: 0,
                thin: false,
            });
        }
        Err(VolumeError::new(ErrorKind::Io, self.uri, "it doesn't say how large it is"))
    }

    fn mode(&mut self) -> Result<Mode, VolumeError> {
        // The caching page, or all of them.
        for page in [0x08, 0x3f] {
            let Some(data) = self.read::<192>(&Command::mode_sense(page, 192))? else { continue };
            let (protected, fua) = (data[2] & 0x80 != 0, data[2] & 0x10 != 0);
            return Ok(Mode { protected, fua, cache: write_cache(&data).unwrap_or(true) });
        }
        Ok(Mode { protected: false, fua: false, cache: true })
    }

    /// A vital product data page, as far as it goes.
    fn page<const N: usize>(&mut self, page: u8) -> Result<Option<[u8; N]>, VolumeError> {
        let data = self.read::<N>(&Command::inquiry(Some(page), N as u16))?;
        Ok(data.filter(|data| data[1] == page))
    }
}

/// Whether the caching page in MODE SENSE(6)'s data says that writes may be cached.
fn write_cache(data: &[u8]) -> Option<bool> {
    let mut at = 4 + usize::from(*data.get(3)?);
    let end = (usize::from(*data.first()?) + 1).min(data.len());
    while at + 2 < end {
        let (page, len) = (data[at] & 0x3f, usize::from(data[at + 1]));
        if page == 0x08 {
            return Some(data[at + 2] & 0x04 != 0);
        }
        at += 2 + len;
    }
    None
}

/// A fault as the volume's error.
pub(super) fn told(uri: &str, fault: Fault) -> VolumeError {
    VolumeError::new(fault.kind, uri, fault.what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caching_page_is_found_behind_others() {
        let data = [20, 0, 0x10, 0, 0x01, 2, 0, 0, 0x08, 10, 0x04, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(write_cache(&data), Some(true));
        assert_eq!(write_cache(&data[..8]), None);
        assert_eq!(write_cache(&[7, 0, 0, 0, 0x08, 10, 0, 0]), Some(false));
    }

    #[test]
    fn only_the_units_own_designators_say_who_it_is() {
        let page = [0, 0x83, 0, 16, 1, 3, 0, 2, 7, 8, 1, 0x14, 0, 1, 9, 2, 1, 0, 1, 6, 99];
        assert_eq!(identity_of(&page), [1, 3, 0, 2, 7, 8, 2, 1, 0, 1, 6]);
        assert_eq!(identity_of(&page[..18]), [1, 3, 0, 2, 7, 8], "cut off");
        assert!(identity_of(&[0, 0x83, 0, 4]).is_empty());
        assert!(identity_of(&[]).is_empty());
    }

    #[test]
    fn how_blocks_are_given_back() {
        let (mut limits, mut provisioning) = ([0; 64], [0; 8]);
        assert_eq!(unmap_of(&limits, &provisioning), Unmap::No);
        provisioning[5] = 0xc0;
        assert_eq!(
            unmap_of(&limits, &provisioning),
            Unmap::WriteSame { blocks_max: 1 << 21 },
            "a unit that says UNMAP and allows no blocks"
        );
        (limits[22], limits[27]) = (0x10, 1);
        assert_eq!(unmap_of(&limits, &provisioning), Unmap::List { blocks_max: 0x1000 });
    }

    #[test]
    fn capacity_of_a_thin_unit_with_4k_physical_blocks() {
        let mut data = [0; 32];
        (data[6], data[7], data[10], data[13], data[14]) = (0x3f, 0xff, 2, 3, 0x80);
        let capacity = Capacity::parse(&data);
        let Capacity { blocks, block_bytes, physical_exponent, thin } = capacity;
        assert_eq!((blocks, block_bytes, physical_exponent, thin), (0x4000, 512, 3, true));
    }
}
