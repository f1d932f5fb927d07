//! What to serve: the TOML file and the flags, checked and turned into one [`Config`].
//!
//! Contract: a [`Config`] that exists is consistent (names and sockets unique, numbers in range,
//! key sources understood), but nothing has been opened yet. Errors carry file and line, and name
//! the volume. Unknown fields are errors: a misspelt option must not be silently without effect.

mod file;
mod limits;
mod rotation;
mod uri;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealblk_api::Limits;
use sealblk_block::in_one_line;
use sealblk_cipher::Implementation;
use sealblk_keys::{KeyManagers, KeySource};
use sealblk_rotation::{is_uuid, parse_duration};
use sealblk_volume::Uri;
use serde::{Deserialize, Serialize};

use self::uri::VolumeUri;
use crate::audit::Target;
use crate::socket::find_group;

pub(crate) use file::{VolumeSection, line_of, load};
pub(crate) use limits::for_engine as engine_limits;
pub(crate) use rotation::{RotationPolicy, RotationSection};

/// Most queues of one disk: a thread each. QEMU itself stops at 1024 (`VIRTIO_QUEUE_MAX`), and a
/// guest has no use for more queues than processors.
pub(crate) const MAX_QUEUES: u16 = 64;
/// Descriptors in a queue: a power of two (virtio 1.2 section 2.7) that QEMU can ask for
/// (`VIRTQUEUE_MAX_SIZE` is 1024), and enough for one request of some segments.
const QUEUE_SIZES: std::ops::RangeInclusive<u16> = 32..=1024;
/// Bytes of a disk's serial (`VIRTIO_BLK_ID_BYTES`, virtio 1.2 section 5.2.6).
pub(crate) const SERIAL_BYTES: usize = 20;
/// Longest time to poll, in microseconds: beyond it a queue would never sleep.
const MAX_POLL_US: u32 = 10_000;
/// Limits of holding: shorter ones are a retry, longer ones `none`.
const HOLD_LIMITS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);
/// What may be asked for as a time limit of one I/O.
const IO_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// The time limit of one I/O where the guest is to be told: what Linux gives a SCSI disk.
const IO_TIMEOUT: Duration = Duration::from_secs(30);
/// Where the daemon keeps what no volume has a place for; the unit in dist/ may write there.
const STATE_DIR: &str = "/var/lib/sealblk";
/// Longest path of a Unix socket (`sockaddr_un` has 108 bytes, the last is NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Everything that the daemon is told.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) daemon: DaemonConfig,
    pub(crate) volumes: Vec<VolumeConfig>,
}

/// The part that isn't about a volume.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DaemonConfig {
    /// Control socket; none: no control API.
    pub(crate) control: Option<PathBuf>,
    /// Group that may use it beside the daemon's own user.
    pub(crate) control_group: Option<String>,
    /// `tracing` filter, e.g. `info` or `info,sealblk_session=debug`.
    pub(crate) log_level: Option<String>,
    pub(crate) log_format: LogFormat,
    /// Where audit lines go; none: nowhere.
    pub(crate) audit_log: Option<Target>,
    /// Where the key managers are described; none: [`sealblk_keys::DEFAULT_PATH`].
    pub(crate) key_managers: Option<PathBuf>,
    /// Directory for what no volume has a place for; see [`Self::state_dir`].
    pub(crate) state_dir: Option<PathBuf>,
}

impl DaemonConfig {
    /// Where the daemon keeps what no volume has a place for: the age of LUKS1 volumes' keys.
    pub(crate) fn state_dir(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What a failed request at the volume does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnError {
    /// The guest gets the error.
    #[default]
    Report,
    /// The request is kept and tried again; the guest waits.
    Hold,
}

/// Who computes the cipher.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CipherChoice {
    /// The fastest that the CPU and the build have.
    #[default]
    Auto,
    /// Our own kernel for CPUs with VAES, or nothing.
    Vaes,
    /// AWS-LC or nothing.
    AwsLc,
    /// The portable implementation.
    Portable,
}

impl From<CipherChoice> for Implementation {
    fn from(choice: CipherChoice) -> Self {
        match choice {
            CipherChoice::Auto => Self::Auto,
            CipherChoice::Vaes => Self::Vaes,
            CipherChoice::AwsLc => Self::AwsLc,
            CipherChoice::Portable => Self::Portable,
        }
    }
}

/// What protects a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Protection {
    /// A LUKS header that this key opens.
    Key(KeySource),
    /// Nothing. For measuring.
    Plain,
}

