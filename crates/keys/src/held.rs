//! A passphrase that this process was handed and keeps, under the name of where it came from.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use sealblk_secret::{SecretBytes, SecretError, SharedSecret};

use crate::error::Failure;
use crate::{Fetched, MAX_KEY_BYTES};

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

    pub(crate) fn fetch(&self) -> Result<Fetched, Failure> {
        let passphrase = self.secret.read().map_err(|error| Failure::missing(error.to_string()))?;
        Ok(Fetched { passphrase, warning: None })
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

impl Hash for Held {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

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
/// wherever its position is. A memfd (sealed or not), a file, or what [`Held`] keeps.
///
/// # Errors
/// It can't be read, is empty, or longer than [`MAX_KEY_BYTES`].
pub fn read_handed(descriptor: &OwnedFd) -> Result<SecretBytes, SecretError> {
    match rustix::fs::seek(descriptor, rustix::fs::SeekFrom::Start(0)) {
        Ok(_) => {}
        // Memory of memfd_secret(2), which knows no position and no read(2), and whose size is fixed:
        // a mapping can't be cut off by who has made it.
        Err(rustix::io::Errno::SPIPE) => {
            let descriptor = descriptor.try_clone().map_err(SecretError::Read)?;
            return SharedSecret::from_descriptor(descriptor, MAX_KEY_BYTES)?.read();
        }
        Err(errno) => return Err(SecretError::Read(errno.into())),
    }
    let passphrase = SecretBytes::read_from(descriptor, MAX_KEY_BYTES)?;
    if passphrase.is_empty() {
        return Err(SecretError::Read(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(passphrase)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;
    use crate::KeySource;

    #[test]
    fn a_handed_passphrase_is_read_from_its_start_whatever_it_lies_in() {
        let secret = SecretBytes::copy_from(b"a passphrase").unwrap();
        let held = Held::new("k", &secret).unwrap();
        let handed = held.as_fd().try_clone_to_owned().unwrap();
        assert!(read_handed(&handed).unwrap().ct_eq(b"a passphrase"));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"a passphrase").unwrap();
        file.seek(std::io::SeekFrom::Start(3)).unwrap();
        assert!(read_handed(&file.into()).unwrap().ct_eq(b"a passphrase"));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(read_handed(&reader.into()).is_err());
        assert!(read_handed(&tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn what_is_held_is_fetched_under_its_name_and_shown_without_content() {
        let secret = SecretBytes::copy_from(b"hunter2").unwrap();
        let source = KeySource::Held(Held::new("barbican:1", &secret).unwrap());
        assert!(source.fetch().unwrap().passphrase.ct_eq(b"hunter2"));
        assert_eq!(source.to_string(), "barbican:1");
        assert!(!format!("{source:?}").contains("hunter2"));
    }
}
