use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use sealblk_block::{Extent, Op, Status};

use super::*;
use crate::chain::{Limits, walk};
use crate::testing::{DATA, DESC, END, NEXT, WRITE, memory, put_desc};
use crate::{Chain, DescTable, GuestMemory};

fn disk() -> DiskProfile {
    DiskProfile {
        capacity_sectors: 1024,
        block_bytes: 512,
        physical_block_bytes: 4096,
        queues: 4,
        seg_max: 4,
        size_max_bytes: 0x4000,
        read_only: false,
        discard: Some(RangeLimits { sectors_max: 64, ranges_max: 2 }),
        discard_alignment_sectors: 8,
        write_zeroes: Some(RangeLimits { sectors_max: 128, ranges_max: 2 }),
        write_zeroes_may_unmap: true,
        serial: *b"0123456789abcdefghij",
    }
}

/// Buffers of a chain: length and whether the device writes it.
type Buffers<'a> = &'a [(u32, bool)];

struct Guest {
    memory: Arc<GuestMemory>,
    disk: DiskProfile,
    features: u64,
    chain: Chain,
    ranges: Vec<Extent>,
    /// Guest address of the last byte of the last buffer.
    last: u64,
}

impl Guest {
    fn new() -> Self {
        let disk = disk();
        let features = disk.features();
        let (chain, ranges) = (Chain::default(), Vec::new());
        Self { memory: memory(), disk, features, chain, ranges, last: 0 }
    }

    /// Parses a chain of these buffers, the first filled with `readable` and so on.
    fn parse(&mut self, readable: &[u8], buffers: Buffers<'_>) -> Result<Request, Refusal> {
        let mut gpa = DATA;
        let mut left = readable;
        for (index, (len, write)) in buffers.iter().enumerate() {
            let flags = if *write { WRITE } else { 0 };
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            let at = DESC + index as u64 * 16;
            put_desc(&self.memory, at, gpa, *len, flags | more, index as u16 + 1);
            let (part, rest) = left.split_at(left.len().min(*len as usize));
            self.memory.write(gpa, part).unwrap();
            left = rest;
            gpa += u64::from(*len);
            self.last = gpa - 1;
            gpa += 7;
        }
        assert!(left.is_empty());
        self.memory.write(self.last, &[0xee]).unwrap();
        let table = DescTable::new(&self.memory, DESC, 64).unwrap();
        let limits = Limits { descriptors_max: 64, indirect: true };
        walk(&self.memory, &table, 0, limits, &mut self.chain).unwrap();
        parse(&self.memory, &mut self.chain, &self.disk, self.features, &mut self.ranges)
    }

    fn status(&self) -> u8 {
        let mut byte = [0];
        self.memory.read(self.last, &mut byte).unwrap();
        byte[0]
    }

