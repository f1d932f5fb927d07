//! The name of a key: `KIND:WHERE`.
//!
//! Contract: what stands in a [`KeySource`] has been checked: it can be put into a URL, a log line
//! or a KMIP request as it is. A key manager's *server* is never part of a key's name: names come
//! from volumes' metadata, and who can write those must not choose where tokens are sent.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Failure, KeyError};
use crate::{Fetched, Held, descriptor, file};

/// Bytes of a path below a Vault mount.
const VAULT_PATH_MAX: usize = 512;
/// Bytes of a KMIP unique identifier. The standard sets no limit; UUIDs, numbers and 64 hex digits
/// are what servers give.
const KMIP_ID_MAX: usize = 256;
/// What a key's name may look like.
const KINDS: &str = "`file:PATH` (the file's whole content is the passphrase), `barbican:UUID`, \
                     `vault:PATH`, `kmip:ID` or `fd:NUMBER`";

/// Where a passphrase comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeySource {
    /// `file:PATH`: the whole content of the file.
    File(PathBuf),
    /// `fd:N`: the whole content of what the process has open as descriptor N.
    Fd(RawFd),
    /// `barbican:UUID`: a secret in Barbican; lower case, with hyphens.
    Barbican(String),
    /// `vault:PATH`: a secret that castellan stored, by its path below the mount.
    Vault(String),
    /// `kmip:ID`: a managed object, by its unique identifier.
    Kmip(String),
    /// This process was handed it and keeps it. No text names it: it comes as a descriptor.
    Held(Held),
}

impl KeySource {
    /// Gets the passphrase of a source that needs no key manager. Blocks as long as the source does.
    ///
    /// # Errors
    /// The source can't be read, or what it holds is no passphrase (empty, longer than
    /// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES)). [`Unconfigured`](crate::KeyErrorKind::Unconfigured)
    /// for what only [`KeyManagers::fetch`](crate::KeyManagers::fetch) can get.
    pub fn fetch(&self) -> Result<Fetched, KeyError> {
        self.fetch_here()
            .unwrap_or_else(|| {
                Err(Failure::unconfigured(
                    "no key managers are configured: say where they are in /etc/sealblk/keys.toml \
                 (docs/keys.md), or name the file with --key-managers",
                ))
            })
            .map_err(|failure| KeyError::new(self, failure))
    }

    /// Whether it takes a key manager to get it.
    pub fn needs_key_manager(&self) -> bool {
        matches!(self, Self::Barbican(_) | Self::Vault(_) | Self::Kmip(_))
    }

    /// None: it takes a key manager.
    pub(crate) fn fetch_here(&self) -> Option<Result<Fetched, Failure>> {
        match self {
            Self::File(path) => Some(file::fetch(path)),
            Self::Fd(number) => Some(descriptor::fetch(*number)),
            Self::Barbican(_) | Self::Vault(_) | Self::Kmip(_) => None,
            Self::Held(held) => Some(held.fetch()),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Fd(number) => write!(f, "fd:{number}"),
            Self::Barbican(id) => write!(f, "barbican:{id}"),
            Self::Vault(path) => write!(f, "vault:{path}"),
            Self::Kmip(id) => write!(f, "kmip:{id}"),
            Self::Held(held) => held.fmt(f),
        }
    }
}

impl FromStr for KeySource {
    type Err = KeySourceError;

    fn from_str(text: &str) -> Result<Self, KeySourceError> {
        // The text itself isn't repeated: who takes the option for the passphrase would find the
        // passphrase in the log.
        let wrong = |what: &str| Err(KeySourceError(what.to_owned()));
        match text.split_once(':') {
            Some(("file", "")) => wrong("`file:` needs a path: `file:PATH`"),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("fd", number)) => match number.parse::<RawFd>() {
                Ok(number) if number >= 0 && !text.contains('+') => Ok(Self::Fd(number)),
                _ => wrong("`fd:` needs the number of an open descriptor: `fd:NUMBER`"),
            },
            Some(("barbican", id)) => match barbican_id(id) {
                Some(id) => Ok(Self::Barbican(id)),
                None => wrong(
                    "`barbican:` needs a secret's UUID (or its reference, whose path ends in \
                     /secrets/UUID): `barbican:UUID`",
                ),
            },
            Some(("vault", path)) if is_vault_path(path) => Ok(Self::Vault(path.to_owned())),
            Some(("vault", _)) => wrong(
                "`vault:` needs a path below the mount, of letters, digits, `-`, `_`, `.`, `~` and \
                 single slashes: `vault:PATH`",
            ),
            Some(("kmip", id)) if is_kmip_id(id) => Ok(Self::Kmip(id.to_owned())),
            Some(("kmip", _)) => wrong(
                "`kmip:` needs the object's unique identifier, of 1 to 256 ASCII letters, digits \
                 and signs: `kmip:ID`",
            ),
            _ => Err(KeySourceError(format!("a key is named by its source: {KINDS}"))),
        }
    }
}

