//! A volume's passphrase on its way to the instance's daemon.
//!
//! Contract: it comes as a descriptor or is fetched by this node's own identity, and goes on as a
//! descriptor; what is here meanwhile lies in protected memory and is gone when the request is
//! answered. What a caller handed over is copied, as the caller could still change it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use sealblk_api::agent::{AgentError, Attach, ErrorKind, Key};
use sealblk_keys::{KeyErrorKind, KeyManagers, KeySource, MAX_KEY_BYTES, read_descriptor};
use sealblk_secret::{SecretBytes, SharedSecret};

use super::check;
use super::config::AgentSection;
use super::error::{error, internal, invalid};

/// A passphrase, here and as it is handed on.
#[derive(Debug)]
pub(super) struct Passphrase {
    bytes: SecretBytes,
    shared: SharedSecret,
}

impl Passphrase {
    fn new(volume: &str, bytes: SecretBytes) -> Result<Self, AgentError> {
        if bytes.is_empty() {
            return Err(invalid(format!(
                "volume {volume}: its key is empty: that is no passphrase"
            )));
        }
        let shared = SharedSecret::new(&bytes)
            .map_err(|cause| internal(format!("volume {volume}: its key: {cause}")))?;
        Ok(Self { bytes, shared })
    }

    /// For formatting.
    pub(super) fn bytes(&self) -> &SecretBytes {
        &self.bytes
    }
}

impl AsFd for Passphrase {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.as_fd()
    }
}

/// Gets the passphrase that a request brings or names; none: it is kept elsewhere.
pub(super) fn obtain(
    request: &Attach,
    descriptors: Vec<OwnedFd>,
    agent: &AgentSection,
    managers: &KeyManagers,
) -> Result<Option<Passphrase>, AgentError> {
    let volume = &request.volume;
    match &request.key {
        Key::Descriptor => {
            let descriptor = descriptors.into_iter().next().ok_or_else(|| {
                invalid(format!("volume {volume}: its key is to come as a descriptor; none came"))
            })?;
            Passphrase::new(volume, handed(volume, &descriptor)?).map(Some)
        }
        Key::Source { source } => {
            Passphrase::new(volume, fetch(volume, source, agent, managers)?).map(Some)
        }
        Key::Kept => Ok(None),
    }
}

/// The whole content of what a caller handed over, whatever it reads from there otherwise.
fn handed(volume: &str, descriptor: &OwnedFd) -> Result<SecretBytes, AgentError> {
    read_descriptor(descriptor, MAX_KEY_BYTES).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::Other => internal(format!("volume {volume}: its key: {cause}")),
        _ => invalid(format!("volume {volume}: the descriptor of its key: {cause}")),
    })
}

/// Asks a key manager by this node's own identity.
fn fetch(
    volume: &str,
    source: &str,
    agent: &AgentSection,
    managers: &KeyManagers,
) -> Result<SecretBytes, AgentError> {
    check::text("key.source", source)?;
    let parsed: KeySource = source
        .parse()
        .map_err(|cause| error(ErrorKind::Unsupported, format!("volume {volume}: {cause}")))?;
    match &parsed {
        KeySource::File(path) => file_is_allowed(volume, path, agent)?,
        // A number of ours is none of the caller's business: descriptors come with the message.
        KeySource::Fd(_) => {
            return Err(invalid(format!("volume {volume}: `key.source` can't be a descriptor")));
        }
        _ => {}
    }
    match managers.fetch(&parsed) {
        Ok(fetched) => {
            if let Some(warning) = &fetched.warning {
                tracing::warn!(volume, "{warning}");
            }
            Ok(fetched.passphrase)
        }
        Err(cause) => {
            let kind = match cause.kind() {
                KeyErrorKind::Denied => ErrorKind::KeyDenied,
                KeyErrorKind::Missing => ErrorKind::KeyMissing,
                KeyErrorKind::Unreachable => ErrorKind::KeyUnreachable,
                KeyErrorKind::Unconfigured => ErrorKind::Unsupported,
                // What is there is no passphrase, so no keyslot opens with it.
                _ => ErrorKind::KeyWrong,
            };
            Err(error(kind, format!("volume {volume}: {cause}")))
        }
    }
}

/// A caller shall not have the agent read what only root may, not even as a passphrase.
fn file_is_allowed(volume: &str, path: &Path, agent: &AgentSection) -> Result<(), AgentError> {
    let text = path.to_str().unwrap_or_default();
    check::path("key.source", text)?;
    match check::resolve(volume, text, &agent.key_prefixes, "key_prefixes") {
        Ok(_) => Ok(()),
        Err(cause) if cause.kind == ErrorKind::Volume => Err(error(
            ErrorKind::KeyMissing,
            format!("volume {volume}: its key {text} is not there"),
        )),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use rustix::fs::{MemfdFlags, SealFlags};

    use super::*;

    fn memfd(content: &[u8]) -> File {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(rustix::fs::memfd_create("key", flags).unwrap());
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn a_memfd_is_read_whole_wherever_its_offset_is() {
        let file = memfd(b"secret");
        let bytes = handed("v", &file.try_clone().unwrap().into()).unwrap();
        assert!(bytes.ct_eq(b"secret"));
        let mut sealed = memfd(b"other\n");
        sealed.rewind().unwrap();
        rustix::fs::fcntl_add_seals(&sealed, SealFlags::WRITE | SealFlags::SEAL).unwrap();
        assert!(handed("v", &sealed.into()).unwrap().ct_eq(b"other\n"));
    }

    #[test]
    fn what_is_no_key_is_refused_without_its_content() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"hunter2").unwrap();
        for bad in [reader.into(), memfd(b"").into(), memfd(&vec![b'x'; MAX_KEY_BYTES + 1]).into()]
        {
            let error = handed("v", &bad).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(!error.message.contains("hunter2") && !error.message.contains("xx"), "{error}");
        }
    }

    #[test]
    fn key_files_are_only_read_where_the_operator_allows_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "secret").unwrap();
        let source = format!("file:{}", path.display());
        let agent = AgentSection { key_prefixes: Vec::new(), ..AgentSection::default() };
        assert_eq!(
            fetch("v", &source, &agent, &KeyManagers::none()).unwrap_err().kind,
            ErrorKind::Refused
        );
        let agent = AgentSection { key_prefixes: vec![dir.path().into()], ..agent };
        assert!(fetch("v", &source, &agent, &KeyManagers::none()).unwrap().ct_eq(b"secret"));
        let error = fetch("v", &format!("{source}x"), &agent, &KeyManagers::none()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::KeyMissing);
        let own = format!("fd:{}", std::os::fd::AsRawFd::as_raw_fd(&memfd(b"secret")));
        let error = fetch("v", &own, &agent, &KeyManagers::none()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(
            fetch("v", "magic:1", &agent, &KeyManagers::none()).unwrap_err().kind,
            ErrorKind::Unsupported
        );
    }
}