/// One volume and its socket.
#[derive(Debug)]
pub(crate) struct VolumeConfig {
    pub(crate) name: String,
    pub(crate) uri: VolumeUri,
    pub(crate) protection: Protection,
    /// What a rotation changes the key to: tried when the key doesn't open the volume.
    pub(crate) new_key: Option<KeySource>,
    /// Who gets the keys; nobody's until [`Config::load_key_managers`].
    pub(crate) key_managers: Arc<KeyManagers>,
    pub(crate) socket: SocketConfig,
    pub(crate) queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    /// None: the UUID of the LUKS header.
    pub(crate) serial: Option<String>,
    pub(crate) on_error: OnError,
    /// How long failed requests are held at most; none: for ever.
    pub(crate) hold_limit: Option<Duration>,
    /// How long a network volume may leave an I/O without an answer; none: for ever.
    pub(crate) io_timeout: Option<Duration>,
    pub(crate) cipher: CipherChoice,
    /// None: the engine's own.
    pub(crate) poll: Option<Duration>,
    /// The LUKS version that the header must have; none: 1 or 2.
    pub(crate) luks: Option<u8>,
    /// The UUID that it must have; none: any.
    pub(crate) uuid: Option<String>,
    pub(crate) rotation: RotationPolicy,
    /// What the guest may do per second.
    pub(crate) limits: Limits,
}

/// A vhost-user socket and who may connect: whoever may has the disk.
#[derive(Debug)]
pub(crate) struct SocketConfig {
    pub(crate) path: PathBuf,
    /// Group of the socket; none: the daemon's.
    pub(crate) group: Option<String>,
    /// Permission bits.
    pub(crate) mode: u32,
}

/// A configuration that can't be used: where and why, in one or more lines.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ConfigError(pub(crate) String);

/// Checks one volume's section. What it doesn't say about rotations, `for_all` does.
///
/// # Errors
/// What is wrong with it, without its name.
pub(crate) fn volume(
    section: VolumeSection,
    for_all: &RotationSection,
) -> Result<VolumeConfig, String> {
    let protection = match (&section.key, section.plain) {
        (Some(key), false) => Protection::Key(key.parse().map_err(|e| format!("`key`: {e}"))?),
        (None, true) => Protection::Plain,
        (Some(_), true) => return Err("`key` and `plain = true` exclude each other".into()),
        (None, false) => {
            return Err(
                "it needs `key = \"file:PATH\"` (`plain = true` serves it unencrypted)".into()
            );
        }
    };
    protected_volume(section, protection, for_all)
}

/// The same with a key that the section doesn't name.
///
/// # Errors
/// As [`volume`].
pub(crate) fn protected_volume(
    section: VolumeSection,
    protection: Protection,
    for_all: &RotationSection,
) -> Result<VolumeConfig, String> {
    let VolumeSection { name, uri, socket, socket_group, socket_mode, .. } = section;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err("`name` must be some printable characters".into());
    }
    if uri.is_empty() {
        return Err("`uri` is empty; e.g. `/dev/vdb` or `file:/var/lib/disk.img`".into());
    }
    Uri::parse(&uri).map_err(|e| format!("`uri`: {e}"))?;
    let new_key = section.new_key.map(|key| key.parse().map_err(|e| format!("`new_key`: {e}")));
    if new_key.is_some() && protection == Protection::Plain {
        return Err("`plain = true` has no key that `new_key` could follow".into());
    }
    socket_path(&socket).map_err(|e| format!("`socket`: {e}"))?;
    let queues = section.queues.unwrap_or(1);
    if !(1..=MAX_QUEUES).contains(&queues) {
        return Err(format!("`queues` is {queues}; possible are 1 to {MAX_QUEUES}"));
    }
    let queue_size = section.queue_size.unwrap_or(256);
    if !queue_size.is_power_of_two() || !QUEUE_SIZES.contains(&queue_size) {
        return Err(format!(
            "`queue_size` is {queue_size}; possible are the powers of two from {} to {}",
            QUEUE_SIZES.start(),
            QUEUE_SIZES.end(),
        ));
    }
    if let Some(serial) = &section.serial {
        if serial.is_empty() || serial.len() > SERIAL_BYTES {
            return Err(format!(
                "`serial` has {} bytes; virtio allows 1 to {SERIAL_BYTES}",
                serial.len()
            ));
        }
        if !serial.chars().all(|c| c.is_ascii_graphic()) {
            return Err("`serial` must be ASCII letters, digits and signs".into());
        }
    }
    let poll = match section.poll_us {
        Some(us) if us > MAX_POLL_US => {
            return Err(format!("`poll_us` is {us}; possible are 0 (never) to {MAX_POLL_US}"));
        }
        us => us.map(|us| Duration::from_micros(us.into())),
    };
    if protection == Protection::Plain && (section.luks.is_some() || section.uuid.is_some()) {
        return Err("`plain = true` has no LUKS header that `luks` or `uuid` could be about".into());
    }
    if let Some(version) = section.luks.filter(|version| !(1..=2).contains(version)) {
        return Err(format!("`luks` is {version}; LUKS has the versions 1 and 2"));
    }
    if let Some(uuid) = section.uuid.as_deref().filter(|uuid| !is_uuid(uuid)) {
        return Err(format!("`uuid` is {uuid:?}, which is none; `sealblk inspect` shows it"));
    }
    let hold_limit = hold_limit(section.hold_limit.as_deref(), section.on_error)?;
    let rotation = rotation_of(&section.rotation, for_all, &protection, section.read_only)?;
    Ok(VolumeConfig {
        name,
        uri: VolumeUri::new(uri),
        protection,
        new_key: new_key.transpose()?,
        key_managers: Arc::new(KeyManagers::none()),
        socket: SocketConfig {
            path: socket,
            mode: file_mode(socket_mode.as_deref())?,
            group: socket_group,
        },
        queues,
        queue_size,
        read_only: section.read_only,
        discard: section.discard,
        serial: section.serial,
        on_error: section.on_error,
        hold_limit,
        io_timeout: io_timeout(section.io_timeout.as_deref(), section.on_error, hold_limit)?,
        cipher: section.cipher,
        poll,
        luks: section.luks,
        uuid: section.uuid,
        rotation,
        limits: limits::checked(section.limits)?,
    })
}

