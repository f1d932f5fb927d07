//! HTTP over a Unix socket: a transport for ureq, which does the rest.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use sealblk_api::Refusal;
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::config::Config;
use ureq::http::{Response, Uri};
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Body, Error};

/// A daemon that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An order may have to fetch keys and to derive keys from passphrases first.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);

/// There is no answer, or it is a no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody answered: there is no daemon, or it ends or starts at the moment.
    #[error(transparent)]
    Unreachable(anyhow::Error),
    /// It will not be better next time.
    #[error(transparent)]
    Refused(anyhow::Error),
}

/// Asks the daemon whose control socket is at `socket`.
pub(crate) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, AskError> {
    let call = agent(socket, TIMEOUT).get(url(path)).call();
    answer(socket, call)
}

/// Gives it an order.
pub(crate) fn post<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    order: &impl Serialize,
) -> Result<T, AskError> {
    let call = agent(socket, ORDER_TIMEOUT).post(url(path)).send_json(order);
    answer(socket, call)
}

fn url(path: &str) -> String {
    format!("http://sealblkd{path}")
}

fn agent(socket: &Path, timeout: Duration) -> Agent {
    let config =
        Config::builder().timeout_global(Some(timeout)).http_status_as_error(false).build();
    Agent::with_parts(config, Unix(socket.to_owned()), NoAddress)
}

fn answer<T: DeserializeOwned>(
    socket: &Path,
    call: Result<Response<Body>, Error>,
) -> Result<T, AskError> {
    let what = || format!("control socket {}", socket.display());
    let mut answer = call.map_err(|error| {
        let denied =
            matches!(&error, Error::Io(error) if error.kind() == ErrorKind::PermissionDenied);
        let advice = advise(error).context(what());
        if denied { AskError::Refused(advice) } else { AskError::Unreachable(advice) }
    })?;
    if !answer.status().is_success() {
        let status = answer.status();
        let refusal = answer.body_mut().read_json::<Refusal>();
        let why = refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error);
        return Err(AskError::Refused(anyhow!(why).context(what())));
    }
    let body = answer.body_mut().read_to_string().map_err(|error| {
        AskError::Unreachable(anyhow!(error).context("the daemon did not end its answer"))
    })?;
    serde_json::from_str(&body).map_err(|error| {
        let nonsense = anyhow!(error).context("the daemon's answer makes no sense");
        AskError::Refused(nonsense.context(what()))
    })
}

/// What to do about a socket that can't be connected to.
fn advise(error: Error) -> anyhow::Error {
    let Error::Io(error) = error else { return error.into() };
    let advice = match error.kind() {
        ErrorKind::NotFound => {
            "does the daemon run, and does its configuration give this path as `control`?"
        }
        ErrorKind::ConnectionRefused => {
            "no daemon listens there: it has ended, or this is not its control socket"
        }
        ErrorKind::PermissionDenied => {
            "only root, the daemon's own user and members of its `control_group` may ask"
        }
        _ => return error.into(),
    };
    anyhow!("{error}; {advice}")
}

/// Connects to one path, whatever the URL says.
#[derive(Debug)]
struct Unix(PathBuf);

impl Connector for Unix {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Connection>, Error> {
        let stream = UnixStream::connect(&self.0)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Connection { stream, buffers }))
    }
}

/// One connection.
struct Connection {
    stream: UnixStream,
    buffers: LazyBuffers,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection")
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.set_write_timeout(timeout.not_zero().map(|t| *t))?;
        let output = self.buffers.output().get(..amount).unwrap_or_default();
        Ok(self.stream.write_all(output)?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.set_read_timeout(timeout.not_zero().map(|t| *t))?;
        let amount = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // Every call has a connection of its own.
        false
    }
}

/// There are no addresses behind a path; ureq wants at least one.
#[derive(Debug)]
struct NoAddress;

impl Resolver for NoAddress {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let mut addresses = self.empty();
        addresses.push(([127, 0, 0, 1], 0).into());
        Ok(addresses)
    }
}
