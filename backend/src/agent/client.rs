//! The agent's side of an instance's daemon: its orders (`orders.rs`), one connection for each.
//!
//! Invariant: whoever answers at the socket runs as the daemons' user (or as the agent's own); others
//! get neither a key nor a device.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealblk_api::agent::{AgentError, Answer, ErrorKind, Gone};
use sealblk_rpc::Connection;
use serde::de::DeserializeOwned;

use super::error::{error, internal};
use crate::orders::{AttachOrder, Disks, Order, Served, orders_socket};

/// How long a daemon may take for what needs no storage.
const QUICK: Duration = Duration::from_secs(5);

/// How long it may take to let go of a volume: what is in flight is waited for.
const LET_GO: Duration = Duration::from_secs(60);

/// A daemon that answered when it was looked for.
#[derive(Debug, Clone)]
pub(super) struct Client {
    socket: PathBuf,
    uid: u32,
    instance: String,
}

/// Who listens at a daemon's socket.
#[derive(Debug)]
pub(super) enum Found {
    /// A daemon.
    Daemon(Client),
    /// Nobody.
    Nobody,
}

impl Client {
    /// Looks for the daemon whose directory is `dir`, which is to run as `uid`.
    ///
    /// # Errors
    /// Somebody is there who isn't it, or it doesn't react.
    pub(super) fn find(dir: &Path, uid: u32, instance: &str) -> Result<Found, AgentError> {
        let client = Self { socket: orders_socket(dir), uid, instance: instance.to_owned() };
        match client.connect(QUICK) {
            Ok(_) => Ok(Found::Daemon(client)),
            Err(Refused::Nobody) => Ok(Found::Nobody),
            Err(Refused::Error(error)) => Err(error),
        }
    }

    /// What it serves.
    pub(super) fn list(&self) -> Result<Disks, AgentError> {
        self.order(&Order::List, &[], QUICK)
    }

    /// Serves a volume.
    pub(super) fn attach(
        &self,
        order: AttachOrder,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<Served, AgentError> {
        self.order(&Order::Attach(Box::new(order)), descriptors, limit)
    }

    /// Lets go of a volume's device.
    pub(super) fn park(&self, volume: &str) -> Result<Gone, AgentError> {
        self.order(&Order::Park { volume: volume.to_owned() }, &[], LET_GO)
    }

    /// Lets go of a volume.
    pub(super) fn detach(&self, volume: &str) -> Result<Gone, AgentError> {
        self.order(&Order::Detach { volume: volume.to_owned() }, &[], LET_GO)
    }

    /// Lets go of everything, and ends.
    pub(super) fn end(&self) -> Result<Gone, AgentError> {
        self.order(&Order::End, &[], LET_GO)
    }

    fn order<T: DeserializeOwned>(
        &self,
        order: &Order,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> Result<T, AgentError> {
        let connection = self.connect(limit).map_err(|refused| match refused {
            Refused::Nobody => self.silent(ErrorKind::Internal, "has ended"),
            Refused::Error(error) => error,
        })?;
        let bytes = serde_json::to_vec(order)
            .map_err(|cause| internal(format!("an order can't be written: {cause}")))?;
        let answer = connection.call(&bytes, descriptors).map_err(|cause| match cause.kind() {
            io::ErrorKind::WouldBlock => self.silent(
                ErrorKind::Timeout,
                &format!("has not answered within {} s", limit.as_secs()),
            ),
            _ => self.silent(ErrorKind::Internal, &format!("broke off: {cause}")),
        })?;
        match serde_json::from_slice(&answer.bytes) {
            Ok(Answer::Ok(answer)) => Ok(answer),
            Ok(Answer::Error(error)) => Err(error),
            Err(cause) => {
                Err(self.silent(ErrorKind::Internal, &format!("answered nonsense: {cause}")))
            }
        }
    }

    fn silent(&self, kind: ErrorKind, what: &str) -> AgentError {
        error(kind, format!("instance {}: its daemon {what}; see its log", self.instance))
    }

    fn connect(&self, limit: Duration) -> Result<Connection, Refused> {
        let connection = match Connection::connect_within(&self.socket, Some(limit)) {
            Ok(connection) => connection,
            Err(cause) => {
                return Err(match cause.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Refused::Nobody,
                    io::ErrorKind::WouldBlock => {
                        Refused::Error(self.silent(ErrorKind::Timeout, "doesn't react"))
                    }
                    _ => Refused::Error(self.silent(
                        ErrorKind::Internal,
                        &format!("can't be reached at {}: {cause}", self.socket.display()),
                    )),
                });
            }
        };
        let own = rustix::process::geteuid().as_raw();
        match connection.peer() {
            Ok(peer) if peer.uid == self.uid || peer.uid == own => Ok(connection),
            Ok(peer) => Err(Refused::Error(self.silent(
                ErrorKind::Internal,
                &format!("is not what listens at its socket: that is user {}", peer.uid),
            ))),
            Err(cause) => Err(Refused::Error(
                self.silent(ErrorKind::Internal, &format!("can't be told from others: {cause}")),
            )),
        }
    }
}

enum Refused {
    Nobody,
    Error(AgentError),
}
