//! Content that says where it belongs, and tests that ciphertext tells nothing of it.

use std::collections::HashSet;

/// Bytes that follow from a seed and their place alone, so a reader needs no copy of them.
#[derive(Debug, Clone, Copy)]
pub struct Pattern(pub u64);

impl Pattern {
    fn word(self, index: u64) -> [u8; 8] {
        // splitmix64's output function over seed and place
        let mut z =
            self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ index.wrapping_mul(0xd1b5_4a32_d192_ed03);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    }

    /// The `len` bytes that belong at `offset`, a multiple of 8.
    pub fn bytes(self, offset: u64, len: usize) -> Vec<u8> {
        let words = (0..len.div_ceil(8) as u64).flat_map(|i| self.word(offset / 8 + i));
        let mut bytes: Vec<u8> = words.collect();
        bytes.truncate(len);
        bytes
    }

    /// The first byte of `data`, read at `offset`, that doesn't belong there.
    pub fn first_difference(self, offset: u64, data: &[u8]) -> Option<u64> {
        let expected = self.bytes(offset, data.len());
        let at = expected.iter().zip(data).position(|(a, b)| a != b)?;
        Some(offset + at as u64)
    }
}

/// Whether the two have a 16-byte cipher block in common (at multiples of 16).
pub fn shares_blocks(plain: &[u8], cipher: &[u8]) -> bool {
    let blocks: HashSet<&[u8]> = plain.chunks_exact(16).collect();
    cipher.chunks_exact(16).any(|block| blocks.contains(block))
}

/// Pearson's statistic of byte values against uniform ones: 255 on average for noise, with a
/// standard deviation of 22.6; any text is in the thousands.
pub fn chi_square(data: &[u8]) -> f64 {
    let mut counts = [0_f64; 256];
    data.iter().for_each(|&byte| counts[usize::from(byte)] += 1.0);
    let expected = data.len() as f64 / 256.0;
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_same_wherever_one_starts_to_read() {
        let whole = Pattern(7).bytes(0, 4096);
        assert_eq!(Pattern(7).bytes(512, 1024), whole[512..1536]);
        assert_eq!(Pattern(7).first_difference(512, &whole[512..]), None);
        let mut wrong = whole.clone();
        wrong[700] ^= 1;
        assert_eq!(Pattern(7).first_difference(0, &wrong), Some(700));
        assert_ne!(Pattern(8).bytes(0, 64), whole[..64]);
    }

    #[test]
    fn text_is_told_from_noise() {
        let noise = Pattern(1).bytes(0, 1 << 20);
        assert!(chi_square(&noise) < 400.0);
        assert!(chi_square("all work and no play".repeat(1000).as_bytes()) > 4000.0);
        assert!(shares_blocks(&noise, &noise[4096..8192]));
        assert!(!shares_blocks(&noise, &Pattern(2).bytes(0, 1 << 20)));
    }
}
