//! The agent's configuration: `/etc/sealblk/agent.toml`.
//!
//! Contract: a file that isn't there is all defaults; unknown fields are errors, with file and line.
//! What volumes are served with (`[volume]`, `[rotation]`) is in the words of the daemon's own file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealblk_api::agent::AGENT_SOCKET;
use sealblk_rotation::{Schedule, parse_duration};
use serde::Deserialize;
use toml::Spanned;

use crate::config::{
    self, CipherChoice, ConfigError, LogFormat, OnError, RotationSection, VolumeSection,
};

/// Where the configuration is, unless the command line says otherwise.
pub(super) const CONFIG_FILE: &str = "/etc/sealblk/agent.toml";

/// How long an instance's daemon may take until it serves: keys are stretched meanwhile.
const READY_TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);

/// How daemons are started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LauncherChoice {
    /// By systemd where it runs.
    #[default]
    Auto,
    /// As transient units.
    Systemd,
    /// As processes of their own sessions.
    Process,
}

/// `[agent]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AgentSection {
    pub(super) socket: PathBuf,
    /// Group of the socket's file; empty: none. Not set: `nova`, if there is such a group.
    pub(super) socket_group: Option<String>,
    /// Who may ask, beside root and the agent's own user. Not set: `nova`, if there is such a user.
    pub(super) allow_users: Option<Vec<String>>,
    pub(super) run_dir: PathBuf,
    /// The daemon's program; none: beside the agent's own.
    pub(super) daemon: Option<PathBuf>,
    /// The daemons' user and group; not used unless the agent is root.
    pub(super) user: String,
    pub(super) group: String,
    /// Group that may connect to volumes' sockets, QEMU's; not set: `kvm`, if the agent is root.
    pub(super) socket_owner_group: Option<String>,
    pub(super) launcher: LauncherChoice,
    /// More properties of the transient units.
    pub(super) unit_properties: Vec<String>,
    pub(super) key_managers: PathBuf,
    /// The agent's own.
    pub(super) state_dir: PathBuf,
    /// The daemons': `state_dir` of theirs.
    pub(super) daemon_state_dir: PathBuf,
    pub(super) log_level: Option<String>,
    pub(super) log_format: LogFormat,
    pub(super) audit_log: Option<PathBuf>,
    pub(super) metrics_listen: Option<SocketAddr>,
    pub(super) format_new_volumes: bool,
    pub(super) ceph_conf: Option<PathBuf>,
    pub(super) device_prefixes: Vec<PathBuf>,
    pub(super) file_prefixes: Vec<PathBuf>,
    /// Directories that `file:` keys may be in.
    pub(super) key_prefixes: Vec<PathBuf>,
    pub(super) ready_timeout: String,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            socket: AGENT_SOCKET.into(),
            socket_group: None,
            allow_users: None,
            run_dir: "/run/sealblk".into(),
            daemon: None,
            user: "sealblk".into(),
            group: "sealblk".into(),
            socket_owner_group: None,
            launcher: LauncherChoice::Auto,
            unit_properties: Vec::new(),
            key_managers: "/etc/sealblk/keys.toml".into(),
            state_dir: "/var/lib/sealblk-agent".into(),
            daemon_state_dir: "/var/lib/sealblk".into(),
            log_level: None,
            log_format: LogFormat::Text,
            audit_log: None,
            metrics_listen: None,
            format_new_volumes: true,
            ceph_conf: None,
            device_prefixes: vec!["/dev".into()],
            file_prefixes: Vec::new(),
            key_prefixes: vec!["/etc/sealblk".into()],
            ready_timeout: "20s".into(),
        }
    }
}

/// `[volume]`: how volumes are served; what a request says wins.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VolumeDefaults {
    pub(super) queues: Option<u16>,
    pub(super) queue_size: Option<u16>,
    pub(super) discard: bool,
    pub(super) on_error: OnError,
    pub(super) hold_limit: Option<String>,
    pub(super) io_timeout: Option<String>,
    pub(super) cipher: CipherChoice,
    pub(super) poll_us: Option<u32>,
}

