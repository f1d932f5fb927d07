//! Where audit lines go: a file, or the daemon's log.
//!
//! Contract: a line is one write to a file that was opened for appending, so that daemons may share
//! a file on local storage. A file that we make has mode 0640. A file that lost its name (logrotate) is
//! left for the one that has it. What can't be written is told once.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Target;

/// An open sink.
pub(super) enum Sink {
    File {
        path: PathBuf,
        /// None: it could not be opened anew.
        file: Option<File>,
        /// The log says that lines are missing.
        failing: bool,
    },
    Journal,
}

impl Sink {
    pub(super) fn open(target: &Target) -> anyhow::Result<Self> {
        let Target::File(path) = target else { return Ok(Self::Journal) };
        let file = append(path).with_context(|| {
            format!(
                "cannot open the audit log {}: its directory must exist and be writable for the \
                 daemon's user (`audit_log`)",
                path.display()
            )
        })?;
        Ok(Self::File { path: path.clone(), file: Some(file), failing: false })
    }

    /// Writes a line, which has its end; whether that went well.
    pub(super) fn write(&mut self, line: &str) -> bool {
        match self {
            Self::Journal => {
                tracing::info!(target: "sealblk::audit", "{}", line.trim_end());
                true
            }
            Self::File { path, file, failing } => {
                if file.as_ref().is_some_and(|file| !has_name(file, path)) {
                    // Rotated away.
                    *file = None;
                }
                let outcome = match file {
                    Some(file) => file.write_all(line.as_bytes()),
                    None => {
                        append(path).and_then(|new| file.insert(new).write_all(line.as_bytes()))
                    }
                };
                match (&outcome, *failing) {
                    (Err(error), false) => tracing::error!(path = %path.display(), %error,
                        "the audit log can't be written; volumes are served on. Lines that are lost \
                         are counted, and told once it can"),
                    (Ok(()), true) => {
                        tracing::warn!(path = %path.display(), "the audit log is written again");
                    }
                    _ => {}
                }
                *failing = outcome.is_err();
                outcome.is_ok()
            }
        }
    }

    /// The file's name may belong to another file now.
    pub(super) fn reopen(&mut self) {
        if let Self::File { path, file, .. } = self {
            match append(path) {
                Ok(new) => {
                    *file = Some(new);
                    tracing::info!(path = %path.display(), "the audit log is opened anew");
                }
                // What is open is better than nothing.
                Err(error) => tracing::error!(path = %path.display(), %error,
                    "the audit log can't be opened anew: lines go to the old file"),
            }
        }
    }
}

/// Whether the path still leads to this file. Lines are rare enough to look each time.
fn has_name(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // A name that somebody made a link or a pipe of must not lead or keep us elsewhere.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    options.append(true).custom_flags(flags.bits() as i32);
    match options.clone().create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            // The process's umask is stricter.
            file.set_permissions(Permissions::from_mode(0o640))?;
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = options.open(path)?;
            match file.metadata()?.is_file() {
                true => Ok(file),
                false => Err(io::Error::other("it is no regular file")),
            }
        }
        Err(error) => Err(error),
    }
}
