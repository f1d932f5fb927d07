//! Formatting a new volume, if and only if nothing was ever written to it.
//!
//! Contract: a volume with a LUKS header is left as it is, be it damaged. One without is formatted
//! only if it has no known signature and reads as zeroes in its first [`HEAD`], its last [`TAIL`] and
//! [`SAMPLES`] places evenly spread over it. That is what "never written" means here; a volume that
//! somebody wrote to in between the samples only, leaving its beginning and end blank, is taken for
//! new. (File systems, partition tables and databases write at the beginning.)

use std::time::Duration;

use sealblk_api::agent::{AgentError, ErrorKind};
use sealblk_block::in_one_line;
use sealblk_cipher::Algorithm;
use sealblk_luks::{FormatParams, Found, KmsToken, SlotKdf};
use sealblk_rotation::{HeaderLock, Reader, carry_out, random};
use sealblk_secret::SecretBytes;
use sealblk_volume::{OpenOptions, Volume};

use super::error::{error, invalid, storage};
use crate::aging::wall_clock;

/// Bytes at the start that must be zero: the new header's, and as much again.
const HEAD: u64 = 32 << 20;
/// Bytes at the end that must be zero: backups of partition tables and the like.
const TAIL: u64 = 1 << 20;
/// Places in between that must be zero.
const SAMPLES: u64 = 256;
/// Bytes of each.
const SAMPLE: u64 = 64 << 10;
/// How much is read at once.
const PIECE: u64 = 1 << 20;

/// Encryption sectors of new volumes, where the volume's size allows them.
const SECTOR: u32 = 4096;
/// Iterations for secrets that a key manager made at random: the least that cryptsetup takes.
const ITERATIONS: u32 = 1000;

/// How long somebody else may have the volume, or its header, before this gives up.
const WAIT: Duration = Duration::from_secs(3);
/// How long storage in a network may leave an I/O without an answer.
const IO_TIMEOUT: Duration = Duration::from_secs(15);

/// What formatting needs.
#[derive(Debug)]
pub(super) struct New<'a> {
    pub(super) volume: &'a str,
    pub(super) uri: &'a str,
    pub(super) key_id: Option<&'a str>,
    /// None: it is kept elsewhere.
    pub(super) passphrase: Option<&'a SecretBytes>,
    /// The operator allows it.
    pub(super) allowed: bool,
}

/// Formats a volume if it is new; whether it was.
///
/// # Errors
/// It has no LUKS header and was written to (`not-encrypted`); the storage fails.
pub(super) fn format_if_blank(new: &New<'_>) -> Result<bool, AgentError> {
    let name = new.volume;
    let options =
        OpenOptions { lock_wait: WAIT, io_timeout: Some(IO_TIMEOUT), ..OpenOptions::default() };
    let volume = sealblk_volume::open(new.uri, &options).map_err(|cause| storage(name, &cause))?;
    let found = sealblk_luks::probe(&mut Reader(&*volume)).map_err(|cause| {
        error(ErrorKind::Volume, format!("volume {name}: {}", in_one_line(&cause)))
    })?;
    let not_new = |what: &str| {
        let message = format!(
            "volume {name}: it has no LUKS header, and {what}: nothing was written to it. Is it an \
             unencrypted volume?"
        );
        Err(error(ErrorKind::NotEncrypted, message))
    };
    match found {
        Found::Luks1 | Found::Luks2 => return Ok(false),
        Found::Other(what) => return not_new(&format!("it holds {what}")),
        Found::Nothing => {}
    }
    if let Some(at) = first_written(&*volume).map_err(|cause| storage(name, &cause))? {
        return not_new(&format!("somebody has written to it (near byte {at})"));
    }
    if !new.allowed {
        let message = format!(
            "volume {name}: it is new and would have to be formatted, which `format_new_volumes = \
             false` in the agent's configuration forbids"
        );
        return Err(error(ErrorKind::Refused, message));
    }
    let Some(passphrase) = new.passphrase else {
        return Err(invalid(format!(
            "volume {name}: it is new and would have to be formatted, for which its key must come \
             with the request"
        )));
    };
    format(new, &*volume, passphrase)?;
    Ok(true)
}

