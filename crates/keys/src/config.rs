//! `/etc/sealblk/keys.toml`: which key managers there are, and as whom this node asks them.
//!
//! Contract: a [`KeyManagersConfig`] that was checked has addresses that make sense and exactly one
//! way to log in for each manager. It holds no secret: those are in files of their own, which are
//! read when they are needed, so that they can be renewed without a restart. Unknown fields are
//! errors.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use crate::patience::Limits;
use crate::source::is_segment;
use crate::url;

/// Possible values of time limits, in seconds.
const SECONDS: std::ops::RangeInclusive<u32> = 1..=600;
/// The port that is registered for KMIP.
pub(crate) const KMIP_PORT: u16 = 5696;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeyManagersConfig {
    /// `barbican:` keys.
    pub barbican: Option<BarbicanConfig>,
    /// `vault:` keys.
    pub vault: Option<VaultConfig>,
    /// `kmip:` keys.
    pub kmip: Option<KmipConfig>,
}

/// `[barbican]`: Barbican, and the identity of this node in Keystone.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BarbicanConfig {
    /// Keystone, e.g. `https://keystone:5000/v3`.
    pub auth_url: String,
    /// The application credential's id.
    pub application_credential_id: Option<String>,
    /// The file that holds its secret.
    pub application_credential_secret_file: Option<PathBuf>,
    /// Without an application credential: the user's name.
    pub username: Option<String>,
    /// The file that holds the user's password.
    pub password_file: Option<PathBuf>,
    /// The user's domain by name [`Default`, unless its id is given].
    pub user_domain_name: Option<String>,
    /// The user's domain by id.
    pub user_domain_id: Option<String>,
    /// The project that the token is for, by name.
    pub project_name: Option<String>,
    /// The project by id.
    pub project_id: Option<String>,
    /// The project's domain by name [`Default`, unless its id is given].
    pub project_domain_name: Option<String>,
    /// The project's domain by id.
    pub project_domain_id: Option<String>,
    /// Barbican, e.g. `https://barbican:9311`; none: what Keystone's catalogue says.
    pub endpoint: Option<String>,
    /// The catalogue's region; none: any.
    pub region: Option<String>,
    /// The catalogue's interface: `internal` (default), `public` or `admin`.
    pub interface: Option<String>,
    /// Certificates of the authorities that vouch for both, in PEM; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Lets secrets and tokens travel without TLS.
    pub insecure_http: bool,
    /// Limit of a connection's beginning, in seconds [5].
    pub connect_timeout_seconds: Option<u32>,
    /// Limit of one question and its answer, in seconds [10].
    pub timeout_seconds: Option<u32>,
    /// Limit of a fetch with all its attempts, in seconds [30].
    pub total_timeout_seconds: Option<u32>,
}

/// `[vault]`: HashiCorp Vault or OpenBao.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultConfig {
    /// The server, e.g. `https://vault:8200`.
    pub url: String,
    /// Where the secrets engine is mounted [`secret`].
    pub mount: Option<String>,
    /// castellan's `kv_path`: what lies between the mount and a key's path; none: nothing.
    pub path: Option<String>,
    /// The secrets engine's version, 1 or 2 [2].
    pub kv_version: Option<u8>,
    /// The namespace of all requests.
    pub namespace: Option<String>,
    /// The file that holds a token.
    pub token_file: Option<PathBuf>,
    /// `AppRole`: the role's id.
    pub role_id: Option<String>,
    /// `AppRole`: the file that holds the secret id.
    pub secret_id_file: Option<PathBuf>,
    /// `AppRole`: where it is mounted below `auth/` [`approle`].
    pub approle_mount: Option<String>,
    /// Certificates of the authorities that vouch for the server, in PEM; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// Lets secrets and tokens travel without TLS.
    pub insecure_http: bool,
    /// Limit of a connection's beginning, in seconds [5].
    pub connect_timeout_seconds: Option<u32>,
    /// Limit of one question and its answer, in seconds [10].
    pub timeout_seconds: Option<u32>,
    /// Limit of a fetch with all its attempts, in seconds [30].
    pub total_timeout_seconds: Option<u32>,
}

/// `[kmip]`: a KMIP server; TLS with a client certificate, always.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KmipConfig {
    /// Name or address, as the server's certificate has it.
    pub host: String,
    /// The port [5696].
    pub port: Option<u16>,
    /// The protocol's version, `1.0` to `1.4`, `2.0` or `2.1`; none: the server is asked for the
    /// newest of these.
    pub version: Option<String>,
    /// Certificates of the authorities that vouch for the server, in PEM.
    pub ca_file: PathBuf,
    /// This node's certificate (and what is between it and its authority), in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
    /// Limit of a connection's beginning, in seconds [5].
    pub connect_timeout_seconds: Option<u32>,
    /// Limit of one question and its answer, in seconds [10].
    pub timeout_seconds: Option<u32>,
    /// Limit of a fetch with all its attempts, in seconds [30].
    pub total_timeout_seconds: Option<u32>,
}

