//! TLS to key managers: rustls with AWS-LC, whose code the cipher has in the process anyway.
//!
//! Contract: a server is trusted for a certificate of the configured authority or, without one, of
//! the system's; there is no way to skip that. What fails says what to do about it.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{AlertDescription, CertificateError, Error};

use crate::error::Failure;

/// Most that a file of certificates may hold: the system's authorities take a quarter.
const CERTIFICATES_MAX_BYTES: u64 = 1 << 20;

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The authorities to trust.
pub(crate) fn authorities(ca_file: Option<&Path>) -> Result<Vec<CertificateDer<'static>>, Failure> {
    if let Some(path) = ca_file {
        return certificates(path, "ca_file");
    }
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return Err(Failure::unconfigured(
            "this system has no certificates of authorities (Debian's package ca-certificates): set \
             `ca_file`",
        ));
    }
    Ok(found)
}

/// All certificates of a PEM file, at least one.
pub(crate) fn certificates(
    path: &Path,
    what: &str,
) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let named = |why: &dyn std::fmt::Display| {
        Failure::unconfigured(format!("{what} {}: {why}", path.display()))
    };
    let size = std::fs::metadata(path).map_err(|error| named(&error))?.len();
    if size > CERTIFICATES_MAX_BYTES {
        return Err(named(&"it is too large for a file of certificates"));
    }
    let text = std::fs::read(path).map_err(|error| named(&error))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(named(&"it holds no certificate in PEM")),
    }
}

/// What a failed handshake means.
pub(crate) fn failure(server: &str, error: &Error) -> Failure {
    use AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(why) => {
            let why = match why {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "has expired (or this node's clock is wrong)".to_owned()
                }
                CertificateError::NotValidForName
                | CertificateError::NotValidForNameContext { .. } => {
                    "is for another name: use the one that it has".to_owned()
                }
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    "is of an authority that isn't trusted here: set `ca_file`".to_owned()
                }
                why => format!("is not accepted: {why:?}"),
            };
            Failure::unreachable(format!("{server}: its certificate {why}"))
        }
        Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired
            | Alert::DecryptError),
        ) => Failure::denied(format!(
            "{server}: it refuses this node's certificate ({alert:?}): is it of the authority that \
             the server trusts, and still valid?"
        )),
        Error::AlertReceived(Alert::HandshakeFailure | Alert::ProtocolVersion) => {
            Failure::unreachable(format!(
                "{server}: it and this program have no way of TLS in common: TLS 1.3, or 1.2 with \
                 ECDHE and AES-GCM or ChaCha20 (what its certificate's kind of key allows counts, \
                 too)"
            ))
        }
        Error::InvalidMessage(_) => Failure::unreachable(format!(
            "{server}: what answers there doesn't speak TLS: is it the right port?"
        )),
        error => Failure::unreachable(format!("{server}: TLS failed: {error}")),
    }
}

/// The same, for an error of a connection, which may hold one of TLS.
pub(crate) fn io_failure(server: &str, error: &std::io::Error) -> Failure {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        return failure(server, tls);
    }
    use std::io::ErrorKind;
    let why = match error.kind() {
        ErrorKind::ConnectionRefused => "nobody listens there: does it run?".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "it doesn't answer in time".to_owned(),
        ErrorKind::UnexpectedEof => "it ended the connection without an answer".to_owned(),
        _ => error.to_string(),
    };
    Failure::passing(format!("{server}: {why}"))
}
