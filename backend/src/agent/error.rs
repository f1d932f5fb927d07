//! Errors as the agent's clients get them: a kind for a program, a sentence for a person.

use sealblk_api::agent::{AgentError, ErrorKind};
use sealblk_block::{VolumeError, in_one_line};

/// An error.
pub(super) fn error(kind: ErrorKind, message: impl Into<String>) -> AgentError {
    AgentError { kind, message: message.into() }
}

/// The request makes no sense.
pub(super) fn invalid(message: impl Into<String>) -> AgentError {
    error(ErrorKind::Invalid, message)
}

/// A defect, or a host that is not as it should be.
pub(super) fn internal(message: impl Into<String>) -> AgentError {
    error(ErrorKind::Internal, message)
}

/// What the storage said about a volume.
pub(super) fn storage(volume: &str, cause: &VolumeError) -> AgentError {
    let kind = match cause.kind {
        sealblk_block::ErrorKind::Invalid => ErrorKind::Invalid,
        sealblk_block::ErrorKind::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Volume,
    };
    error(kind, format!("volume {volume}: {}", in_one_line(cause)))
}
