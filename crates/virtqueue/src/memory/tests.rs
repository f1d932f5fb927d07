use std::fs::File;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;

fn file(bytes: u64) -> File {
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, bytes).unwrap();
    file.into()
}

fn two() -> GuestMemory {
    // Adjacent in the guest, far apart elsewhere; a hole behind them.
    let low = Region::anonymous(0x1000, 0x1000).unwrap();
    let high = Region::map(file(0x3000), 0x2000, 0x9000_0000, 0x1000, 0x1000).unwrap();
    GuestMemory::new(vec![high, low]).unwrap()
}

#[test]
fn a_range_goes_on_in_the_next_region() {
    let memory = two();
    let mut spans = Vec::new();
    memory.spans(0x1ff8, 24, &mut spans).unwrap();
    assert_eq!(spans.iter().map(|span| span.len).collect::<Vec<_>>(), [8, 16]);
    memory.write(0x1ff8, b"abcdefghijklmnopqrstuvwx").unwrap();
    let mut back = [0; 24];
    memory.read(0x1ff8, &mut back).unwrap();
    assert_eq!(&back, b"abcdefghijklmnopqrstuvwx");
}

#[test]
fn a_byte_outside_fails_the_whole_range() {
    let memory = two();
    let mut spans = Vec::new();
    for (gpa, len) in [
        (0xfff, 2),
        (0x2fff, 2),
        (0x1000, 0x2001),
        (0, 1),
        (0x3000, 1),
        (u64::MAX, 1),
        (8, u64::MAX),
    ] {
        let outside = memory.spans(gpa, len, &mut spans);
        assert_eq!(outside, Err(OutsideMemory { gpa, len }));
        assert!(spans.is_empty());
    }
    memory.spans(0x1000, 0x2000, &mut spans).unwrap();
    memory.spans(0xffff_ffff, 0, &mut spans).unwrap();
}

#[test]
fn spans_that_are_not_this_memorys_are_not_touched() {
    let memory = two();
    let mut byte = [0];
    let elsewhere = Span { addr: byte.as_mut_ptr().expose_provenance(), len: 1 };
    assert!(!memory.write_span(elsewhere, b"x"));
    assert!(!memory.read_span(elsewhere, &mut [0]));
    let mut last = Span::default();
    memory.each_span(0x2fff, 1, |span| last = span).unwrap();
    assert!(memory.write_span(last, b"x"));
    assert!(!memory.write_span(last, b"xy"), "longer than the span");
    assert!(!memory.write_span(Span { len: 2, ..last }, b"xy"), "longer than the region");
}

#[test]
fn front_end_addresses_stay_inside_one_region() {
    let memory = two();
    assert_eq!(memory.from_user(0x9000_0ff0, 16).map(|span| span.len), Some(16));
    assert_eq!(memory.from_user(0x9000_0ff0, 17), None);
    assert_eq!(memory.from_user(0x1ff8, 16), None);
    assert_eq!(memory.from_user(u64::MAX, 2), None);
}

#[test]
fn a_region_longer_than_its_file_is_refused() {
    let file = file(0x2000);
    assert!(Region::map(&file, 0, 0, 0x2000, 0).is_ok());
    for (size, offset) in [(0x2001, 0), (0x2000, 1), (0, 0), (1, u64::MAX), (u64::MAX, 0)] {
        let refused = Region::map(&file, 0, 0, size, offset);
        assert!(matches!(refused, Err(MemoryError::Map { .. })), "{size:#x} at {offset:#x}");
    }
    let top = Region::map(&file, u64::MAX - 0xfff, 0, 0x1000, 0);
    assert!(matches!(top, Err(MemoryError::Overflow { .. })));
}

#[test]
fn an_unaligned_offset_finds_its_bytes() {
    let file = file(0x3000);
    let whole = GuestMemory::new(vec![Region::map(&file, 0, 0, 0x3000, 0).unwrap()]).unwrap();
    let part = GuestMemory::new(vec![Region::map(&file, 0, 0, 0x800, 0x1801).unwrap()]).unwrap();
    part.write(0, b"here").unwrap();
    let mut back = [0; 4];
    whole.read(0x1801, &mut back).unwrap();
    assert_eq!(&back, b"here");
}

#[test]
fn overlapping_regions_are_refused_in_both_address_spaces() {
    let region = |gpa, uva| Region::map(file(0x1000), gpa, uva, 0x1000, 0).unwrap();
    let pair = |a, b| GuestMemory::new(vec![a, b]);
    assert!(pair(region(0, 0), region(0x1000, 0x1000)).is_ok());
    assert!(matches!(
        pair(region(0, 0), region(0xfff, 0x1000)),
        Err(MemoryError::Overlap(0, 0xfff))
    ));
    assert!(matches!(pair(region(0, 8), region(0x1000, 0)), Err(MemoryError::Overlap(..))));
}

#[test]
fn regions_come_and_go_one_by_one() {
    let memory = two();
    let third = Region::anonymous(0x8000, 0x1000).unwrap();
    let more = memory.with_added(Arc::clone(&third)).unwrap();
    assert_eq!(more.regions().len(), 3);
    assert!(more.with_added(third).is_err(), "it is there already");
    let less = more.without(0x2000, 0x9000_0000, 0x1000).unwrap();
    assert!(less.read(0x2000, &mut [0]).is_err());
    assert!(more.read(0x2000, &mut [0]).is_ok(), "the older memory still holds it");
    for (gpa, uva, size) in [(0x2000, 0x9000_0000, 0x2000), (0x2000, 0, 0x1000), (0, 0, 0)] {
        assert!(matches!(more.without(gpa, uva, size), Err(MemoryError::NoSuchRegion { .. })));
    }
}

#[test]
fn an_empty_memory_holds_nothing() {
    assert!(GuestMemory::default().read(0, &mut [0]).is_err());
    assert!(GuestMemory::default().from_user(0, 1).is_none());
}
