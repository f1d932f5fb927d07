//! The allocator on its own instance, and the process-wide one through its C face.
// UNSAFETY: looks into raw blocks, dead ones too, while their chunk is mapped.

use super::*;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 1).unwrap()
}

/// What an arena's block holds.
fn content(block: NonNull<u8>, len: usize) -> Vec<u8> {
    // SAFETY: the tests ask for no more than the chunk that the block lies in still has.
    unsafe { slice::from_raw_parts(block.as_ptr(), len) }.to_vec()
}

fn fill(block: NonNull<u8>, len: usize) {
    // SAFETY: the block has `len` bytes and nobody else looks at it.
    unsafe { block.as_ptr().write_bytes(0xA5, len) };
}

#[test]
fn freed_memory_is_wiped_before_it_is_reused() {
    let mut arena = Arena::new();
    let block = arena.take(layout(1000)).unwrap();
    fill(block, 1000);
    assert!(arena.give_back(block.addr().get()));
    // The first chunk stays mapped, so the dead block may still be looked at.
    assert_eq!(content(block, 1024), [0; 1024]);
    let again = arena.take(layout(1000)).unwrap();
    assert_eq!(again, block, "first fit");
}

#[test]
fn neighbours_join_in_any_order_of_freeing() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for order in orders {
        let mut arena = Arena::new();
        let blocks = [(); 3].map(|()| arena.take(layout(100)).unwrap());
        for index in order {
            assert!(arena.give_back(blocks[index].addr().get()));
        }
        assert!(arena.chunks[0].is_unused(), "{order:?}: {:?}", arena.chunks[0].free);
        assert!(arena.live.is_empty());
    }
}

#[test]
fn live_blocks_never_overlap_and_are_aligned() {
    let mut arena = Arena::new();
    let mut blocks = Vec::new();
    for round in 1..200usize {
        let wanted = Layout::from_size_align(round * 37 % 3000, 1 << (round % 13)).unwrap();
        let block = arena.take(wanted).unwrap();
        assert!(block.addr().get().is_multiple_of(wanted.align()));
        assert!(content(block, wanted.size()).iter().all(|byte| *byte == 0));
        fill(block, wanted.size());
        blocks.push(block.addr().get());
        if round % 3 == 0 {
            assert!(arena.give_back(blocks.swap_remove(round % blocks.len())));
        }
        let ends = arena.live.iter().map(|(addr, len)| addr + len);
        let next = arena.live.keys().skip(1);
        assert!(ends.zip(next).all(|(end, next)| end <= *next));
    }
    for block in blocks {
        assert!(arena.give_back(block));
    }
    assert!(arena.chunks.len() == 1 && arena.chunks[0].is_unused());
}

#[test]
fn what_exceeds_a_chunk_gets_its_own_and_gives_it_back() {
    let mut arena = Arena::new();
    let small = arena.take(layout(10)).unwrap();
    let big = arena.take(layout(CHUNK_BYTES + 1)).unwrap();
    assert_eq!(arena.chunks.len(), 2);
    fill(big, CHUNK_BYTES + 1);
    assert!(arena.give_back(big.addr().get()));
    assert_eq!(arena.chunks.len(), 1);
    assert!(arena.give_back(small.addr().get()));
    assert_eq!(arena.chunks.len(), 1);
}

#[test]
fn a_block_is_freed_once_only() {
    let mut arena = Arena::new();
    let block = arena.take(layout(10)).unwrap();
    assert!(arena.give_back(block.addr().get()));
    assert!(!arena.give_back(block.addr().get()));
    assert!(!arena.give_back(0));
}

#[test]
fn the_protection_reported_is_the_weakest() {
    let unlocked = || Protection::Unlocked("test".to_owned());
    assert_eq!(Protection::MemfdSecret.weakest(Protection::Locked), Protection::Locked);
    assert_eq!(Protection::Locked.weakest(Protection::MemfdSecret), Protection::Locked);
    assert_eq!(Protection::Locked.weakest(unlocked()), unlocked());
    assert_eq!(unlocked().weakest(Protection::MemfdSecret), unlocked());
}

#[test]
fn the_c_face_reallocates_with_the_content_and_leaves_foreign_memory_alone() {
    let block = c_alloc(3);
    // SAFETY: three bytes were asked for; the pointers used are the ones just returned.
    unsafe {
        block.copy_from_nonoverlapping(b"abc".as_ptr(), 3);
        let grown = c_realloc(block, 500);
        assert_eq!(slice::from_raw_parts(grown, 5), b"abc\0\0");
        let shrunk = c_realloc(grown, 2);
        assert_eq!(slice::from_raw_parts(shrunk, 2), b"ab");
        c_free(shrunk);
        c_free(ptr::null_mut());
        let mut foreign = 1u8;
        assert!(c_realloc(&raw mut foreign, 10).is_null());
        c_free(&raw mut foreign);
        assert_eq!(foreign, 1);
    }
    assert!(c_alloc(usize::MAX).is_null());
    assert!(alloc(Layout::from_size_align(1, 8192).unwrap()).is_null());
}

#[test]
#[should_panic(expected = "never handed out")]
fn freeing_what_the_arena_never_gave_kills_the_process() {
    let mut foreign = 1u8;
    // SAFETY: deliberately broken: the arena must notice before it touches the memory.
    unsafe { dealloc(&raw mut foreign, layout(1)) };
}
