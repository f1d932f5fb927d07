//! The command line: the configuration says everything.

use std::path::PathBuf;

use clap::Parser;

/// Serves the volumes of this node's virtual machines: starts a sealblkd for each, and gives it
/// devices and keys.
#[derive(Debug, Parser)]
#[command(name = "sealblk-agent", disable_version_flag = true, after_help = AFTER)]
pub(super) struct Args {
    /// Configuration file (TOML), see docs/agent.md [default: /etc/sealblk/agent.toml, if it is
    /// there]
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Check the configuration and exit
    #[arg(long)]
    pub(super) check: bool,

    /// What to log: error, warn, info, debug, trace, or a `tracing` filter [default: the
    /// configuration's]
    #[arg(long, value_name = "FILTER")]
    pub(super) log_level: Option<String>,

    /// Print the version and exit
    #[arg(short = 'V', long)]
    pub(super) version: bool,

    /// With --version: also what this program was built with, and the libraries that it finds
    #[arg(long, requires = "version")]
    pub(super) verbose: bool,
}

const AFTER: &str = "\
Exit status: 0 after SIGTERM or SIGINT (the virtual machines' daemons go on), 1 when something
failed, 2 when the command line or the configuration is wrong. The log goes to standard error.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Args::command().debug_assert();
    }
}
