//! Buffers cut in any way must give what the uncut buffer gives.
// UNSAFETY: plays the guest: spans point into a vector that outlives the call.

use proptest::prelude::*;
use sealblk_secret::SecretBytes;

use super::*;
use crate::{Algorithm, Implementation, encrypt_in_place, sector_cipher};

fn cipher(sector_bytes: u32) -> Box<dyn SectorCipher> {
    let bytes: Vec<u8> = (0..64).collect();
    let key = SecretBytes::copy_from(&bytes).unwrap();
    let algorithm = Algorithm::Aes256XtsPlain64;
    sector_cipher(algorithm, &key, sector_bytes, Implementation::Auto).unwrap()
}

/// Memory cut into spans that lie apart from each other, in an order of their own.
struct Guest {
    memory: Vec<u8>,
    spans: Vec<Span>,
}

impl Guest {
    /// Spans between the sorted `cuts` of `len` bytes; gaps lie between them.
    fn new(len: usize, cuts: &[usize]) -> Self {
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).collect();
        edges.extend([0, len]);
        edges.sort_unstable();
        let mut memory = vec![0xEE; len + 8 * edges.len()];
        let base = memory.as_mut_ptr().expose_provenance();
        let piece = |(index, edge): (usize, &[usize])| Span {
            addr: base + edge[0] + 8 * index,
            len: edge[1] - edge[0],
        };
        let spans = edges.windows(2).enumerate().map(piece).collect();
        Self { memory, spans }
    }

    fn offsets(&self) -> impl Iterator<Item = usize> {
        let base = self.memory.as_ptr().addr();
        self.spans.iter().flat_map(move |span| span.addr - base..span.addr - base + span.len)
    }

    fn fill(&mut self, content: &[u8]) {
        let offsets: Vec<usize> = self.offsets().collect();
        for (offset, byte) in offsets.into_iter().zip(content) {
            self.memory[offset] = *byte;
        }
        // The addresses of the spans stay exposed.
        self.memory.as_mut_ptr().expose_provenance();
    }

    fn content(&self) -> Vec<u8> {
        self.offsets().map(|offset| self.memory[offset]).collect()
    }

    fn gaps_are_untouched(&self) -> bool {
        let mut inside = vec![false; self.memory.len()];
        self.offsets().for_each(|offset| inside[offset] = true);
        self.memory.iter().zip(inside).all(|(byte, inside)| inside || *byte == 0xEE)
    }
}

fn any_cuts() -> impl Strategy<Value = Vec<usize>> {
    // Repeated cuts make empty spans.
    let cut = prop_oneof![4 => 0..70_000_usize, 1 => Just(512), 1 => Just(4096)];
    proptest::collection::vec(cut, 0..12)
}

proptest! {
    #[test]
    fn cuts_change_nothing(
        sector_bytes in prop_oneof![Just(512_u32), Just(1024), Just(4096)],
        sectors in 0..16_usize,
        iv in any::<u64>(),
        cuts_in in any_cuts(),
        cuts_out in any_cuts(),
        seed in any::<u8>(),
    ) {
        let len = sectors * sector_bytes as usize;
        let plain: Vec<u8> = (0..len).map(|i| (i.wrapping_mul(37) >> 2) as u8 ^ seed).collect();
        let mut cipher = cipher(sector_bytes);
        let mut expected = plain.clone();
        encrypt_in_place(&mut *cipher, iv, &mut expected);

        let mut guest = Guest::new(len, &cuts_in);
        guest.fill(&plain);
        let mut bounce = vec![0u8; len];
        // SAFETY: the spans lie in `guest`, which is alive and not borrowed; `bounce` has `len`.
        unsafe { seal(&mut *cipher, iv, &guest.spans, bounce.as_mut_ptr(), len) };
        prop_assert!(bounce == expected);
        prop_assert!(guest.content() == plain);

        let mut back = Guest::new(len, &cuts_out);
        back.fill(&expected);
        // SAFETY: as above.
        unsafe { open(&mut *cipher, iv, bounce.as_ptr(), &back.spans, len) };
        prop_assert!(back.content() == plain);
        prop_assert!(back.gaps_are_untouched());
        prop_assert!(bounce == expected);
    }

    #[test]
    fn plain_copies_arrive_whole(
        len in 0..9000_usize,
        cuts_in in any_cuts(),
        cuts_out in any_cuts(),
    ) {
        let content: Vec<u8> = (0..len).map(|i| (i % 249) as u8).collect();
        let mut guest = Guest::new(len, &cuts_in);
        guest.fill(&content);
        let mut bounce = vec![0u8; len];
        // SAFETY: the spans lie in `guest`, which is alive and not borrowed; `bounce` has `len`.
        unsafe { copy_in(&guest.spans, bounce.as_mut_ptr(), len) };
        prop_assert!(bounce == content);
        let back = Guest::new(len, &cuts_out);
        // SAFETY: as above.
        unsafe { copy_out(bounce.as_ptr(), &back.spans, len) };
        prop_assert!(back.content() == content);
        prop_assert!(back.gaps_are_untouched());
    }
}

#[test]
#[should_panic(expected = "longer than the request")]
fn spans_longer_than_the_request_are_a_broken_invariant() {
    let guest = Guest::new(1024, &[]);
    let mut bounce = vec![0u8; 512];
    // SAFETY: the spans lie in `guest`, which is alive and not borrowed; `bounce` has 512 bytes.
    unsafe { seal(&mut *cipher(512), 0, &guest.spans, bounce.as_mut_ptr(), 512) };
}

#[test]
#[should_panic(expected = "shorter than the request")]
fn spans_shorter_than_the_request_are_a_broken_invariant() {
    let guest = Guest::new(700, &[]);
    let mut bounce = vec![0u8; 1024];
    // SAFETY: the spans lie in `guest`, which is alive and not borrowed; `bounce` has 1024 bytes.
    unsafe { seal(&mut *cipher(512), 0, &guest.spans, bounce.as_mut_ptr(), 1024) };
}
