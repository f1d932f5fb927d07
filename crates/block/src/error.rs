//! The error of everything that touches a volume: a small kind to match on, and words for a person.

use std::error::Error;
use std::io;

/// An error and its causes on one line, for a place where only text goes; without those that the
/// text before has named already.
pub fn in_one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// What went wrong, for code that has to decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The URI or an argument makes no sense.
    Invalid,
    /// No such volume.
    NotFound,
    /// Not allowed to open or write it.
    Permission,
    /// Somebody else holds the volume.
    Busy,
    /// The volume or this kernel can't do what is asked.
    Unsupported,
    /// The storage failed.
    Io,
}

/// A volume, what failed on it, and why.
#[derive(Debug, thiserror::Error)]
#[error("{volume}: {what}")]
pub struct VolumeError {
    /// What went wrong, for code that has to decide.
    pub kind: ErrorKind,
    /// The volume's URI.
    pub volume: String,
    /// What failed and what to do about it, for a person.
    pub what: String,
    /// The system's own error, where there is one.
    #[source]
    pub source: Option<io::Error>,
}

impl VolumeError {
    /// An error without a system error behind it.
    pub fn new(kind: ErrorKind, volume: &str, what: impl Into<String>) -> Self {
        Self { kind, volume: volume.to_owned(), what: what.into(), source: None }
    }

    /// An error from the system; its kind follows from the system's.
    pub fn io(volume: &str, what: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Permission,
            io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock => ErrorKind::Busy,
            io::ErrorKind::Unsupported => ErrorKind::Unsupported,
            io::ErrorKind::InvalidInput => ErrorKind::Invalid,
            _ => ErrorKind::Io,
        };
        Self { kind, volume: volume.to_owned(), what: what.into(), source: Some(source) }
    }
}
