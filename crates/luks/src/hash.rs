//! The hashes LUKS names, and PBKDF2 over them.
//!
//! Contract: names are cryptsetup's (`sha1`, `sha256`, `sha512`). SHA-1 is read, for LUKS1 volumes
//! of old; nothing is created with it but their keyslots. Other hashes make a keyslot unusable, not a header invalid.

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

/// A hash that LUKS headers name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha1,
    Sha256,
    Sha512,
}

impl Hash {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "sha1" => Some(Self::Sha1),
            "sha256" => Some(Self::Sha256),
            "sha512" => Some(Self::Sha512),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Digest length.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Hashes the concatenation of `parts` into `out`, cut to `out`'s length. Leaves traces on the
    /// stack, below the caller's frame: callers that hash secrets wipe it.
    #[inline(never)]
    pub(crate) fn digest_into(self, parts: &[&[u8]], out: &mut [u8]) {
        fn run<D: sha2::Digest>(parts: &[&[u8]], out: &mut [u8]) {
            let mut state = D::new();
            for part in parts {
                state.update(part);
            }
            out.copy_from_slice(&state.finalize()[..out.len()]);
        }
        assert!(out.len() <= self.bytes(), "a digest cannot be stretched");
        match self {
            Self::Sha1 => run::<Sha1>(parts, out),
            Self::Sha256 => run::<Sha256>(parts, out),
            Self::Sha512 => run::<Sha512>(parts, out),
        }
    }

    /// PBKDF2-HMAC (RFC 8018 section 5.2). Leaves traces on the stack, below the caller's frame:
    /// callers wipe it.
    #[inline(never)]
    pub(crate) fn pbkdf2(self, secret: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
        match self {
            Self::Sha1 => pbkdf2::pbkdf2_hmac::<Sha1>(secret, salt, iterations, out),
            Self::Sha256 => pbkdf2::pbkdf2_hmac::<Sha256>(secret, salt, iterations, out),
            Self::Sha512 => pbkdf2::pbkdf2_hmac::<Sha512>(secret, salt, iterations, out),
        }
    }
}

/// SHA-256 of the concatenation of `parts`: the header checksum.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = Sha256::new();
    for part in parts {
        state.update(part);
    }
    state.finalize().into()
}
