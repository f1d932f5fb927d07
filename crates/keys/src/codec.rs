//! Hexadecimal digits, in protected memory.

use sealblk_secret::SecretBytes;

use crate::error::Failure;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The passphrase of a key that isn't text: its bytes in lowercase hex, as os-brick's
/// `get_passphrase_from_secret` has it.
pub(crate) fn to_hex(bytes: &[u8]) -> Result<SecretBytes, Failure> {
    let mut hex = SecretBytes::zeroed(bytes.len().saturating_mul(2))?;
    for (pair, byte) in hex.expose_mut().chunks_exact_mut(2).zip(bytes) {
        // The index is below 16.
        let digit = |index: u8| DIGITS.get(usize::from(index)).copied().unwrap_or_default();
        pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
    }
    Ok(hex)
}

/// The bytes that the digits stand for; none if they aren't pairs of digits.
pub(crate) fn from_hex(hex: &[u8]) -> Result<Option<SecretBytes>, Failure> {
    if !hex.len().is_multiple_of(2) {
        return Ok(None);
    }
    let mut bytes = SecretBytes::zeroed(hex.len() / 2)?;
    for (byte, pair) in bytes.expose_mut().iter_mut().zip(hex.chunks_exact(2)) {
        let [Some(high), Some(low)] = [pair.first(), pair.last()]
            .map(|digit| digit.and_then(|&digit| char::from(digit).to_digit(16)))
        else {
            return Ok(None);
        };
        *byte = (high << 4 | low) as u8;
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_bytes_turn_into_each_other() {
        let bytes: Vec<u8> = (0..=255).collect();
        let hex = to_hex(&bytes).unwrap();
        let expected: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex.expose(), expected.as_bytes());
        for text in [expected.to_uppercase(), expected] {
            let back = from_hex(text.as_bytes()).unwrap().unwrap();
            assert_eq!(back.expose(), bytes);
        }
    }

    #[test]
    fn what_is_no_pair_of_digits_is_none() {
        for text in ["0", "0g", "g0", "0x00", " 00", "+1", "é"] {
            assert!(from_hex(text.as_bytes()).unwrap().is_none(), "{text}");
        }
    }
}