    /// The request is refused with `status` and used length `used_len`.
    fn refuses(&mut self, readable: &[u8], buffers: Buffers<'_>, status: Status, used_len: u32) {
        let refusal = self.parse(readable, buffers).unwrap_err();
        assert_eq!(refusal.answer(&self.memory), used_len);
        assert_eq!((refusal.status(), self.status()), (status, status as u8));
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn range(kind: u32, ranges: &[(u64, u32, u32)]) -> Vec<u8> {
    let mut bytes = header(kind, 0);
    for (sector, sectors, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

#[test]
fn a_read_counts_its_data_and_the_status() {
    let mut guest = Guest::new();
    let request =
        guest.parse(&header(IN, 8), &[(16, false), (512, true), (1024, true), (1, true)]).unwrap();
    assert_eq!((request.op, request.data_bytes), (Op::Read, 1536));
    assert_eq!(guest.ranges, [Extent::new(8, 3)]);
    let lens = request.data(&guest.chain).iter().map(|span| span.len);
    assert_eq!(lens.collect::<Vec<_>>(), [512, 1024]);
    assert_eq!(request.finish(&guest.memory, Status::Ok), 1537);
    assert_eq!(guest.status(), 0);
    assert_eq!(request.finish(&guest.memory, Status::IoErr), 0, "the data may be unwritten");
    assert_eq!(guest.status(), 1);
}

#[test]
fn a_write_with_everything_in_one_buffer_each_way_is_understood() {
    let mut guest = Guest::new();
    let mut bytes = header(OUT, 1023);
    bytes.extend([7; 512]);
    let request = guest.parse(&bytes, &[(528, false), (1, true)]).unwrap();
    assert_eq!((request.op, request.data_bytes), (Op::Write, 512));
    let [data] = request.data(&guest.chain) else { panic!("one span") };
    let mut seen = [0; 512];
    assert!(guest.memory.read_span(*data, &mut seen));
    assert_eq!(seen, [7; 512]);
    assert_eq!(request.finish(&guest.memory, Status::Ok), 1);
}

#[test]
fn the_header_may_be_split_and_the_status_may_share_a_buffer_with_data() {
    let mut guest = Guest::new();
    let request =
        guest.parse(&header(IN, 1), &[(5, false), (11, false), (100, true), (413, true)]).unwrap();
    assert_eq!(
        (request.data_bytes, guest.ranges.as_slice()),
        (512, [Extent::new(1, 1)].as_slice())
    );
    assert_eq!(request.finish(&guest.memory, Status::Ok), 513);
    assert_eq!(guest.status(), 0);
}

#[test]
fn without_room_for_a_status_nothing_is_written() {
    let mut guest = Guest::new();
    let refusal = guest.parse(&header(FLUSH, 0), &[(16, false), (4, false)]).unwrap_err();
    assert_eq!(refusal.answer(&guest.memory), 0);
    assert_eq!(guest.status(), 0xee);
}

#[test]
fn requests_outside_of_the_disk_or_its_blocks_are_io_errors() {
    let mut guest = Guest::new();
    for sector in [1024, 1023, u64::MAX, u64::MAX - 1] {
        guest.refuses(
            &header(IN, sector),
            &[(16, false), (1024, true), (1, true)],
            Status::IoErr,
            0,
        );
        let buffers = [(16, false), (1024, false), (1, true)];
        guest.refuses(&header(OUT, sector), &buffers, Status::IoErr, 1);
    }
    guest.refuses(&header(IN, 0), &[(16, false), (511, true), (1, true)], Status::IoErr, 0);
    guest.refuses(&header(IN, 0), &[(15, false), (512, true), (1, true)], Status::IoErr, 0);
    guest.disk.block_bytes = 4096;
    guest.refuses(&header(IN, 1), &[(16, false), (4096, true), (1, true)], Status::IoErr, 0);
    guest.refuses(&header(IN, 0), &[(16, false), (512, true), (1, true)], Status::IoErr, 0);
    guest.refuses(&range(DISCARD, &[(1, 8, 0)]), &[(32, false), (1, true)], Status::IoErr, 1);
    assert!(guest.parse(&header(IN, 8), &[(16, false), (4096, true), (1, true)]).is_ok());
}

#[test]
fn data_in_the_wrong_direction_is_an_io_error() {
    let mut guest = Guest::new();
    guest.refuses(&header(OUT, 0), &[(16, false), (512, true), (1, true)], Status::IoErr, 0);
    guest.refuses(&header(IN, 0), &[(16, false), (512, false), (1, true)], Status::IoErr, 1);
}

#[test]
fn limits_bind_the_driver_that_acknowledged_them() {
    let mut guest = Guest::new();
    let many: Vec<(u32, bool)> =
        [(16, false)].into_iter().chain([(512, true); 5]).chain([(1, true)]).collect();
    let large = [(16, false), (0x4200, true), (1, true)];
    for buffers in [&many[..], &large[..]] {
        guest.refuses(&header(IN, 0), buffers, Status::IoErr, 0);
    }
    guest.features &= !(F_SEG_MAX | F_SIZE_MAX);
    for buffers in [&many[..], &large[..]] {
        assert!(guest.parse(&header(IN, 0), buffers).is_ok());
    }
}

#[test]
fn empty_reads_have_nothing_to_do() {
    let mut guest = Guest::new();
    let request = guest.parse(&header(IN, 1024), &[(16, false), (1, true)]).unwrap();
    assert!(guest.ranges.is_empty());
    assert_eq!(request.finish(&guest.memory, Status::Ok), 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut guest = Guest::new();
    guest.disk.read_only = true;
    assert_eq!(guest.disk.features() & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
    guest.refuses(&header(OUT, 0), &[(16, false), (512, false), (1, true)], Status::IoErr, 1);
    for kind in [DISCARD, WRITE_ZEROES] {
        guest.refuses(&range(kind, &[(0, 8, 0)]), &[(32, false), (1, true)], Status::IoErr, 1);
    }
    assert!(guest.parse(&header(IN, 0), &[(16, false), (512, true), (1, true)]).is_ok());
    assert_eq!(guest.parse(&header(FLUSH, 0), &[(16, false), (1, true)]).unwrap().op, Op::Flush);
}

#[test]
fn discards_and_write_zeroes_list_their_ranges() {
    let mut guest = Guest::new();
    let buffers = [(16, false), (20, false), (12, false), (1, true)];
    let request = guest.parse(&range(DISCARD, &[(0, 8, 0), (960, 64, 0)]), &buffers).unwrap();
    assert_eq!((request.op, request.data_bytes), (Op::Discard, 0));
    assert_eq!(guest.ranges, [Extent::new(0, 8), Extent::new(960, 64)]);
    assert_eq!(request.finish(&guest.memory, Status::Ok), 1);
    for (flags, unmap) in [([1, 1], true), ([1, 0], false), ([0, 0], false)] {
        let zeroes = range(WRITE_ZEROES, &[(0, 128, flags[0]), (500, 0, flags[1])]);
        let request = guest.parse(&zeroes, &buffers).unwrap();
        assert_eq!(request.op, Op::WriteZeroes { unmap });
        assert_eq!(guest.ranges, [Extent::new(0, 128)], "an empty range has nothing to do");
    }
}

#[test]
fn bad_ranges_are_refused() {
    let mut guest = Guest::new();
    let one = [(32, false), (1, true)];
    let io_errors = [(0, 65, 0), (1020, 8, 0), (u64::MAX, 8, 0), (1025, 0, 0)];
    for bad in io_errors {
        guest.refuses(&range(DISCARD, &[bad]), &one, Status::IoErr, 1);
    }
    for (kind, flags) in [(DISCARD, 1), (DISCARD, 2), (WRITE_ZEROES, 2), (WRITE_ZEROES, 3)] {
        guest.refuses(&range(kind, &[(0, 8, flags)]), &one, Status::Unsupported, 1);
    }
    let three = range(DISCARD, &[(0, 8, 0); 3]);
    guest.refuses(&three, &[(64, false), (1, true)], Status::IoErr, 1);
    guest.refuses(&range(DISCARD, &[]), &[(16, false), (1, true)], Status::IoErr, 1);
    guest.refuses(&range(DISCARD, &[]), &[(31, false), (1, true)], Status::IoErr, 1);
    guest.features &= !(F_DISCARD | F_WRITE_ZEROES);
    guest.refuses(&range(DISCARD, &[(0, 8, 0)]), &one, Status::Unsupported, 1);
    guest.refuses(&range(WRITE_ZEROES, &[(0, 8, 0)]), &one, Status::Unsupported, 1);
}

#[test]
fn the_serial_is_written_where_there_is_room_for_all_of_it() {
    let mut guest = Guest::new();
    let split = [(16, false), (3, true), (18, true)];
    let request = guest.parse(&header(GET_ID, 0), &split).unwrap();
    let status = write_id(&guest.memory, &request, &guest.chain, &guest.disk);
    assert_eq!(status, Status::Ok);
    assert_eq!(request.finish(&guest.memory, status), 21);
    let mut seen = [0; 17];
    guest.memory.read(DATA + 16 + 7 + 3 + 7, &mut seen).unwrap();
    assert_eq!(&seen, b"3456789abcdefghij");
    let roomy = guest.parse(&header(GET_ID, 0), &[(16, false), (64, true)]).unwrap();
    assert_eq!(roomy.finish(&guest.memory, Status::Ok), 20, "the bytes behind are not written");
    guest.refuses(&header(GET_ID, 0), &[(16, false), (1, true)], Status::IoErr, 1);
    guest.refuses(&header(GET_ID, 0), &[(16, false), (19, true), (1, true)], Status::IoErr, 0);
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut guest = Guest::new();
    for kind in [2, 3, 5, 9, 10, 12, 14, 0x8000_0000, u32::MAX] {
        guest.refuses(&header(kind, 0), &[(16, false), (1, true)], Status::Unsupported, 1);
    }
}

#[test]
fn the_configuration_space_is_the_specifications() {
    let space = disk().config(true);
    let number = |at: usize, len: usize| {
        space[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let fields = [
        (0, 8, 1024),
        (8, 4, 0x4000),
        (12, 4, 4),
        (16, 4, 0),
        (20, 4, 512),
        (24, 1, 3),
        (25, 1, 0),
        (26, 2, 8),
        (28, 4, 0),
        (32, 1, 1),
        (34, 2, 4),
        (36, 4, 64),
        (40, 4, 2),
        (44, 4, 8),
        (48, 4, 128),
        (52, 4, 2),
        (56, 1, 1),
    ];
    for (at, len, value) in fields {
        assert_eq!(number(at, len), value, "field at {at}");
    }
    assert_eq!(disk().config(false)[32], 0);
    assert_eq!(parse_set_config(32, &[1]), Some(true));
    assert_eq!(parse_set_config(32, &[0]), Some(false));
    for (offset, bytes) in [(32, &[2][..]), (32, &[]), (32, &[1, 0]), (0, &[1])] {
        assert_eq!(parse_set_config(offset, bytes), None);
    }
}

#[test]
fn features_follow_the_disk() {
    let mut disk = disk();
    assert_eq!(disk.features(), 0x1_7000_7e46);
    disk.queues = 1;
    disk.discard = None;
    assert_eq!(disk.features(), 0x1_7000_4e46);
}

proptest! {
    #[test]
    fn whatever_a_chain_holds_a_request_stays_inside_the_disk(
        head in vec(any::<u8>(), 16..80),
        kind in prop_oneof![Just(IN), Just(OUT), Just(DISCARD), Just(WRITE_ZEROES), any::<u32>()],
        sector in prop_oneof![0u64..1030, any::<u64>()],
        lens in vec((0u32..0x4400, any::<bool>()), 1..6),
        block_bytes in prop_oneof![Just(512u32), Just(4096)],
        at in DATA..END,
    ) {
        let mut guest = Guest::new();
        guest.disk.block_bytes = block_bytes;
        let mut bytes = head;
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        let mut descs = vec![(DATA, bytes.len() as u32, 0)];
        descs.extend(lens.iter().map(|(len, write)| (at, *len, if *write { WRITE } else { 0 })));
        guest.memory.write(DATA, &bytes).unwrap();
        for (index, (gpa, len, flags)) in descs.iter().enumerate() {
            let more = if index + 1 < descs.len() { NEXT } else { 0 };
            let entry = DESC + index as u64 * 16;
            put_desc(&guest.memory, entry, *gpa, *len, flags | more, index as u16 + 1);
        }
        let table = DescTable::new(&guest.memory, DESC, 64).unwrap();
        let limits = Limits { descriptors_max: 64, indirect: true };
        walk(&guest.memory, &table, 0, limits, &mut guest.chain).unwrap();
        let writable: u64 = lens.iter().filter(|(_, write)| *write).map(|(len, _)| u64::from(*len)).sum();
        let Guest { memory, disk, features, chain, ranges, .. } = &mut guest;
        match parse(memory, chain, disk, *features, ranges) {
            Ok(request) => {
                for extent in ranges.iter() {
                    prop_assert!(extent.sectors > 0 && extent.fits(disk.capacity_sectors));
                    prop_assert_eq!((extent.start * 512) % u64::from(block_bytes), 0);
                    prop_assert_eq!((extent.sectors * 512) % u64::from(block_bytes), 0);
                }
                let data: u64 = request.data(chain).iter().map(|span| span.len as u64).sum();
                prop_assert_eq!(data, request.data_bytes);
                if matches!(request.op, Op::Read | Op::Write) {
                    let sectors: u64 = ranges.iter().map(|extent| extent.sectors).sum();
                    prop_assert_eq!(sectors * 512, data);
                }
                prop_assert!(u64::from(request.finish(memory, Status::Ok)) <= writable);
            }
            Err(refusal) => prop_assert!(u64::from(refusal.answer(memory)) <= writable.min(1)),
        }
    }
}
