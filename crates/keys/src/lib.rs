//! Where passphrases come from.
//!
//! Contract: a key is named by a *source*, `KIND:WHERE`, in configuration and on command lines;
//! [`KeySource::fetch`] turns it into bytes in protected memory. What a source holds is the
//! passphrase byte for byte: nothing is trimmed, decoded or added, as `cryptsetup --key-file` does.
//! Errors name the source and the reason, never the content.
//!
//! Deliberately absent: keys in arguments or the environment, where other processes read them.

mod file;
mod held;
mod source;

pub use file::MAX_KEY_BYTES;
pub use held::{Held, read_handed};
pub use source::{KeyError, KeySource, KeySourceError};

use sealblk_secret::SecretBytes;

/// A passphrase as its source gave it.
#[derive(Debug)]
pub struct Fetched {
    /// The passphrase.
    pub passphrase: SecretBytes,
    /// What the operator should change about the source, though the passphrase was got: for the
    /// log or the terminal.
    pub warning: Option<String>,
}

impl Fetched {
    /// What to say beside "no keyslot opens with this passphrase": the mistake that is made most.
    pub fn hint(&self) -> Option<&'static str> {
        (self.passphrase.expose().last() == Some(&b'\n')).then_some(
            "the key ends in a newline, and that counts: a passphrase typed at a prompt has none \
             (make such a file with `printf %s`)",
        )
    }
}
