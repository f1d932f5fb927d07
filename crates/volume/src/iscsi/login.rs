//! What it takes to log in to a target, and what the refusals mean.

use std::ffi::{CString, c_int};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use sealblk_block::{ErrorKind, VolumeError};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::library::Functions;
use crate::{IscsiName, IscsiSecret};

/// How to log in; the same for every session of a volume.
pub(super) struct Login {
    pub(super) library: &'static Functions,
    /// The portal. Resolved once: a queue thread can't wait for a name server.
    pub(super) address: SocketAddr,
    pub(super) initiator: CString,
    pub(super) target: CString,
    /// The CHAP user and the secret, terminated.
    pub(super) chap: Option<(CString, Zeroizing<Vec<u8>>)>,
    pub(super) header_digest: bool,
    /// As libiscsi puts it into the first two bytes of the LUN field.
    pub(super) lun: c_int,
    /// As the operator knows it.
    pub(super) lun_shown: u16,
    /// What the unit said that it is, when the volume was opened; every later session must find
    /// the same. Unset: it doesn't say.
    pub(super) identity: OnceLock<Vec<u8>>,
    pub(super) isids: Arc<Isids>,
}

impl Login {
    /// One for each address of the portal, in the resolver's order.
    pub(super) fn all(
        uri: &str,
        name: &IscsiName,
        library: &'static Functions,
        read_only: bool,
    ) -> Result<Vec<Self>, VolumeError> {
        let invalid = |what: String| VolumeError::new(ErrorKind::Invalid, uri, what);
        let text = |what: &str, text: &str| {
            // libiscsi cuts longer ones off without a word.
            if text.len() > 223 {
                return Err(invalid(format!("{what} is longer than 223 bytes")));
            }
            CString::new(text).map_err(|_| invalid(format!("{what} has a zero byte in it")))
        };
        let initiator = match &name.initiator {
            Some(name) => name.clone(),
            None => own_name(uri)?,
        };
        let (initiator, target) =
            (text("the initiator's name", &initiator)?, text("the target's name", &name.target)?);
        let chap = match (&name.user, &name.secret) {
            (Some(user), Some(secret)) => Some((text("the user", user)?, read(uri, secret)?)),
            _ => None,
        };
        let addresses: Vec<SocketAddr> = (name.host.as_str(), name.port)
            .to_socket_addrs()
            .map_err(|error| {
                let what = format!("the portal's name `{}` could not be resolved", name.host);
                VolumeError { kind: ErrorKind::NotFound, ..VolumeError::io(uri, what, error) }
            })?
            .collect();
        let isids = Arc::new(Isids::new(name, read_only));
        // Above 255 the number needs the flat addressing method (SAM-5 section 4.7.7.3).
        let method = if name.lun > 255 { 0x4000 } else { 0 };
        Ok(addresses
            .into_iter()
            .map(|address| Self {
                library,
                address,
                initiator: initiator.clone(),
                isids: isids.clone(),
                target: target.clone(),
                chap: chap.clone(),
                header_digest: name.header_digest,
                lun: c_int::from(name.lun) | method,
                lun_shown: name.lun,
                identity: OnceLock::new(),
            })
            .collect())
    }

    fn target_shown(&self) -> std::borrow::Cow<'_, str> {
        self.target.to_string_lossy()
    }

    fn initiator_shown(&self) -> std::borrow::Cow<'_, str> {
        self.initiator.to_string_lossy()
    }
}

/// A name for this host that stays the same, and doesn't tell its machine id (machine-id(5) asks
/// for that).
fn own_name(uri: &str) -> Result<String, VolumeError> {
    let id = std::fs::read("/etc/machine-id").map_err(|error| {
        let what = "this host has no /etc/machine-id: name an initiator, ?initiator=iqn.…";
        VolumeError::io(uri, what, error)
    })?;
    let mut hash = Sha256::new();
    hash.update(b"sealblk iscsi initiator\0");
    hash.update(id.trim_ascii());
    let hex: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("iqn.2026-01.org.sealblk:{hex}"))
}

/// The secret, terminated.
fn read(uri: &str, secret: &IscsiSecret) -> Result<Zeroizing<Vec<u8>>, VolumeError> {
    let mut bytes = match secret {
        IscsiSecret::Inline(text) => Zeroizing::new(text.as_bytes().to_vec()),
        IscsiSecret::File(path) => Zeroizing::new(std::fs::read(path).map_err(|error| {
            let what = format!("the file with the CHAP secret, {}", path.display());
            VolumeError::io(uri, what, error)
        })?),
    };
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.is_empty() || bytes.len() > 255 || bytes.contains(&0) {
        let what = "a CHAP secret is 1 to 255 bytes without a zero";
        return Err(VolumeError::new(ErrorKind::Invalid, uri, what));
    }
    bytes.push(0);
    Ok(bytes)
}

