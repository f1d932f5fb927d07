//! What a rotation must not forget over a restart of the daemon and the header has no place for: that
//! it is paused, who began it, and where the header's backup is. A small file in the state directory.
//!
//! Contract: losing it is no harm to the volume: the rotation then goes on as an operator's, and a
//! backup elsewhere than usual stays until somebody destroys it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sealblk_rotation::is_uuid;
use sealblk_volume::make_state_dir;
use serde::{Deserialize, Serialize};

/// The file's content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Memory {
    /// An operator paused it.
    pub(super) paused: bool,
    /// The schedule began it: it keeps to windows.
    pub(super) by_schedule: bool,
    /// The header's backup.
    pub(super) header_backup: Option<PathBuf>,
    /// The operator's limit in bytes per second.
    pub(super) rate_bytes: Option<u64>,
    /// The longest zone that the operator wants, in bytes.
    pub(super) hotzone_bytes: Option<u64>,
}

/// Longer than any of ours.
const FILE_BYTES_MAX: u64 = 8192;

fn path(dir: &Path, uuid: &str) -> Option<PathBuf> {
    // It comes from a header, which anybody may have written.
    is_uuid(uuid).then(|| dir.join(format!("{}.rotation.json", uuid.to_ascii_lowercase())))
}

impl Memory {
    /// What was kept for this volume; the default when nothing of use was.
    pub(super) fn recall(dir: &Path, uuid: &str) -> Self {
        let Some(path) = path(dir, uuid) else { return Self::default() };
        let small = fs::metadata(&path).is_ok_and(|meta| meta.len() <= FILE_BYTES_MAX);
        let text = if small { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        match serde_json::from_slice(&text) {
            Ok(memory) => memory,
            Err(_) if text.is_empty() => Self::default(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "of no use, so it is ignored");
                Self::default()
            }
        }
    }

    /// Keeps it, in place of what was there before.
    pub(super) fn keep(&self, dir: &Path, uuid: &str) -> io::Result<()> {
        let Some(path) = path(dir, uuid) else { return Ok(()) };
        make_state_dir(dir)?;
        let new = path.with_extension("json.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        fs::File::open(dir)?.sync_all()
    }

    /// Forgets: the rotation is over.
    pub(super) fn forget(dir: &Path, uuid: &str) {
        if let Some(path) = path(dir, uuid) {
            // What isn't there needs no removing; what can't be removed is ignored next time, too.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "08a634f4-6c82-4887-849f-2cb86486493e";

    #[test]
    fn what_is_kept_is_recalled_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("made-as-needed");
        assert_eq!(Memory::recall(&state, UUID), Memory::default());
        let memory = Memory {
            paused: true,
            by_schedule: true,
            header_backup: Some("/srv/backup".into()),
            rate_bytes: Some(7),
            hotzone_bytes: None,
        };
        memory.keep(&state, UUID).unwrap();
        memory.keep(&state, UUID).unwrap();
        assert_eq!(Memory::recall(&state, &UUID.to_uppercase()), memory);
        Memory::forget(&state, UUID);
        assert_eq!(Memory::recall(&state, UUID), Memory::default());
    }

    #[test]
    fn nonsense_counts_as_nothing_and_a_uuid_is_no_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(format!("{UUID}.rotation.json")), "{\"paused\":7}").unwrap();
        assert_eq!(Memory::recall(dir.path(), UUID), Memory::default());
        Memory { paused: true, ..Memory::default() }.keep(dir.path(), "../../x").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
