//! Whatever a guest writes into its descriptors and request headers, walking and parsing them ends,
//! and what comes out lies in guest memory and on the disk.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use sealblk_virtqueue::blk::{self, DiskProfile, RangeLimits};
use sealblk_virtqueue::chain::{Limits, walk};
use sealblk_virtqueue::{Chain, DescTable, GuestMemory, Region};

const CAPACITY: u64 = 1 << 20;
const TABLE_LEN: u16 = 64;
const REGION: u64 = 64 << 10;

static MEMORY: LazyLock<Arc<GuestMemory>> = LazyLock::new(|| {
    // Two neighbours and one apart: spans cross regions, and fall between them.
    let region = |at| Region::anonymous(at, REGION).unwrap();
    let regions = vec![region(0), region(REGION), region(4 * REGION)];
    Arc::new(GuestMemory::new(regions).unwrap())
});

fuzz_target!(|data: &[u8]| {
    let [mode, features, head, rest @ ..] = data else { return };
    let memory = &*MEMORY;
    let size = rest.len().min(REGION as usize);
    memory.write(0, &rest[..size]).unwrap();
    // What the last input left behind must not decide.
    memory.write(size as u64, &vec![0; REGION as usize - size]).unwrap();

    let limits = RangeLimits { sectors_max: 4096, ranges_max: 16 };
    let profile = DiskProfile {
        capacity_sectors: CAPACITY,
        block_bytes: if mode & 1 == 0 { 512 } else { 4096 },
        physical_block_bytes: 4096,
        queues: 1,
        seg_max: 62,
        size_max_bytes: 1 << 20,
        read_only: mode & 2 != 0,
        discard: Some(limits),
        discard_alignment_sectors: 1,
        write_zeroes: Some(limits),
        write_zeroes_may_unmap: false,
        serial: [7; 20],
    };
    let features = if features & 1 == 0 { profile.features() } else { 0 };
    let table = DescTable::new(memory, 0, TABLE_LEN).unwrap();
    let walk_limits = Limits { descriptors_max: u32::from(TABLE_LEN), indirect: mode & 4 == 0 };
    let mut chain = Chain::default();
    if walk(memory, &table, u16::from(*head), walk_limits, &mut chain).is_err() {
        return;
    }
    let mut ranges = Vec::new();
    match blk::parse(memory, &mut chain, &profile, features, &mut ranges) {
        Ok(request) => {
            let block = u64::from(profile.block_bytes / 512);
            for range in &ranges {
                assert!(range.fits(CAPACITY) && range.sectors > 0);
                assert!(range.start % block == 0 && range.sectors % block == 0);
            }
            let mut bytes = 0;
            for span in request.data(&chain) {
                assert!(memory.read_span(*span, &mut vec![0; span.len]), "a span outside memory");
                bytes += span.len as u64;
            }
            if matches!(request.op, sealblk_block::Op::Read | sealblk_block::Op::Write) {
                assert_eq!(bytes, request.data_bytes);
                assert_eq!(bytes, ranges.iter().map(|range| range.sectors * 512).sum::<u64>());
            }
            request.finish(memory, sealblk_block::Status::Ok);
        }
        Err(refusal) => {
            refusal.answer(memory);
        }
    }
});
