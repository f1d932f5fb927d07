//! Maps of several segments, and specifications that contradict themselves.

use super::*;
use crate::encrypt_in_place;

fn key(seed: u8, bytes: usize) -> Arc<SecretBytes> {
    let bytes: Vec<u8> = (0..bytes).map(|i| i as u8 ^ seed).collect();
    Arc::new(SecretBytes::copy_from(&bytes).unwrap())
}

/// 4096-byte sectors under one key, then 512-byte ones under another, then plaintext.
fn three() -> Vec<SegmentSpec> {
    vec![
        SegmentSpec {
            start: 0,
            sectors: 64,
            volume_start: 32768,
            iv_start: 0,
            sector_bytes: 4096,
            crypt: Some((Algorithm::Aes256XtsPlain64, key(1, 64))),
        },
        SegmentSpec {
            start: 64,
            sectors: 3,
            volume_start: 40000,
            iv_start: 1 << 33,
            sector_bytes: 512,
            crypt: Some((Algorithm::Aes128XtsPlain64, key(2, 32))),
        },
        SegmentSpec {
            start: 67,
            sectors: 10,
            volume_start: 7,
            iv_start: 0,
            sector_bytes: 512,
            crypt: None,
        },
    ]
}

#[test]
fn an_extent_is_split_where_segments_meet() {
    let mut map = KeyMap::new(&three(), Implementation::Auto).unwrap();
    assert_eq!(map.capacity(), 77);
    assert_eq!(map.sector_bytes(), 4096);
    let mut parts = Vec::new();
    let (mut start, end) = (56, 77);
    while start < end {
        let route = map.route(Extent::new(start, end - start)).unwrap();
        let sector_bytes = route.cipher.map(|cipher| cipher.sector_bytes());
        parts.push((start, route.sectors, route.volume_sector, route.iv, sector_bytes));
        start += route.sectors;
    }
    assert_eq!(
        parts,
        [
            (56, 8, 32768 + 56, 56, Some(4096)),
            (64, 3, 40000, 1 << 33, Some(512)),
            (67, 10, 7, 0, None),
        ]
    );
}

#[test]
fn an_extent_inside_a_segment_is_one_part() {
    let mut map = KeyMap::new(&three(), Implementation::Auto).unwrap();
    let route = map.route(Extent::new(65, 1)).unwrap();
    assert_eq!((route.sectors, route.volume_sector, route.iv), (1, 40001, (1 << 33) + 1));
}

#[test]
fn segments_have_keys_of_their_own() {
    let mut specs = three();
    specs.truncate(2);
    specs[1].sectors = 64;
    specs[1].iv_start = 0;
    specs[1].crypt = Some((Algorithm::Aes256XtsPlain64, key(3, 64)));
    specs[0].sector_bytes = 512;
    let mut map = KeyMap::new(&specs, Implementation::Auto).unwrap();
    let mut sealed = [0, 64].map(|start| {
        let route = map.route(Extent::new(start, 1)).unwrap();
        let mut sector = vec![0u8; 512];
        encrypt_in_place(route.cipher.unwrap(), route.iv, &mut sector);
        sector
    });
    assert_ne!(sealed[0], sealed[1]);
    sealed.sort_unstable();
    assert!(sealed.iter().all(|sector| *sector != [0; 512]));
}

#[test]
fn nothing_lies_past_the_capacity() {
    let mut map = KeyMap::new(&three(), Implementation::Auto).unwrap();
    assert!(map.route(Extent::new(77, 1)).is_none());
    assert!(map.route(Extent::new(u64::MAX, 8)).is_none());
    assert!(map.route(Extent::new(0, 0)).is_none());
    assert_eq!(map.route(Extent::new(70, u64::MAX)).unwrap().sectors, 7);
}

#[test]
#[should_panic(expected = "cut an encryption sector")]
fn a_misaligned_extent_is_a_broken_invariant() {
    let mut map = KeyMap::new(&three(), Implementation::Auto).unwrap();
    map.route(Extent::new(4, 8));
}

#[test]
fn contradictions_are_refused_with_the_segment_named() {
    let mut cases: Vec<(usize, Vec<SegmentSpec>)> = vec![(0, Vec::new())];
    let mut case = |index: usize, change: fn(&mut SegmentSpec)| {
        let mut specs = three();
        change(&mut specs[index]);
        cases.push((index, specs));
    };
    case(0, |spec| spec.start = 8);
    case(0, |spec| spec.sectors = 60);
    case(0, |spec| spec.iv_start = 4);
    case(1, |spec| spec.start = 65);
    case(1, |spec| spec.start = 63);
    case(1, |spec| spec.sectors = 0);
    case(1, |spec| spec.iv_start = u64::MAX - 2);
    case(2, |spec| spec.volume_start = u64::MAX - 9);
    case(2, |spec| spec.sectors = u64::MAX - 66);
    for (index, specs) in cases {
        match KeyMap::new(&specs, Implementation::Auto) {
            Err(CipherError::Segment { index: named, .. }) => assert_eq!(named, index),
            other => panic!("segment {index} of {specs:?}: {other:?}"),
        }
    }
    let mut specs = three();
    specs[2].sector_bytes = 0;
    assert!(matches!(KeyMap::new(&specs, Implementation::Auto), Err(CipherError::SectorSize(0))));
}

#[test]
fn debug_output_has_no_key_in_it() {
    let specs = three();
    let map = KeyMap::new(&specs, Implementation::Auto).unwrap();
    assert!(format!("{specs:?}").contains("SecretBytes(64 bytes)"));
    let shown = format!("{specs:?} {map:?}");
    // The key of the first segment is 01 00 03 02 05 04 ...
    assert!(!shown.contains("1, 0, 3, 2") && !shown.contains("01000302"), "{shown}");
}

#[test]
fn a_map_grows_at_its_end_and_nowhere_else() {
    let mut specs = three();
    let mut grown = KeyMap::new(&specs, Implementation::Auto).unwrap();
    grown.grow(100).unwrap();
    assert_eq!(grown.capacity(), 100);
    specs[2].sectors += 23;
    let mut made = KeyMap::new(&specs, Implementation::Auto).unwrap();
    for start in 0..100 {
        if start < 64 && start % 8 != 0 {
            continue;
        }
        let place = |map: &mut KeyMap| {
            let route = map.route(Extent::new(start, 100 - start)).unwrap();
            (route.sectors, route.volume_sector, route.iv, route.cipher.is_some())
        };
        assert_eq!(place(&mut grown), place(&mut made), "sector {start}");
    }
    assert!(grown.route(Extent::new(100, 1)).is_none());
}

#[test]
fn a_map_neither_shrinks_nor_cuts_an_encryption_sector() {
    let mut map = KeyMap::new(&three()[..1], Implementation::Auto).unwrap();
    for (capacity, what) in [
        (56, "it would shrink"),
        (65, "its length is no multiple of its encryption sector"),
        (u64::MAX - 7, "its end is beyond what a number can hold"),
    ] {
        let error = map.grow(capacity).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert_eq!(map.capacity(), 64);
    }
    map.grow(64).unwrap();
    map.grow(72).unwrap();
    assert_eq!(map.route(Extent::new(64, 8)).unwrap().volume_sector, 32768 + 64);
}
