//! What comes from a client, before anything is done with it: names and paths.
//!
//! Contract: a UUID that passed may be part of a path, of a unit's name and of a command line.

use std::path::{Component, Path, PathBuf};

use sealblk_api::agent::{AgentError, ErrorKind};

use super::error::{error, invalid};

/// Longest text that a client may give, in bytes: paths and URIs.
const MAX_TEXT: usize = 4096;

/// Where the hyphens of a UUID are (RFC 9562 section 4).
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

/// Whether it is a UUID as OpenStack writes them: lower case, with hyphens.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match byte {
            b'-' => HYPHENS.contains(&at),
            b'0'..=b'9' | b'a'..=b'f' => !HYPHENS.contains(&at),
            _ => false,
        })
}

/// Refuses what is no UUID; `what` says what it should be the UUID of.
pub(super) fn uuid(what: &str, text: &str) -> Result<(), AgentError> {
    if is_uuid(text) {
        return Ok(());
    }
    let shown: String = text.chars().take(40).collect();
    Err(invalid(format!("`{what}` is {shown:?}, which is no UUID in lower case with hyphens")))
}

/// Refuses text that is too long or has control characters in it, which would end up in logs.
pub(super) fn text(what: &str, text: &str) -> Result<(), AgentError> {
    if text.is_empty() || text.len() > MAX_TEXT {
        let len = text.len();
        return Err(invalid(format!("`{what}` has {len} bytes; possible are 1 to {MAX_TEXT}")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(format!("`{what}` has control characters in it")));
    }
    Ok(())
}

/// Refuses a path that doesn't say plainly where it leads.
pub(super) fn path(what: &str, text: &str) -> Result<(), AgentError> {
    self::text(what, text)?;
    let path = Path::new(text);
    let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return Err(invalid(format!(
            "`{what}` is {text:?}: an absolute path without `..` is needed"
        )));
    }
    Ok(())
}

/// Where a path leads once symbolic links are followed, if that is under one of `prefixes`.
///
/// # Errors
/// It isn't there, or leads elsewhere.
pub(super) fn resolve(
    volume: &str,
    path: &str,
    prefixes: &[PathBuf],
    setting: &str,
) -> Result<PathBuf, AgentError> {
    let real = std::fs::canonicalize(path).map_err(|cause| {
        let message = format!("volume {volume}: {path} can't be found: {cause}; is it connected?");
        error(ErrorKind::Volume, message)
    })?;
    if is_under(&real, prefixes) {
        return Ok(real);
    }
    let message = format!(
        "volume {volume}: {path} leads to {}, which is under no directory that `{setting}` in the \
         agent's configuration allows",
        real.display()
    );
    Err(error(ErrorKind::Refused, message))
}

/// Whether a path without links is under one of `prefixes`.
pub(super) fn is_under(real: &Path, prefixes: &[PathBuf]) -> bool {
    prefixes.iter().any(|prefix| {
        let prefix = std::fs::canonicalize(prefix);
        prefix.is_ok_and(|prefix| real.starts_with(prefix))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_uuids_as_openstack_writes_them_are_taken() {
        assert!(is_uuid("0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"));
        for bad in [
            "",
            "0A1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9",
            "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9 ",
            "../../../../../../../../etc/passwd..",
            "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8-9",
        ] {
            assert!(!is_uuid(bad), "{bad}");
            assert_eq!(uuid("volume", bad).unwrap_err().kind, ErrorKind::Invalid);
        }
    }

    #[test]
    fn a_path_must_be_plain() {
        assert!(path("path", "/dev/disk/by-id/x").is_ok());
        for bad in
            ["", "dev/sdb", "/dev/../etc/shadow", "/dev/x\n", &format!("/{}", "a".repeat(5000))]
        {
            assert!(path("path", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_link_counts_as_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(&outside, "x").unwrap();
        std::fs::write(inside.join("good"), "x").unwrap();
        symlink(&outside, inside.join("bad")).unwrap();
        symlink(inside.join("good"), dir.path().join("link")).unwrap();
        let prefixes = [inside.clone()];
        let at = |path: &Path| resolve("v", path.to_str().unwrap(), &prefixes, "file_prefixes");
        assert_eq!(at(&inside.join("good")).unwrap(), at(&dir.path().join("link")).unwrap());
        assert_eq!(at(&inside.join("bad")).unwrap_err().kind, ErrorKind::Refused);
        assert_eq!(at(&outside).unwrap_err().kind, ErrorKind::Refused);
        assert_eq!(at(&inside.join("none")).unwrap_err().kind, ErrorKind::Volume);
        // Beside the directory, not in it.
        std::fs::create_dir(dir.path().join("in2")).unwrap();
        std::fs::write(dir.path().join("in2/x"), "x").unwrap();
        assert!(at(&dir.path().join("in2/x")).is_err());
    }
}