impl Default for VolumeDefaults {
    fn default() -> Self {
        Self {
            queues: None,
            queue_size: None,
            discard: false,
            // A path that fails over is nothing that a guest should see; one that stays away is.
            on_error: OnError::Hold,
            hold_limit: None,
            io_timeout: None,
            cipher: CipherChoice::Auto,
            poll_us: None,
        }
    }
}

impl VolumeDefaults {
    /// How long a volume may fail, unless it is said, before the guest is told.
    const HOLD_LIMIT: &str = "5min";

    /// The limit for holding.
    pub(super) fn hold_limit(&self) -> Option<String> {
        let usual = || (self.on_error == OnError::Hold).then(|| Self::HOLD_LIMIT.to_owned());
        self.hold_limit.clone().or_else(usual)
    }
}

/// `[rotation]`
#[derive(Debug, Clone, Default)]
pub(super) struct RotationDefaults {
    /// What daemons are told: how a rotation runs, not when.
    pub(super) section: RotationSection,
    /// When one begins by itself.
    pub(super) schedule: Schedule,
    /// Most at once on this node; 0: no limit.
    pub(super) max_running: u32,
    /// Most at once on one storage system; 0: no limit.
    pub(super) max_running_per_backend: u32,
}

/// Rotations at once, unless it is said.
const MAX_RUNNING: u32 = 2;

/// A file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    agent: Option<Spanned<AgentSection>>,
    #[serde(default)]
    volume: Option<Spanned<VolumeDefaults>>,
    #[serde(default)]
    rotation: Option<Spanned<toml::Table>>,
}

/// Everything that the agent is told.
#[derive(Debug, Clone)]
pub(super) struct AgentConfig {
    pub(super) agent: AgentSection,
    pub(super) volume: VolumeDefaults,
    pub(super) rotation: RotationDefaults,
    pub(super) ready_timeout: Duration,
}

impl AgentConfig {
    /// Reads and checks the file; `required`: it must be there.
    pub(super) fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(cause) if cause.kind() == std::io::ErrorKind::NotFound && !required => {
                Self::parse("", path)
            }
            Err(cause) => Err(ConfigError(format!("cannot read {}: {cause}", path.display()))),
        }
    }

    /// The same from text; `path` is for messages.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let place =
            |line: usize, what: &str| ConfigError(format!("{}:{line}: {what}", path.display()));
        let file: File = toml::from_str(text).map_err(|e| {
            place(e.span().map_or(1, |span| config::line_of(text, span.start)), e.message())
        })?;
        let line = |at: Option<usize>| at.map_or(1, |at| config::line_of(text, at));
        let (agent_at, volume_at, rotation_at) = (
            line(file.agent.as_ref().map(|section| section.span().start)),
            line(file.volume.as_ref().map(|section| section.span().start)),
            line(file.rotation.as_ref().map(|section| section.span().start)),
        );
        let agent = file.agent.map(Spanned::into_inner).unwrap_or_default();
        let volume = file.volume.map(Spanned::into_inner).unwrap_or_default();
        let ready_timeout =
            check_agent(&agent).map_err(|what| place(agent_at, &format!("[agent]: {what}")))?;
        let rotation = rotation(file.rotation.map(Spanned::into_inner).unwrap_or_default())
            .map_err(|what| place(rotation_at, &format!("[rotation]: {what}")))?;
        let config = Self { agent, volume, rotation, ready_timeout };
        config.try_section().map_err(|what| place(volume_at, &format!("[volume]: {what}")))?;
        Ok(config)
    }

    /// Whether a volume's section made of the defaults makes sense.
    fn try_section(&self) -> Result<(), String> {
        let name = "00000000-0000-0000-0000-000000000000";
        let section = self.section(name, "/dev/null".to_owned(), false, None);
        check_section(&section)
    }

    /// A volume's section.
    pub(super) fn section(
        &self,
        volume: &str,
        uri: String,
        read_only: bool,
        socket_group: Option<String>,
    ) -> VolumeSection {
        let of = &self.volume;
        VolumeSection {
            name: volume.to_owned(),
            uri,
            key: None,
            new_key: None,
            plain: false,
            socket: self.volume_socket(volume),
            socket_group,
            socket_mode: None,
            queues: of.queues,
            queue_size: of.queue_size,
            read_only,
            discard: of.discard,
            serial: Some(volume.chars().take(config::SERIAL_BYTES).collect()),
            on_error: of.on_error,
            hold_limit: of.hold_limit(),
            io_timeout: of.io_timeout.clone(),
            cipher: of.cipher,
            poll_us: of.poll_us,
            luks: None,
            uuid: None,
            limits: None,
            rotation: (!read_only).then(|| self.rotation.section.clone()),
        }
    }

    /// Where QEMU finds a volume: the same on every node.
    pub(super) fn volume_socket(&self, volume: &str) -> PathBuf {
        self.agent.run_dir.join(format!("{volume}.sock"))
    }

    /// Where instances' directories are.
    pub(super) fn instances_dir(&self) -> PathBuf {
        self.agent.run_dir.join("instances")
    }
}