impl KeyManagersConfig {
    /// Everything that can be known to be wrong without asking anybody.
    ///
    /// # Errors
    /// What is wrong, with its section and field.
    pub(crate) fn check(&self) -> Result<(), String> {
        let section = |name: &str, result: Result<(), String>| {
            result.map_err(|why| format!("[{name}]: {why}"))
        };
        section("barbican", self.barbican.as_ref().map_or(Ok(()), BarbicanConfig::check))?;
        section("vault", self.vault.as_ref().map_or(Ok(()), VaultConfig::check))?;
        section("kmip", self.kmip.as_ref().map_or(Ok(()), KmipConfig::check))
    }
}

impl BarbicanConfig {
    fn check(&self) -> Result<(), String> {
        given("auth_url", &self.auth_url)?;
        url::check("auth_url", &self.auth_url, self.insecure_http)?;
        if let Some(endpoint) = &self.endpoint {
            url::check("endpoint", endpoint, self.insecure_http)?;
        }
        if let Some(interface) = self.interface.as_deref()
            && !["internal", "public", "admin"].contains(&interface)
        {
            return Err("`interface` is `internal`, `public` or `admin`".into());
        }
        let credential = self.application_credential_id.is_some()
            || self.application_credential_secret_file.is_some();
        let password = self.username.is_some() || self.password_file.is_some();
        match (credential, password) {
            (true, true) => Err("an application credential and a password exclude each other".into()),
            (false, false) => Err(
                "it needs `application_credential_id` and `application_credential_secret_file`, or \
                 `username`, `password_file` and a project"
                    .into(),
            ),
            (true, false) => {
                both("application_credential_id", &self.application_credential_id)?;
                both("application_credential_secret_file", &self.application_credential_secret_file)?;
                let scope = [&self.project_name, &self.project_id];
                if scope.iter().any(|field| field.is_some()) {
                    return Err("an application credential has its project already".into());
                }
                self.limits().map(drop)
            }
            (false, true) => {
                both("username", &self.username)?;
                both("password_file", &self.password_file)?;
                if self.project_name.is_some() == self.project_id.is_some() {
                    return Err("it needs either `project_name` or `project_id`".into());
                }
                self.limits().map(drop)
            }
        }
    }

    pub(crate) fn limits(&self) -> Result<Limits, String> {
        limits(self.connect_timeout_seconds, self.timeout_seconds, self.total_timeout_seconds)
    }
}

impl VaultConfig {
    fn check(&self) -> Result<(), String> {
        given("url", &self.url)?;
        url::check("url", &self.url, self.insecure_http)?;
        let paths =
            [("mount", &self.mount), ("path", &self.path), ("approle_mount", &self.approle_mount)];
        for (name, path) in paths {
            if path.as_deref().is_some_and(|path| !path.split('/').all(is_segment)) {
                return Err(format!(
                    "`{name}` must be letters, digits, `-`, `_`, `.`, `~` and single slashes, and \
                     begin and end with none"
                ));
            }
        }
        let namespace = self.namespace.as_deref().unwrap_or("none");
        if namespace.is_empty() || !namespace.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("`namespace` must be ASCII letters, digits and signs".into());
        }
        if let Some(version) = self.kv_version.filter(|version| !(1..=2).contains(version)) {
            return Err(format!("`kv_version` is {version}; there are 1 and 2"));
        }
        match (&self.token_file, self.role_id.is_some() || self.secret_id_file.is_some()) {
            (Some(_), true) => return Err("`token_file` and AppRole exclude each other".into()),
            (None, false) => {
                return Err("it needs `token_file`, or `role_id` and `secret_id_file`".into());
            }
            (Some(_), false) => {}
            (None, true) => {
                both("role_id", &self.role_id)?;
                both("secret_id_file", &self.secret_id_file)?;
            }
        }
        self.limits().map(drop)
    }

    pub(crate) fn limits(&self) -> Result<Limits, String> {
        limits(self.connect_timeout_seconds, self.timeout_seconds, self.total_timeout_seconds)
    }
}

impl KmipConfig {
    fn check(&self) -> Result<(), String> {
        given("host", &self.host)?;
        if !self.host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte)) {
            return Err("`host` must be a host's name or address".into());
        }
        if let Some(version) = &self.version
            && crate::kmip::Version::parse(version).is_none()
        {
            return Err("`version` is `1.0` to `1.4`, `2.0` or `2.1`".into());
        }
        let files = [
            ("ca_file", &self.ca_file),
            ("cert_file", &self.cert_file),
            ("key_file", &self.key_file),
        ];
        for (name, path) in files {
            if path.as_os_str().is_empty() {
                return Err(format!("it needs `{name}`"));
            }
        }
        self.limits().map(drop)
    }

    pub(crate) fn limits(&self) -> Result<Limits, String> {
        limits(self.connect_timeout_seconds, self.timeout_seconds, self.total_timeout_seconds)
    }
}

