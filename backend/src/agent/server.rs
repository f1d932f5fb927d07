//! The agent's socket: connections, who may ask, and the log of what was asked.
//!
//! Contract: a thread for each connection, at most [`MAX_CONNECTIONS`]; requests of a connection are
//! answered one after the other. Every request but `hello` and questions is logged, with who asked,
//! the outcome and how long it took; keys never are.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use sealblk_api::agent::{AgentError, AgentRequest, Answer, ErrorKind};
use sealblk_rpc::{Connection, Listener, MAX_MESSAGE, Message, Peer};
use serde::Serialize;

use super::counters::Counters;
use super::error::{error, internal, invalid};
use super::host;
use super::node::Node;
use super::rotations::Rotations;
use crate::config::ConfigError;

/// Most connections at once.
const MAX_CONNECTIONS: usize = 64;

/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(600);

/// Who may ask, beside root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allowed(Vec<u32>);

impl Allowed {
    /// The agent's own user, and those that the configuration names.
    ///
    /// # Errors
    /// There is no such user.
    pub(super) fn new(users: Option<&[String]>) -> Result<Self, ConfigError> {
        let mut uids = vec![0, rustix::process::geteuid().as_raw()];
        match users {
            Some(users) => {
                for name in users {
                    uids.push(host::user(name)?);
                }
            }
            None => match host::user("nova") {
                Ok(uid) => uids.push(uid),
                Err(_) => tracing::warn!("there is no user nova: only root may ask"),
            },
        }
        Ok(Self(uids))
    }

    fn permits(&self, peer: Peer) -> bool {
        self.0.contains(&peer.uid)
    }
}

/// Binds the agent's socket; nobody but its owner can connect before its group and mode are set.
pub(super) fn bind(path: &Path, gid: Option<u32>) -> io::Result<Listener> {
    match Connection::connect_within(path, Some(Duration::from_secs(1))) {
        Ok(_) => return Err(io::Error::other("another agent listens there")),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
        // What a killed one left.
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionRefused => {
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                return Err(io::Error::other("something else has this name; remove it"));
            }
            fs::remove_file(path)?;
        }
        Err(cause) => return Err(cause),
    }
    let listener = Listener::bind(path)?;
    let mode = if gid.is_some() { 0o660 } else { 0o600 };
    std::os::unix::fs::chown(path, None, gid)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Server {
    node: Arc<Node>,
    rotations: Arc<Rotations>,
    allowed: Allowed,
    counters: Arc<Counters>,
    connections: AtomicUsize,
    /// Requests in work.
    working: AtomicUsize,
}

impl Server {
    pub(super) fn new(
        node: Arc<Node>,
        rotations: Arc<Rotations>,
        allowed: Allowed,
        counters: Arc<Counters>,
    ) -> Self {
        let (connections, working) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { node, rotations, allowed, counters, connections, working }
    }

    /// Requests that are not answered yet.
    pub(super) fn working(&self) -> usize {
        self.working.load(SeqCst)
    }

    /// Takes connections for as long as the process lives.
    pub(super) fn serve(self: Arc<Self>, listener: &Listener) {
        loop {
            let connection = match listener.accept() {
                Ok(connection) => connection,
                Err(error) => {
                    // Out of descriptors, say: those that are in use come back.
                    tracing::error!(%error, "cannot take a connection");
                    host::pause();
                    continue;
                }
            };
            let seat = Seat::take(&self);
            let server = self.clone();
            let spawned =
                std::thread::Builder::new().name("connection".into()).spawn(move || match seat {
                    Some(_seat) => server.converse(&connection),
                    None => refuse(&connection, "too many connections; close one"),
                });
            if let Err(error) = spawned {
                tracing::error!(%error, "cannot start a thread for a connection");
            }
        }
    }

    fn converse(&self, connection: &Connection) {
        let peer = match connection.set_timeout(Some(IDLE)).and_then(|()| connection.peer()) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a connection can't be used");
                return;
            }
        };
        if !self.allowed.permits(peer) {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "a peer that may not ask was refused");
            self.counters.request("refused", Some(ErrorKind::Refused));
            // It learns so from an answer: it has asked by now, or will.
            if let Ok(Some(_)) = connection.receive() {
                let message = "only root, the agent's own user and `allow_users` may ask";
                let answer = Answer::<()>::Error(error(ErrorKind::Refused, message));
                let _ = connection.send(&bytes_of(&answer), &[]);
            }
            return;
        }
        loop {
            let message = match connection.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(cause) if cause.kind() == io::ErrorKind::InvalidData => {
                    refuse(connection, &cause.to_string());
                    return;
                }
                Err(_) => return,
            };
            self.working.fetch_add(1, SeqCst);
            let answer = self.answer(peer, message);
            let sent = connection.send(&answer, &[]);
            self.working.fetch_sub(1, SeqCst);
            if let Err(error) = sent {
                tracing::warn!(uid = peer.uid, %error, "an answer found nobody");
                return;
            }
        }
    }

    fn answer(&self, peer: Peer, message: Message) -> Vec<u8> {
        let begun = Instant::now();
        let request: AgentRequest = match serde_json::from_slice(&message.bytes) {
            Ok(request) => request,
            Err(cause) => {
                self.counters.request("unknown", Some(ErrorKind::Invalid));
                let message = format!("the request makes no sense: {}", without_content(&cause));
                return bytes_of(&Answer::<()>::Error(invalid(message)));
            }
        };
        let about = About::of(&request);
        if !matches!(request, AgentRequest::Attach(_)) && !message.descriptors.is_empty() {
            self.counters.request(about.op, Some(ErrorKind::Invalid));
            return bytes_of(&Answer::<()>::Error(invalid(
                "no descriptor belongs to this request",
            )));
        }
        let node = &self.node;
        let (bytes, outcome) = match request {
            AgentRequest::Hello => encode(Ok(node.hello())),
            AgentRequest::Attach(attach) => encode(node.attach(&attach, message.descriptors)),
            AgentRequest::Park { instance, volume } => encode(node.park(&instance, &volume)),
            AgentRequest::Detach { instance, volume } => encode(node.detach(&instance, &volume)),
            AgentRequest::Forget { instance } => encode(node.forget(&instance)),
            AgentRequest::List { instance, after } => {
                encode(node.list(instance.as_deref(), after.as_deref()))
            }
            AgentRequest::Resize { instance, volume } => encode(node.resize(&instance, &volume)),
            AgentRequest::Status { instance, after } => {
                encode(self.rotations.status(instance.as_deref(), after.as_deref()))
            }
            AgentRequest::Rotate { select, order } => {
                encode(self.rotations.rotate(&select, &order))
            }
        };
        self.counters.request(about.op, outcome.as_ref().err().map(|error| error.kind));
        about.log(peer, &outcome, begun.elapsed());
        bytes
    }
}

