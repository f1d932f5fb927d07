//! The command line of `sealblk`, for its manual pages and completions: `sealblk-manual` asks for it.
//!
//! Contract: the same modules as the program's, read a second time; they do nothing but describe.
//! Deliberately absent: what the commands do. That is the program, beside this file.

#![allow(dead_code, reason = "what the arguments are used for is in the program")]
#![allow(unused_imports, reason = "the same")]

mod args;
mod size;

/// All of `sealblk` with its subcommands.
pub fn command() -> clap::Command {
    use clap::CommandFactory;
    args::Cli::command()
}
