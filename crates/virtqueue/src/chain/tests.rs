use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::testing::{DATA, DESC, END, INDIRECT, NEXT, WRITE, memory, put_desc};

const SIZE: u16 = 8;
const LIMITS: Limits = Limits { descriptors_max: 64, indirect: true };

/// Walks from descriptor 0 of a table with these (address, length, flags, next).
fn walk_table(descs: &[(u64, u32, u16, u16)]) -> (Arc<GuestMemory>, Chain, Result<(), ChainError>) {
    let memory = memory();
    for (index, (gpa, len, flags, next)) in descs.iter().enumerate() {
        put_desc(&memory, DESC + index as u64 * 16, *gpa, *len, *flags, *next);
    }
    let table = DescTable::new(&memory, DESC, SIZE).unwrap();
    let mut chain = Chain::default();
    let result = walk(&memory, &table, 0, LIMITS, &mut chain);
    (memory, chain, result)
}

#[test]
fn an_indirect_table_after_a_direct_descriptor_is_followed_at_any_address() {
    let memory = memory();
    let at = DATA + 5;
    put_desc(&memory, DESC, DATA + 0x100, 16, NEXT, 3);
    put_desc(&memory, DESC + 3 * 16, at, 3 * 16, INDIRECT | WRITE, 0);
    put_desc(&memory, at, DATA + 0x200, 512, NEXT, 2);
    put_desc(&memory, at + 32, DATA + 0x800, 1, WRITE, 0);
    let table = DescTable::new(&memory, DESC, SIZE).unwrap();
    let mut chain = Chain::default();
    walk(&memory, &table, 0, LIMITS, &mut chain).unwrap();
    assert!(!chain.is_faulty());
    assert_eq!((chain.readable_bytes(), chain.writable_bytes()), (528, 1));
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 1));
    assert_eq!((chain.descriptors(), chain.largest_bytes()), (3, 512));
    let direct = Limits { indirect: false, ..LIMITS };
    assert_eq!(walk(&memory, &table, 0, direct, &mut chain), Err(ChainError::Indirect));
}

#[test]
fn links_that_make_no_sense_are_errors() {
    let (_, _, looped) = walk_table(&[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]);
    assert_eq!(looped, Err(ChainError::TooLong { limit: 8 }));
    let (_, _, away) = walk_table(&[(DATA, 1, NEXT, 8)]);
    assert_eq!(away, Err(ChainError::Index { index: 8, len: 8 }));
    let (_, _, both) = walk_table(&[(DATA, 16, INDIRECT | NEXT, 1)]);
    assert_eq!(both, Err(ChainError::Indirect));
    for bytes in [0, 15, 17, u32::MAX] {
        let (_, _, odd) = walk_table(&[(DATA, bytes, INDIRECT, 0)]);
        assert_eq!(odd, Err(ChainError::TableBytes { bytes }));
    }
    let (_, _, outside) = walk_table(&[(END - 16, 32, INDIRECT, 0)]);
    assert_eq!(outside, Err(ChainError::TableAddress { gpa: END - 16 }));
    let (_, _, top) = walk_table(&[(u64::MAX - 15, 32, INDIRECT, 0)]);
    assert_eq!(top, Err(ChainError::TableAddress { gpa: u64::MAX - 15 }));
    // The table lies in the descriptor table itself: entry 0 is the indirect one again.
    let (_, _, nested) = walk_table(&[(DESC, 16, INDIRECT, 0)]);
    assert_eq!(nested, Err(ChainError::Indirect));
    // Entry 0 of the table at descriptor 1 links to itself.
    let (_, _, indirect_loop) = walk_table(&[(DESC + 16, 32, INDIRECT, 0), (DATA, 1, NEXT, 0)]);
    assert_eq!(indirect_loop, Err(ChainError::TooLong { limit: 2 }));
}

