//! The key managers of this node, and every kind of key through one door.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::barbican::Barbican;
use crate::config::KeyManagersConfig;
use crate::error::{Failure, KeyError};
use crate::kmip::Kmip;
use crate::vault::Vault;
use crate::{Fetched, KeySource, MAX_KEY_BYTES};

/// Where the configuration is unless somebody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/sealblk/keys.toml";

/// Longest configuration file, in bytes.
const CONFIG_MAX_BYTES: u64 = 64 * 1024;

/// The key managers that are configured; they may be used by any number of threads.
///
/// Nothing has been asked of anybody when one of these exists, and files that it names have not been
/// opened: a manager that is set up wrongly is in nobody else's way.
#[derive(Debug, Default)]
pub struct KeyManagers {
    /// The configuration's path, for messages.
    origin: String,
    barbican: Option<Barbican>,
    vault: Option<Vault>,
    kmip: Option<Kmip>,
    warnings: Vec<String>,
}

/// A configuration that can't be used: where and why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KeyManagersError(String);

impl KeyManagers {
    /// No key managers: files and descriptors only.
    pub fn none() -> Self {
        Self { origin: DEFAULT_PATH.to_owned(), ..Self::default() }
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.barbican.is_some() || self.vault.is_some() || self.kmip.is_some()
    }

    /// What `file` says, or [`DEFAULT_PATH`] if that exists, or nothing.
    ///
    /// # Errors
    /// The file can't be read or makes no sense, or others than root and this process's user may
    /// write to it: who can does decide where credentials are sent.
    pub fn load(file: Option<&Path>) -> Result<Self, KeyManagersError> {
        let path = file.unwrap_or(Path::new(DEFAULT_PATH));
        let named = |why: &dyn std::fmt::Display| {
            KeyManagersError(format!("key managers {}: {why}", path.display()))
        };
        let opened = match File::open(path) {
            Err(error) if file.is_none() && error.kind() == ErrorKind::NotFound => {
                return Ok(Self::none());
            }
            opened => opened.map_err(|error| named(&error))?,
        };
        let metadata = opened.metadata().map_err(|error| named(&error))?;
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        if mode & 0o022 != 0 {
            return Err(named(&format!(
                "it has mode {mode:04o}: who may write to it decides where credentials are sent; \
                 `chmod 0600` it"
            )));
        }
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(named(&"it belongs to another user; `chown root` it"));
        }
        let mut text = String::new();
        let read = opened.take(CONFIG_MAX_BYTES + 1).read_to_string(&mut text);
        read.map_err(|error| named(&error))?;
        if text.len() as u64 > CONFIG_MAX_BYTES {
            return Err(named(&"it is too long"));
        }
        // The parser's message shows the line at fault, where somebody may have put a password.
        let config: KeyManagersConfig =
            toml::from_str(&text).map_err(|error| named(&without_text(&text, &error)))?;
        let mut managers = Self::new(config).map_err(|error| named(&error))?;
        managers.origin = path.display().to_string();
        if mode & 0o044 != 0 {
            managers.warnings.push(format!(
                "key managers {}: it has mode {mode:04o}, so others may read as whom this node logs \
                 in; `chmod 0600` it",
                path.display()
            ));
        }
        Ok(managers)
    }

    /// From a configuration.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn new(config: KeyManagersConfig) -> Result<Self, KeyManagersError> {
        config.check().map_err(KeyManagersError)?;
        let mut managers = Self::none();
        if let Some(config) = config.barbican {
            let limits = config.limits().map_err(KeyManagersError)?;
            managers.barbican = Some(Barbican::new(config, limits));
        }
        if let Some(config) = config.vault {
            let limits = config.limits().map_err(KeyManagersError)?;
            managers.vault = Some(Vault::new(config, limits));
        }
        if let Some(config) = config.kmip {
            let limits = config.limits().map_err(KeyManagersError)?;
            managers.kmip = Some(Kmip::new(config, limits));
        }
        Ok(managers)
    }

    /// What the operator should change about the configuration, for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Gets a passphrase. Blocks until it is there, or the key manager's total time limit (30 s
    /// unless configured) is over.
    ///
    /// # Errors
    /// See [`KeyErrorKind`](crate::KeyErrorKind).
    pub fn fetch(&self, source: &KeySource) -> Result<Fetched, KeyError> {
        self.try_fetch(source).map_err(|failure| KeyError::new(source, failure))
    }

    fn try_fetch(&self, source: &KeySource) -> Result<Fetched, Failure> {
        let without = |section: &str| {
            Failure::unconfigured(format!(
                "{} has no section [{section}] (docs/keys.md has an example)",
                self.origin
            ))
        };
        let fetched = match source {
            KeySource::File(_) | KeySource::Fd(_) | KeySource::Held(_) => {
                return source.fetch_here().unwrap_or_else(|| Err(without("file")));
            }
            KeySource::Barbican(id) => {
                self.barbican.as_ref().ok_or_else(|| without("barbican"))?.fetch(id)?
            }
            KeySource::Vault(path) => {
                self.vault.as_ref().ok_or_else(|| without("vault"))?.fetch(path)?
            }
            KeySource::Kmip(id) => self.kmip.as_ref().ok_or_else(|| without("kmip"))?.fetch(id)?,
        };
        match fetched.passphrase.len() {
            0 => Err(Failure::malformed("it is empty: that is no passphrase")),
            len if len > MAX_KEY_BYTES => Err(crate::file::too_long(MAX_KEY_BYTES)),
            _ => Ok(fetched),
        }
    }
}

