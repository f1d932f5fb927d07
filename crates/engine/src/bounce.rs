//! The bounce buffer: where ciphertext waits for the volume, in pages, taken and given back
//! without an allocation.
//!
//! Invariant: a run lies inside one word of the bitmap, so taking one is a few shifts. Large
//! requests are therefore moved in pieces of at most [`Bounce::run_bytes_max`]; where longer pieces are
//! wanted, pages are larger, and the buffer with them: a small request takes a whole one.

use std::io;

use sealblk_volume::AlignedBuf;

/// Smallest unit of allocation. No block or encryption sector is larger.
const PAGE_BYTES_MIN: usize = 4096;

/// Largest unit: pieces of 1 MiB.
const PAGE_BYTES_MAX: usize = 16384;

/// Neighbouring pages of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    page: u32,
    pages: u32,
    page_bytes: u32,
}

impl Run {
    /// Room in bytes.
    pub(crate) fn bytes(self) -> usize {
        self.pages as usize * self.page_bytes as usize
    }
}

/// A thread's bounce buffer.
pub(crate) struct Bounce {
    memory: AlignedBuf,
    page_bytes: usize,
    /// Bit set: page free.
    free: Box<[u64]>,
    /// The word that had room last.
    cursor: usize,
}

impl Bounce {
    /// A buffer of about `bytes` (at least one run), more in proportion where runs are to be longer
    /// than 256 KiB: about `piece_bytes`.
    pub(crate) fn new(bytes: usize, piece_bytes: usize) -> io::Result<Self> {
        let page_bytes = (piece_bytes / u64::BITS as usize)
            .next_power_of_two()
            .clamp(PAGE_BYTES_MIN, PAGE_BYTES_MAX);
        let words = bytes.div_ceil(PAGE_BYTES_MIN * u64::BITS as usize).max(1);
        Ok(Self {
            memory: AlignedBuf::new(words * page_bytes * u64::BITS as usize)?,
            page_bytes,
            free: vec![u64::MAX; words].into_boxed_slice(),
            cursor: 0,
        })
    }

    /// The whole buffer, to register with a ring.
    pub(crate) fn whole(&mut self) -> (*mut u8, usize) {
        (self.memory.as_mut_ptr(), self.memory.len())
    }

    /// Largest piece that is moved at once: what one word of the bitmap covers.
    pub(crate) fn run_bytes_max(&self) -> usize {
        self.page_bytes * u64::BITS as usize
    }

    /// Where a run starts.
    pub(crate) fn addr(&mut self, run: Run) -> *mut u8 {
        self.memory.as_mut_slice()[run.page as usize * self.page_bytes..].as_mut_ptr()
    }

    /// Room for `bytes` (at most [`Self::run_bytes_max`]), or for less where the buffer is nearly full:
    /// the caller moves that much and comes again. None: it is full.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Run> {
        let mut pages = bytes.clamp(1, self.run_bytes_max()).div_ceil(self.page_bytes) as u32;
        loop {
            for step in 0..self.free.len() {
                let word = (self.cursor + step) % self.free.len();
                if let Some(bit) = find_run(self.free[word], pages) {
                    self.free[word] &= !(mask(pages) << bit);
                    self.cursor = word;
                    let page_bytes = self.page_bytes as u32;
                    return Some(Run { page: word as u32 * u64::BITS + bit, pages, page_bytes });
                }
            }
            if pages == 1 {
                return None;
            }
            pages /= 2;
        }
    }

    /// Gives a run back.
    pub(crate) fn give(&mut self, run: Run) {
        let (word, bit) = ((run.page / u64::BITS) as usize, run.page % u64::BITS);
        let bits = mask(run.pages) << bit;
        assert!(self.free[word] & bits == 0, "a run is given back once");
        self.free[word] |= bits;
    }

    /// Whether nothing is taken.
    pub(crate) fn is_whole(&self) -> bool {
        self.free.iter().all(|word| *word == u64::MAX)
    }
}

fn mask(pages: u32) -> u64 {
    u64::MAX >> (u64::BITS - pages)
}

/// The lowest bit from which `pages` bits are set.
fn find_run(word: u64, pages: u32) -> Option<u32> {
    let (mut starts, mut have) = (word, 1);
    // After each step a set bit says that `have` bits are set from there on.
    while have < pages && starts != 0 {
        let step = have.min(pages - have);
        starts &= starts >> step;
        have += step;
    }
    (starts != 0).then(|| starts.trailing_zeros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_where_they_are() {
        assert_eq!(find_run(u64::MAX, 64), Some(0));
        assert_eq!(find_run(u64::MAX - 1, 64), None);
        assert_eq!(find_run(0b0111_0110, 3), Some(4));
        assert_eq!(find_run(0b0111_0110, 2), Some(1));
        assert_eq!(find_run(0, 1), None);
        assert_eq!(find_run(1 << 63, 1), Some(63));
        for pages in 1..=64 {
            assert_eq!(find_run(mask(pages) << (64 - pages), pages), Some(64 - pages));
        }
    }

    #[test]
    fn runs_never_overlap_and_all_come_back() {
        for (piece_bytes, run_bytes_max) in
            [(4096, 256 << 10), (256 << 10, 256 << 10), (1 << 20, 1 << 20)]
        {
            let mut bounce = Bounce::new(3 * (256 << 10), piece_bytes).unwrap();
            assert_eq!(bounce.run_bytes_max(), run_bytes_max);
            let (start, len) = bounce.whole();
            let (start, end) = (start as usize, start as usize + len);
            let mut taken: Vec<Run> = Vec::new();
            let mut random = 12345u64;
            for _ in 0..10_000 {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                if random >> 63 == 0 && !taken.is_empty() {
                    let index = (random >> 20) as usize % taken.len();
                    bounce.give(taken.swap_remove(index));
                } else if let Some(run) = bounce.take((random >> 30) as usize % (run_bytes_max + 1))
                {
                    let at = bounce.addr(run) as usize;
                    assert!(start <= at && at + run.bytes() <= end);
                    for other in &taken {
                        let there = bounce.addr(*other) as usize;
                        assert!(at + run.bytes() <= there || there + other.bytes() <= at);
                    }
                    taken.push(run);
                }
            }
            for run in taken {
                bounce.give(run);
            }
            assert!(bounce.is_whole());
        }
    }

    #[test]
    fn a_nearly_full_buffer_gives_what_it_has() {
        for piece_bytes in [256 << 10, 1 << 20] {
            let mut bounce = Bounce::new(1, piece_bytes).unwrap();
            let page_bytes = piece_bytes / 64;
            let most = bounce.take(piece_bytes - page_bytes).unwrap();
            assert_eq!(bounce.take(piece_bytes).unwrap().bytes(), page_bytes);
            assert!(bounce.take(1).is_none());
            bounce.give(most);
            assert!(bounce.take(piece_bytes / 2).unwrap().bytes() >= piece_bytes / 2);
        }
    }
}
