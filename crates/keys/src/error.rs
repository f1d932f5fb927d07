//! What can go wrong with a key.
//!
//! Contract: an error says which key, which server, what failed and what to do, and never holds
//! what a server said, what a credential file holds, or the secret: a server may repeat a token.

use std::fmt;

/// What a caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyErrorKind {
    /// The source refuses: the credentials are wrong, or these may not read this secret (401, 403).
    Denied,
    /// The source has no such secret (404, 410).
    Missing,
    /// It doesn't answer, not in time, not as whom we trust, is sealed, or fails (5xx): the only
    /// kind that may be gone at another attempt.
    Unreachable,
    /// What it answers, or holds, makes no sense as a passphrase.
    Malformed,
    /// This node isn't set up for it: there is no such section in the configuration, a file that it
    /// names can't be read, or a setting is refused.
    Unconfigured,
}

impl KeyErrorKind {
    /// In one word, for machines: `denied`, `missing`, `unreachable`, `malformed`, `unconfigured`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Missing => "missing",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::Unconfigured => "unconfigured",
        }
    }
}

impl fmt::Display for KeyErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A passphrase could not be got.
#[derive(Debug, thiserror::Error)]
#[error("key {key}: {what}")]
pub struct KeyError {
    kind: KeyErrorKind,
    key: String,
    what: String,
}

impl KeyError {
    pub(crate) fn new(key: &crate::KeySource, failure: Failure) -> Self {
        Self { kind: failure.kind, key: key.to_string(), what: failure.what }
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> KeyErrorKind {
        self.kind
    }
}

/// An error before it is known which key it is about.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: KeyErrorKind,
    pub(crate) what: String,
    /// Whether the same request may succeed in a moment.
    pub(crate) passing: bool,
    /// The server's wish when to ask again, in seconds.
    pub(crate) after_seconds: Option<u32>,
}

impl Failure {
    pub(crate) fn new(kind: KeyErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), passing: false, after_seconds: None }
    }

    pub(crate) fn denied(what: impl Into<String>) -> Self {
        Self::new(KeyErrorKind::Denied, what)
    }

    pub(crate) fn missing(what: impl Into<String>) -> Self {
        Self::new(KeyErrorKind::Missing, what)
    }

    pub(crate) fn unreachable(what: impl Into<String>) -> Self {
        Self::new(KeyErrorKind::Unreachable, what)
    }

    /// Unreachable, and another attempt may help.
    pub(crate) fn passing(what: impl Into<String>) -> Self {
        Self { passing: true, ..Self::unreachable(what) }
    }

    pub(crate) fn malformed(what: impl Into<String>) -> Self {
        Self::new(KeyErrorKind::Malformed, what)
    }

    pub(crate) fn unconfigured(what: impl Into<String>) -> Self {
        Self::new(KeyErrorKind::Unconfigured, what)
    }
}

impl From<sealblk_secret::SecretError> for Failure {
    fn from(error: sealblk_secret::SecretError) -> Self {
        Self::passing(error.to_string())
    }
}