/// A connection's place among those that are allowed.
struct Seat(Arc<Server>);

impl Seat {
    fn take(server: &Arc<Server>) -> Option<Self> {
        let seat = Self(server.clone());
        (server.connections.fetch_add(1, SeqCst) < MAX_CONNECTIONS).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, SeqCst);
    }
}

/// What a request is about, for the log.
struct About {
    op: &'static str,
    instance: Option<String>,
    volume: Option<String>,
    /// It changes nothing.
    question: bool,
}

impl About {
    fn of(request: &AgentRequest) -> Self {
        let about = |op, instance: Option<&String>, volume: Option<&String>, question| Self {
            op,
            instance: instance.map(|text| shortened(text)),
            volume: volume.map(|text| shortened(text)),
            question,
        };
        match request {
            AgentRequest::Hello => about("hello", None, None, true),
            AgentRequest::Attach(attach) => {
                about("attach", Some(&attach.instance), Some(&attach.volume), false)
            }
            AgentRequest::Park { instance, volume } => {
                about("park", Some(instance), Some(volume), false)
            }
            AgentRequest::Detach { instance, volume } => {
                about("detach", Some(instance), Some(volume), false)
            }
            AgentRequest::Forget { instance } => about("forget", Some(instance), None, false),
            AgentRequest::List { instance, .. } => about("list", instance.as_ref(), None, true),
            AgentRequest::Resize { instance, volume } => {
                about("resize", Some(instance), Some(volume), false)
            }
            AgentRequest::Status { instance, .. } => about("status", instance.as_ref(), None, true),
            AgentRequest::Rotate { select, .. } => {
                about("rotate", select.instance.as_ref(), select.volume.as_ref(), false)
            }
        }
    }

    fn log(&self, peer: Peer, outcome: &Result<(), AgentError>, took: Duration) {
        let Self { op, instance, volume, .. } = self;
        let (instance, volume) = (instance.as_deref(), volume.as_deref());
        let (uid, took_ms) = (peer.uid, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        match outcome {
            Ok(()) if self.question => {
                tracing::debug!(uid, op, instance, volume, took_ms, "asked");
            }
            Ok(()) => tracing::info!(uid, op, instance, volume, took_ms, "done"),
            Err(error) => {
                let kind = kind_of(error.kind);
                tracing::warn!(uid, op, instance, volume, took_ms, kind, "{}", error.message);
            }
        }
    }
}

/// Text of a client's for the log, however long it is.
fn shortened(text: &str) -> String {
    text.chars().filter(|one| !one.is_control()).take(64).collect()
}

/// A kind as the protocol has it.
pub(super) fn kind_of(kind: ErrorKind) -> String {
    serde_json::to_value(kind)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

/// serde names the field and what it expected; of values only those that name a variant, and these
/// are cut short, as they are anybody's.
fn without_content(cause: &serde_json::Error) -> String {
    let text: String =
        cause.to_string().chars().filter(|one| !one.is_control()).take(200).collect();
    text
}

fn encode<T: Serialize>(result: Result<T, AgentError>) -> (Vec<u8>, Result<(), AgentError>) {
    let (answer, outcome) = match result {
        Ok(value) => (Answer::Ok(value), Ok(())),
        Err(error) => (Answer::Error(error.clone()), Err(error)),
    };
    let bytes = bytes_of(&answer);
    if bytes.len() <= MAX_MESSAGE {
        return (bytes, outcome);
    }
    let error = internal("the answer is longer than the protocol allows; ask for less");
    (bytes_of(&Answer::<()>::Error(error.clone())), Err(error))
}

fn bytes_of<T: Serialize>(answer: &Answer<T>) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_else(|_| {
        br#"{"error":{"kind":"internal","message":"the answer can't be written"}}"#.to_vec()
    })
}

fn refuse(connection: &Connection, why: &str) {
    let answer = Answer::<()>::Error(error(ErrorKind::Refused, why));
    let _ = connection.send(&bytes_of(&answer), &[]);
}

#[cfg(test)]
mod tests;
