//! The command line of `sealblk rotate` and `sealblk header`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealblk_keys::KeySource;

use crate::size;

/// With a subcommand: of a volume that a daemon serves. Without: of one that nobody uses.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
pub(crate) struct Rotate {
    #[command(subcommand)]
    pub(crate) command: Option<RotateCommand>,

    /// The volume; nobody may use it meanwhile
    #[arg(long, value_name = "URI", required = true)]
    pub(crate) volume: Option<String>,

    /// The secret that opens it now
    #[arg(long, value_name = "SOURCE", required = true)]
    pub(crate) key: Option<KeySource>,

    #[command(flatten)]
    pub(crate) how: RotateHow,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RotateCommand {
    /// Begin to re-encrypt a served volume, while its guest works
    Start(RotateStart),
    /// Show how far the rotation is
    Status(RotateStatus),
    /// Stop between two ranges, until `resume`
    Pause(Served),
    /// Go on after `pause`
    Resume(Served),
    /// Change the limit of its speed
    Throttle(RotateThrottle),
}

/// A volume of a running daemon.
#[derive(Debug, Args)]
pub(crate) struct Served {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// The volume's name in the daemon's configuration
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: String,
}

#[derive(Debug, Args)]
pub(crate) struct RotateStart {
    #[command(flatten)]
    pub(crate) served: Served,

    #[command(flatten)]
    pub(crate) how: RotateHow,
}

/// What a rotation does, whoever drives it.
#[derive(Debug, Args)]
pub(crate) struct RotateHow {
    /// The secret that opens the volume afterwards [default: the secret stays, and only the volume
    /// key is replaced]. A daemon reads it: it must be able to
    #[arg(long, value_name = "SOURCE")]
    pub(crate) new_key: Option<KeySource>,

    /// Most bytes per second, e.g. 100M [default: as the guest's load allows]
    #[arg(long, value_name = "BYTES/s", value_parser = size::parse)]
    pub(crate) rate: Option<u64>,

    /// Longest range to be in work at a time, e.g. 4M
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    pub(crate) hotzone: Option<u64>,

    /// File for the header as it was before: it holds the old key, and is destroyed at the end
    /// [default: UUID.luks-header beside the daemon's configuration; without a daemon, here]
    #[arg(long, value_name = "FILE")]
    pub(crate) header_backup: Option<PathBuf>,

    /// Leave a LUKS1 volume on LUKS2: QEMU's own LUKS, Nova and Cinder can't open it then
    #[arg(long)]
    pub(crate) keep_luks2: bool,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RotateStatus {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// The volume's name in the daemon's configuration [default: all]
    #[arg(long, value_name = "NAME")]
    pub(crate) volume: Option<String>,

    /// Stay until it ends: 0 when it is completed, 1 when it failed. The daemon may be restarted
    /// meanwhile
    #[arg(long, requires = "volume")]
    pub(crate) watch: bool,

    /// As JSON; with --watch an object for each change
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RotateThrottle {
    #[command(flatten)]
    pub(crate) served: Served,

    /// Most bytes per second, e.g. 100M, or `none`
    #[arg(long, value_name = "BYTES/s|none", value_parser = limit)]
    pub(crate) rate: Limit,
}

/// A limit, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit(pub(crate) Option<u64>);

pub(super) fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        text => Ok(Limit(Some(size::parse(text)?))),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum HeaderCommand {
    /// Copy the header with its keyslots to a file, as `cryptsetup luksHeaderBackup` does
    Backup(HeaderBackup),
    /// Put a header back, if that can't destroy the volume. Nobody may use the volume meanwhile
    Restore(HeaderRestore),
}

#[derive(Debug, Args)]
pub(crate) struct HeaderBackup {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// The file to make. It opens the volume with every passphrase that opens it now, for as long
    /// as the volume key stays
    #[arg(long, value_name = "PATH")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct HeaderRestore {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// The backup
    #[arg(long, value_name = "PATH")]
    pub(crate) file: PathBuf,

    /// Go on although something else's signature lies where the header was, and destroy it
    #[arg(long)]
    pub(crate) overwrite_signature: bool,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parse(line: &str) -> Option<Rotate> {
        let line = format!("sealblk rotate {line}");
        match Cli::try_parse_from(line.split_whitespace()).ok()?.command {
            Command::Rotate(rotate) => Some(*rotate),
            _ => None,
        }
    }

    #[test]
    fn a_rotation_is_of_a_served_volume_or_of_an_idle_one() {
        let idle = parse("--volume /dev/vdb --key file:/k --rate 100M --keep-luks2").unwrap();
        assert!(idle.command.is_none());
        assert_eq!((idle.how.rate, idle.how.keep_luks2), (Some(100 << 20), true));
        assert_eq!(idle.key.unwrap().to_string(), "file:/k");

        let served = parse("start --control /s --volume vda --new-key file:/n --hotzone 4M");
        let Some(Rotate { command: Some(RotateCommand::Start(start)), volume: None, .. }) = served
        else {
            panic!("{served:?}");
        };
        assert_eq!(start.how.new_key.unwrap().to_string(), "file:/n");
        assert_eq!(start.how.hotzone, Some(4 << 20));
        for bad in [
            "--volume /dev/vdb",
            "--key file:/k",
            "start --volume vda",
            "--volume /dev/vdb --key file:/k pause --control /s --volume vda",
            "status --control /s --watch",
            "throttle --control /s --volume vda",
            "throttle --control /s --volume vda --rate fast",
            "throttle --control /s --volume vda --rate 0",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_limit_can_be_taken_away() {
        for (text, rate) in [("none", None), ("3M", Some(3 << 20))] {
            let parsed = parse(&format!("throttle --control /s --volume vda --rate {text}"));
            let Some(Rotate { command: Some(RotateCommand::Throttle(throttle)), .. }) = parsed
            else {
                panic!("{parsed:?}");
            };
            assert_eq!(throttle.rate, Limit(rate));
        }
    }
}
