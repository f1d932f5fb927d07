//! A volume's name as the configuration has it, which may have a CHAP secret in it.
//!
//! Invariant: whatever is formatted (logs, errors, `status`) is without the secret.

use std::fmt;

/// The name of a volume.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct VolumeUri(String);

impl VolumeUri {
    pub(super) fn new(written: String) -> Self {
        Self(written)
    }

    /// As it is written, secret and all: for opening the volume only.
    pub(crate) fn with_secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&sealblk_volume::shown(&self.0))
    }
}

impl fmt::Debug for VolumeUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
