//! Where a command reads and writes: the terminal, or a test's buffers.

use std::io::{BufRead, Write};
use std::path::PathBuf;

use crate::failure::Failure;

/// What must be typed, in capitals, as cryptsetup asks.
const CONSENT: &str = "YES";

/// A person, or a script.
pub(crate) struct Console<'a> {
    /// Results.
    pub(crate) out: &'a mut dyn Write,
    /// Questions, warnings, progress.
    pub(crate) err: &'a mut dyn Write,
    /// Answers.
    pub(crate) input: &'a mut dyn BufRead,
    /// Whether somebody is there to answer: input and error output are terminals.
    pub(crate) interactive: bool,
    /// Whether a line of the output can be drawn over: it is a terminal.
    pub(crate) redraws: bool,
    /// Where the key managers' configuration is; none: where it usually is.
    pub(crate) key_managers: Option<PathBuf>,
}

impl Console<'_> {
    /// Tells something that doesn't belong to the result.
    pub(crate) fn note(&mut self, text: &str) -> Result<(), Failure> {
        Ok(writeln!(self.err, "sealblk: {text}")?)
    }

    /// Asks before something is destroyed. `what` is a sentence that says what.
    ///
    /// # Errors
    /// [`Failure::Refused`] unless somebody consents, here or with `--yes`.
    pub(crate) fn confirm(&mut self, what: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !self.interactive {
            return Err(Failure::Refused(format!(
                "{what} Nobody is at a terminal to confirm it; --yes says so beforehand"
            )));
        }
        write!(self.err, "{what}\nType {CONSENT} in capitals to go on: ")?;
        self.err.flush()?;
        let mut answer = String::new();
        self.input.read_line(&mut answer)?;
        if answer.trim() == CONSENT {
            Ok(())
        } else {
            Err(Failure::Refused("not confirmed, nothing was changed".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The outcome, and what was asked.
    fn ask(answer: &str, interactive: bool, yes: bool) -> (Result<(), Failure>, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut input = answer.as_bytes();
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            input: &mut input,
            interactive,
            redraws: false,
            key_managers: None,
        };
        let result = console.confirm("All data on X will be lost.", yes);
        assert!(out.is_empty());
        (result, String::from_utf8(err).unwrap())
    }

    #[test]
    fn only_the_word_in_capitals_is_consent() {
        let (result, question) = ask("YES\n", true, false);
        assert!(result.is_ok() && question.starts_with("All data on X will be lost.\n"));
        for answer in ["yes\n", "y\n", "\n", "", "YES!\n", "NO YES\n"] {
            assert!(matches!(ask(answer, true, false).0, Err(Failure::Refused(_))), "{answer:?}");
        }
    }

    #[test]
    fn without_a_terminal_only_the_option_counts() {
        let (result, asked) = ask("YES\n", false, false);
        assert!(matches!(result, Err(Failure::Refused(why)) if why.contains("--yes")));
        assert_eq!(asked, "");
        assert!(ask("", false, true).0.is_ok());
        assert!(ask("NO\n", true, true).0.is_ok());
    }
}
