//! The name of a key: `KIND:WHERE`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::{Fetched, Held, file};

/// Kinds that the design names and this version doesn't have: refused by name, so that nobody
/// looks for a spelling mistake.
const PLANNED: &[&str] = &["barbican", "vault", "kmip", "fd"];

/// Where a passphrase comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// `file:PATH`: the whole content of the file.
    File(PathBuf),
    /// This process was handed it and keeps it. No text names it: it comes as a descriptor.
    Held(Held),
}

impl KeySource {
    /// Gets the passphrase. Blocks as long as the source does.
    ///
    /// # Errors
    /// The source can't be read, or what it holds is no passphrase (empty, longer than
    /// [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES)).
    pub fn fetch(&self) -> Result<Fetched, KeyError> {
        match self {
            Self::File(path) => {
                file::fetch(path).map_err(|what| KeyError { key: self.clone(), what })
            }
            Self::Held(held) => match held.fetch() {
                Ok(passphrase) => Ok(Fetched { passphrase, warning: None }),
                Err(what) => Err(KeyError { key: self.clone(), what }),
            },
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Held(held) => held.fmt(f),
        }
    }
}

impl FromStr for KeySource {
    type Err = KeySourceError;

    fn from_str(text: &str) -> Result<Self, KeySourceError> {
        // The text itself isn't repeated: who takes the option for the passphrase would find the
        // passphrase in the log.
        match text.split_once(':') {
            Some(("file", "")) => Err(KeySourceError("`file:` needs a path: `file:PATH`".into())),
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some((kind, _)) if PLANNED.contains(&kind) => Err(KeySourceError(format!(
                "keys from `{kind}:` are not supported by this version; use `file:PATH`"
            ))),
            _ => Err(KeySourceError(
                "a key is named by its source: `file:PATH` (the file's whole content is the \
                 passphrase)"
                    .into(),
            )),
        }
    }
}

/// Text that names no key source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeySourceError(String);

/// A passphrase could not be got.
#[derive(Debug, thiserror::Error)]
#[error("key {key}: {what}")]
pub struct KeyError {
    key: KeySource,
    what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_source_keeps_its_path_as_it_is() {
        for path in ["/etc/key", "relative", "/with:colon", " spaces "] {
            let source: KeySource = format!("file:{path}").parse().unwrap();
            assert_eq!(source, KeySource::File(path.into()));
            assert_eq!(source.to_string(), format!("file:{path}"));
        }
    }

    #[test]
    fn planned_kinds_are_refused_by_name() {
        let error = "barbican:1234".parse::<KeySource>().unwrap_err().to_string();
        assert!(error.contains("`barbican:`") && error.contains("file:PATH"), "{error}");
    }

    #[test]
    fn what_may_be_a_passphrase_is_not_repeated() {
        for text in ["hunter2", "hunter2:x", "file:", ""] {
            let error = text.parse::<KeySource>().unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("file:PATH"), "{error}");
        }
    }
}
