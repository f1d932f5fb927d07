//! `iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN[?secret=file:PATH&…]`, libiscsi's form.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use super::options::{decode, split};
use super::rbd::absolute;

/// iSCSI's port (RFC 7143 section 4.2.8).
const PORT: u16 = 3260;

/// Highest logical unit number of the simple addressing methods (SAM-5 section 4.7.7): what targets use.
const LUN_MAX: u16 = 16383;

/// A logical unit, and how to log in to its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IscsiName {
    /// Name or address of the portal; an IPv6 address without its brackets.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// The target's name (`iqn.…`, `eui.…`, `naa.…`).
    pub target: String,
    /// The logical unit.
    pub lun: u16,
    /// The CHAP user; none: no authentication.
    pub user: Option<String>,
    /// The CHAP secret.
    pub secret: Option<IscsiSecret>,
    /// Our own name; none: one made of this host's machine id.
    pub initiator: Option<String>,
    /// Ask for a checksum over each header (CRC32C).
    pub header_digest: bool,
}

/// A CHAP secret.
#[derive(Clone, PartialEq, Eq)]
pub enum IscsiSecret {
    /// In the name itself: from configuration files only.
    Inline(Zeroizing<String>),
    /// The content of a file, without a line end.
    File(PathBuf),
}

impl fmt::Debug for IscsiSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("Inline(***)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl IscsiName {
    /// Reads what follows `iscsi://`. Errors don't repeat a secret.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "a logical unit is named iscsi://[USER@]HOST[:PORT]/TARGET/LUN, the \
                            secret of USER in a file: ?secret=file:PATH";
        let form = || FORM.to_owned();
        let (login, rest) = match text.rsplit_once('@') {
            Some((login, rest)) => (Some(login), rest),
            None => (None, text),
        };
        let (place, options) = split(rest)?;
        let parts: Vec<_> = place.split('/').collect();
        let &[portal, target, lun] = parts.as_slice() else { return Err(form()) };
        let target = decode(target)?;
        if !["iqn.", "eui.", "naa."].iter().any(|kind| target.starts_with(kind)) {
            return Err(format!("a target's name begins with iqn., eui. or naa.; {FORM}"));
        }
        let lun = lun.parse().ok().filter(|lun| *lun <= LUN_MAX);
        let lun = lun.ok_or_else(|| format!("a LUN is a number up to {LUN_MAX}; {FORM}"))?;
        let (host, port) = portal_of(portal).ok_or_else(form)?;
        let (user, inline) = match login.map(|login| login.split_once('%')) {
            None => (None, None),
            Some(None) => (login.map(str::to_owned), None),
            Some(Some((user, secret))) => {
                let secret = Zeroizing::new(secret.to_owned());
                (Some(user.to_owned()), Some(IscsiSecret::Inline(secret)))
            }
        };
        if user.as_ref().is_some_and(String::is_empty) {
            return Err(form());
        }
        let mut name = Self {
            host,
            port,
            target,
            lun,
            user,
            secret: inline,
            initiator: None,
            header_digest: false,
        };
        for (key, value) in options {
            name.set(key, value)?;
        }
        if name.user.is_some() != name.secret.is_some() {
            return Err(format!("CHAP wants a user and a secret; {FORM}"));
        }
        Ok(name)
    }

    fn set(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "secret" => {
                let path = value.strip_prefix("file:").ok_or("`secret` is file:PATH")?;
                let secret = IscsiSecret::File(absolute(key, path.to_owned())?);
                if self.secret.replace(secret).is_some() {
                    return Err("there are two secrets".to_owned());
                }
            }
            "initiator" => self.initiator = Some(value),
            "header_digest" => {
                self.header_digest = match value.as_str() {
                    "crc32c" => true,
                    "none" => false,
                    _ => return Err("`header_digest` is crc32c or none".to_owned()),
                };
            }
            _ => {
                return Err(format!(
                    "there is no option `{key}`: secret, initiator, header_digest"
                ));
            }
        }
        Ok(())
    }
}

/// Host and port of `HOST[:PORT]` or `[IPV6][:PORT]`.
fn portal_of(text: &str) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => PORT,
    };
    let host = decode(host).ok().filter(|host| !host.is_empty())?;
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logical_unit_with_everything() {
        let name = IscsiName::parse(
            "joe@[::1]:3261/iqn.2024-01.x:y/7?secret=file:/s&initiator=iqn.z&header_digest=crc32c",
        )
        .unwrap();
        assert_eq!((name.host.as_str(), name.port, name.lun), ("::1", 3261, 7));
        assert_eq!((name.user.as_deref(), name.header_digest), (Some("joe"), true));
        assert_eq!(name.secret, Some(IscsiSecret::File("/s".into())));
        assert_eq!(name.initiator.as_deref(), Some("iqn.z"));
        let name = IscsiName::parse("u%p%q@h/iqn.2024-01.x:y/0").unwrap();
        assert_eq!(
            (name.port, name.secret),
            (3260, Some(IscsiSecret::Inline("p%q".to_owned().into())))
        );
    }

    #[test]
    fn what_is_none() {
        for bad in [
            "",
            "h",
            "h/iqn.x",
            "h/iqn.x/1/2",
            "h/x/1",
            "h/iqn.x/99999",
            "h/iqn.x/-1",
            "h:0/iqn.x/1",
            "h:x/iqn.x/1",
            "/iqn.x/1",
            "[::1/iqn.x/1",
            "[h]/iqn.x/1",
            "u@h/iqn.x/1",
            "@h/iqn.x/1",
            "h/iqn.x/1?secret=file:/s",
            "u@h/iqn.x/1?secret=/s",
            "u%p@h/iqn.x/1?secret=file:/s",
            "u@h/iqn.x/1?secret=file:s",
            "h/iqn.x/1?header_digest=md5",
            "h/iqn.x/1?what=1",
        ] {
            assert!(IscsiName::parse(bad).is_err(), "{bad}");
        }
    }
}
