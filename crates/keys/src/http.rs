//! One question to an HTTP server, and its answer.
//!
//! Contract: an answer's body has a limit and goes straight into protected memory. Redirects are
//! answers like others (who follows them sends the token along), proxies of the environment don't
//! count, nothing is compressed. A question takes as long as the deadline has left at most. Every
//! question has a connection of its own, so no idle connection keeps a secret in its buffers.
//! Failures never hold what a server said.
//!
//! What can't be wiped: ureq's and rustls's buffers hold the last bytes of a question and of an
//! answer until their memory is used again, and so do copies of header fields (tokens) in the `http`
//! crate. They are in ordinary memory, which `sealblk_secret::harden_process` keeps out of dumps,
//! not out of swap. ureq writes whole questions and answers to the log at level `trace`: this crate
//! compiles that level away (of everything in the program that uses the `log` crate).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sealblk_secret::SecretBytes;
use serde::Serialize;
use ureq::http::{HeaderValue, Method, Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, Error};

use crate::error::Failure;
use crate::patience::Deadline;
use crate::{tls, url};

/// With `trace` compiled in, tokens and secrets would get into logs; see above.
const _: () = assert!(
    matches!(log::STATIC_MAX_LEVEL, log::LevelFilter::Debug),
    "the log crate needs the feature max_level_debug"
);

/// Body of an answer that holds a secret: the longest passphrase in hex, and what is around it.
pub(crate) const SECRET_MAX_BYTES: usize = 2 * crate::MAX_KEY_BYTES + 4096;
/// Body of an answer that holds a catalogue of services.
pub(crate) const CATALOGUE_MAX_BYTES: usize = 1 << 20;
/// All header fields of an answer. Keystone's tokens are some hundred bytes to some KiB.
const HEADERS_MAX_BYTES: usize = 64 * 1024;
/// Longest token. Larger ones don't fit into servers' limits of header fields.
const TOKEN_MAX_BYTES: usize = 16 * 1024;

/// A client of servers that the same authorities vouch for.
#[derive(Debug)]
pub(crate) struct Http {
    roots: Arc<Vec<Certificate<'static>>>,
}

/// What to ask.
pub(crate) struct Question<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    pub(crate) accept: &'static str,
    /// Fields whose content is secret or at least nobody's business.
    pub(crate) fields: &'a [(&'static str, &'a [u8])],
    /// JSON.
    pub(crate) body: Option<&'a SecretBytes>,
    /// Limit of the answer's body.
    pub(crate) max_bytes: usize,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: SecretBytes,
    /// `X-Subject-Token`, Keystone's way to hand out tokens.
    pub(crate) token: Option<SecretBytes>,
    /// `Retry-After`, in seconds.
    pub(crate) retry_after: Option<u32>,
}

impl Http {
    /// For servers with these addresses. Where none is encrypted, no authority is needed.
    pub(crate) fn new(ca_file: Option<&Path>, encrypted: bool) -> Result<Self, Failure> {
        let roots = if encrypted { tls::authorities(ca_file)? } else { Vec::new() };
        let owned = |der: &CertificateDer<'_>| Certificate::from_der(der).to_owned();
        Ok(Self { roots: Arc::new(roots.iter().map(owned).collect()) })
    }

    fn agent(&self, deadline: &Deadline) -> Agent {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(self.roots.clone()))
            .unversioned_rustls_crypto_provider(tls::provider())
            .build();
        Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("sealblk/", env!("CARGO_PKG_VERSION")))
            .max_idle_connections(0)
            .max_response_header_size(HEADERS_MAX_BYTES)
            .timeout_global(Some(deadline.exchange()))
            .timeout_connect(Some(deadline.connect()))
            .build()
            .new_agent()
    }

    /// Asks. An answer is one whatever its status.
    pub(crate) fn ask(
        &self,
        deadline: &Deadline,
        question: Question<'_>,
    ) -> Result<Answer, Failure> {
        let server = url::server(question.url);
        let mut request = Request::builder()
            .method(question.method)
            .uri(question.url)
            .header("accept", question.accept);
        for (name, value) in question.fields {
            let mut value = HeaderValue::from_bytes(value).map_err(|_| {
                Failure::unconfigured(format!("{name} can't hold what is to be sent"))
            })?;
            value.set_sensitive(true);
            request = request.header(*name, value);
        }
        let agent = self.agent(deadline);
        let impossible = |error| Failure::unconfigured(format!("{server}: {error}"));
        let answer = match question.body {
            Some(body) => agent.run(
                request
                    .header("content-type", "application/json")
                    .body(body.expose())
                    .map_err(impossible)?,
            ),
            None => agent.run(request.body(()).map_err(impossible)?),
        };
        let answer = answer.map_err(|error| explain(&server, &error))?;
        take(&server, answer, question.max_bytes)
    }
}

