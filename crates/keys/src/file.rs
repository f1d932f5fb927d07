//! `file:PATH`: the whole content of a file, or of what a pipe gives until its end.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use sealblk_secret::{SecretBytes, SecretError};

use crate::Fetched;

/// Longest passphrase, in bytes. cryptsetup takes 8 MiB; what people and key managers make is far
/// below this, and a path that names something big by mistake shall not fill the locked memory.
pub const MAX_KEY_BYTES: usize = 64 * 1024;

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Reads the passphrase. The error says what failed, without the path.
pub(crate) fn fetch(path: &Path) -> Result<Fetched, String> {
    let file = File::open(path).map_err(|e| format!("cannot open it: {e}"))?;
    let metadata = file.metadata().map_err(|e| format!("cannot look at it: {e}"))?;
    if metadata.is_dir() {
        return Err("it is a directory; name the file in it".to_owned());
    }
    let passphrase = SecretBytes::read_from(&file, MAX_KEY_BYTES).map_err(|error| match error {
        SecretError::Read(error) => format!("cannot read it: {error}"),
        SecretError::TooLong { max_bytes } => {
            format!("it is longer than {max_bytes} bytes, so hardly a passphrase")
        }
        error => error.to_string(),
    })?;
    if passphrase.expose().is_empty() {
        return Err("it is empty: that is no passphrase".to_owned());
    }
    let mode = metadata.permissions().mode();
    let warning = (metadata.is_file() && mode & OTHERS != 0).then(|| {
        format!(
            "key file:{} has mode {:04o}: others than its owner may use it; `chmod 0600` it",
            path.display(),
            mode & 0o7777,
        )
    });
    Ok(Fetched { passphrase, warning })
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
