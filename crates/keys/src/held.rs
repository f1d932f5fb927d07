//! A passphrase that this process was handed and keeps, under the name of where it came from.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use sealblk_secret::{SecretBytes, SecretError, SharedSecret};

use crate::MAX_KEY_BYTES;

/// A passphrase in memory; clones share it.
#[derive(Clone)]
pub struct Held {
    name: Arc<str>,
    secret: Arc<SharedSecret>,
}

impl Held {
    /// Keeps `passphrase` under a name for people, e.g. the key manager's name of the secret.
    ///
    /// # Errors
    /// It is empty, or there is no memory for it.
    pub fn new(name: &str, passphrase: &SecretBytes) -> Result<Self, SecretError> {
        Ok(Self { name: name.into(), secret: Arc::new(SharedSecret::new(passphrase)?) })
    }

    /// The same as another process keeps it.
    ///
    /// # Errors
    /// The descriptor holds no passphrase.
    pub fn from_descriptor(name: &str, descriptor: OwnedFd) -> Result<Self, SecretError> {
        let secret = SharedSecret::from_descriptor(descriptor, MAX_KEY_BYTES)?;
        Ok(Self { name: name.into(), secret: Arc::new(secret) })
    }

    pub(crate) fn fetch(&self) -> Result<SecretBytes, String> {
        self.secret.read().map_err(|error| error.to_string())
    }
}

/// The descriptor behind it, to hand it on.
impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.secret.as_fd()
    }
}

impl PartialEq for Held {
    /// Whether it is the same passphrase in the same memory.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.secret, &other.secret)
    }
}

impl Eq for Held {}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?})", self.name)
    }
}

/// The passphrase in a descriptor that another process handed over: its whole content from the start,
/// wherever its position is. A memfd (sealed or not), or a file.
///
/// # Errors
/// It can't be read, is empty, or longer than [`MAX_KEY_BYTES`].
pub fn read_handed(descriptor: &OwnedFd) -> Result<SecretBytes, SecretError> {
    rustix::fs::seek(descriptor, rustix::fs::SeekFrom::Start(0))
        .map_err(|errno| SecretError::Read(errno.into()))?;
    let passphrase = SecretBytes::read_from(descriptor, MAX_KEY_BYTES)?;
    if passphrase.is_empty() {
        return Err(SecretError::Read(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(passphrase)
}
