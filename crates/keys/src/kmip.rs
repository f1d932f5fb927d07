//! `kmip:ID`: a managed object of a KMIP server (OASIS KMIP 1.0 to 2.1), got by the operation Get.
//!
//! Contract (the passphrase): of secret data of type Password the bytes as they are; of other secret
//! data, symmetric keys and opaque objects the bytes in lowercase hex, as castellan and os-brick have
//! it for keys that Barbican keeps in such a server. Keys that the server hands out wrapped, and
//! other kinds of objects, are refused.
//!
//! Who this node is, its certificate says. Each attempt has a connection of its own. Unless the
//! protocol's version is configured, the server is asked for its own (Discover Versions, 1.2) first.

mod connection;
mod message;
mod ttlv;

pub(crate) use message::Version;

use sealblk_secret::SecretBytes;

use self::connection::Connection;
use self::message::{Object, Outcome, RESPONSE_MAX_BYTES, Reason};
use crate::config::KmipConfig;
use crate::error::Failure;
use crate::patience::{Deadline, Limits, persist};
use crate::{Fetched, codec};

/// With which version the server is asked for its versions: the oldest in wide use that has the
/// question (it is new in 1.1).
const FIRST: Version = Version::new(1, 2);

#[derive(Debug)]
pub(crate) struct Kmip {
    config: KmipConfig,
    limits: Limits,
}

impl Kmip {
    /// From a configuration that was checked.
    pub(crate) fn new(config: KmipConfig, limits: Limits) -> Self {
        Self { config, limits }
    }

    /// The passphrase in an object.
    pub(crate) fn fetch(&self, id: &str) -> Result<Fetched, Failure> {
        persist(self.limits, |deadline| self.attempt(deadline, id))
    }

    fn attempt(&self, deadline: &Deadline, id: &str) -> Result<Fetched, Failure> {
        let mut connection = Connection::open(&self.config, deadline)?;
        let server = connection.server().to_owned();
        let version = match self.config.version.as_deref().and_then(Version::parse) {
            Some(version) => version,
            None => {
                let answer = connection.ask(&message::discover(FIRST), RESPONSE_MAX_BYTES)?;
                match message::versions(answer.expose()) {
                    Some(Outcome::Done(versions)) => Version::newest(&versions).unwrap_or(FIRST),
                    // It doesn't know the question; then it may still know the version.
                    Some(Outcome::Refused(_)) => FIRST,
                    None => return Err(nonsense(&server)),
                }
            }
        };
        let answer = connection.ask(&message::get(version, id), RESPONSE_MAX_BYTES)?;
        let object = match message::object(answer.expose(), id) {
            Some(Outcome::Done(object)) => object,
            Some(Outcome::Refused(reason)) => return Err(refusal(&server, id, version, reason)),
            None => return Err(nonsense(&server)),
        };
        let passphrase = match object {
            Object::Password(bytes) => SecretBytes::copy_from(bytes)?,
            Object::Key(bytes) => codec::to_hex(bytes)?,
            Object::Wrapped => {
                return Err(Failure::malformed(format!(
                    "{server}: it hands this object out wrapped with another key, which this version \
                     can't undo"
                )));
            }
            Object::Other => {
                return Err(Failure::malformed(format!(
                    "{server}: the object is no symmetric key, secret data or opaque object with \
                     plain bytes"
                )));
            }
        };
        Ok(Fetched { passphrase, warning: connection.warning() })
    }
}

fn nonsense(server: &str) -> Failure {
    Failure::malformed(format!(
        "{server}: its answer is not what such a server says: is it the right port?"
    ))
}

/// What the server's no means.
fn refusal(server: &str, id: &str, version: Version, reason: Reason) -> Failure {
    let code = reason.0;
    match code {
        // Item Not Found, Object Destroyed, Object Not Found, Object Archived.
        0x01 | 0x36 | 0x37 => Failure::missing(format!(
            "{server}: there is no object {id} (reason {code:#x}): was it destroyed, or is it \
             another client's?"
        )),
        0x0D => Failure::missing(format!("{server}: the object is archived: recover it first")),
        // Authentication Not Successful, Permission Denied, Not Authorised, Sensitive, Not
        // Extractable, Attestation Required or Failed.
        0x03 | 0x0C | 0x39 | 0x14..=0x17 => Failure::denied(format!(
            "{server}: it refuses the object (reason {code:#x}): let the owner of this node's \
             certificate get it, and be sure that it may leave the server"
        )),
        // Internal Server Error, Server Limit Exceeded, Protection Storage Unavailable.
        0x2A | 0x3A | 0x44 => {
            Failure::passing(format!("{server}: it can't give the object now (reason {code:#x})"))
        }
        // Wrong Key Lifecycle State, Illegal Operation.
        0x43 | 0x0B => Failure::missing(format!(
            "{server}: the object's state doesn't let it be used (reason {code:#x})"
        )),
        // Invalid Message, Unsupported Protocol Version.
        0x04 | 0x3F => Failure::malformed(format!(
            "{server}: it doesn't understand the question (reason {code:#x}, asked with KMIP \
             {version}): set `version` to one that it has"
        )),
        // General Failure, and what there may be.
        _ => Failure::unreachable(format!("{server}: it fails (reason {code:#x}); see its log")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KeyErrorKind;

    #[test]
    fn reasons_have_their_kinds() {
        let kind = |code| refusal("KMIP h:1", "1", FIRST, Reason(code)).kind;
        for (code, expected) in [
            (0x01, KeyErrorKind::Missing),
            (0x36, KeyErrorKind::Missing),
            (0x43, KeyErrorKind::Missing),
            (0x03, KeyErrorKind::Denied),
            (0x0C, KeyErrorKind::Denied),
            (0x39, KeyErrorKind::Denied),
            (0x2A, KeyErrorKind::Unreachable),
            (0x100, KeyErrorKind::Unreachable),
            (0x04, KeyErrorKind::Malformed),
        ] {
            assert_eq!(kind(code), expected, "{code:#x}");
        }
        assert!(refusal("KMIP h:1", "1", FIRST, Reason(0x2A)).passing);
    }
}
