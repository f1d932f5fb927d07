//! `barbican:UUID`: a secret in OpenStack's key manager, read by this node's own identity.
//!
//! Contract (the passphrase): of a secret of type `passphrase` the payload as it is; of every other
//! type its bytes in lowercase hex, as Nova and Cinder have it (os-brick's
//! `get_passphrase_from_secret`). Private and public keys and certificates are no disk's secrets and
//! are refused: castellan would encode them anew first.
//!
//! The server's address is the configuration's or the catalogue's, never the key's. A token that is
//! refused (401) is replaced once.

use std::sync::Arc;

use serde::Deserialize;
use ureq::http::Method;

use crate::config::BarbicanConfig;
use crate::error::Failure;
use crate::http::{self, Answer, Http, Question, SECRET_MAX_BYTES};
use crate::keystone::{Keystone, Login};
use crate::patience::{Deadline, Limits, persist};
use crate::{Fetched, codec, url};

/// What a payload may be stored as.
const BINARY: &str = "application/octet-stream";
const TEXT: &str = "text/plain";

#[derive(Debug)]
pub(crate) struct Barbican {
    config: BarbicanConfig,
    limits: Limits,
    keystone: Keystone,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    secret_type: Option<String>,
    #[serde(default)]
    content_types: Option<ContentTypes>,
}

#[derive(Deserialize)]
struct ContentTypes {
    #[serde(default)]
    default: Option<String>,
}

impl Barbican {
    /// From a configuration that was checked.
    pub(crate) fn new(config: BarbicanConfig, limits: Limits) -> Self {
        Self { keystone: Keystone::new(config.clone()), config, limits }
    }

    /// The passphrase of a secret. `id` is a UUID.
    pub(crate) fn fetch(&self, id: &str) -> Result<Fetched, Failure> {
        persist(self.limits, |deadline| self.attempt(deadline, id))
    }

    fn attempt(&self, deadline: &Deadline, id: &str) -> Result<Fetched, Failure> {
        // A catalogue may name an encrypted endpoint although Keystone has none.
        let encrypted = [Some(&self.config.auth_url), self.config.endpoint.as_ref()]
            .iter()
            .any(|url| url.is_none_or(|url| url.starts_with("https")));
        let http = Http::new(self.config.ca_file.as_deref(), encrypted)?;
        let (login, new) = self.keystone.login(&http, deadline)?;
        let (login, answer) = match self.ask(&http, deadline, &login, id, "", "application/json")? {
            answer if answer.status == 401 => {
                self.keystone.forget(&login);
                if new {
                    return Err(self.refusal(&login, "secret", &answer));
                }
                let (login, _) = self.keystone.login(&http, deadline)?;
                let answer = self.ask(&http, deadline, &login, id, "", "application/json")?;
                (login, answer)
            }
            answer => (login, answer),
        };
        if answer.status != 200 {
            return Err(self.refusal(&login, "secret", &answer));
        }
        let server = server(&login);
        let metadata: Metadata = http::parse(&server, "the secret", &answer.body)?;
        let kind = metadata.secret_type.as_deref().unwrap_or("opaque");
        if matches!(kind, "private" | "public" | "certificate") {
            return Err(Failure::malformed(format!(
                "{server}: the secret's type is `{kind}`; a disk's is `passphrase`, `symmetric` or \
                 `opaque`"
            )));
        }
        let accept = match metadata.content_types.and_then(|types| types.default).as_deref() {
            Some(BINARY) => BINARY,
            Some(text) if text == TEXT || text.starts_with("text/plain;") => TEXT,
            Some(_) => {
                return Err(Failure::malformed(format!(
                    "{server}: the payload is neither {BINARY} nor {TEXT}"
                )));
            }
            None => {
                return Err(Failure::missing(format!(
                    "{server}: the secret has no payload: nobody has stored one yet"
                )));
            }
        };
        let answer = self.ask(&http, deadline, &login, id, "/payload", accept)?;
        if answer.status != 200 {
            return Err(self.refusal(&login, "payload of the secret", &answer));
        }
        let passphrase = match kind {
            "passphrase" => answer.body,
            _ => codec::to_hex(answer.body.expose())?,
        };
        Ok(Fetched { passphrase, warning: login.warning.clone() })
    }

    fn ask(
        &self,
        http: &Http,
        deadline: &Deadline,
        login: &Arc<Login>,
        id: &str,
        rest: &str,
        accept: &'static str,
    ) -> Result<Answer, Failure> {
        let base = url::versioned(&login.endpoint, "v1");
        http.ask(
            deadline,
            Question {
                method: Method::GET,
                url: &format!("{base}/secrets/{id}{rest}"),
                accept,
                fields: &[("x-auth-token", login.token.expose())],
                body: None,
                max_bytes: SECRET_MAX_BYTES,
            },
        )
    }

    fn refusal(&self, login: &Login, what: &str, answer: &Answer) -> Failure {
        let server = server(login);
        match answer.status {
            401 => Failure::denied(format!(
                "{server}: it refuses a new token (HTTP 401): does it use the Keystone of \
                 `auth_url`?"
            )),
            403 => Failure::denied(format!(
                "{server}: this node's user may not read the secret (HTTP 403): add the user to the \
                 secret's ACL, or give it a role that may read it"
            )),
            404 | 410 => Failure::missing(format!(
                "{server}: there is no such {what} (HTTP {}): was it deleted, or has it expired?",
                answer.status
            )),
            _ => http::refusal(&server, &format!("the {what}"), answer),
        }
    }
}

fn server(login: &Login) -> String {
    format!("Barbican {}", url::server(&login.endpoint))
}
