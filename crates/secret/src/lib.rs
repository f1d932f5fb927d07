//! Memory for keys: locked, kept out of dumps, wiped on drop.
//!
//! All secrets live in one arena of pages that the kernel neither swaps nor dumps nor hands to a
//! child: `memfd_secret(2)` where it exists (then not even the kernel maps the pages, and
//! `/proc/PID/mem` can't read them), else anonymous pages under `mlock(2)`. Guard pages lie on both
//! sides. [`protection`] says which of these it became.
//!
//! Contract: what is freed is wiped first, so free arena memory is all zeroes at any time. Ordinary
//! `read(2)` and `write(2)` work on it; `O_DIRECT` and registered `io_uring` buffers don't.
//! Invariant: no type here prints, compares or clones its content by a standard trait.
//! Deliberately absent: speed. Every allocation takes one process-wide lock; nobody allocates
//! secrets per request.

mod arena;
mod boxed;
mod bytes;
mod harden;
mod mapping;
mod shared;
mod stack;

pub use arena::{alloc, c_alloc, c_free, c_realloc, dealloc, protection};
pub use boxed::SecretBox;
pub use bytes::{KEYFILE_MAX_BYTES, SecretBytes};
pub use harden::{harden_process, wipe_stack};
pub use shared::SharedSecret;
pub use stack::protect_stack;

use std::{fmt, io};

/// How the arena's pages are protected: the weakest of all chunks mapped so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// `memfd_secret(2)`: locked, not dumped, absent from the kernel's own map.
    MemfdSecret,
    /// `mlock(2)`, not dumped, not inherited by children.
    Locked,
    /// Not dumped, but the kernel may swap it; the reason is for the log.
    Unlocked(String),
}

impl Protection {
    /// The weaker of the two.
    fn weakest(self, other: Self) -> Self {
        match (self, other) {
            (weak @ Self::Unlocked(_), _) | (_, weak @ Self::Unlocked(_)) => weak,
            (Self::Locked, _) | (_, Self::Locked) => Self::Locked,
            (Self::MemfdSecret, Self::MemfdSecret) => Self::MemfdSecret,
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MemfdSecret => f.write_str("memfd_secret"),
            Self::Locked => f.write_str("mlock"),
            Self::Unlocked(reason) => write!(f, "not locked ({reason})"),
        }
    }
}

/// Why a secret could not be held or the process not be hardened. Never carries secret content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The arena can't grow.
    #[error("no memory for a secret of {bytes} bytes: {source}")]
    OutOfMemory {
        /// Size asked for.
        bytes: usize,
        /// The system's answer.
        source: io::Error,
    },
    /// What was to be read as a secret exceeds the caller's limit.
    #[error("the secret is longer than the {max_bytes} bytes allowed: is this the right file?")]
    TooLong {
        /// The limit.
        max_bytes: usize,
    },
    /// Reading the secret failed.
    #[error("reading the secret failed: {0}")]
    Read(#[source] io::Error),
    /// A process-wide protection could not be switched on.
    #[error("{what} failed: {source}; the process might be dumped with its keys")]
    Harden {
        /// The system call.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}
