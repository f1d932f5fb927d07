//! Where a volume lies: the URI that its daemon opens, or the descriptor that it is handed.
//!
//! Contract: a device or file is opened here, by who may, and only if it is what the caller says and
//! under a directory that the operator allowed, once all links are followed. A volume on a network is
//! opened by the daemon itself.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealblk_api::agent::{AgentError, ErrorKind, Source};
use sealblk_volume::{OpenOptions, Uri};

use super::check;
use super::config::AgentSection;
use super::error::{error, invalid, storage};

/// How long to wait for a device that somebody lets go of just now: a daemon that ended, udev.
const LOCK_WAIT: Duration = Duration::from_secs(3);

/// A volume that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As the daemon's configuration would name it.
    pub(super) uri: String,
    /// It is opened here.
    pub(super) local: bool,
}

/// The storage system that a volume lies on, by which rotations are limited.
pub(super) fn backend(source: &Source) -> String {
    match source {
        Source::Device { .. } | Source::File { .. } => "local".to_owned(),
        Source::Rbd { image, .. } => {
            format!("rbd:{}", image.split('/').next().unwrap_or_default())
        }
        Source::Iscsi { uri } => match Uri::parse(uri) {
            Ok(Uri::Iscsi(name)) => format!("iscsi:{}", name.host),
            _ => "iscsi".to_owned(),
        },
    }
}

/// Checks a source and finds what it names.
///
/// # Errors
/// It makes no sense, is not there, or is not allowed.
pub(super) fn place(
    volume: &str,
    source: &Source,
    agent: &AgentSection,
) -> Result<Place, AgentError> {
    match source {
        Source::Device { path } => {
            check::path("source.path", path)?;
            let real = check::resolve(volume, path, &agent.device_prefixes, "device_prefixes")?;
            // A device elsewhere (a container's) still has a name that a daemon takes for one.
            let uri = text_of(volume, &real)?;
            if !uri.starts_with("/dev/") {
                let message =
                    format!("volume {volume}: {path} leads to {uri}, which is not in /dev");
                return Err(error(ErrorKind::Refused, message));
            }
            Ok(Place { uri, local: true })
        }
        Source::File { path } => {
            check::path("source.path", path)?;
            let real = check::resolve(volume, path, &agent.file_prefixes, "file_prefixes")?;
            let uri = format!("file:{}", text_of(volume, &real)?);
            Ok(Place { uri, local: true })
        }
        Source::Rbd { image, conf, user, keyring, mon_hosts } => {
            let uri = rbd(volume, image, conf, user, keyring, mon_hosts, agent)?;
            Ok(Place { uri, local: false })
        }
        Source::Iscsi { uri } => {
            check::text("source.uri", uri)?;
            if !uri.starts_with("iscsi://") {
                return Err(invalid("`source.uri` must begin with iscsi://"));
            }
            parse(volume, uri)?;
            Ok(Place { uri: uri.clone(), local: false })
        }
    }
}

fn text_of(volume: &str, path: &Path) -> Result<String, AgentError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| invalid(format!("volume {volume}: {} is no UTF-8", path.display())))
}

fn parse(volume: &str, uri: &str) -> Result<Uri, AgentError> {
    Uri::parse(uri).map_err(|cause| storage(volume, &cause))
}

fn rbd(
    volume: &str,
    image: &str,
    conf: &Option<String>,
    user: &Option<String>,
    keyring: &Option<String>,
    mon_hosts: &[String],
    agent: &AgentSection,
) -> Result<String, AgentError> {
    check::text("source.image", image)?;
    let parts: Vec<_> = image.split('/').collect();
    if !(2..=3).contains(&parts.len()) || parts.iter().any(|part| part.is_empty()) {
        return Err(invalid("`source.image` is POOL/IMAGE or POOL/NAMESPACE/IMAGE"));
    }
    let place: Vec<_> = parts.iter().map(|part| escape(part)).collect();
    let mut uri = format!("rbd:{}", place.join("/"));
    let conf = match conf {
        Some(conf) => {
            check::path("source.conf", conf)?;
            Some(conf.clone())
        }
        None => agent.ceph_conf.as_ref().map(|path| path.display().to_string()),
    };
    if let Some(keyring) = keyring {
        check::path("source.keyring", keyring)?;
    }
    if let Some(user) = user {
        check::text("source.user", user)?;
    }
    let mut options = Vec::new();
    let mut option = |key: &str, value: Option<&str>| {
        options.extend(value.map(|value| format!("{key}={}", escape(value))));
    };
    option("conf", conf.as_deref());
    option("user", user.as_deref());
    option("keyring", keyring.as_deref());
    // Whoever has a configuration has the monitors in it, and with them what else the cluster wants.
    if conf.is_none() && !mon_hosts.is_empty() && !Path::new(CEPH_CONF).exists() {
        let message = format!(
            "volume {volume}: its monitors are known ({}), but there is no {CEPH_CONF}: write one, \
             or name one by `ceph_conf` in the agent's configuration",
            mon_hosts.join(", "),
        );
        return Err(error(ErrorKind::Volume, message));
    }
    if !options.is_empty() {
        uri.push('?');
        uri.push_str(&options.join("&"));
    }
    parse(volume, &uri)?;
    Ok(uri)
}

