//! The daemons' control API, from the agent's side: HTTP/1.0 over a Unix socket, which asks for an
//! answer without chunks that ends with the connection.
//!
//! Contract: an answer is at most [`MAX_ANSWER`] bytes, and comes within [`LIMIT`].

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use sealblk_api::Refusal;
use serde::de::DeserializeOwned;

/// Longest answer, in bytes: metrics of some hundred queues.
const MAX_ANSWER: u64 = 8 << 20;

/// How long a daemon may be silent. An order may derive keys first.
const LIMIT: Duration = Duration::from_secs(30);

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct HttpError {
    /// The daemon's word, if it said no.
    pub(super) status: Option<u16>,
    what: String,
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl HttpError {
    fn new(what: impl Into<String>) -> Self {
        Self { status: None, what: what.into() }
    }
}

/// Asks; the answer is JSON.
pub(super) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, HttpError> {
    json(&get_text(socket, path)?)
}

/// Asks; the answer is text.
pub(super) fn get_text(socket: &Path, path: &str) -> Result<String, HttpError> {
    call(socket, &format!("GET {path} HTTP/1.0\r\nHost: sealblkd\r\n\r\n"))
}

/// Orders something.
pub(super) fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    body: Option<&str>,
) -> Result<T, HttpError> {
    let body = body.unwrap_or_default();
    let len = body.len();
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    let head =
        format!("POST {path} HTTP/1.0\r\nHost: sealblkd\r\n{kind}Content-Length: {len}\r\n\r\n");
    json(&call(socket, &format!("{head}{body}"))?)
}

fn json<T: DeserializeOwned>(text: &str) -> Result<T, HttpError> {
    serde_json::from_str(text)
        .map_err(|cause| HttpError::new(format!("the daemon's answer makes no sense: {cause}")))
}

fn call(socket: &Path, request: &str) -> Result<String, HttpError> {
    let answer = exchange(socket, request).map_err(|cause| {
        HttpError::new(format!("its daemon doesn't answer at {}: {cause}", socket.display()))
    })?;
    let (status, body) = split(&answer)
        .ok_or_else(|| HttpError::new("the daemon's answer is no HTTP, or is cut off"))?;
    if (200..300).contains(&status) {
        return Ok(body.to_owned());
    }
    let refusal = serde_json::from_str::<Refusal>(body);
    let what = refusal.map_or_else(|_| format!("HTTP {status}"), |refusal| refusal.error);
    Err(HttpError { status: Some(status), what })
}

fn exchange(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    let len = stream.take(MAX_ANSWER + 1).read_to_string(&mut answer)?;
    if len as u64 > MAX_ANSWER {
        return Err(io::Error::other("the answer is too long"));
    }
    Ok(answer)
}

/// Status and body of a whole answer.
fn split(answer: &str) -> Option<(u16, &str)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let mut fields = lines.filter_map(|line| line.split_once(':'));
    let length = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    match length {
        Some((_, length)) if length.trim().parse() != Ok(body.len()) => None,
        _ => Some((status, body)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use sealblk_api::Health;

    use super::*;

    /// Answers one request, whatever it is; gives what it was.
    fn once(answer: &'static str, order: Option<&str>) -> (Result<Health, HttpError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let len = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(request[..len].to_vec()).unwrap()
        });
        let result = match order {
            Some(order) => post(&socket, "/x", Some(order)),
            None => get(&socket, "/x"),
        };
        (result, server.join().unwrap())
    }

    #[test]
    fn a_question_and_an_order_are_answered() {
        let (health, request) =
            once("HTTP/1.0 200 OK\r\nContent-Length: 15\r\n\r\n{\"status\":\"ok\"}", None);
        assert_eq!(health.unwrap().status, "ok");
        assert!(request.starts_with("GET /x HTTP/1.0\r\n"), "{request}");
        let (_, request) = once("HTTP/1.0 200 OK\r\n\r\n{\"status\":\"ok\"}", Some("{}"));
        assert!(request.ends_with("Content-Length: 2\r\n\r\n{}"), "{request}");
    }

    #[test]
    fn a_no_is_told_in_the_daemon_s_words() {
        let (health, _) = once("HTTP/1.0 404 Not Found\r\n\r\n{\"error\":\"no such disk\"}", None);
        let error = health.unwrap_err();
        assert_eq!((error.status, error.to_string().as_str()), (Some(404), "no such disk"));
    }

    #[test]
    fn half_an_answer_is_none() {
        for half in ["", "HTTP/1.0 200 OK", "HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{}"] {
            assert!(once(half, None).0.unwrap_err().status.is_none());
        }
        assert!(get::<Health>(Path::new("/nonexistent/s"), "/").is_err());
    }
}
