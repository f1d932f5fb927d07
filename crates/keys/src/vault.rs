//! `vault:PATH`: a secret in HashiCorp Vault or OpenBao, as castellan's `vault` backend stores it.
//!
//! Contract (the layout): in a KV engine of version 1 or 2 at `mount`, below `path`, an object whose
//! `value` is the secret in hex and whose `type` is castellan's. (The passphrase): of a `passphrase`
//! the bytes as they are; of every other type in lowercase hex, as Nova and Cinder have it.
//!
//! This node logs in by a token from a file, or by `AppRole`; that token is kept until shortly
//! before its end and replaced once if it is refused, for Vault answers 403 both to an expired token
//! and to a path that is forbidden.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sealblk_secret::SecretBytes;
use serde::{Deserialize, Serialize};
use ureq::http::Method;

use crate::config::VaultConfig;
use crate::error::Failure;
use crate::file::credential;
use crate::http::{self, Answer, Http, Question, SECRET_MAX_BYTES};
use crate::patience::{Deadline, Limits, persist};
use crate::{Fetched, codec, url};

/// How long before its end a token is not used any more.
const MARGIN: Duration = Duration::from_secs(30);
/// How long a token without an end is kept.
const LIFETIME: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Vault {
    config: VaultConfig,
    limits: Limits,
    /// Of `AppRole` only.
    login: Mutex<Option<Arc<Login>>>,
}

#[derive(Debug)]
struct Login {
    token: SecretBytes,
    warning: Option<String>,
    until: Option<Instant>,
}

#[derive(Serialize)]
struct RoleLogin<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Deserialize)]
struct LoginAnswer<'a> {
    #[serde(borrow)]
    auth: Auth<'a>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    client_token: &'a str,
    #[serde(default)]
    lease_duration: u64,
}

#[derive(Deserialize)]
struct Version1<'a> {
    #[serde(borrow)]
    data: Record<'a>,
}

#[derive(Deserialize)]
struct Version2<'a> {
    #[serde(borrow)]
    data: Data2<'a>,
}

#[derive(Deserialize)]
struct Data2<'a> {
    #[serde(borrow)]
    data: Record<'a>,
}

/// What castellan writes, as far as it matters. Borrowed, so that no copy is left behind.
#[derive(Deserialize)]
struct Record<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    value: &'a str,
}

/// A 404 of version 2 tells whether there was something.
#[derive(Deserialize)]
struct Gone {
    data: GoneData,
}

#[derive(Deserialize)]
struct GoneData {
    metadata: GoneMetadata,
}

#[derive(Deserialize)]
struct GoneMetadata {
    #[serde(default)]
    deletion_time: String,
    #[serde(default)]
    destroyed: bool,
}

impl Vault {
    /// From a configuration that was checked.
    pub(crate) fn new(config: VaultConfig, limits: Limits) -> Self {
        Self { config, limits, login: Mutex::new(None) }
    }

    /// The passphrase at a path below the mount.
    pub(crate) fn fetch(&self, path: &str) -> Result<Fetched, Failure> {
        persist(self.limits, |deadline| self.attempt(deadline, path))
    }

    fn attempt(&self, deadline: &Deadline, path: &str) -> Result<Fetched, Failure> {
        let encrypted = self.config.url.starts_with("https");
        let http = Http::new(self.config.ca_file.as_deref(), encrypted)?;
        let (login, new) = self.log_in(&http, deadline)?;
        let mut answer = self.read(&http, deadline, &login, path)?;
        if answer.status == 403 && !new {
            self.forget(&login);
            let (login, _) = self.log_in(&http, deadline)?;
            answer = self.read(&http, deadline, &login, path)?;
        }
        if answer.status != 200 {
            return Err(self.refusal(path, &answer));
        }
        let server = self.server();
        let record = match self.version() {
            1 => http::parse::<Version1<'_>>(&server, "the key", &answer.body)?.data,
            _ => http::parse::<Version2<'_>>(&server, "the key", &answer.body)?.data.data,
        };
        let no_hex = || {
            Failure::malformed(format!(
                "{server}: the `value` at {} is not in hex: did castellan store it?",
                self.place(path)
            ))
        };
        let bytes = codec::from_hex(record.value.as_bytes())?.ok_or_else(no_hex)?;
        let passphrase = match record.kind {
            "passphrase" => bytes,
            _ => codec::to_hex(bytes.expose())?,
        };
        Ok(Fetched { passphrase, warning: login.warning.clone() })
    }

    /// A login, and whether another one could not help.
    fn log_in(&self, http: &Http, deadline: &Deadline) -> Result<(Arc<Login>, bool), Failure> {
        if let Some(path) = &self.config.token_file {
            let (content, warning) = credential(path, "token_file")?;
            let token = http::token(&format!("token_file {}", path.display()), content.expose())
                .map_err(|_| {
                    Failure::unconfigured(format!(
                        "token_file {}: it holds no token",
                        path.display()
                    ))
                })?;
            return Ok((Arc::new(Login { token, warning, until: None }), true));
        }
        let mut kept = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(login) = kept.as_ref().filter(|login| login.until.is_some_and(|end| now < end))
        {
            return Ok((login.clone(), false));
        }
        let login = Arc::new(self.by_role(http, deadline)?);
        *kept = Some(login.clone());
        Ok((login, true))
    }

