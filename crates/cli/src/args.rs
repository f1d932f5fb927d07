//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sealblk_keys::KeySource;

use crate::size;

mod node;
mod rotate;

pub(crate) use node::{NODE_FLAG, Node, NodeCommand, NodeRotate, NodeSelect};
pub(crate) use rotate::{
    HeaderBackup, HeaderCommand, HeaderRestore, Rotate, RotateCommand, RotateHow, RotateStart,
    RotateStatus, RotateThrottle, Served,
};

/// Looks after encrypted volumes: LUKS headers, keyslots, and the daemon's status.
#[derive(Debug, Parser)]
#[command(name = "sealblk", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// Where the key managers are described that `barbican:`, `vault:` and `kmip:` keys come from
    /// [default: /etc/sealblk/keys.toml]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) key_managers: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Volumes are named by a URI: `/dev/...` for a block device, `file:/...` for a file,
`rbd:POOL/IMAGE[?conf=PATH&user=ID&keyring=PATH]` for an image on Ceph,
`iscsi://[USER@]HOST[:PORT]/TARGET/LUN[?secret=file:PATH]` for a logical unit of an iSCSI target.
Keys are named by a source: `file:PATH`, whose whole content is the passphrase, byte for byte, as
`cryptsetup --key-file` takes it; `fd:N`, the same of an open descriptor; `barbican:UUID`,
`vault:PATH` and `kmip:ID`, which a key manager has (`--key-managers`).

Examples:
  sealblk format --volume file:/var/lib/disk.img --size 10G --key file:/etc/disk.key
  sealblk inspect --volume file:/var/lib/disk.img
  sealblk key add --volume file:/var/lib/disk.img --key file:/etc/disk.key --new-key file:/etc/new.key
  sealblk status --control /run/sealblk/control.sock
  sealblk rotate start --control /run/sealblk/control.sock --volume vda
  sealblk rotate status --control /run/sealblk/control.sock --volume vda --watch

On a node with sealblk-agent, `--node` asks it about all instances (`sealblk --node --help`):
  sealblk --node status
  sealblk rotate start --node --all

Exit status: 0 done, 1 failed, 2 wrong command line, 3 refused (it would have destroyed something;
nothing was changed). `key check` also: 4 the key manager refuses it, 5 there is no such key, 6 the
key manager can't be reached, 7 what it answers is no key, 8 this node isn't set up for it.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a volume: write a new LUKS2 header. All data on it is lost
    Format(Format),
    /// Show a volume's header: segments, keyslots, and what would be refused
    Inspect(Inspect),
    /// Add or remove a passphrase
    #[command(subcommand)]
    Key(Key),
    /// Let another passphrase open the volume in place of the one that does; the data stays as it is.
    /// The volume must not be served meanwhile
    Rewrap(Rewrap),
    /// Replace the volume key: re-encrypt all data, while the guest works or on a volume that nobody
    /// uses
    Rotate(Box<Rotate>),
    /// Back up and restore headers
    #[command(subcommand)]
    Header(HeaderCommand),
    /// Rewrite a damaged header copy from the good one. The volume must not be served meanwhile
    Repair(Repair),
    /// Have a running daemon ask a volume how large it is: a disk grows with it, under its guest
    Resize(Resize),
    /// Show what a running daemon serves
    Status(Status),
}

#[derive(Debug, Args)]
pub(crate) struct Format {
    /// The volume: `/dev/...`, `file:/...` (a missing file is made if --size is given), `rbd:...` or
    /// `iscsi://...`
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// Where the first passphrase is, e.g. `file:PATH`
    #[arg(long, value_name = "SOURCE")]
    pub(crate) key: KeySource,

    /// Size of the disk that the guest will see, e.g. 10G; the file is 16 MiB larger, for the
    /// header. Only for a file that doesn't exist yet
    #[arg(long, value_name = "N", value_parser = size::parse)]
    pub(crate) size: Option<u64>,

    /// Bytes encrypted as one unit. With 4096, faster, the guest's disk has 4096-byte blocks, and
    /// a BIOS can't boot from it
    #[arg(long, value_name = "BYTES", default_value = "512", value_parser = ["512", "4096"])]
    pub(crate) sector_size: String,

    /// The cipher
    #[arg(long, value_enum, value_name = "CIPHER", default_value_t)]
    pub(crate) cipher: Cipher,

    /// How the passphrase is stretched
    #[arg(long, value_enum, value_name = "KDF", default_value_t)]
    pub(crate) kdf: Kdf,

