//! The command line: a configuration file, or flags for a single volume.

use std::path::PathBuf;

use clap::Parser;

use crate::audit::Target;
use crate::config::{
    self, CipherChoice, Config, ConfigError, DaemonConfig, LogFormat, OnError, VolumeSection,
};
use crate::managed::Managed;

/// Serves volumes to virtual machines over vhost-user-blk and keeps them encrypted (LUKS).
#[derive(Debug, Parser)]
#[command(
    name = "sealblkd",
    disable_version_flag = true,
    override_usage = "sealblkd --config FILE [--check]\n       \
        sealblkd --volume URI --key SOURCE --socket PATH [OPTIONS]\n       \
        sealblkd --instance UUID --run-dir DIR [OPTIONS]\n       \
        sealblkd --version [--verbose]",
    after_help = EXAMPLE
)]
pub(crate) struct Args {
    /// Configuration file (TOML): any number of volumes, see docs/operations.md
    #[arg(long, value_name = "FILE", conflicts_with_all = ["volume", "Single"])]
    config: Option<PathBuf>,

    /// Check the configuration and exit; nothing is opened
    #[arg(long)]
    pub(crate) check: bool,

    /// Volume to serve: `/dev/...`, `file:/...`, `rbd:POOL/IMAGE` or `iscsi://HOST/TARGET/LUN`
    #[arg(long, value_name = "URI", requires = "socket",
        required_unless_present_any = ["config", "version", "instance"])]
    volume: Option<String>,

    /// Serve the volumes of this server (its UUID) by the orders of sealblk-agent
    #[arg(long, value_name = "UUID", requires = "run_dir",
        conflicts_with_all = ["config", "volume", "Single", "check", "control"])]
    instance: Option<String>,

    /// With --instance: directory of its sockets, this daemon's alone
    #[arg(long, value_name = "DIR", requires = "instance")]
    run_dir: Option<PathBuf>,

    /// Set by the keeper for the process that serves: standard input is the keeper
    #[arg(long, hide = true, requires = "instance")]
    pub(crate) kept: bool,

    #[command(flatten)]
    single: Single,

    /// Control socket, for `sealblk status`
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Where the key managers are described that `barbican:`, `vault:` and `kmip:` keys come from
    /// [default: /etc/sealblk/keys.toml]
    #[arg(long, value_name = "FILE")]
    key_managers: Option<PathBuf>,

    /// Directory for what no volume has a place for: ages of LUKS1 keys, header backups
    /// [default: /var/lib/sealblk]
    #[arg(long, value_name = "PATH")]
    state_dir: Option<PathBuf>,

    /// Where audit lines go: a file, or `journal` [default: nowhere]
    #[arg(long, value_name = "PATH")]
    audit_log: Option<Target>,

    /// What to log: error, warn, info, debug, trace, or a `tracing` filter [default: info]
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,

    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT")]
    log_format: Option<LogFormat>,

    /// Print the version and exit
    #[arg(short = 'V', long)]
    pub(crate) version: bool,

    /// With --version: also what this program was built with, and the libraries that it finds
    #[arg(long, requires = "version")]
    pub(crate) verbose: bool,
}

/// Flags of a single volume.
#[derive(Debug, clap::Args)]
struct Single {
    /// Where its passphrase is: `file:PATH` (or `fd:N`), the whole content, byte for byte;
    /// `barbican:UUID`, `vault:PATH`, `kmip:ID`
    #[arg(long, value_name = "SOURCE", requires = "volume")]
    key: Option<String>,

    /// The passphrase that a rotation changes to: tried when --key doesn't open the volume
    #[arg(long, value_name = "SOURCE", requires = "key")]
    new_key: Option<String>,

    /// Serve it unencrypted, in place of --key; for measuring only
    #[arg(long, conflicts_with = "key", requires = "volume")]
    plain: bool,

    /// The vhost-user socket that QEMU connects to
    #[arg(long, value_name = "PATH", requires = "volume")]
    socket: Option<PathBuf>,

    /// Group that may connect, e.g. kvm [default: the daemon's own]
    #[arg(long, value_name = "GROUP", requires = "volume")]
    socket_group: Option<String>,

    /// The socket's mode in octal [default: 0660]
    #[arg(long, value_name = "MODE", requires = "volume")]
    socket_mode: Option<String>,

