//! `file:PATH`: the whole content of a file, or of what a pipe gives until its end.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sealblk_secret::{SecretBytes, SecretError};

use crate::Fetched;
use crate::error::{Failure, KeyErrorKind};

/// Longest passphrase, in bytes. cryptsetup takes 8 MiB; what people and key managers make is far
/// below this, and a path that names something big by mistake shall not fill the locked memory.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Reads the passphrase. The error says what failed, without the path.
pub(crate) fn fetch(path: &Path) -> Result<Fetched, Failure> {
    let (passphrase, warning) = read(path, "key file:")?;
    if passphrase.expose().is_empty() {
        return Err(Failure::malformed("it is empty: that is no passphrase"));
    }
    Ok(Fetched { passphrase, warning })
}

/// A password, token or the like in a file of its own: what is read, without the end of its line,
/// and a warning if others may read it. Errors name `what` and the path.
pub(crate) fn credential(
    path: &Path,
    what: &str,
) -> Result<(SecretBytes, Option<String>), Failure> {
    let named = |why: &str| Failure::unconfigured(format!("{what} {}: {why}", path.display()));
    let (mut content, warning) =
        read(path, &format!("{what} ")).map_err(|failure| named(&failure.what))?;
    // An editor ends the line; no password or token does.
    for ending in [b'\n', b'\r'] {
        if content.expose().last() == Some(&ending) {
            content.truncate(content.len() - 1);
        }
    }
    if content.is_empty() {
        return Err(named("it is empty"));
    }
    Ok((content, warning))
}

fn read(path: &Path, prefix: &str) -> Result<(SecretBytes, Option<String>), Failure> {
    let file = File::open(path).map_err(|error| failed("open", &error))?;
    let metadata = file.metadata().map_err(|error| failed("look at", &error))?;
    if metadata.is_dir() {
        return Err(Failure::malformed("it is a directory; name the file in it"));
    }
    let content = SecretBytes::read_from(&file, MAX_KEY_BYTES).map_err(|error| match error {
        SecretError::Read(error) => failed("read", &error),
        SecretError::TooLong { max_bytes } => too_long(max_bytes),
        error => error.into(),
    })?;
    let mode = metadata.permissions().mode();
    let warning = (metadata.is_file() && mode & OTHERS != 0).then(|| {
        format!(
            "{prefix}{} has mode {:04o}: others than its owner may use it; `chmod 0600` it",
            path.display(),
            mode & 0o7777,
        )
    });
    Ok((content, warning))
}

pub(crate) fn too_long(max_bytes: usize) -> Failure {
    Failure::malformed(format!("it is longer than {max_bytes} bytes, so hardly a passphrase"))
}

/// An operation on a local file that failed.
fn failed(what: &str, error: &std::io::Error) -> Failure {
    let kind = match error.kind() {
        ErrorKind::NotFound => KeyErrorKind::Missing,
        ErrorKind::PermissionDenied => KeyErrorKind::Denied,
        _ => KeyErrorKind::Unreachable,
    };
    Failure::new(kind, format!("cannot {what} it: {error}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;
    use crate::KeySource;

    fn key_file(content: &[u8], mode: u32) -> (tempfile::TempDir, KeySource) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (dir, KeySource::File(path))
    }

    #[test]
    fn the_content_is_taken_byte_for_byte() {
        for content in [&b"secret"[..], b"secret\n", b"\0\xff\r\n \n", &[7; 20_000]] {
            let (_dir, source) = key_file(content, 0o600);
            let fetched = source.fetch().unwrap();
            assert_eq!(fetched.passphrase.expose(), content);
            assert_eq!(fetched.warning, None);
            assert_eq!(fetched.hint().is_some(), content.ends_with(b"\n"));
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_taken_with_a_warning() {
        for mode in [0o640, 0o604, 0o660] {
            let (_dir, source) = key_file(b"secret", mode);
            let warning = source.fetch().unwrap().warning.unwrap();
            assert!(warning.contains(&format!("mode {mode:04o}")), "{warning}");
            assert!(warning.contains("chmod 0600") && !warning.contains("secret"), "{warning}");
        }
    }

    #[test]
    fn errors_name_the_source_and_the_reason() {
        let (dir, source) = key_file(b"", 0o600);
        let error = source.fetch().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("key {source}: ")) && error.contains("empty"),
            "{error}"
        );

        let missing = KeySource::File(dir.path().join("missing"));
        let error = missing.fetch().unwrap_err().to_string();
        assert!(error.contains("/missing: ") && error.contains("No such file"), "{error}");

        let error = KeySource::File(dir.path().into()).fetch().unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");

        let (_dir, source) = key_file(&vec![1; MAX_KEY_BYTES + 1], 0o600);
        let error = source.fetch().unwrap_err().to_string();
        assert!(error.contains("longer than 65536"), "{error}");
    }

    #[test]
    fn errors_have_their_kind() {
        let (dir, empty) = key_file(b"", 0o600);
        assert_eq!(empty.fetch().unwrap_err().kind(), KeyErrorKind::Malformed);
        let missing = KeySource::File(dir.path().join("missing"));
        assert_eq!(missing.fetch().unwrap_err().kind(), KeyErrorKind::Missing);
    }

    #[test]
    fn a_credential_has_no_line_end_and_names_its_file() {
        for content in ["token", "token\n", "token\r\n"] {
            let (_dir, source) = key_file(content.as_bytes(), 0o640);
            let KeySource::File(path) = source else { panic!("{source}") };
            let (token, warning) = credential(&path, "token file").unwrap();
            assert_eq!(token.expose(), b"token");
            let warning = warning.unwrap();
            assert!(warning.starts_with("token file /") && warning.contains("0640"), "{warning}");
        }
        let (dir, _) = key_file(b"\n", 0o600);
        let failure = credential(&dir.path().join("key"), "token file").unwrap_err();
        assert_eq!(failure.kind, KeyErrorKind::Unconfigured);
        assert!(failure.what.contains("/key: it is empty"), "{}", failure.what);
        let failure = credential(&dir.path().join("missing"), "token file").unwrap_err();
        assert_eq!(failure.kind, KeyErrorKind::Unconfigured);
        assert!(failure.what.contains("No such file"), "{}", failure.what);
    }

    #[test]
    fn the_longest_passphrase_is_taken() {
        let (_dir, source) = key_file(&vec![1; MAX_KEY_BYTES], 0o600);
        assert_eq!(source.fetch().unwrap().passphrase.len(), MAX_KEY_BYTES);
    }

    #[test]
    fn a_pipe_is_read_to_its_end() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let expected = content.clone();
        let feeder = std::thread::spawn(move || writer.write_all(&content).unwrap());
        let path = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        let fetched = KeySource::File(path.into()).fetch().unwrap();
        feeder.join().unwrap();
        assert_eq!(fetched.passphrase.expose(), expected);
        assert_eq!(fetched.warning, None);
    }
}