/// The UUID of `UUID` or `anything/secrets/UUID`, in lower case.
fn barbican_id(text: &str) -> Option<String> {
    let id = match text.rsplit_once('/') {
        Some((before, id)) if before.ends_with("/secrets") => id,
        Some(_) => return None,
        None => text,
    };
    is_uuid(id).then(|| id.to_ascii_lowercase())
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Segments that mean in a URL what they say.
fn is_vault_path(path: &str) -> bool {
    path.len() <= VAULT_PATH_MAX && path.split('/').all(is_segment)
}

/// Unreserved characters (RFC 3986 section 2.3), and no dot segment (section 3.3).
pub(crate) fn is_segment(segment: &str) -> bool {
    !matches!(segment, "" | "." | "..")
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b))
}

fn is_kmip_id(id: &str) -> bool {
    (1..=KMIP_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Text that names no key source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeySourceError(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyErrorKind;

    const ID: &str = "1f9a6f1c-35a4-4f6e-9c69-0a1b2c3d4e5f";

    fn parsed(text: &str) -> KeySource {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        text.parse::<KeySource>().unwrap_err().to_string()
    }

    #[test]
    fn a_file_source_keeps_its_path_as_it_is() {
        for path in ["/etc/key", "relative", "/with:colon", " spaces "] {
            let source = parsed(&format!("file:{path}"));
            assert_eq!(source, KeySource::File(path.into()));
            assert_eq!(source.to_string(), format!("file:{path}"));
        }
    }

    #[test]
    fn of_a_secret_reference_only_the_uuid_counts() {
        let expected = KeySource::Barbican(ID.into());
        for text in [
            format!("barbican:{ID}"),
            format!("barbican:{}", ID.to_uppercase()),
            format!("barbican:https://evil.example/v1/secrets/{ID}"),
            format!("barbican:http://u:p@evil.example:1/x/secrets/{ID}"),
        ] {
            assert_eq!(parsed(&text), expected, "{text}");
            assert_eq!(parsed(&text).to_string(), format!("barbican:{ID}"));
        }
        for id in [
            "",
            "1234",
            "https://h/v1/secrets/",
            &format!("https://h/v1/orders/{ID}"),
            &format!("secrets/{ID}"),
            &format!("https://h/v1/secrets/{ID}/payload"),
            &format!("{ID}?x"),
            &format!(" {ID}"),
            &ID.replace('-', ""),
            &ID.replace('a', "g"),
        ] {
            assert!(refused(&format!("barbican:{id}")).contains("`barbican:UUID`"), "{id}");
        }
    }

    #[test]
    fn a_path_in_vault_cannot_leave_its_place_in_the_url() {
        for path in ["0a1b2c3d4e5f", "volumes/0a1b", "a.b_c~d-e", "..x"] {
            assert_eq!(parsed(&format!("vault:{path}")), KeySource::Vault(path.into()));
        }
        let long = "a".repeat(VAULT_PATH_MAX + 1);
        for path in [
            "", "/a", "a/", "a//b", "..", "a/../b", "a/.", "a?b", "a#b", "a%2fb", "a b", "ä", &long,
        ] {
            assert!(refused(&format!("vault:{path}")).contains("`vault:PATH`"), "{path}");
        }
    }

    #[test]
    fn an_identifier_of_kmip_is_some_printable_characters() {
        for id in ["1", ID, "a:b/c?d"] {
            assert_eq!(parsed(&format!("kmip:{id}")), KeySource::Kmip(id.into()));
        }
        for id in ["", "a b", "a\nb", "ä", &"a".repeat(KMIP_ID_MAX + 1)] {
            assert!(refused(&format!("kmip:{id}")).contains("`kmip:ID`"), "{id:?}");
        }
    }

    #[test]
    fn a_descriptor_is_a_number() {
        assert_eq!(parsed("fd:7"), KeySource::Fd(7));
        for number in ["", "-1", "+1", "x", "99999999999", " 1"] {
            assert!(refused(&format!("fd:{number}")).contains("`fd:NUMBER`"), "{number}");
        }
    }

    #[test]
    fn what_may_be_a_passphrase_is_not_repeated() {
        for text in [
            "hunter2",
            "hunter2:x",
            "file:",
            "",
            "barbican:hunter2",
            "vault:hunter2!",
            "kmip:hunter2 ",
            "fd:hunter2",
        ] {
            let error = refused(text);
            assert!(!error.contains("hunter2") && error.contains(':'), "{error}");
        }
    }

    #[test]
    fn without_a_configuration_a_key_manager_is_unconfigured() {
        for text in [format!("barbican:{ID}"), "vault:a".into(), "kmip:1".into()] {
            let error = parsed(&text).fetch().unwrap_err();
            assert_eq!(error.kind(), KeyErrorKind::Unconfigured);
            let message = error.to_string();
            assert!(message.starts_with(&format!("key {text}: ")), "{message}");
            assert!(message.contains("/etc/sealblk/keys.toml"), "{message}");
        }
    }
}