/// Where Ceph looks by itself.
const CEPH_CONF: &str = "/etc/ceph/ceph.conf";

/// Writes as `%XX` what has a meaning in a name, and what isn't plain.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// Opens a device or file for its daemon, with the claim that keeps others away.
///
/// # Errors
/// It can't be opened, is in use, or isn't what its name said a moment ago.
pub(super) fn open(
    volume: &str,
    place: &Place,
    source: &Source,
    read_only: bool,
    agent: &AgentSection,
) -> Result<OwnedFd, AgentError> {
    let options = OpenOptions { read_only, lock_wait: LOCK_WAIT, ..OpenOptions::default() };
    let file = sealblk_volume::open_to_hand(&place.uri, &options)
        .map_err(|cause| storage(volume, &cause))?;
    let (prefixes, setting) = match source {
        Source::Device { .. } => (&agent.device_prefixes, "device_prefixes"),
        _ => (&agent.file_prefixes, "file_prefixes"),
    };
    // Only root has rights that a caller could borrow by exchanging a directory meanwhile; and only
    // root may look (a hardened process's /proc/self is root's).
    if rustix::process::geteuid().is_root() {
        let opened = std::fs::read_link(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()));
        let opened: PathBuf = opened.map_err(|cause| {
            error(ErrorKind::Internal, format!("volume {volume}: what was opened? {cause}"))
        })?;
        if !check::is_under(&opened, prefixes) {
            let message = format!(
                "volume {volume}: {} was opened, which `{setting}` doesn't allow",
                opened.display()
            );
            return Err(error(ErrorKind::Refused, message));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> AgentSection {
        AgentSection { ceph_conf: Some("/c/ceph.conf".into()), ..AgentSection::default() }
    }

    fn rbd_source(image: &str, user: Option<&str>, mon_hosts: &[&str]) -> Source {
        Source::Rbd {
            image: image.to_owned(),
            conf: None,
            user: user.map(str::to_owned),
            keyring: None,
            mon_hosts: mon_hosts.iter().map(|&host| host.to_owned()).collect(),
        }
    }

    #[test]
    fn an_image_s_name_is_escaped() {
        let source = rbd_source("vol umes/a@b?c&d%", Some("cin der"), &[]);
        let found = place("v", &source, &agent()).unwrap();
        assert_eq!(
            found.uri,
            "rbd:vol%20umes/a%40b%3Fc%26d%25?conf=%2Fc%2Fceph.conf&user=cin%20der"
        );
        assert_eq!((backend(&source).as_str(), found.local), ("rbd:vol umes", false));
        let Uri::Rbd(name) = Uri::parse(&found.uri).unwrap() else { panic!() };
        assert_eq!((name.pool.as_str(), name.image.as_str()), ("vol umes", "a@b?c&d%"));
        assert_eq!(name.conf, Some("/c/ceph.conf".into()));
        for bad in ["", "volumes", "a//b", "a/b/c/d", "/img", "a/\nb"] {
            assert!(place("v", &rbd_source(bad, None, &[]), &agent()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_logical_unit_is_named_by_its_host() {
        let source = Source::Iscsi { uri: "iscsi://u%pw@h:3261/iqn.2024-01.x:y/1".to_owned() };
        place("v", &source, &agent()).unwrap();
        assert_eq!(backend(&source), "iscsi:h");
        let bad = Source::Iscsi { uri: "iscsi://u%hidden@h/x/1".to_owned() };
        let error = place("v", &bad, &agent()).unwrap_err();
        assert!(!error.message.contains("hidden"), "{error}");
        let bad = Source::Iscsi { uri: "file:/etc/shadow".to_owned() };
        assert_eq!(place("v", &bad, &agent()).unwrap_err().kind, ErrorKind::Invalid);
    }

    #[test]
    fn files_are_for_who_is_allowed_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let source = Source::File { path: path.to_str().unwrap().to_owned() };
        assert_eq!(place("v", &source, &agent()).unwrap_err().kind, ErrorKind::Refused);
        let allowed = AgentSection { file_prefixes: vec![dir.path().into()], ..agent() };
        let found = place("v", &source, &allowed).unwrap();
        let first = open("v", &found, &source, false, &allowed).unwrap();
        let error = open("v", &found, &source, false, &allowed).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Volume);
        drop(first);
        open("v", &found, &source, false, &allowed).unwrap();
        let device = Source::Device { path: path.to_str().unwrap().to_owned() };
        assert_eq!(place("v", &device, &allowed).unwrap_err().kind, ErrorKind::Refused);
    }
}
