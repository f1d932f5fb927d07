//! Why a rotation doesn't go on.

use std::io;

use sealblk_block::{VolumeError, in_one_line};
use sealblk_luks::LuksError;
use sealblk_volume::FENCED;

use crate::gate::Ended;
use crate::mover::Failed;

/// A rotation can't begin, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The storage failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The header doesn't allow it, or holds nonsense.
    #[error(transparent)]
    Luks(#[from] LuksError),
    /// Not with this volume, or not now.
    #[error("{0}")]
    Refused(String),
    /// Another client has taken the volume.
    #[error(
        "the volume's lock was taken by another client, and nothing of ours is written any more: \
         who has the volume now goes on with its rotation"
    )]
    Fenced,
    /// No memory or no ring for it.
    #[error("what a rotation needs of the system")]
    System(#[source] io::Error),
}

/// What interrupted a rotation.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The storage failed: recover, and go on.
    Storage {
        /// For a person.
        what: String,
        /// It was a flush.
        flush: bool,
    },
    /// The data path is gone.
    Ended,
    /// It makes no sense to try again.
    Hopeless(RotationError),
}

impl From<Trouble> for RotationError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Storage { what, .. } => Self::Refused(what),
            Trouble::Ended => Self::Refused("the disk is no longer served".into()),
            Trouble::Hopeless(error) => error,
        }
    }
}

impl From<Ended> for Trouble {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<LuksError> for Trouble {
    fn from(error: LuksError) -> Self {
        match error {
            LuksError::Read { .. } | LuksError::BothCopiesBad { .. } | LuksError::NotLuks(_) => {
                Self::Storage { what: in_one_line(&error), flush: false }
            }
            other => Self::Hopeless(other.into()),
        }
    }
}

impl From<Failed> for Trouble {
    fn from(failed: Failed) -> Self {
        if failed.errno == FENCED {
            return Self::Hopeless(RotationError::Fenced);
        }
        let error = io::Error::from_raw_os_error(failed.errno);
        let did = if failed.write { "writing" } else { "reading" };
        let hint = match failed.errno {
            libc::ENOSPC => " (a thin volume without room: give its pool more)",
            _ => "",
        };
        let what = format!("{did} data at offset {}: {error}{hint}", failed.offset_bytes);
        Self::Storage { what, flush: false }
    }
}