/// The line's number and what is wrong with it, without what stands there.
fn without_text(text: &str, error: &toml::de::Error) -> String {
    let line = error.span().and_then(|span| text.get(..span.start));
    let line = line.map(|before| before.matches('\n').count() + 1);
    let at = line.map(|line| format!("line {line}: ")).unwrap_or_default();
    // Of the parser's own messages only these name nothing but fields.
    match error.message() {
        known if known.starts_with("unknown field") => format!("{at}{known}"),
        known if known.starts_with("duplicate") => format!("{at}{known}"),
        _ => format!("{at}this is not as it should be (docs/keys.md)"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::KeyErrorKind;

    fn load(text: &str, mode: u32) -> Result<KeyManagers, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.toml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        KeyManagers::load(Some(&path)).map_err(|error| error.to_string())
    }

    const VAULT: &str = "[vault]\nurl = 'https://v'\ntoken_file = '/t'\n";

    #[test]
    fn who_may_write_the_configuration_is_root_or_this_user_alone() {
        assert!(load(VAULT, 0o600).unwrap().warnings().is_empty());
        let warned = load(VAULT, 0o644).unwrap();
        assert!(warned.warnings()[0].contains("0644"), "{:?}", warned.warnings());
        for mode in [0o620, 0o602, 0o666] {
            let error = load(VAULT, mode).unwrap_err();
            assert!(error.contains(&format!("{mode:04o}")) && error.contains("chmod"), "{error}");
        }
    }

    #[test]
    fn errors_say_where_and_repeat_no_values() {
        for (text, expected) in [
            ("[vault]\nurl = 'https://v'\ntoken = 'hunter2'\n", "line 3: unknown field `token`"),
            ("[vault]\nurl = hunter2\n", "line 2: "),
            ("[vault]\nkv_version = 'hunter2'\n", "line 2: "),
            ("[vault]\nurl = 'https://hunter2@v'\n", "[vault]: `url` must have no user"),
        ] {
            let error = load(text, 0o600).unwrap_err();
            assert!(error.contains(expected) && error.contains("keys.toml: "), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let long = "#".repeat(CONFIG_MAX_BYTES as usize + 1);
        assert!(load(&long, 0o600).unwrap_err().contains("too long"));
        let missing = KeyManagers::load(Some(Path::new("/nowhere/keys.toml"))).unwrap_err();
        assert!(missing.to_string().contains("/nowhere/keys.toml: No such file"), "{missing}");
    }

    #[test]
    fn a_manager_without_a_section_is_unconfigured_and_files_need_none() {
        let managers = load(VAULT, 0o600).unwrap();
        let error = managers.fetch(&"kmip:1".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Unconfigured);
        let text = error.to_string();
        assert!(text.contains("keys.toml has no section [kmip]"), "{text}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "secret").unwrap();
        let fetched = KeyManagers::none().fetch(&KeySource::File(file.path().into())).unwrap();
        assert_eq!(fetched.passphrase.expose(), b"secret");
    }
}