    fn by_role(&self, http: &Http, deadline: &Deadline) -> Result<Login, Failure> {
        let (Some(role_id), Some(path)) = (&self.config.role_id, &self.config.secret_id_file)
        else {
            return Err(Failure::unconfigured("[vault] has no credentials"));
        };
        let (secret, warning) = credential(path, "secret_id_file")?;
        let secret_id = std::str::from_utf8(secret.expose()).map_err(|_| {
            Failure::unconfigured(format!("secret_id_file {}: it is no text", path.display()))
        })?;
        let room = 256 + 6 * (role_id.len() + secret_id.len());
        let body = http::json(&RoleLogin { role_id, secret_id }, room)?;
        let mount = self.config.approle_mount.as_deref().unwrap_or("approle");
        let asked = Instant::now();
        let url = format!("{}/v1/auth/{mount}/login", self.base());
        let answer = self.ask(http, deadline, Method::POST, &url, None, Some(&body))?;
        let server = self.server();
        match answer.status {
            200 => {}
            // "invalid role or secret ID" is a 400 (and a 403 where a network may not log in).
            400 | 401 | 403 => {
                return Err(Failure::denied(format!(
                    "{server}: it refuses this node's AppRole (HTTP {}): are the role's id and its \
                     secret id right and not expired?",
                    answer.status
                )));
            }
            404 => {
                return Err(Failure::malformed(format!(
                    "{server}: no AppRole is mounted at auth/{mount} (HTTP 404): set \
                     `approle_mount`"
                )));
            }
            _ => return Err(self.sealed(&answer, "a token")),
        }
        let LoginAnswer { auth } = http::parse(&server, "the token", &answer.body)?;
        let token = http::token(&server, auth.client_token.as_bytes())?;
        let lifetime = match auth.lease_duration {
            0 => LIFETIME,
            seconds => Duration::from_secs(seconds.min(365 * 86_400)),
        };
        let until = Some(asked + lifetime.saturating_sub(MARGIN.min(lifetime / 2)));
        Ok(Login { token, warning, until })
    }

    fn forget(&self, login: &Arc<Login>) {
        let mut kept = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, login)) {
            *kept = None;
        }
    }

    fn read(
        &self,
        http: &Http,
        deadline: &Deadline,
        login: &Login,
        path: &str,
    ) -> Result<Answer, Failure> {
        let data = if self.version() == 1 { "" } else { "data/" };
        let url = format!("{}/v1/{}/{data}{}", self.base(), self.mount(), self.below(path));
        self.ask(http, deadline, Method::GET, &url, Some(login.token.expose()), None)
    }

    fn ask(
        &self,
        http: &Http,
        deadline: &Deadline,
        method: Method,
        url: &str,
        token: Option<&[u8]>,
        body: Option<&SecretBytes>,
    ) -> Result<Answer, Failure> {
        let mut fields: Vec<(&'static str, &[u8])> = vec![("x-vault-request", b"true")];
        fields.extend(token.map(|token| ("x-vault-token", token)));
        let namespace = self.config.namespace.as_deref();
        fields.extend(namespace.map(|namespace| ("x-vault-namespace", namespace.as_bytes())));
        let (accept, max_bytes) = ("application/json", SECRET_MAX_BYTES);
        http.ask(deadline, Question { method, url, accept, fields: &fields, body, max_bytes })
    }

    fn refusal(&self, path: &str, answer: &Answer) -> Failure {
        let (server, place) = (self.server(), self.place(path));
        match answer.status {
            403 => Failure::denied(format!(
                "{server}: it refuses {place} (HTTP 403): the token has expired, or its policy has \
                 no `read` for this path"
            )),
            404 => {
                let gone = serde_json::from_slice::<Gone>(answer.body.expose());
                let why = match gone.map(|gone| gone.data.metadata) {
                    Ok(gone) if gone.destroyed => "its newest version is destroyed",
                    Ok(gone) if !gone.deletion_time.is_empty() => {
                        "its newest version is deleted (`undelete` brings it back)"
                    }
                    _ => "was it deleted, and are `mount`, `path` and `kv_version` right?",
                };
                Failure::missing(format!("{server}: there is no key at {place} (HTTP 404): {why}"))
            }
            _ => self.sealed(answer, &place),
        }
    }

    /// A status that isn't about rights: 503 is how a sealed server answers.
    fn sealed(&self, answer: &Answer, what: &str) -> Failure {
        let server = self.server();
        match answer.status {
            503 => Failure {
                after_seconds: answer.retry_after,
                ..Failure::passing(format!(
                    "{server}: it is sealed or still starting (HTTP 503): unseal it"
                ))
            },
            _ => http::refusal(&server, what, answer),
        }
    }

    fn base(&self) -> &str {
        self.config.url.trim_end_matches('/')
    }

    fn mount(&self) -> &str {
        self.config.mount.as_deref().unwrap_or("secret")
    }

    fn version(&self) -> u8 {
        self.config.kv_version.unwrap_or(2)
    }

    fn below(&self, path: &str) -> String {
        self.config
            .path
            .as_deref()
            .map_or_else(|| path.to_owned(), |before| format!("{before}/{path}"))
    }

    fn place(&self, path: &str) -> String {
        format!("{}/{}", self.mount(), self.below(path))
    }

    fn server(&self) -> String {
        format!("Vault {}", url::server(&self.config.url))
    }
}