/// How a volume is rotated. What is said for all doesn't hold for those that can't be.
fn rotation_of(
    own: &Option<RotationSection>,
    for_all: &RotationSection,
    protection: &Protection,
    read_only: bool,
) -> Result<RotationPolicy, String> {
    let cannot = match protection {
        Protection::Plain => Some("`plain = true` has no key"),
        Protection::Key(_) if read_only => Some("nothing writes to a volume that is `read_only`"),
        Protection::Key(_) => None,
    };
    match (own, cannot) {
        (Some(_), Some(why)) => Err(format!("[volume.rotation]: {why}, so none can be replaced")),
        (None, Some(_)) => Ok(RotationPolicy::default()),
        (own, None) => {
            let section = own.clone().unwrap_or_default().over(for_all);
            section.policy().map_err(|what| format!("[volume.rotation]: {what}"))
        }
    }
}

/// How long failed requests may be held.
fn hold_limit(text: Option<&str>, on_error: OnError) -> Result<Option<Duration>, String> {
    let Some(text) = text else { return Ok(None) };
    if on_error != OnError::Hold {
        return Err("`hold_limit` needs `on_error = \"hold\"`: nothing is held otherwise".into());
    }
    if text == "none" {
        return Ok(None);
    }
    match parse_duration(text) {
        Ok(limit) if HOLD_LIMITS.contains(&limit) => Ok(Some(limit)),
        Ok(_) => Err(format!("`hold_limit`: {text:?} is out of range; possible are 1s to 365d")),
        Err(error) => Err(format!("`hold_limit`: {error}; \"none\" is possible, too")),
    }
}

/// How long an I/O may be without an answer. By default for ever where the guest is to wait, so that
/// nothing is given up that the storage may still do; but not past the time when it is to be told.
fn io_timeout(
    text: Option<&str>,
    on_error: OnError,
    hold_limit: Option<Duration>,
) -> Result<Option<Duration>, String> {
    match text {
        Some("none") => Ok(None),
        Some(text) => match parse_duration(text) {
            Ok(limit) if IO_TIMEOUTS.contains(&limit) => Ok(Some(limit)),
            Ok(_) => Err(format!("`io_timeout`: {text:?} is out of range; possible are 1s to 1h")),
            Err(error) => Err(format!("`io_timeout`: {error}; \"none\" is possible, too")),
        },
        None if on_error == OnError::Report => Ok(Some(IO_TIMEOUT)),
        None => Ok(hold_limit.map(|limit| limit.min(IO_TIMEOUT))),
    }
}

/// The mode as told, else the usual one.
fn file_mode(text: Option<&str>) -> Result<u32, String> {
    let Some(text) = text else { return Ok(sealblk_session::SocketConfig::MODE) };
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && mode & 0o600 == 0o600 => Ok(mode),
        _ => Err(format!("`socket_mode` is {text:?}; write octal digits such as \"0660\"")),
    }
}

/// Whether a socket can be bound there at all.
fn socket_path(path: &Path) -> Result<(), String> {
    let len = path.as_os_str().len();
    if len == 0 {
        Err("a path is needed".to_owned())
    } else if len > MAX_SOCKET_PATH {
        Err(format!("{len} bytes are too long for a socket's path; at most {MAX_SOCKET_PATH}"))
    } else {
        Ok(())
    }
}

