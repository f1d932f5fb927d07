//! From what failed to the kind of failure that the agent tells its caller.

use sealblk_api::agent::{AgentError, ErrorKind};
use sealblk_block::in_one_line;
use sealblk_luks::LuksError;

use crate::disk::WrongKey;
use crate::socket::SocketError;

/// A refusal in our own words.
pub(super) fn refusal(kind: ErrorKind, volume: &str, what: &str) -> AgentError {
    AgentError { kind, message: format!("volume {volume}: {what}") }
}

/// What became of opening a volume.
pub(super) fn of_opening(volume: &str, error: &anyhow::Error) -> AgentError {
    refusal(kind_of(error), volume, &in_one_line(error.as_ref()))
}

fn kind_of(error: &anyhow::Error) -> ErrorKind {
    if error.downcast_ref::<WrongKey>().is_some() {
        return ErrorKind::KeyWrong;
    }
    if error.downcast_ref::<SocketError>().is_some()
        || error.downcast_ref::<sealblk_session::SocketError>().is_some()
    {
        return ErrorKind::Internal;
    }
    match error.downcast_ref::<LuksError>() {
        Some(LuksError::NotLuks(_)) => ErrorKind::NotEncrypted,
        Some(LuksError::Refused(_) | LuksError::VersionNotAllowed { .. }) => ErrorKind::Unsupported,
        Some(LuksError::Read { .. }) | None => ErrorKind::Volume,
        Some(_) => ErrorKind::Header,
    }
}
