//! How a command ends when it doesn't succeed.

use std::process::ExitCode;

use sealblk_block::in_one_line;
use sealblk_keys::KeyErrorKind;

/// Why a command did nothing or not all.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Failed(anyhow::Error),
    /// The command would have destroyed something and was not told to; nothing was changed.
    Refused(String),
    /// `key check` found that the key can't be got.
    Key(KeyErrorKind, String),
}

impl Failure {
    /// 1 for a failure, 3 for a refusal, 4 to 8 for a key. (2 is clap's, for a wrong command line.)
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 3,
            Self::Key(KeyErrorKind::Denied, _) => 4,
            Self::Key(KeyErrorKind::Missing, _) => 5,
            Self::Key(KeyErrorKind::Unreachable, _) => 6,
            Self::Key(KeyErrorKind::Malformed, _) => 7,
            Self::Key(KeyErrorKind::Unconfigured, _) => 8,
            Self::Key(..) => 1,
        })
    }

    /// What to tell, without the program's name.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Failed(error) => in_one_line(error.as_ref()),
            Self::Refused(why) => format!("refused: {why}"),
            Self::Key(_, why) => why.clone(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
