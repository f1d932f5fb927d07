//! Keystone, Identity API v3: a token, and where Barbican is.
//!
//! Contract: a token is used until shortly before its end, then there is a new one; whoever finds
//! it refused before gives it back by [`Keystone::forget`]. Its lifetime is measured with this
//! node's own clock from the moment of asking, so a wrong wall clock does no harm. Credentials are
//! read from their files for every login.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sealblk_secret::SecretBytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use ureq::http::Method;

use crate::config::BarbicanConfig;
use crate::error::Failure;
use crate::file::credential;
use crate::http::{self, CATALOGUE_MAX_BYTES, Http, Question};
use crate::patience::Deadline;
use crate::{time, url};

/// How long before its end a token is not used any more: a fetch must not outlive it.
const MARGIN: Duration = Duration::from_secs(60);
/// What is said of a token without a lifetime that makes sense.
const LIFETIME: Duration = Duration::from_secs(300);
/// Room for a login request beside its password.
const LOGIN_BYTES: usize = 8 * 1024;

/// An identity, and its token if there is one.
#[derive(Debug)]
pub(crate) struct Keystone {
    config: BarbicanConfig,
    login: Mutex<Option<Arc<Login>>>,
}

/// What a login gave.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) token: SecretBytes,
    /// Barbican's address without a version.
    pub(crate) endpoint: String,
    pub(crate) warning: Option<String>,
    until: Instant,
}

/// `POST /v3/auth/tokens`. What is secret is borrowed: nothing here keeps a copy.
#[derive(Serialize)]
struct Request<'a> {
    auth: Auth<'a>,
}

#[derive(Serialize)]
struct Auth<'a> {
    identity: Identity<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Identity<'a> {
    methods: [&'static str; 1],
    #[serde(flatten)]
    proof: Proof<'a>,
}

#[derive(Serialize)]
enum Proof<'a> {
    #[serde(rename = "application_credential")]
    Credential { id: &'a str, secret: &'a str },
    #[serde(rename = "password")]
    Password { user: User<'a> },
}

#[derive(Serialize)]
struct User<'a> {
    name: &'a str,
    domain: &'a serde_json::Value,
    password: &'a str,
}

#[derive(Deserialize)]
struct Body {
    token: Token,
}

#[derive(Deserialize)]
struct Token {
    expires_at: String,
    issued_at: String,
    #[serde(default)]
    catalog: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    url: String,
    interface: String,
    #[serde(default)]
    region: Option<String>,
    #[serde(default)]
    region_id: Option<String>,
}

impl Keystone {
    pub(crate) fn new(config: BarbicanConfig) -> Self {
        Self { config, login: Mutex::new(None) }
    }

    /// A login that is good for a fetch, and whether it is a new one.
    pub(crate) fn login(
        &self,
        http: &Http,
        deadline: &Deadline,
    ) -> Result<(Arc<Login>, bool), Failure> {
        // Whoever comes meanwhile waits for this login instead of making another.
        let mut kept = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(login) = kept.as_ref().filter(|login| Instant::now() < login.until) {
            return Ok((login.clone(), false));
        }
        let login = Arc::new(self.ask(http, deadline)?);
        *kept = Some(login.clone());
        Ok((login, true))
    }