/// What only shows with all volumes in sight. Gives the volume's index and the trouble.
fn conflicts(config: &Config) -> Result<(), (Option<usize>, String)> {
    if config.volumes.is_empty() {
        return Err((None, "there is no `[[volume]]` section, so nothing to serve".into()));
    }
    if let Some(control) = &config.daemon.control {
        socket_path(control).map_err(|e| (None, format!("`control`: {e}")))?;
    } else if config.daemon.control_group.is_some() {
        return Err((None, "`control_group` without `control`".into()));
    }
    if !config.daemon.state_dir().is_absolute() {
        let path = config.daemon.state_dir().display();
        return Err((None, format!("`state_dir` {path} is no absolute path")));
    }
    let (mut names, mut uris) = (HashSet::new(), HashSet::new());
    let mut sockets: HashSet<&Path> = config.daemon.control.as_deref().into_iter().collect();
    for (index, volume) in config.volumes.iter().enumerate() {
        let complain = |text: String| Err((Some(index), text));
        if !names.insert(volume.name.as_str()) {
            return complain("another volume has this name too".into());
        }
        if !uris.insert(&volume.uri) {
            return complain(format!("`uri` {} is served by another section already", volume.uri));
        }
        if !sockets.insert(&volume.socket.path) {
            let path = volume.socket.path.display();
            return complain(format!("`socket` {path} is taken by another section already"));
        }
    }
    Ok(())
}

/// A configuration from flags: one volume.
pub(crate) fn from_flags(
    daemon: DaemonConfig,
    section: VolumeSection,
) -> Result<Config, ConfigError> {
    let volumes = vec![volume(section, &RotationSection::default()).map_err(ConfigError)?];
    let config = Config { daemon, volumes };
    conflicts(&config).map_err(|(_, text)| ConfigError(text))?;
    Ok(config)
}

impl Config {
    /// Looks up what the configuration names on this host without opening anything: the groups.
    ///
    /// # Errors
    /// One of them doesn't exist.
    pub(crate) fn check_host(&self) -> Result<(), ConfigError> {
        let sockets = self
            .volumes
            .iter()
            .map(|volume| (volume.socket.path.as_path(), volume.socket.group.as_deref()));
        let control = (
            self.daemon.control.as_deref().unwrap_or(Path::new("")),
            self.daemon.control_group.as_deref(),
        );
        for (path, group) in sockets.chain([control]) {
            if let Some(group) = group {
                find_group(path, group).map_err(|e| ConfigError(in_one_line(&e)))?;
            }
        }
        Ok(())
    }

    /// Gives the volumes the node's key managers.
    ///
    /// # Errors
    /// Their configuration can't be used. One that nobody named and no volume needs is in nobody's
    /// way.
    pub(crate) fn load_key_managers(&mut self) -> Result<(), ConfigError> {
        let named = self.daemon.key_managers.as_deref();
        let needs = |volume: &VolumeConfig| {
            let key = match &volume.protection {
                Protection::Key(key) => Some(key),
                Protection::Plain => None,
            };
            key.into_iter().chain(&volume.new_key).any(KeySource::needs_key_manager)
        };
        let managers = match KeyManagers::load(named) {
            Ok(managers) => Arc::new(managers),
            Err(error) if named.is_some() || self.volumes.iter().any(needs) => {
                return Err(ConfigError(error.to_string()));
            }
            Err(_) => return Ok(()),
        };
        for warning in managers.warnings() {
            tracing::warn!("{warning}");
        }
        for volume in &mut self.volumes {
            volume.key_managers = managers.clone();
        }
        Ok(())
    }

    /// What is possible but hardly meant.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let open = self.volumes.iter().filter(|volume| volume.socket.mode & 0o002 != 0);
        let warn = |volume: &VolumeConfig| {
            format!(
                "volume {:?}: `socket_mode` {:04o} gives the decrypted disk to every user of this \
                 host; `socket_group` lets in whom you mean",
                volume.name, volume.socket.mode,
            )
        };
        let idle = self.volumes.iter().filter(|volume| {
            let schedule = &volume.rotation.schedule;
            schedule.max_key_age.is_none() && !schedule.windows.are_any_time()
        });
        let no_age = |volume: &VolumeConfig| {
            format!(
                "volume {:?}: there is a `window` for rotations but no `max_key_age`, so that none \
                 begins by itself",
                volume.name,
            )
        };
        open.map(warn).chain(idle.map(no_age)).collect()
    }
}

#[cfg(test)]
mod tests;
