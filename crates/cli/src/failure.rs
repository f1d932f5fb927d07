//! How a command ends when it doesn't succeed.

use std::process::ExitCode;

use sealblk_block::in_one_line;

/// Why a command did nothing or not all.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Failed(anyhow::Error),
    /// The command would have destroyed something and was not told to; nothing was changed.
    Refused(String),
}

impl Failure {
    /// 1 for a failure, 3 for a refusal. (2 is clap's, for a wrong command line.)
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Refused(_) => 3,
        })
    }

    /// What to tell, without the program's name.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Failed(error) => in_one_line(error.as_ref()),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
