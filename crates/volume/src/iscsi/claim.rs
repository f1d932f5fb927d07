//! The claim on a logical unit among the processes of this host.
//!
//! Contract: one writer or several readers; the kernel releases the claim of a process that dies.
//! Deliberately absent: a claim among hosts (SCSI-3 persistent reservations). Who reserves a unit
//! for itself is noticed (RESERVATION CONFLICT), but nothing is reserved here.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use sealblk_block::{ErrorKind, VolumeError};

use crate::IscsiName;
use crate::lock::lock_file;

/// Where all programs of this host look, whoever runs them. The daemon's runtime directory, which
/// only its user and root may enter.
const DIRECTORY: &str = "/run/sealblk";

/// A claim, held while this lives.
pub(super) struct Claim {
    _file: Option<File>,
}

impl Claim {
    pub(super) fn take(
        uri: &str,
        name: &IscsiName,
        options: &crate::OpenOptions,
    ) -> Result<Self, VolumeError> {
        if options.only_look {
            return Ok(Self { _file: None });
        }
        let places = [Some(Path::new(DIRECTORY)), options.state_dir.as_deref()];
        let mut last = io::ErrorKind::NotFound.into();
        for directory in places.into_iter().flatten() {
            match file_in(directory, name) {
                Ok(file) => return Self::lock(uri, file, options),
                Err(error) => last = error,
            }
        }
        if options.read_only {
            // Whoever may not claim may still look.
            return Ok(Self { _file: None });
        }
        let what = format!("there is no place for the claim on it: make {DIRECTORY} writable");
        Err(VolumeError::io(uri, what, last))
    }

    fn lock(uri: &str, file: File, options: &crate::OpenOptions) -> Result<Self, VolumeError> {
        match lock_file(file.as_fd(), options.read_only, options.lock_wait) {
            Ok(()) => Ok(Self { _file: Some(file) }),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                let what = "another process of this host has it open";
                Err(VolumeError::new(ErrorKind::Busy, uri, what))
            }
            Err(error) => Err(VolumeError::io(uri, "claiming it", error)),
        }
    }
}

/// The file that stands for the unit: target names are the world's only ones, whatever the portal.
fn file_in(directory: &Path, name: &IscsiName) -> io::Result<File> {
    match DirBuilder::new().mode(0o750).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let file = directory.join(file_name(name));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o666)
        .custom_flags(libc::O_NOFOLLOW)
        .open(file)?;
    // Root and the daemon's user share it, whoever made it and under whatever umask; only the one
    // who made it can say so.
    let _not_ours = file.set_permissions(Permissions::from_mode(0o666));
    Ok(file)
}

fn file_name(name: &IscsiName) -> String {
    // Case doesn't matter in a target's name (RFC 7143 section 4.2.7.1), and a `/` can't be in one.
    let target: String = name
        .target
        .chars()
        .map(
            |c| if c.is_alphanumeric() || "-.:".contains(c) { c.to_ascii_lowercase() } else { '_' },
        )
        .collect();
    format!("iscsi-{target}-{}.lock", name.lun)
}