fn format(new: &New<'_>, volume: &dyn Volume, passphrase: &SecretBytes) -> Result<(), AgentError> {
    let name = new.volume;
    let _lock = HeaderLock::take_within(new.uri, WAIT)
        .map_err(|cause| error(ErrorKind::Volume, format!("volume {name}: {cause:#}")))?;
    let size = volume.geometry().size_bytes;
    let fits = size.is_multiple_of(SECTOR.into());
    let params = FormatParams {
        volume_bytes: size,
        algorithm: Algorithm::Aes256XtsPlain64,
        sector_bytes: if fits { SECTOR } else { volume.geometry().block_bytes },
        kdf: SlotKdf::Pbkdf2Sha256 { iterations: ITERATIONS },
        label: String::new(),
        subsystem: String::new(),
        token: new.key_id.map(|key_id| KmsToken { key_id: key_id.to_owned() }),
        created_at: Some(wall_clock()),
    };
    let plan = sealblk_luks::format(&params, passphrase, &mut random).map_err(|cause| {
        error(ErrorKind::Volume, format!("volume {name}: formatting it: {}", in_one_line(&cause)))
    })?;
    carry_out(volume, &plan)
        .and_then(|()| volume.flush())
        .map_err(|cause| storage(name, &cause))?;
    tracing::info!(volume = name, sector_bytes = params.sector_bytes, "a new volume was formatted");
    Ok(())
}

/// About where the first byte is that is not zero, of those that are looked at.
fn first_written(volume: &dyn Volume) -> Result<Option<u64>, sealblk_block::VolumeError> {
    let size = volume.geometry().size_bytes;
    let mut buffer = vec![0; PIECE as usize];
    for (start, len) in places(size) {
        let mut at = start;
        while at < start + len {
            let piece = (start + len - at).min(PIECE);
            let part = &mut buffer[..piece as usize];
            volume.read_at(at, part)?;
            if part.iter().any(|&byte| byte != 0) {
                return Ok(Some(at));
            }
            at += piece;
        }
    }
    Ok(None)
}

/// What is looked at of a volume of `size` bytes: start and length of each place.
fn places(size: u64) -> Vec<(u64, u64)> {
    if size <= HEAD + TAIL + SAMPLES * SAMPLE {
        return vec![(0, size)];
    }
    let between = size - HEAD - TAIL - SAMPLE;
    let sample = |index: u64| {
        let share = u128::from(between) * u128::from(index) / u128::from(SAMPLES - 1);
        (HEAD + share as u64, SAMPLE)
    };
    let mut places = vec![(0, HEAD), (size - TAIL, TAIL)];
    places.extend((0..SAMPLES).map(sample));
    places
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const SIZE: u64 = 1 << 30;

    fn file(size: u64) -> (tempfile::TempDir, std::fs::File, String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(size).unwrap();
        let uri = format!("file:{}", path.display());
        (dir, file, uri)
    }

    fn attempt(uri: &str, allowed: bool) -> Result<bool, AgentError> {
        let passphrase = SecretBytes::copy_from(b"secret").unwrap();
        format_if_blank(&New {
            volume: "v",
            uri,
            key_id: Some("kid"),
            passphrase: Some(&passphrase),
            allowed,
        })
    }

    #[test]
    fn what_is_looked_at_covers_both_ends_and_lies_within() {
        for size in [0, 1 << 20, HEAD + TAIL + SAMPLES * SAMPLE + 512, SIZE, 1 << 45] {
            let places = places(size);
            assert!(places.iter().all(|(start, len)| start + len <= size), "{size}");
            assert_eq!(places[0].0, 0);
            assert!(places.iter().any(|(start, len)| start + len == size));
        }
        assert_eq!(places(SIZE).len() as u64, 2 + SAMPLES);
    }

    #[test]
    fn a_new_volume_is_formatted_once() {
        let (_dir, file, uri) = file(SIZE);
        assert!(attempt(&uri, true).unwrap());
        let mut magic = [0; 6];
        file.read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"LUKS\xba\xbe");
        let mut before = vec![0; 16 << 20];
        file.read_exact_at(&mut before, 0).unwrap();
        assert!(!attempt(&uri, true).unwrap());
        let mut after = vec![0; 16 << 20];
        file.read_exact_at(&mut after, 0).unwrap();
        assert!(before == after, "a volume with a header was written to");
    }

    #[test]
    fn a_volume_that_was_written_to_is_left_alone() {
        // Just inside each of the places, and a damaged header whose magic is gone.
        for at in [4096, HEAD - 1, SIZE - 1, SIZE - TAIL] {
            let (_dir, file, uri) = file(SIZE);
            file.write_all_at(b"x", at).unwrap();
            let error = attempt(&uri, true).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotEncrypted, "{at}: {error}");
            let mut start = [0xff; 4096];
            file.read_exact_at(&mut start, 0).unwrap();
            assert_eq!(start, [0; 4096]);
        }
        let (_dir, file, uri) = file(SIZE);
        file.write_all_at(b"hsqs", 0).unwrap();
        let error = attempt(&uri, true).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotEncrypted);
    }

    #[test]
    fn an_operator_may_forbid_it() {
        let (_dir, file, uri) = file(SIZE);
        assert_eq!(attempt(&uri, false).unwrap_err().kind, ErrorKind::Refused);
        let mut start = [0xff; 4096];
        file.read_exact_at(&mut start, 0).unwrap();
        assert_eq!(start, [0; 4096]);
    }
}