fn take(server: &str, mut answer: Response<Body>, max_bytes: usize) -> Result<Answer, Failure> {
    let status = answer.status().as_u16();
    let token = match answer.headers().get("x-subject-token") {
        Some(value) => Some(token(server, value.as_bytes())?),
        None => None,
    };
    let retry_after = answer.headers().get("retry-after");
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let expected = answer.body().content_length();
    let success = answer.status().is_success();
    let ends = ["content-length", "transfer-encoding"];
    if success && !ends.iter().any(|field| answer.headers().contains_key(*field)) {
        // It would end wherever the connection does, and half a passphrase looks like a whole one.
        return Err(Failure::malformed(format!("{server}: its answer doesn't say how long it is")));
    }
    let body = match read(server, answer.body_mut().as_reader(), expected, max_bytes) {
        // What a server adds to its no is of little interest; that it says no is what counts.
        Err(_) if !success => SecretBytes::zeroed(0)?,
        read => read?,
    };
    Ok(Answer { status, body, token, retry_after })
}

/// A token as it may stand in a header field.
pub(crate) fn token(server: &str, bytes: &[u8]) -> Result<SecretBytes, Failure> {
    let fine = (1..=TOKEN_MAX_BYTES).contains(&bytes.len())
        && bytes.iter().all(|byte| byte.is_ascii_graphic());
    if !fine {
        return Err(Failure::malformed(format!("{server}: the token that it gave is none")));
    }
    Ok(SecretBytes::copy_from(bytes)?)
}

/// The whole body, if it isn't too long.
fn read(
    server: &str,
    mut body: impl Read,
    expected: Option<u64>,
    max_bytes: usize,
) -> Result<SecretBytes, Failure> {
    let too_long =
        || Failure::malformed(format!("{server}: its answer is longer than {max_bytes} bytes"));
    let expected = expected.map_or(4096, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if expected > max_bytes {
        return Err(too_long());
    }
    // One byte more, to see the end in the same read.
    let mut content = SecretBytes::zeroed(expected + 1)?;
    let mut filled = 0;
    loop {
        if filled == content.len() {
            if filled > max_bytes {
                return Err(too_long());
            }
            let mut larger = SecretBytes::zeroed((2 * filled).min(max_bytes + 1))?;
            for (to, from) in larger.expose_mut().iter_mut().zip(content.expose()) {
                *to = *from;
            }
            content = larger;
        }
        let rest = content.expose_mut().get_mut(filled..).unwrap_or_default();
        match body.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(explain(server, &error.into())),
        }
    }
    content.truncate(filled);
    Ok(content)
}

/// What it means that there is no answer.
fn explain(server: &str, error: &Error) -> Failure {
    match error {
        Error::Io(error) => tls::io_failure(server, error),
        Error::Rustls(error) => tls::failure(server, error),
        Error::Timeout(_) => Failure::passing(format!("{server}: it doesn't answer in time")),
        Error::HostNotFound => {
            Failure::passing(format!("{server}: the name resolution doesn't know this host"))
        }
        Error::ConnectionFailed => Failure::passing(format!("{server}: no connection")),
        Error::Protocol(_) => Failure::malformed(format!(
            "{server}: what it answers is no HTTP: is it the right port?"
        )),
        error => Failure::unreachable(format!("{server}: {error}")),
    }
}

/// What a status means that is no success and that the caller has no better words for. `what` was
/// asked for.
pub(crate) fn refusal(server: &str, what: &str, answer: &Answer) -> Failure {
    let status = answer.status;
    match status {
        401 | 403 => Failure::denied(format!("{server}: it refuses {what} (HTTP {status})")),
        404 | 410 => Failure::missing(format!("{server}: there is no {what} (HTTP {status})")),
        408 | 412 | 425 | 429 | 500..=599 => Failure {
            after_seconds: answer.retry_after,
            ..Failure::passing(format!("{server}: it can't give {what} now (HTTP {status})"))
        },
        300..=399 => Failure::malformed(format!(
            "{server}: it wants to be asked elsewhere for {what} (HTTP {status}), which is not \
             followed: configure the address that answers itself"
        )),
        _ => Failure::malformed(format!("{server}: asked for {what}, it answers HTTP {status}")),
    }
}

/// A JSON text in protected memory.
pub(crate) fn json(value: &impl Serialize, max_bytes: usize) -> Result<SecretBytes, Failure> {
    let mut text = SecretBytes::zeroed(max_bytes)?;
    let mut rest = text.expose_mut();
    serde_json::to_writer(&mut rest, value)
        .map_err(|_| Failure::unconfigured("what is to be sent is too long"))?;
    let unused = rest.len();
    text.truncate(max_bytes - unused);
    Ok(text)
}

/// What a JSON text says. Nothing of it gets into the failure.
pub(crate) fn parse<'a, T: serde::Deserialize<'a>>(
    server: &str,
    what: &str,
    text: &'a SecretBytes,
) -> Result<T, Failure> {
    serde_json::from_slice(text.expose()).map_err(|_| {
        Failure::malformed(format!(
            "{server}: its answer about {what} is not what such a server says: is it the right \
             address?"
        ))
    })
}