    /// The token is refused: the next login is a new one.
    pub(crate) fn forget(&self, login: &Arc<Login>) {
        let mut kept = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, login)) {
            *kept = None;
        }
    }

    fn ask(&self, http: &Http, deadline: &Deadline) -> Result<Login, Failure> {
        let config = &self.config;
        let (body, warning) = self.credentials()?;
        let catalogue = if config.endpoint.is_some() { "?nocatalog" } else { "" };
        let base = url::versioned(&config.auth_url, "v3");
        let asked = Instant::now();
        let answer = http.ask(
            deadline,
            Question {
                method: Method::POST,
                url: &format!("{base}/auth/tokens{catalogue}"),
                accept: "application/json",
                fields: &[],
                body: Some(&body),
                max_bytes: CATALOGUE_MAX_BYTES,
            },
        )?;
        let server = format!("Keystone {}", url::server(&base));
        match answer.status {
            200 | 201 => {}
            401 => {
                return Err(Failure::denied(format!(
                    "{server}: it refuses this node's credentials (HTTP 401): are they right, and \
                     not expired or revoked?"
                )));
            }
            404 => {
                return Err(Failure::malformed(format!(
                    "{server}: there is no Identity API v3 at `auth_url` (HTTP 404)"
                )));
            }
            _ => return Err(http::refusal(&server, "a token", &answer)),
        }
        let Body { token } = http::parse(&server, "the token", &answer.body)?;
        let secret = answer
            .token
            .ok_or_else(|| Failure::malformed(format!("{server}: its answer holds no token")))?;
        let lifetime = time::between(&token.issued_at, &token.expires_at).unwrap_or(LIFETIME);
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => self.choose(&server, &token.catalog)?,
        };
        let until = asked + lifetime.saturating_sub(MARGIN.min(lifetime / 2));
        Ok(Login { token: secret, endpoint, warning, until })
    }

    /// The request's body, and what the operator should know about the file.
    fn credentials(&self) -> Result<(SecretBytes, Option<String>), Failure> {
        let config = &self.config;
        let (path, what) = match (&config.application_credential_secret_file, &config.password_file)
        {
            (Some(path), _) => (path, "application_credential_secret_file"),
            (None, Some(path)) => (path, "password_file"),
            (None, None) => return Err(Failure::unconfigured("[barbican] has no credentials")),
        };
        let (secret, warning) = credential(path, what)?;
        let text = std::str::from_utf8(secret.expose()).map_err(|_| {
            Failure::unconfigured(format!("{what} {}: it is no text", path.display()))
        })?;
        let domain = |id: &Option<String>, name: &Option<String>| match (id, name) {
            (Some(id), _) => json!({ "id": id }),
            (None, name) => json!({ "name": name.as_deref().unwrap_or("Default") }),
        };
        let user_domain = domain(&config.user_domain_id, &config.user_domain_name);
        let (method, proof, scope) = if let Some(id) = &config.application_credential_id {
            ("application_credential", Proof::Credential { id, secret: text }, None)
        } else {
            let project = match &config.project_id {
                Some(id) => json!({ "id": id }),
                None => json!({
                    "name": config.project_name,
                    "domain": domain(&config.project_domain_id, &config.project_domain_name),
                }),
            };
            let name = config.username.as_deref().unwrap_or_default();
            let user = User { name, domain: &user_domain, password: text };
            ("password", Proof::Password { user }, Some(json!({ "project": project })))
        };
        let identity = Identity { methods: [method], proof };
        let request = Request { auth: Auth { identity, scope } };
        // A sign takes up to six bytes in JSON.
        let body = http::json(&request, LOGIN_BYTES + 6 * text.len())?;
        Ok((body, warning))
    }

    /// Barbican's address in the catalogue.
    fn choose(&self, server: &str, catalogue: &[Service]) -> Result<String, Failure> {
        let (region, interface) = (self.config.region.as_deref(), self.interface());
        let mut endpoints = catalogue
            .iter()
            .filter(|service| service.kind == "key-manager")
            .flat_map(|service| &service.endpoints)
            .filter(|endpoint| endpoint.interface == interface)
            .filter(|endpoint| {
                let theirs = endpoint.region_id.as_deref().or(endpoint.region.as_deref());
                region.is_none_or(|region| theirs == Some(region))
            });
        let Some(endpoint) = endpoints.next() else {
            let region = region.map(|region| format!(" in region {region:?}")).unwrap_or_default();
            return Err(Failure::unconfigured(format!(
                "{server}: its catalogue has no {interface} endpoint of a key-manager{region}: set \
                 `endpoint`"
            )));
        };
        url::check("endpoint", &endpoint.url, self.config.insecure_http)
            .map_err(|why| Failure::unconfigured(format!("{server}: in its catalogue, {why}")))?;
        Ok(endpoint.url.clone())
    }

    fn interface(&self) -> &str {
        self.config.interface.as_deref().unwrap_or("internal")
    }
}