    /// Most queues (threads) that QEMU may ask for [default: 1]
    #[arg(long, value_name = "N", requires = "volume")]
    queues: Option<u16>,

    /// Most descriptors in a queue [default: 256]
    #[arg(long, value_name = "N", requires = "volume")]
    queue_size: Option<u16>,

    /// The guest may not write
    #[arg(long, requires = "volume")]
    read_only: bool,

    /// The guest may discard; the volume then shows which parts are unused
    #[arg(long, requires = "volume")]
    discard: bool,

    /// The disk's serial, up to 20 characters [default: start of the LUKS UUID]
    #[arg(long, value_name = "TEXT", requires = "volume")]
    serial: Option<String>,

    /// What a failure of the volume does: the guest sees it, or waits
    #[arg(long, value_enum, value_name = "POLICY", requires = "volume", default_value_t)]
    on_error: OnError,

    /// With --on-error hold: how long the volume may fail before the guest is told, e.g. 5min
    /// [default: none, for ever]
    #[arg(long, value_name = "TIME", requires = "volume")]
    hold_limit: Option<String>,

    /// How long a network volume may leave an I/O without an answer before it counts as failed, 1s to
    /// 1h, or `none` [default: 30s; none with `hold`, which then waits anyway]
    #[arg(long, value_name = "TIME", requires = "volume")]
    io_timeout: Option<String>,

    /// Who computes the cipher
    #[arg(long, value_enum, value_name = "NAME", requires = "volume", default_value_t)]
    cipher: CipherChoice,

    /// Longest time to poll for work before sleeping, in microseconds; 0: never [default: 32]
    #[arg(long, value_name = "MICROSECONDS", requires = "volume")]
    poll_us: Option<u32>,

    /// Refuse the volume unless its header is of this LUKS version
    #[arg(long, value_name = "VERSION", requires = "volume")]
    luks: Option<u8>,

    /// Refuse the volume unless its LUKS header has this UUID
    #[arg(long, value_name = "UUID", requires = "volume")]
    uuid: Option<String>,
}

const EXAMPLE: &str = "\
Example:
  sealblk format --volume file:/var/lib/disk.img --size 10G --key file:/etc/disk.key
  sealblkd --volume file:/var/lib/disk.img --key file:/etc/disk.key --socket /run/disk.sock
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=mem,size=1G,share=on \\
    -machine q35,memory-backend=mem -chardev socket,id=disk,path=/run/disk.sock,reconnect=1 \\
    -device vhost-user-blk-pci,chardev=disk

Exit status: 0 after SIGTERM or SIGINT, 1 when something failed, 2 when the command line or the
configuration is wrong. The log goes to standard error.";

impl Args {
    /// For a daemon that serves an instance: what the arguments say.
    pub(crate) fn managed(&self) -> Result<Option<(DaemonConfig, Managed)>, ConfigError> {
        let (Some(instance), Some(run_dir)) = (&self.instance, &self.run_dir) else {
            return Ok(None);
        };
        if !sealblk_rotation::is_uuid(instance) {
            return Err(ConfigError(format!("--instance {instance:?} is no UUID")));
        }
        let daemon = DaemonConfig {
            state_dir: self.state_dir.clone(),
            audit_log: self.audit_log.clone(),
            log_level: self.log_level.clone(),
            log_format: self.log_format.unwrap_or_default(),
            ..DaemonConfig::default()
        };
        let managed = Managed { instance: instance.clone(), run_dir: run_dir.clone() };
        Ok(Some((daemon, managed)))
    }

