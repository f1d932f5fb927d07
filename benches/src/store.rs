//! Storage under the servers: a file with real latency, or a block device in memory.
//!
//! Everything made here vanishes with the process, however that ends: a loop device is marked to
//! be cleared by its last user, and the file under it has no name any more.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sealblk_tests::{Scratch, run};
use tempfile::TempDir;

/// Kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A file on the scratch directory's file system, opened with O_DIRECT: what users feel.
    Disk,
    /// A loop device over a file on tmpfs: no disk behind it, so that our own cost shows. Not the
    /// tmpfs file itself: there io_uring sends every request to a worker thread.
    Memory,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }

    /// What it is, for the table.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Disk => "file, O_DIRECT",
            Self::Memory => "loop device (direct-io off) over a file on tmpfs",
        }
    }
}

const TMPFS: &str = "/dev/shm";

/// The storage of one server, and a directory for its socket and key.
pub(crate) struct Store {
    pub(crate) scratch: Scratch,
    /// The file or block device.
    pub(crate) path: PathBuf,
    pub(crate) is_device: bool,
    _keep: Option<File>,
}

impl Store {
    /// Storage made from an image that `fill` writes to the path it is given.
    pub(crate) fn new(class: Class, fill: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let scratch = Scratch::new()?;
        match class {
            Class::Disk => {
                let path = scratch.file("volume.img");
                fill(&path)?;
                Ok(Self { scratch, path, is_device: false, _keep: None })
            }
            Class::Memory => {
                let directory = TempDir::with_prefix_in("sealblk-bench-", TMPFS)
                    .with_context(|| format!("no directory in {TMPFS}"))?;
                let image = directory.path().join("image");
                fill(&image)?;
                let (path, keep) = loop_device(&image)?;
                Ok(Self { scratch, path, is_device: true, _keep: Some(keep) })
            }
        }
    }

    /// As our programs name it.
    pub(crate) fn uri(&self) -> String {
        let path = self.path.display();
        if self.is_device { path.to_string() } else { format!("file:{path}") }
    }
}

/// A loop device over `image`, and the handle that keeps it.
fn loop_device(image: &Path) -> Result<(PathBuf, File)> {
    let image = image.to_str().context("a path that is not UTF-8")?;
    let output = run("losetup", ["--find", "--show", "--direct-io=off", image])
        .context("no loop device (root may have one; or try --class disk)")?;
    let path = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    let keep = File::open(&path);
    // While somebody has it open, this only says that the last one to close it clears it.
    run("losetup", ["--detach".as_ref(), path.as_os_str()])?;
    Ok((path, keep?))
}
