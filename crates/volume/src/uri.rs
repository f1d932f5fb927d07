//! The names of volumes.

use std::path::{Path, PathBuf};

use sealblk_block::{ErrorKind, VolumeError};

/// A parsed volume name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// `/dev/…`: a block device.
    Device(PathBuf),
    /// `file:/…`: a regular file.
    File(PathBuf),
}

impl Uri {
    /// Reads a name. Relative paths are refused: the daemon's directory is nobody's business.
    pub fn parse(uri: &str) -> Result<Self, VolumeError> {
        let invalid = |what: &str| Err(VolumeError::new(ErrorKind::Invalid, uri, what));
        if let Some(path) = uri.strip_prefix("file:") {
            let path = Path::new(path.strip_prefix("//").unwrap_or(path));
            return if path.is_absolute() {
                Ok(Self::File(path.to_owned()))
            } else {
                invalid("a file is named by its absolute path: file:/PATH")
            };
        }
        if uri.starts_with("/dev/") {
            return Ok(Self::Device(uri.into()));
        }
        match uri.split_once(':') {
            Some(("rbd" | "iscsi", _)) => Err(VolumeError::new(
                ErrorKind::Unsupported,
                uri,
                "this build has no such driver yet; map it as a block device and name /dev/…",
            )),
            _ if uri.starts_with('/') => invalid("is it a file? Then name it file:/PATH"),
            _ => invalid("a volume is /dev/NAME or file:/PATH"),
        }
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
    }

    #[test]
    fn a_name_that_is_none_says_what_is() {
        for (uri, hint) in [
            ("vdb", "/dev/NAME"),
            ("file:vdb", "absolute"),
            ("/srv/x.img", "file:/PATH"),
            ("rbd:volumes/a", "no such driver"),
            ("", "/dev/NAME"),
        ] {
            let error = Uri::parse(uri).unwrap_err().to_string();
            assert!(error.contains(hint), "{uri}: {error}");
        }
    }
}
