//! The bounce buffer: where ciphertext waits for the volume, in pages, taken and given back
//! without an allocation.
//!
//! Invariant: a run lies inside one word of the bitmap, so taking one is a few shifts. Large
//! requests are therefore moved in pieces of at most [`RUN_BYTES_MAX`].

use std::io;

use sealblk_volume::AlignedBuf;

/// Unit of allocation. No block or encryption sector is larger.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Largest piece that is moved at once: what one word of the bitmap covers.
pub(crate) const RUN_BYTES_MAX: usize = PAGE_BYTES * u64::BITS as usize;

/// Neighbouring pages of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    page: u32,
    pages: u32,
}

impl Run {
    /// Room in bytes.
    pub(crate) fn bytes(self) -> usize {
        self.pages as usize * PAGE_BYTES
    }
}

/// A thread's bounce buffer.
pub(crate) struct Bounce {
    memory: AlignedBuf,
    /// Bit set: page free.
    free: Box<[u64]>,
    /// The word that had room last.
    cursor: usize,
}

impl Bounce {
    /// A buffer of about `bytes` (at least one run).
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let words = bytes.div_ceil(RUN_BYTES_MAX).max(1);
        Ok(Self {
            memory: AlignedBuf::new(words * RUN_BYTES_MAX)?,
            free: vec![u64::MAX; words].into_boxed_slice(),
            cursor: 0,
        })
    }

    /// The whole buffer, to register with a ring.
    pub(crate) fn whole(&mut self) -> (*mut u8, usize) {
        (self.memory.as_mut_ptr(), self.memory.len())
    }

    /// Where a run starts.
    pub(crate) fn addr(&mut self, run: Run) -> *mut u8 {
        self.memory.as_mut_slice()[run.page as usize * PAGE_BYTES..].as_mut_ptr()
    }

    /// Room for `bytes` (at most [`RUN_BYTES_MAX`]), or for less where the buffer is nearly full:
    /// the caller moves that much and comes again. None: it is full.
    pub(crate) fn take(&mut self, bytes: usize) -> Option<Run> {
        let mut pages = bytes.clamp(1, RUN_BYTES_MAX).div_ceil(PAGE_BYTES) as u32;
        loop {
            for step in 0..self.free.len() {
                let word = (self.cursor + step) % self.free.len();
                if let Some(bit) = find_run(self.free[word], pages) {
                    self.free[word] &= !(mask(pages) << bit);
                    self.cursor = word;
                    return Some(Run { page: word as u32 * u64::BITS + bit, pages });
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
        let mut bounce = Bounce::new(3 * RUN_BYTES_MAX).unwrap();
        let mut taken: Vec<Run> = Vec::new();
        let mut random = 12345u64;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if random >> 63 == 0 && !taken.is_empty() {
                let index = (random >> 20) as usize % taken.len();
                bounce.give(taken.swap_remove(index));
            } else if let Some(run) = bounce.take((random >> 30) as usize % (RUN_BYTES_MAX + 1)) {
                for other in &taken {
                    assert!(
                        run.page + run.pages <= other.page || other.page + other.pages <= run.page
                    );
                }
                taken.push(run);
            }
        }
        for run in taken {
            bounce.give(run);
        }
        assert!(bounce.is_whole());
    }

    #[test]
    fn a_nearly_full_buffer_gives_what_it_has() {
        let mut bounce = Bounce::new(RUN_BYTES_MAX).unwrap();
        let most = bounce.take(RUN_BYTES_MAX - PAGE_BYTES).unwrap();
        assert_eq!(bounce.take(RUN_BYTES_MAX).unwrap().bytes(), PAGE_BYTES);
        assert!(bounce.take(1).is_none());
        bounce.give(most);
        assert!(bounce.take(RUN_BYTES_MAX / 2).unwrap().bytes() >= RUN_BYTES_MAX / 2);
    }
}
