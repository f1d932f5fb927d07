//! The TOML file: sections as they are written, and errors with their line.

use std::path::{Path, PathBuf};

use sealblk_api::Limits;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::{
    CipherChoice, Config, ConfigError, DaemonConfig, OnError, RotationSection, conflicts, volume,
};

/// A file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    daemon: DaemonConfig,
    /// For all volumes.
    rotation: Option<Spanned<RotationSection>>,
    #[serde(default, rename = "volume")]
    volumes: Vec<Spanned<VolumeSection>>,
}

/// `[[volume]]` as it is written; the flags of a single volume have the same shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeSection {
    pub(crate) name: String,
    pub(crate) uri: String,
    pub(crate) key: Option<String>,
    pub(crate) new_key: Option<String>,
    #[serde(default)]
    pub(crate) plain: bool,
    pub(crate) socket: PathBuf,
    pub(crate) socket_group: Option<String>,
    pub(crate) socket_mode: Option<String>,
    pub(crate) queues: Option<u16>,
    pub(crate) queue_size: Option<u16>,
    #[serde(default)]
    pub(crate) read_only: bool,
    #[serde(default)]
    pub(crate) discard: bool,
    pub(crate) serial: Option<String>,
    #[serde(default)]
    pub(crate) on_error: OnError,
    pub(crate) hold_limit: Option<String>,
    pub(crate) io_timeout: Option<String>,
    #[serde(default)]
    pub(crate) cipher: CipherChoice,
    pub(crate) poll_us: Option<u32>,
    pub(crate) luks: Option<u8>,
    pub(crate) uuid: Option<String>,
    pub(crate) rotation: Option<RotationSection>,
    pub(crate) limits: Option<Limits>,
}

/// Reads and checks a configuration file.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
    parse(&text, path)
}

/// The same from text; `path` is for messages.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| line_of(text, span.start));
        ConfigError(format!("{}:{line}: {}", path.display(), e.message()))
    })?;
    let for_all = file.rotation.as_ref().map(Spanned::get_ref).cloned().unwrap_or_default();
    for_all.policy().map_err(|what| {
        let line = file.rotation.map_or(1, |section| line_of(text, section.span().start));
        ConfigError(format!("{}:{line}: [rotation]: {what}", path.display()))
    })?;
    let mut lines = Vec::with_capacity(file.volumes.len());
    let mut config =
        Config { daemon: file.daemon, volumes: Vec::with_capacity(file.volumes.len()) };
    for section in file.volumes {
        let line = line_of(text, section.span().start);
        let section = section.into_inner();
        let name = section.name.clone();
        lines.push(line);
        config.volumes.push(volume(section, &for_all).map_err(|what| {
            ConfigError(format!("{}:{line}: volume {name:?}: {what}", path.display()))
        })?);
    }
    conflicts(&config).map_err(|(index, what)| {
        ConfigError(match index.and_then(|i| Some((lines.get(i)?, config.volumes.get(i)?))) {
            Some((line, volume)) => {
                format!("{}:{line}: volume {:?}: {what}", path.display(), volume.name)
            }
            None => format!("{}: {what}", path.display()),
        })
    })?;
    Ok(config)
}

/// Line of a byte offset, counted from 1.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|&&byte| byte == b'\n').count()
}