    /// Iterations of pbkdf2 [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub(crate) iterations: Option<u32>,

    /// A name in the header, shown by blkid and cryptsetup
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) label: String,

    /// Go on although a file system, a partition table or a LUKS header is there, and destroy it
    #[arg(long)]
    pub(crate) overwrite_signature: bool,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

/// `--cipher`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cipher {
    #[default]
    #[value(name = "aes-256-xts", help = "AES-256 in XTS mode, a 512-bit volume key")]
    Aes256Xts,
    #[value(name = "aes-128-xts", help = "AES-128 in XTS mode, a 256-bit volume key")]
    Aes128Xts,
}

/// `--kdf`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kdf {
    #[default]
    #[value(name = "argon2id", help = "slow on purpose: for passphrases that people choose")]
    Argon2id,
    #[value(name = "pbkdf2", help = "at once: for random secrets of 32 bytes or more, only")]
    Pbkdf2,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The volume; it may be in use
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// Everything, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Let another passphrase open the volume
    Add(KeyAdd),
    /// Remove a passphrase: its keyslot is wiped
    Remove(KeyRemove),
    /// Say whether a key can be got, and if not, why. It is shown nowhere
    Check(KeyCheck),
}

#[derive(Debug, Args)]
pub(crate) struct KeyCheck {
    /// The key
    #[arg(long, value_name = "SOURCE")]
    pub(crate) key: KeySource,

    /// The answer, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KeyAdd {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// A passphrase that opens it now
    #[arg(long, value_name = "SOURCE")]
    pub(crate) key: KeySource,

    /// The passphrase to add
    #[arg(long, value_name = "SOURCE")]
    pub(crate) new_key: KeySource,

    /// Keyslot to use [default: the first free one]
    #[arg(long, value_name = "N")]
    pub(crate) slot: Option<u32>,

    /// How the new passphrase is stretched [default: argon2id; pbkdf2 for LUKS1, which has no other]
    #[arg(long, value_enum, value_name = "KDF")]
    pub(crate) kdf: Option<Kdf>,

    /// Iterations of pbkdf2 [default: 1000; 2000000 for LUKS1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub(crate) iterations: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct KeyRemove {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// A passphrase. Alone: all keyslots that it opens are removed. With --slot: proof that the
    /// volume still opens, so it must be one of a keyslot that remains
    #[arg(long, value_name = "SOURCE", required_unless_present = "unproven")]
    pub(crate) key: Option<KeySource>,

    /// The keyslot to remove, whatever its passphrase
    #[arg(long, value_name = "N", required_unless_present = "key")]
    pub(crate) slot: Option<u32>,

    /// With --slot, in place of --key: nobody needs to show a passphrase that still opens
    #[arg(long, requires = "slot", conflicts_with = "key")]
    pub(crate) unproven: bool,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Rewrap {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// The passphrase that opens it now, and nothing afterwards: every keyslot of it is wiped
    #[arg(long, value_name = "SOURCE")]
    pub(crate) key: KeySource,

    /// The passphrase that opens it afterwards
    #[arg(long, value_name = "SOURCE")]
    pub(crate) new_key: KeySource,

    /// How the new passphrase is stretched [default: argon2id; pbkdf2 for LUKS1, which has no other]
    #[arg(long, value_enum, value_name = "KDF")]
    pub(crate) kdf: Option<Kdf>,

    /// Iterations of pbkdf2 [default: 1000; 2000000 for LUKS1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    pub(crate) iterations: Option<u32>,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Repair {
    /// The volume
    #[arg(long, value_name = "URI")]
    pub(crate) volume: String,

    /// Go on although something else's signature lies where a header copy was, and destroy it
    #[arg(long)]
    pub(crate) overwrite_signature: bool,

    /// Don't ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resize {
    #[command(flatten)]
    pub(crate) served: Served,

    /// The daemon's answer, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The daemon's control socket
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,

    /// Everything, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_keyslot_is_removed_by_passphrase_or_by_number_with_a_proof() {
        let parse = |args: &str| {
            let line = format!("sealblk key remove --volume /dev/vdb {args}");
            Cli::try_parse_from(line.split_whitespace()).is_ok()
        };
        for good in ["--key file:/k", "--slot 1 --key file:/k", "--slot 1 --unproven"] {
            assert!(parse(good), "{good}");
        }
        let both = "--slot 1 --key file:/k --unproven";
        for bad in ["", "--slot 1", "--unproven", "--key file:/k --unproven", both] {
            assert!(!parse(bad), "{bad}");
        }
    }
}
