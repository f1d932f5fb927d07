//! The names of volumes.

mod iscsi;
mod options;
mod rbd;

use std::path::{Path, PathBuf};

pub use iscsi::{IscsiName, IscsiSecret};
pub use rbd::RbdName;
use sealblk_block::{ErrorKind, VolumeError};

/// A parsed volume name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// `/dev/…`: a block device.
    Device(PathBuf),
    /// `file:/…`: a regular file.
    File(PathBuf),
    /// `rbd:…`: an image on Ceph.
    Rbd(RbdName),
    /// `iscsi://…`: a logical unit of an iSCSI target.
    Iscsi(IscsiName),
}

impl Uri {
    /// Reads a name. Relative paths are refused: the daemon's directory is nobody's business.
    ///
    /// # Errors
    /// What is wrong with it; a secret in it is not repeated.
    pub fn parse(uri: &str) -> Result<Self, VolumeError> {
        Self::read(uri).map_err(|what| VolumeError::new(ErrorKind::Invalid, &shown(uri), what))
    }

    /// Reads a name from a command line, where a secret would be seen by everybody.
    ///
    /// # Errors
    /// As [`Self::parse`]; also when there is a secret in it.
    pub fn parse_argument(uri: &str) -> Result<Self, VolumeError> {
        let parsed = Self::parse(uri)?;
        match &parsed {
            Self::Iscsi(IscsiName { secret: Some(IscsiSecret::Inline(_)), .. }) => {
                let what = "a secret on a command line is seen by everybody on this host: put it \
                            into a file and say `?secret=file:PATH`";
                Err(VolumeError::new(ErrorKind::Invalid, &shown(uri), what))
            }
            _ => Ok(parsed),
        }
    }

    fn read(uri: &str) -> Result<Self, String> {
        if let Some(path) = uri.strip_prefix("file:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            return if path.is_absolute() {
                Ok(Self::File(path.to_owned()))
            } else {
                Err("a file is named by its absolute path: file:/PATH".to_owned())
            };
        }
        if uri.starts_with("/dev/") {
            return Ok(Self::Device(uri.into()));
        }
        if let Some(rest) = uri.strip_prefix("rbd:") {
            return RbdName::parse(rest).map(Self::Rbd);
        }
        if let Some(rest) = uri.strip_prefix("iscsi://") {
            return IscsiName::parse(rest).map(Self::Iscsi);
        }
        if uri.starts_with('/') {
            return Err("is it a file? Then name it file:/PATH".to_owned());
        }
        Err("a volume is /dev/NAME, file:/PATH, rbd:POOL/IMAGE or iscsi://HOST/TARGET/LUN".into())
    }
}

/// A name as it may be shown: without the secret that an iSCSI name may have in it.
pub fn shown(uri: &str) -> String {
    // Also what was meant to be one: a mistake in a name must not bring its secret into the log.
    let Some((scheme, rest)) =
        uri.split_once(':').filter(|(scheme, _)| scheme.trim().eq_ignore_ascii_case("iscsi"))
    else {
        return uri.to_owned();
    };
    // A secret may itself have an `@` or `/` in it, by mistake: everything up to the last `@` goes.
    match rest.rsplit_once('@') {
        Some((login, place)) => {
            // Others write USER:SECRET.
            let user = login.split(['%', ':']).next().unwrap_or_default();
            let secret = if user.len() < login.len() { "%***" } else { "" };
            format!("{scheme}:{user}{secret}@{place}")
        }
        None => uri.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_volumes() {
        assert_eq!(Uri::parse("/dev/vdb").unwrap(), Uri::Device("/dev/vdb".into()));
        assert_eq!(Uri::parse("file:/a/b").unwrap(), Uri::File("/a/b".into()));
        assert_eq!(Uri::parse("file:///a/b").unwrap(), Uri::File("/a/b".into()));
        assert!(matches!(Uri::parse("rbd:volumes/a").unwrap(), Uri::Rbd(_)));
        assert!(matches!(Uri::parse("iscsi://h/iqn.2024-01.x:y/1").unwrap(), Uri::Iscsi(_)));
    }

    #[test]
    fn a_name_that_is_none_says_what_is() {
        for (uri, hint) in [
            ("vdb", "/dev/NAME"),
            ("file:vdb", "absolute"),
            ("/srv/x.img", "file:/PATH"),
            ("rbd:volumes", "POOL/IMAGE"),
            ("iscsi:host", "iscsi://HOST"),
            ("", "/dev/NAME"),
        ] {
            let error = Uri::parse(uri).unwrap_err().to_string();
            assert!(error.contains(hint), "{uri}: {error}");
        }
    }

    #[test]
    fn a_secret_is_neither_shown_nor_taken_from_a_command_line() {
        let uri = "iscsi://joe%pass%word@1@host/iqn.2024-01.x:y/1";
        assert_eq!(shown(uri), "iscsi://joe%***@host/iqn.2024-01.x:y/1");
        for uri in [
            "iscsi://joe%hidden@host/iqn.2024-01.x:y/1",
            "iscsi://joe%hidden@host//1",
            "iscsi://joe:hidden@host/iqn.2024-01.x:y/1",
            "ISCSI://joe%hidden@host/iqn.2024-01.x:y/1",
            "iscsi:joe%hidden@host/iqn.2024-01.x:y/1",
            " iscsi://joe%hidden@host/iqn.2024-01.x:y/1",
        ] {
            let error = Uri::parse_argument(uri).unwrap_err();
            let text = format!("{error} {error:?} {:?}", Uri::parse(uri));
            assert!(!text.contains("hidden"), "{text}");
        }
        assert!(Uri::parse_argument("iscsi://joe@host/iqn.2024-01.x:y/1?secret=file:/s").is_ok());
    }
}