/// A session's identity at the target besides the initiator's name: the same after a reconnect,
/// and no other session's, for a second login with it ends the first.
#[derive(Debug, Clone, Copy)]
pub(super) struct Isid {
    /// 24 bits, of the volume or the process.
    pub(super) value: u32,
    /// 16 bits, of the session.
    pub(super) qualifier: u32,
}

/// The identities of a volume's sessions.
///
/// Whoever may write has the claim on the unit, so he is alone on this host, and takes the same
/// identities as whoever had it before: if that one was killed with writes on their way, his
/// sessions end with the first login of their successors, and no such write lands after ours. A
/// reader must not end the writer's sessions: his are random.
pub(super) struct Isids {
    value: u32,
    count: AtomicU32,
    inherited: bool,
}

impl Isids {
    fn new(name: &IscsiName, read_only: bool) -> Self {
        let (value, first) = if read_only {
            // The standard library seeds its hashers from the system's random numbers.
            let random = RandomState::new().build_hasher().finish();
            ((random >> 16) as u32, random as u32)
        } else {
            let mut hash = Sha256::new();
            hash.update(b"sealblk iscsi session\0");
            hash.update(name.target.to_ascii_lowercase().as_bytes());
            hash.update(name.lun.to_be_bytes());
            let hash = hash.finalize();
            (u32::from_be_bytes([0, hash[0], hash[1], hash[2]]), 0)
        };
        let count = AtomicU32::new(first & 0xffff);
        Self { value: value & 0xff_ffff, count, inherited: !read_only }
    }

    /// Another for each call.
    pub(super) fn next(&self) -> Isid {
        let qualifier = self.count.fetch_add(1, Ordering::Relaxed) & 0xffff;
        Isid { value: self.value, qualifier }
    }

    /// Whether somebody before us may have had the same.
    pub(super) fn are_inherited(&self) -> bool {
        self.inherited
    }
}

/// Why a session can't be had.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) what: String,
}

impl Fault {
    pub(super) fn local(what: &str) -> Self {
        Self { kind: ErrorKind::Io, what: what.to_owned() }
    }

    pub(super) fn connect(what: String) -> Self {
        Self { kind: ErrorKind::Io, what }
    }

    /// A login that was refused; `error` is libiscsi's text, with the status class and detail of RFC
    /// 7143 section 11.13.5 as a number in brackets.
    pub(super) fn login(login: &Login, error: &str) -> Self {
        let (target, initiator) = (login.target_shown(), login.initiator_shown());
        let status = |number: u32| error.contains(&format!("({number})"));
        if status(0x0201) || status(0x0202) {
            let what = match &login.chap {
                Some((user, _)) => format!(
                    "target {target} refused the login of initiator {initiator} as CHAP user `{}`: \
                     compare user and secret with those of the target, and see whether it admits \
                     this initiator ({error})",
                    user.to_string_lossy()
                ),
                None => format!(
                    "target {target} refused the login of initiator {initiator} without CHAP: give \
                     a user and ?secret=file:PATH, or have the target admit this initiator \
                     ({error})"
                ),
            };
            return Self { kind: ErrorKind::Permission, what };
        }
        if status(0x0203) {
            let what = format!(
                "there is no target {target} at {}, or it hides from initiator {initiator} \
                 ({error})",
                login.address
            );
            return Self { kind: ErrorKind::NotFound, what };
        }
        let what = format!("target {target} didn't take the login of {initiator}: {error}");
        Self { kind: ErrorKind::Io, what }
    }

    /// The unit that answers is another than the one that was opened.
    pub(super) fn another(login: &Login) -> Self {
        let what = format!(
            "logical unit {} of target {} is another than the one that was opened (its device \
             identification differs): nothing is written to it",
            login.lun_shown,
            login.target_shown()
        );
        Self { kind: ErrorKind::Invalid, what }
    }

    /// Whether only an operator can help.
    pub(super) fn stays(&self) -> bool {
        matches!(self.kind, ErrorKind::Invalid | ErrorKind::Permission)
    }

    pub(super) fn unit(login: &Login) -> Self {
        let what = format!(
            "target {} has no logical unit {}, or hides it from initiator {}",
            login.target_shown(),
            login.lun_shown,
            login.initiator_shown()
        );
        Self { kind: ErrorKind::NotFound, what }
    }
}
