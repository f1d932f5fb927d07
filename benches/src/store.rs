//! Storage under the servers: a file with real latency, a block device in memory, an image on Ceph,
//! a logical unit behind iSCSI.
//!
//! Everything made here vanishes with the process: a loop device is marked to be cleared by its
//! last user, and the file under it has no name any more; for zram see `zram.rs`; an image on Ceph
//! goes with its cluster (`network/cluster.rs`).

use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::fs::{FallocateFlags, fallocate};
use sealblk_tests::{Ceph, CephDaemon, RbdImage, Scratch, Target, TargetOptions, run};
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
    /// An image on a Ceph cluster of one node: `make bench-ceph`
    Rbd,
    /// A logical unit of an iSCSI target: `make bench-iscsi`
    Iscsi,
}

impl Class {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::Zram => "zram",
            Self::Rbd => "rbd",
            Self::Iscsi => "iscsi",
        }
    }

    /// Somebody else's process keeps it, which needs a processor too.
    pub(crate) fn is_network(self) -> bool {
        matches!(self, Self::Rbd | Self::Iscsi)
    }

    /// What it is, for the table.
    pub(crate) fn description(self) -> &'static str {
        match self {
            Self::Disk => "file, O_DIRECT",
            Self::Memory => {
                "loop device (direct-io off) over a file on tmpfs, kernel workers on the server's processor"
            }
            Self::Zram => "zram, lz4, incompressible data",
            Self::Rbd => {
                "one-node Ceph, OSD in memory (memstore), on the client's processor; rbd_cache off"
            }
            Self::Iscsi => "tgtd on loopback, images on tmpfs, on the client's processor",
        }
    }
}

const TMPFS: &str = "/dev/shm";

/// The storage of one server, and a directory for its socket and key.
pub(crate) struct Store {
    pub(crate) place: Place,
    pub(crate) scratch: Scratch,
    _device: Option<Device>,
}

/// Where it is.
pub(crate) enum Place {
    File(PathBuf),
    Device(PathBuf),
    /// Not removed by itself: the cluster is. Servers that have it open would keep it.
    Rbd(ManuallyDrop<RbdImage>),
    Iscsi(Box<Target>),
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
        let image = match class {
            Class::Disk => {
                let path = scratch.file("volume.img");
                make(&path)?;
                let file = OpenOptions::new().write(true).open(&path)?;
                // In few extents, alike for all servers.
                fallocate(&file, FallocateFlags::empty(), 0, file.metadata()?.len())?;
                return Ok(Self { place: Place::File(path), scratch, _device: None });
            }
            Class::Memory | Class::Zram | Class::Rbd | Class::Iscsi => Image::make(make)?,
        };
        let (place, device) = match class {
            Class::Rbd => {
                let size = image.path.metadata()?.len();
                let remote = ManuallyDrop::new(Ceph::shared()?.image(size)?);
                remote.import(&image.path)?;
                (Place::Rbd(remote), None)
            }
            Class::Iscsi => {
                let target = Target::with_copy_of(&image.path, TargetOptions::default())?;
                (Place::Iscsi(Box::new(target)), None)
            }
            Class::Zram => {
                let (path, device) = zram_device(&image.path)?;
                (Place::Device(path), Some(device))
            }
            Class::Memory | Class::Disk => {
                let (path, device) = loop_device(&image.path)?;
                (Place::Device(path), Some(device))
            }
        };
        Ok(Self { place, scratch, _device: device })
    }

    /// As our programs name it.
    pub(crate) fn uri(&self) -> String {
        match &self.place {
            Place::File(path) => format!("file:{}", path.display()),
            Place::Device(path) => path.display().to_string(),
            Place::Rbd(image) => image.uri(),
            Place::Iscsi(target) => target.uri(),
        }
    }

    /// The file or block device, where it is one.
    pub(crate) fn path(&self) -> Result<&Path> {
        match &self.place {
            Place::File(path) | Place::Device(path) => Ok(path),
            Place::Rbd(_) | Place::Iscsi(_) => bail!("this storage is no file"),
        }
    }

    /// The process that keeps the data, where one does.
    pub(crate) fn service(&self) -> Result<Option<u32>> {
        let pid = match &self.place {
            Place::File(_) | Place::Device(_) => return Ok(None),
            Place::Rbd(image) => image.ceph().pid(CephDaemon::Osd)?,
            Place::Iscsi(target) => target.pid()?,
        };
        Ok(Some(u32::try_from(pid.as_raw_pid())?))
    }
}

/// An image file on tmpfs, which loses its name with the value.
struct Image {
    path: PathBuf,
    _directory: TempDir,
}

impl Image {
    fn make(make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let directory = TempDir::with_prefix_in("sealblk-bench-", TMPFS)
            .with_context(|| format!("no directory in {TMPFS}"))?;
        let path = directory.path().join("image");
        make(&path)?;
        Ok(Self { path, _directory: directory })
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