/// Whether the daemon will take it.
pub(super) fn check_section(section: &VolumeSection) -> Result<(), String> {
    // The key is no part of an order's section.
    let with_key = VolumeSection { key: Some("file:/".to_owned()), ..section.clone() };
    config::volume(with_key, &RotationSection::default()).map(|_| ())
}

/// What shows without looking at the host.
fn check_agent(agent: &AgentSection) -> Result<Duration, String> {
    let paths = [
        ("socket", &agent.socket),
        ("run_dir", &agent.run_dir),
        ("key_managers", &agent.key_managers),
        ("state_dir", &agent.state_dir),
        ("daemon_state_dir", &agent.daemon_state_dir),
    ];
    let lists = [
        ("device_prefixes", &agent.device_prefixes),
        ("file_prefixes", &agent.file_prefixes),
        ("key_prefixes", &agent.key_prefixes),
    ];
    let options = [
        ("daemon", &agent.daemon),
        ("audit_log", &agent.audit_log),
        ("ceph_conf", &agent.ceph_conf),
    ];
    let all = paths
        .into_iter()
        .chain(lists.into_iter().flat_map(|(name, list)| list.iter().map(move |p| (name, p))))
        .chain(options.into_iter().filter_map(|(name, path)| Some((name, path.as_ref()?))));
    for (name, path) in all {
        if !path.is_absolute() {
            return Err(format!("`{name}` {} is no absolute path", path.display()));
        }
    }
    let timeout =
        parse_duration(&agent.ready_timeout).map_err(|e| format!("`ready_timeout`: {e}"))?;
    if !READY_TIMEOUTS.contains(&timeout) {
        return Err("`ready_timeout` is out of range; possible are 1s to 10min".into());
    }
    Ok(timeout)
}

/// `[rotation]`, of which two fields are the agent's.
fn rotation(mut table: toml::Table) -> Result<RotationDefaults, String> {
    let mut number = |name: &str, usual: u32| match table.remove(name) {
        None => Ok(usual),
        Some(value) => value
            .as_integer()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| format!("`{name}` must be a number; 0 is no limit")),
    };
    let max_running = number("max_running", MAX_RUNNING)?;
    let max_running_per_backend = number("max_running_per_backend", 0)?;
    let section: RotationSection = table.try_into().map_err(|e| e.message().to_owned())?;
    let schedule = section.policy()?.schedule;
    let section = section.without_schedule();
    Ok(RotationDefaults { section, schedule, max_running, max_running_per_backend })
}

#[cfg(test)]
mod tests;
