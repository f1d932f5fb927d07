//! The directory for what no volume has a place for. (It has no other home: everybody who keeps
//! something in it is above this crate, or in it.)

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes the directory for its owner alone, but none above it, durably, unless it is there.
///
/// # Errors
/// The system's; for one, that there is nothing above it.
pub fn make_state_dir(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        // Another thread that opens a volume was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        result => result?,
    }
    // A daemon's umask may be one for files (0177).
    fs::set_permissions(directory, Permissions::from_mode(0o700))?;
    match directory.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_for_its_owner_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        make_state_dir(&state).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&state, Permissions::from_mode(0o750)).unwrap();
        make_state_dir(&state).unwrap();
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o750);
        assert!(make_state_dir(&dir.path().join("a/b")).is_err());
    }
}
