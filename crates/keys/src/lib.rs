//! Where passphrases come from.
//!
//! Contract: a key is named by a *source*, `KIND:WHERE`, in configuration and on command lines.
//! [`KeySource::fetch`] gets what lies on this node (files, descriptors), [`KeyManagers::fetch`]
//! everything, into protected memory. What a file or a descriptor holds is the passphrase byte for
//! byte: nothing is trimmed, decoded or added, as `cryptsetup --key-file` does. What a key manager
//! holds becomes the passphrase that Nova and Cinder make of it; each module of a provider says how.
//! Errors name the key, the server and the reason, never the content.
//!
//! All of it blocks, within time limits: callers run it in threads of their own. One provider is one
//! file on top of `http` (or `kmip`'s own connection), `patience` and `tls`.
//!
//! Deliberately absent: keys in arguments or the environment, where other processes read them;
//! creating, changing and deleting keys; a cache of keys.

mod barbican;
mod codec;
mod config;
mod descriptor;
mod error;
mod file;
mod held;
mod http;
mod keystone;
mod kmip;
mod managers;
mod patience;
mod source;
mod time;
mod tls;
mod url;
mod vault;

#[cfg(test)]
mod tests;

pub use config::{BarbicanConfig, KeyManagersConfig, KmipConfig, VaultConfig};
pub use descriptor::{read_descriptor, seal_into_memfd};
pub use error::{KeyError, KeyErrorKind};
pub use file::MAX_KEY_BYTES;
pub use held::{Held, read_handed};
pub use managers::{DEFAULT_PATH, KeyManagers, KeyManagersError};
pub use source::{KeySource, KeySourceError};

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
