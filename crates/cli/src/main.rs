//! sealblk: the operator's command. A thin client: LUKS headers through `sealblk-luks`, a running
//! daemon through its control socket.
//!
//! Contract: results go to standard output, questions and warnings to standard error; the exit
//! status is 0 (done), 1 (failed), 2 (wrong command line) or 3 (refused, nothing was changed), and
//! of `key check` also 4 to 8, by what is wrong with the key.
//!
//! Deliberately absent: asking for passphrases at a terminal, and keys in arguments.

mod args;
mod commands;
mod console;
mod failure;
mod http;
mod keyfile;
mod progress;
mod size;
mod table;
mod target;
mod time;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, HeaderCommand, Key, NODE_FLAG, Node};
use crate::console::Console;
use crate::failure::Failure;

fn main() -> ExitCode {
    let line: Vec<_> = std::env::args_os().collect();
    let asked = if line.iter().any(|word| word == NODE_FLAG) {
        let rest = line.into_iter().filter(|word| word != NODE_FLAG);
        Asked::Node(Node::parse_from(rest))
    } else {
        Asked::Volume(Cli::parse())
    };
    let result = sealblk_secret::harden_process().map_err(Failure::from).and_then(|()| {
        let (mut out, mut err, mut input) =
            (io::stdout().lock(), io::stderr().lock(), io::stdin().lock());
        let interactive = io::stdin().is_terminal() && io::stderr().is_terminal();
        let redraws = io::stdout().is_terminal();
        let key_managers = match &asked {
            Asked::Node(_) => None,
            Asked::Volume(cli) => cli.key_managers.clone(),
        };
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            input: &mut input,
            interactive,
            redraws,
            key_managers,
        };
        match &asked {
            Asked::Node(args) => commands::node::run(args, &mut console)?,
            Asked::Volume(cli) => run(&cli.command, &mut console)?,
        }
        Ok(out.flush()?)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is gone, the exit status has to do.
            let _ = writeln!(io::stderr(), "sealblk: {}", failure.message());
            failure.exit_code()
        }
    }
}

/// Who is asked.
enum Asked {
    /// This node's agent.
    Node(Node),
    /// A volume, or the daemon that serves it.
    Volume(Cli),
}

fn run(command: &Command, console: &mut Console<'_>) -> Result<(), Failure> {
    match command {
        Command::Format(args) => commands::format::run(args, console),
        Command::Inspect(args) => commands::inspect::run(args, console),
        Command::Key(Key::Add(args)) => commands::key::add(args, console),
        Command::Key(Key::Remove(args)) => commands::key::remove(args, console),
        Command::Key(Key::Check(args)) => commands::check::run(args, console),
        Command::Rewrap(args) => commands::key::rewrap(args, console),
        Command::Rotate(args) => commands::rotate::run(args, console),
        Command::Header(HeaderCommand::Backup(args)) => commands::header::backup(args, console),
        Command::Header(HeaderCommand::Restore(args)) => commands::header::restore(args, console),
        Command::Repair(args) => commands::repair::run(args, console),
        Command::Resize(args) => commands::resize::run(args, console),
        Command::Status(args) => commands::status::run(args, console),
    }
}
