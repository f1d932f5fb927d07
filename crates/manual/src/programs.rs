//! The programs: how each is called, in which section of the manual it is, and what its command line
//! doesn't say by itself.

use clap::Command;

/// A program.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its command line, built: subcommands know their full names.
    pub(crate) command: Command,
    /// Section of the manual: `1` for commands, `8` for daemons.
    pub(crate) section: &'static str,
    /// Files that it reads or makes, and what they are.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Other pages.
    pub(crate) see_also: &'static [&'static str],
}

/// All of them.
pub(crate) fn all() -> Vec<Program> {
    vec![
        Program {
            command: built(sealblk_cli::command()),
            section: "1",
            files: &[(
                "/run/sealblk/instances/*/control.sock",
                "control sockets of a node's daemons",
            )],
            see_also: &["sealblkd(8)", "sealblk-agent(8)", "cryptsetup(8)"],
        },
        Program {
            command: built(sealblk_backend::sealblkd_command()),
            section: "8",
            files: &[
                ("/etc/sealblk/NAME.toml", "configuration of the service sealblkd@NAME"),
                ("/var/lib/sealblk", "ages of LUKS1 volumes' keys, header backups of rotations"),
                (
                    "/usr/share/doc/sealblk/operations.md",
                    "configuration, rotation, errors, recovery",
                ),
            ],
            see_also: &["sealblk(1)", "sealblk-agent(8)", "sealblkd.toml(5)"],
        },
    ]
}

/// `--help` and `-V` included, and without the subcommand `help`, which repeats every other one.
fn built(command: Command) -> Command {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    command
}
