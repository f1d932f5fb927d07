//! A TLS connection to a KMIP server with this node's certificate.
//!
//! Contract: everything on it ends by the deadline, however slowly the server drips. An answer is
//! read into protected memory, and is one TTLV structure of limited length.
//!
//! What can't be wiped: rustls's buffers hold the answer until their memory is used again, and
//! AWS-LC keeps the private key of the certificate while the connection lives.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use sealblk_secret::SecretBytes;

use super::message::RESPONSE_MESSAGE;
use super::ttlv::{HEAD, STRUCTURE};
use crate::config::{KMIP_PORT, KmipConfig};
use crate::error::Failure;
use crate::file::credential;
use crate::patience::Deadline;
use crate::tls;

/// An open connection.
pub(super) struct Connection {
    stream: StreamOwned<ClientConnection, Timed>,
    server: String,
    warning: Option<String>,
}

impl Connection {
    /// Connects; TLS's handshake comes with the first question.
    pub(super) fn open(config: &KmipConfig, deadline: &Deadline) -> Result<Self, Failure> {
        let port = config.port.unwrap_or(KMIP_PORT);
        let server = format!("KMIP {}:{port}", config.host);
        let (tls, warning) = client(config, &server)?;
        let name = ServerName::try_from(config.host.clone()).map_err(|_| {
            Failure::unconfigured(format!("{server}: `host` is no name or address"))
        })?;
        let stream =
            Timed { stream: connect(config, port, &server, deadline)?, deadline: *deadline };
        let connection = ClientConnection::new(Arc::new(tls), name)
            .map_err(|error| tls::failure(&server, &error))?;
        Ok(Self { stream: StreamOwned::new(connection, stream), server, warning })
    }

    /// `KMIP HOST:PORT`.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// What the operator should know about the key's file.
    pub(super) fn warning(&self) -> Option<String> {
        self.warning.clone()
    }

    /// One message, and the server's.
    pub(super) fn ask(
        &mut self,
        question: &[u8],
        max_bytes: usize,
    ) -> Result<SecretBytes, Failure> {
        let failed = |error: io::Error| tls::io_failure(&self.server, &error);
        self.stream.write_all(question).and_then(|()| self.stream.flush()).map_err(failed)?;
        let mut head = [0; HEAD];
        self.stream.read_exact(&mut head).map_err(failed)?;
        let [tag @ .., kind, l3, l2, l1, l0] = head;
        let tag = u32::from_be_bytes([0, tag[0], tag[1], tag[2]]);
        let length = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
        if tag != RESPONSE_MESSAGE || kind != STRUCTURE || length > max_bytes {
            return Err(Failure::malformed(format!(
                "{}: its answer is none of KMIP, or longer than {max_bytes} bytes",
                self.server
            )));
        }
        let mut answer = SecretBytes::zeroed(HEAD + length)?;
        if let Some((to, rest)) = answer.expose_mut().split_first_chunk_mut::<HEAD>() {
            *to = head;
            self.stream.read_exact(rest).map_err(failed)?;
        }
        Ok(answer)
    }
}

/// Whom this node trusts, and who it is.
fn client(config: &KmipConfig, server: &str) -> Result<(ClientConfig, Option<String>), Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in tls::authorities(Some(&config.ca_file))? {
        roots.add(certificate).map_err(|_| {
            let path = config.ca_file.display();
            Failure::unconfigured(format!("ca_file {path}: a certificate in it is damaged"))
        })?;
    }
    let chain = tls::certificates(&config.cert_file, "cert_file")?;
    let (pem, warning) = credential(&config.key_file, "key_file")?;
    let unusable =
        |why: &str| Failure::unconfigured(format!("key_file {}: {why}", config.key_file.display()));
    let key = PrivateKeyDer::from_pem_slice(pem.expose())
        .map_err(|_| unusable("it holds no private key in PEM"))?;
    let client = ClientConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| tls::failure(server, &error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|_| unusable("it doesn't belong to the certificate in `cert_file`"))?;
    Ok((client, warning))
}

fn connect(
    config: &KmipConfig,
    port: u16,
    server: &str,
    deadline: &Deadline,
) -> Result<TcpStream, Failure> {
    let addresses = (config.host.as_str(), port).to_socket_addrs().map_err(|_| {
        Failure::passing(format!("{server}: the name resolution doesn't know this host"))
    })?;
    let mut failure = Failure::passing(format!("{server}: the host has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, deadline.connect()) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = tls::io_failure(server, &error),
        }
    }
    Err(failure)
}

/// A socket whose every operation has what the deadline has left.
struct Timed {
    stream: TcpStream,
    deadline: Deadline,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        if self.deadline.left().is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(Some(self.deadline.exchange()))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
