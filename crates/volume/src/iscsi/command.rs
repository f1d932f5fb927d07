//! SCSI commands as bytes (SBC-4, SPC-5).
//!
//! Contract: plain data; who sends them keeps their memory. Only what the driver needs is here.

use super::library::Direction;

/// A command descriptor block and how much data goes which way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub(super) cdb: [u8; 16],
    /// Bytes of `cdb` in use: 6, 10 or 16.
    pub(super) cdb_len: u8,
    pub(super) direction: Direction,
    pub(super) data_bytes: u32,
}

impl Command {
    fn new(cdb_len: u8, opcode: u8, direction: Direction, data_bytes: u32) -> Self {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        Self { cdb, cdb_len, direction, data_bytes }
    }

    fn at(mut self, lba: u64, blocks: u32) -> Self {
        self.cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        self.cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        self
    }

    /// READ(16).
    pub(super) fn read(lba: u64, blocks: u32, bytes: u32) -> Self {
        Self::new(16, 0x88, Direction::In, bytes).at(lba, blocks)
    }

    /// WRITE(16); `fua`: on the medium before it completes.
    pub(super) fn write(lba: u64, blocks: u32, bytes: u32, fua: bool) -> Self {
        let mut command = Self::new(16, 0x8a, Direction::Out, bytes).at(lba, blocks);
        command.cdb[1] = if fua { 0x08 } else { 0 };
        command
    }

    /// SYNCHRONIZE CACHE(16) or (10), of the whole unit.
    pub(super) fn synchronize_cache(short: bool) -> Self {
        if short {
            Self::new(10, 0x35, Direction::None, 0)
        } else {
            Self::new(16, 0x91, Direction::None, 0)
        }
    }

    /// UNMAP, with a list of [`unmap_list`]'s length.
    pub(super) fn unmap() -> Self {
        let mut command = Self::new(10, 0x42, Direction::Out, UNMAP_BYTES as u32);
        command.cdb[7..9].copy_from_slice(&(UNMAP_BYTES as u16).to_be_bytes());
        command
    }

    /// WRITE SAME(16) with the UNMAP bit, of one block of zeroes.
    pub(super) fn write_same_unmap(lba: u64, blocks: u32, block_bytes: u32) -> Self {
        let mut command = Self::new(16, 0x93, Direction::Out, block_bytes).at(lba, blocks);
        command.cdb[1] = 0x08;
        command
    }

    /// TEST UNIT READY.
    pub(super) fn test_unit_ready() -> Self {
        Self::new(6, 0x00, Direction::None, 0)
    }

    /// INQUIRY, standard or of a vital product data page.
    pub(super) fn inquiry(page: Option<u8>, bytes: u16) -> Self {
        let mut command = Self::new(6, 0x12, Direction::In, u32::from(bytes));
        (command.cdb[1], command.cdb[2]) = page.map_or((0, 0), |page| (1, page));
        command.cdb[3..5].copy_from_slice(&bytes.to_be_bytes());
        command
    }

    /// MODE SENSE(6) of a page, without block descriptors.
    pub(super) fn mode_sense(page: u8, bytes: u8) -> Self {
        let mut command = Self::new(6, 0x1a, Direction::In, u32::from(bytes));
        (command.cdb[1], command.cdb[2], command.cdb[4]) = (0x08, page, bytes);
        command
    }

    /// READ CAPACITY(16): 32 bytes.
    pub(super) fn read_capacity_16() -> Self {
        let mut command = Self::new(16, 0x9e, Direction::In, 32);
        (command.cdb[1], command.cdb[13]) = (0x10, 32);
        command
    }

    /// READ CAPACITY(10): 8 bytes.
    pub(super) fn read_capacity_10() -> Self {
        Self::new(10, 0x25, Direction::In, 8)
    }
}

/// Length in bytes of an UNMAP parameter list with one descriptor.
pub(super) const UNMAP_BYTES: usize = 24;

/// UNMAP's parameter list for one range.
pub(super) fn unmap_list(lba: u64, blocks: u32) -> [u8; UNMAP_BYTES] {
    let mut list = [0; UNMAP_BYTES];
    list[0..2].copy_from_slice(&(UNMAP_BYTES as u16 - 2).to_be_bytes());
    list[2..4].copy_from_slice(&16u16.to_be_bytes());
    list[8..16].copy_from_slice(&lba.to_be_bytes());
    list[16..20].copy_from_slice(&blocks.to_be_bytes());
    list
}
