//! How a command ends when it doesn't succeed.

use std::process::ExitCode;

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
            Self::Failed(error) => in_one_line(error),
            Self::Refused(why) => format!("refused: {why}"),
        }
    }
}

/// An error and its causes, without those that the text before has named already. (The same as in
/// `backend`.)
pub(crate) fn in_one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}
