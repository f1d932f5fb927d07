//! How the demonstration's lines look.

use std::fmt::Display;
use std::io::IsTerminal;

/// How lines are shown: in colour on a terminal.
pub(crate) struct Style {
    pub(crate) is_terminal: bool,
    colours: bool,
}

impl Style {
    /// As standard output and NO_COLOR want it.
    pub(crate) fn new() -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let colours = is_terminal && std::env::var_os("NO_COLOR").is_none();
        Self { is_terminal, colours }
    }

    pub(crate) fn title(&self, text: impl Display) {
        print(&if self.colours {
            format!("\n\x1b[1;36m{text}\x1b[0m")
        } else {
            format!("\n{text}")
        });
    }

    pub(crate) fn command(&self, text: &str) {
        print(&if self.colours {
            format!("  \x1b[32m$ {text}\x1b[0m")
        } else {
            format!("  $ {text}")
        });
    }

    /// A bar that is drawn on a terminal's last line stays there.
    pub(crate) fn break_line(&self) {
        if self.is_terminal {
            print("");
        }
    }

    pub(crate) fn output(&self, text: impl Display) {
        for line in text.to_string().lines() {
            print(&format!("    {line}"));
        }
    }
}

#[expect(clippy::print_stdout, reason = "a demonstration shows something")]
fn print(line: &str) {
    println!("{line}");
}
