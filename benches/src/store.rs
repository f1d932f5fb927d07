//! Storage under the servers: a file with real latency, or a block device in memory.
//!
//! Everything made here vanishes with the process: a loop device is marked to be cleared by its
//! last user, and the file under it has no name any more; for zram see `zram.rs`.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use rustix::fs::{FallocateFlags, fallocate};
use sealblk_tests::{Scratch, run};
use tempfile::TempDir;

use crate::zram::Zram;

/// Kind of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Class {
    /// A file, opened with O_DIRECT: real latency, what users feel
    Disk,
    /// A loop device over a file on tmpfs, its kernel workers on the server's processor: no disk
    /// behind it, so that our own cost shows
    Memory,
    /// A zram device: io_uring hands each of its requests to a worker thread
    Zram,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Zram => "zram",
        }
    }

    /// What it is, for the table.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Disk => "file, O_DIRECT",
            Self::Memory => {
                "loop device (direct-io off) over a file on tmpfs, kernel workers on the server's processor"
            }
            Self::Zram => "zram, lz4, incompressible data",
        }
    }
}

const TMPFS: &str = "/dev/shm";

/// The storage of one server, and a directory for its socket and key.
pub(crate) struct Store {
    /// The file or block device.
    pub(crate) path: PathBuf,
    pub(crate) is_device: bool,
    pub(crate) scratch: Scratch,
    _device: Option<Device>,
}

/// Keeps it.
enum Device {
    Loop { _open: File },
    Zram { _device: Zram },
}

impl Store {
    /// Storage made from an image that `make` writes to the path it is given.
    pub(crate) fn new(class: Class, make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let scratch = Scratch::new()?;
        if class == Class::Disk {
            let path = scratch.file("volume.img");
            make(&path)?;
            let file = OpenOptions::new().write(true).open(&path)?;
            // In few extents, alike for all servers.
            fallocate(&file, FallocateFlags::empty(), 0, file.metadata()?.len())?;
            return Ok(Self { path, is_device: false, scratch, _device: None });
        }
        let directory = TempDir::with_prefix_in("sealblk-bench-", TMPFS)
            .with_context(|| format!("no directory in {TMPFS}"))?;
        let image = directory.path().join("image");
        make(&image)?;
        let (path, device) =
            if class == Class::Memory { loop_device(&image)? } else { zram_device(&image)? };
        Ok(Self { path, is_device: true, scratch, _device: Some(device) })
    }

    /// As our programs name it.
    pub(crate) fn uri(&self) -> String {
        let path = self.path.display();
        if self.is_device { path.to_string() } else { format!("file:{path}") }
    }
}

/// A loop device over `image`, and the handle that keeps it.
fn loop_device(image: &Path) -> Result<(PathBuf, Device)> {
    let image = image.to_str().context("a path that is not UTF-8")?;
    let output = run("losetup", ["--find", "--show", "--direct-io=off", image])
        .context("no loop device (root may have one; or try --class disk)")?;
    let path = PathBuf::from(String::from_utf8(output.stdout)?.trim_end());
    let open = File::open(&path);
    // While somebody has it open, this only says that the last one to close it clears it.
    run("losetup", ["--detach".as_ref(), path.as_os_str()])?;
    Ok((path, Device::Loop { _open: open? }))
}

/// A zram device with the image's content.
fn zram_device(image: &Path) -> Result<(PathBuf, Device)> {
    let mut image = File::open(image)?;
    // Room for whole blocks of 4096 bytes.
    let device = Zram::new(image.metadata()?.len().next_multiple_of(4096))?;
    let path = device.path();
    let mut target = OpenOptions::new().write(true).open(&path)?;
    std::io::copy(&mut image, &mut target)?;
    target.sync_all()?;
    Ok((path, Device::Zram { _device: device }))
}