    /// The configuration that the arguments name or describe. Flags for the whole daemon win over
    /// the file.
    pub(crate) fn into_config(self) -> Result<Config, ConfigError> {
        let flags = DaemonConfig {
            control: self.control,
            key_managers: self.key_managers,
            state_dir: self.state_dir,
            audit_log: self.audit_log,
            log_level: self.log_level,
            log_format: self.log_format.unwrap_or_default(),
            ..DaemonConfig::default()
        };
        let Some(path) = self.config else {
            if let Some(uri) = &self.volume {
                sealblk_volume::Uri::parse_argument(uri)
                    .map_err(|error| ConfigError(format!("--volume: {error}")))?;
            }
            let single = self.single;
            let uri = self.volume.unwrap_or_default();
            let socket = single.socket.unwrap_or_default();
            return config::from_flags(
                flags,
                VolumeSection {
                    // Sockets have one name each, where many files are called `volume.img`.
                    name: socket.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                    uri,
                    key: single.key,
                    new_key: single.new_key,
                    plain: single.plain,
                    socket,
                    socket_group: single.socket_group,
                    socket_mode: single.socket_mode,
                    queues: single.queues,
                    queue_size: single.queue_size,
                    read_only: single.read_only,
                    discard: single.discard,
                    serial: single.serial,
                    on_error: single.on_error,
                    hold_limit: single.hold_limit,
                    io_timeout: single.io_timeout,
                    cipher: single.cipher,
                    poll_us: single.poll_us,
                    luks: single.luks,
                    uuid: single.uuid,
                    rotation: None,
                    limits: None,
                },
            );
        };
        let mut config = config::load(&path)?;
        let daemon = &mut config.daemon;
        daemon.control = flags.control.or(daemon.control.take());
        daemon.key_managers = flags.key_managers.or(daemon.key_managers.take());
        daemon.state_dir = flags.state_dir.or(daemon.state_dir.take());
        daemon.audit_log = flags.audit_log.or(daemon.audit_log.take());
        daemon.log_level = flags.log_level.or(daemon.log_level.take());
        daemon.log_format = self.log_format.unwrap_or(daemon.log_format);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("sealblkd").chain(line.split_whitespace()))
    }

    fn config(line: &str) -> Result<Config, ConfigError> {
        parse(line).unwrap().into_config()
    }

    #[test]
    fn the_command_is_well_formed() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn help_tells_the_defaults_that_apply() {
        use clap::CommandFactory;
        let help = Args::command().render_long_help().to_string();
        let poll_us = sealblk_engine::EngineConfig::POLL_MAX.as_micros();
        assert!(help.contains(&format!("never [default: {poll_us}]")), "{help}");
    }

    #[test]
    fn flags_describe_one_volume() {
        let config = config(
            "--volume /dev/vdb --key file:/k --socket /run/a.sock --queues 4 --read-only --control /c \
             --cipher portable --on-error hold --hold-limit 90s --poll-us 0 --luks 2",
        )
        .unwrap();
        let volume = &config.volumes[0];
        assert_eq!((volume.uri.with_secret(), volume.name.as_str()), ("/dev/vdb", "a"));
        assert_eq!((volume.queues, volume.read_only, volume.luks), (4, true, Some(2)));
        assert_eq!((volume.cipher, volume.on_error), (CipherChoice::Portable, OnError::Hold));
        assert_eq!(volume.hold_limit, Some(std::time::Duration::from_secs(90)));
        assert_eq!(config.daemon.control.as_deref(), Some("/c".as_ref()));
    }

    #[test]
    fn a_volume_needs_a_key_or_the_word_plain() {
        assert!(config("--volume /dev/vdb --socket /s").is_err());
        assert!(config("--volume /dev/vdb --socket /s --plain").is_ok());
        assert!(parse("--volume /dev/vdb --socket /s --plain --key file:/k").is_err());
    }

    #[test]
    fn a_file_and_the_flags_of_a_volume_exclude_each_other() {
        assert!(parse("--config /f --volume /dev/vdb --socket /s").is_err());
        assert!(parse("--config /f --read-only").is_err());
        assert!(parse("--config /f --cipher portable").is_err());
        assert!(parse("").is_err());
        assert!(parse("--volume /dev/vdb --key file:/k").is_err());
    }

    #[test]
    fn flags_for_the_daemon_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        let text = "[daemon]\naudit_log = \"/var/log/audit\"\ncontrol = \"/from-file\"\nlog_level = \"warn\"\nlog_format = \"json\"\n\
            [[volume]]\nname = \"a\"\nuri = \"/dev/vdb\"\nkey = \"file:/k\"\nsocket = \"/s\"\n";
        fs::write(&path, text).unwrap();
        let line = format!("--config {} --control /flag", path.display());
        let daemon = config(&line).unwrap().daemon;
        assert_eq!(daemon.control.as_deref(), Some("/flag".as_ref()));
        assert_eq!(daemon.log_level.as_deref(), Some("warn"));
        assert_eq!(daemon.log_format, LogFormat::Json);
        assert_eq!(daemon.audit_log, Some(Target::File("/var/log/audit".into())));
        let line = format!("{line} --audit-log journal");
        assert_eq!(config(&line).unwrap().daemon.audit_log, Some(Target::Journal));
    }
}