fn given(name: &str, value: &str) -> Result<(), String> {
    if value.is_empty() { Err(format!("it needs `{name}`")) } else { Ok(()) }
}

/// One half of two that belong together.
fn both<T>(name: &str, value: &Option<T>) -> Result<(), String> {
    if value.is_none() { Err(format!("`{name}` is missing")) } else { Ok(()) }
}

fn limits(
    connect: Option<u32>,
    exchange: Option<u32>,
    total: Option<u32>,
) -> Result<Limits, String> {
    let named = [
        ("connect_timeout_seconds", connect),
        ("timeout_seconds", exchange),
        ("total_timeout_seconds", total),
    ];
    for (name, value) in named {
        if let Some(value) = value.filter(|value| !SECONDS.contains(value)) {
            return Err(format!(
                "`{name}` is {value}; possible are {} to {}",
                SECONDS.start(),
                SECONDS.end()
            ));
        }
    }
    let or = |value: Option<u32>, default: Duration| {
        value.map_or(default, |seconds| Duration::from_secs(seconds.into()))
    };
    let defaults = Limits::default();
    Ok(Limits {
        connect: or(connect, defaults.connect),
        exchange: or(exchange, defaults.exchange),
        total: or(total, defaults.total),
        ..defaults
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<KeyManagersConfig, String> {
        let config: KeyManagersConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    const BARBICAN: &str = "[barbican]\nauth_url = 'https://k:5000/v3'\n";
    const CREDENTIAL: &str =
        "application_credential_id = 'i'\napplication_credential_secret_file = '/s'\n";
    const PASSWORD: &str = "username = 'u'\npassword_file = '/p'\nproject_name = 'p'\n";
    const VAULT: &str = "[vault]\nurl = 'https://v:8200'\n";
    const KMIP: &str = "[kmip]\nhost = 'h'\nca_file = '/c'\ncert_file = '/c'\nkey_file = '/k'\n";

    #[test]
    fn each_manager_is_optional_and_has_its_ways_to_log_in() {
        check("").unwrap();
        check(&format!(
            "{BARBICAN}{CREDENTIAL}{VAULT}role_id = 'r'\nsecret_id_file = '/s'\n{KMIP}"
        ))
        .unwrap();
        check(&format!("{BARBICAN}{PASSWORD}")).unwrap();
        let config =
            check(&format!("{VAULT}token_file = '/t'\ntotal_timeout_seconds = 7\n")).unwrap();
        let limits = config.vault.unwrap().limits().unwrap();
        assert_eq!(limits.total, Duration::from_secs(7));
        assert_eq!(limits.exchange, Duration::from_secs(10));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases = [
            (BARBICAN.into(), "[barbican]: it needs `application_credential_id`"),
            (format!("{BARBICAN}{CREDENTIAL}{PASSWORD}"), "exclude"),
            (format!("{BARBICAN}{CREDENTIAL}project_id = 'x'\n"), "has its project already"),
            (format!("{BARBICAN}application_credential_id = 'i'\n"), "_secret_file` is missing"),
            (format!("{BARBICAN}username = 'u'\n"), "`password_file` is missing"),
            (format!("{BARBICAN}username = 'u'\npassword_file = '/p'\n"), "either `project_name`"),
            (format!("{BARBICAN}{CREDENTIAL}interface = 'x'\n"), "`interface` is"),
            (format!("{BARBICAN}{CREDENTIAL}endpoint = 'barbican:9311'\n"), "`endpoint`"),
            (format!("{BARBICAN}{CREDENTIAL}password = 'x'\n"), "unknown field `password`"),
            ("[barbican]\n".into(), "it needs `auth_url`"),
            ("[barbican]\nauth_url = 'http://k:5000'\n".into(), "insecure_http"),
            (VAULT.into(), "[vault]: it needs `token_file`"),
            (format!("{VAULT}token = 'x'\n"), "unknown field `token`"),
            (format!("{VAULT}token_file = '/t'\nrole_id = 'r'\n"), "exclude"),
            (format!("{VAULT}role_id = 'r'\n"), "`secret_id_file` is missing"),
            (format!("{VAULT}token_file = '/t'\nkv_version = 3\n"), "`kv_version` is 3"),
            (format!("{VAULT}token_file = '/t'\nmount = '../x'\n"), "`mount` must be"),
            (format!("{VAULT}token_file = '/t'\nnamespace = 'a b'\n"), "`namespace` must be"),
            (format!("{VAULT}token_file = '/t'\ntimeout_seconds = 0\n"), "1 to 600"),
            ("[kmip]\nhost = 'h'\n".into(), "[kmip]: it needs `ca_file`"),
            (format!("{KMIP}version = '3.0'\n"), "`version` is"),
            ("[kmip]\nhost = 'a b'\n".into(), "`host` must be"),
            ("[pkcs11]\n".into(), "unknown field `pkcs11`"),
        ];
        for (text, expected) in cases {
            let error = check(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
