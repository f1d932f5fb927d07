//! HTTP over a Unix socket: a transport for ureq, which does the rest.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealblk_api::Refusal;
use serde::de::DeserializeOwned;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Agent, Error};

/// A daemon that takes longer is not well.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the daemon whose control socket is at `socket`.
pub(crate) fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    let config =
        Config::builder().timeout_global(Some(TIMEOUT)).http_status_as_error(false).build();
    let agent = Agent::with_parts(config, Unix(socket.to_owned()), NoAddress);
    let what = || format!("control socket {}", socket.display());
    let mut answer =
        agent.get(format!("http://sealblkd{path}")).call().map_err(advise).with_context(what)?;
    if !answer.status().is_success() {
        let status = answer.status();
        let refusal = answer.body_mut().read_json::<Refusal>();
        let why = refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error);
        return Err(anyhow!(why).context(what()));
    }
    answer.body_mut().read_json().context("the daemon's answer makes no sense").with_context(what)
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