#[test]
fn bad_buffers_leave_the_status_byte_reachable() {
    for first in [(0, 8, NEXT, 1), (u64::MAX, 8, NEXT, 1), (END - 4, 8, NEXT | WRITE, 1)] {
        let (memory, mut chain, result) = walk_table(&[first, (DATA, 4, WRITE, 0)]);
        assert_eq!(result, Ok(()));
        assert!(chain.is_faulty());
        let status = chain.take_status(&memory).unwrap();
        assert!(memory.write_span(status, b"!"));
        let mut bytes = [0; 4];
        memory.read(DATA, &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0\0!");
    }
    let (_, chain, result) = walk_table(&[(DATA, 4, WRITE | NEXT, 1), (DATA, 4, 0, 0)]);
    assert_eq!((result, chain.is_faulty()), (Ok(()), true), "readable after writable");
    let (memory, mut chain, _) = walk_table(&[(DATA, 4, NEXT, 1), (0, 4, WRITE, 0)]);
    assert_eq!(chain.take_status(&memory), None);
}

#[test]
fn empty_descriptors_are_passed_over() {
    let (_, chain, result) =
        walk_table(&[(0, 0, NEXT, 1), (DATA, 4, NEXT, 2), (u64::MAX, 0, WRITE, 0)]);
    assert_eq!((result, chain.is_faulty()), (Ok(()), false));
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 0));
}

fn hostile_desc() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let gpa = prop_oneof![
        4 => DATA..END,
        2 => (0u64..8).prop_map(|index| DESC + index * 16),
        1 => any::<u64>(),
        1 => END - 32..END + 32,
    ];
    let len =
        prop_oneof![3 => 0u32..0x1000, 2 => (0u32..8).prop_map(|n| n * 16), 1 => any::<u32>()];
    (gpa, len, 0u16..8, 0u16..10)
}

proptest! {
    #[test]
    fn any_table_ends_and_yields_memory_of_the_guest_only(
        descs in vec(hostile_desc(), 8),
        head in 0u16..10,
        indirect: bool,
    ) {
        let memory = memory();
        for (index, (gpa, len, flags, next)) in descs.iter().enumerate() {
            put_desc(&memory, DESC + index as u64 * 16, *gpa, *len, *flags, *next);
        }
        let table = DescTable::new(&memory, DESC, SIZE).unwrap();
        let mut chain = Chain::default();
        let limits = Limits { descriptors_max: 16, indirect };
        if walk(&memory, &table, head, limits, &mut chain).is_ok() {
            let spans = chain.readable().iter().chain(chain.writable());
            let mut bytes = 0;
            for span in spans {
                prop_assert!(span.len > 0);
                prop_assert!(memory.read_span(*span, &mut vec![0; span.len]));
                bytes += span.len as u64;
            }
            if !chain.is_faulty() {
                prop_assert_eq!(bytes, chain.readable_bytes() + chain.writable_bytes());
            }
            prop_assert!(chain.descriptors() <= 16);
        }
    }

    #[test]
    fn a_well_formed_chain_is_its_buffers_in_order(
        readable in vec(1u32..600, 0..4),
        writable in vec(1u32..600, 0..4),
        taken in 0usize..64,
    ) {
        let buffers: Vec<(u32, u16)> =
            readable.iter().map(|len| (*len, 0)).chain(writable.iter().map(|len| (*len, WRITE))).collect();
        prop_assume!(!buffers.is_empty());
        let mut gpa = DATA;
        let mut descs = Vec::new();
        for (index, (len, flags)) in buffers.iter().enumerate() {
            let more = if index + 1 < buffers.len() { NEXT } else { 0 };
            descs.push((gpa, *len, flags | more, index as u16 + 1));
            gpa += u64::from(*len) + 3;
        }
        let (memory, mut chain, result) = walk_table(&descs);
        prop_assert_eq!(result, Ok(()));
        let lens = |spans: &[Span]| spans.iter().map(|span| span.len as u32).collect::<Vec<_>>();
        prop_assert_eq!(lens(chain.readable()), readable.clone());
        prop_assert_eq!(lens(chain.writable()), writable);
        let total: u64 = readable.iter().map(|len| u64::from(*len)).sum();
        let fits = taken as u64 <= total;
        prop_assert_eq!(chain.take_front(&memory, &mut vec![0; taken]), fits);
        if fits {
            prop_assert_eq!(chain.readable_bytes(), total - taken as u64);
            let left: u32 = lens(chain.readable()).iter().sum();
            prop_assert_eq!(u64::from(left), total - taken as u64);
        }
    }
}
