//! The volume that a command works on: held for writing, or only looked at.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::Context;
use sealblk_block::VolumeError;
use sealblk_luks::{Plan, ReadAt};
use sealblk_rotation::{HeaderLock, Reader, carry_out};
use sealblk_volume::{OpenOptions, Uri, Volume};

use crate::console::Console;
use crate::failure::Failure;

/// Opens the volume that a command line names.
pub(crate) fn open(uri: &str, options: &OpenOptions) -> Result<Arc<dyn Volume>, VolumeError> {
    Uri::parse_argument(uri)?;
    sealblk_volume::open(uri, options)
}

/// A volume that nobody else uses, with cryptsetup's lock on its header.
pub(crate) struct Target {
    volume: Arc<dyn Volume>,
    _lock: HeaderLock,
}

impl Target {
    /// Opens a volume to change its header.
    pub(crate) fn open(uri: &str, console: &mut Console<'_>) -> Result<Self, Failure> {
        let volume = open(uri, &OpenOptions::default())?;
        let mut note = Ok(());
        let lock = HeaderLock::take(uri, &mut || {
            note =
                console.note("waiting for another program (cryptsetup?) to let go of the header");
        })?;
        note?;
        Ok(Self { volume, _lock: lock })
    }

    /// The volume itself.
    pub(crate) fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// Size of the whole volume.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.volume.geometry().size_bytes
    }

    /// Smallest unit of I/O of the volume.
    pub(crate) fn block_bytes(&self) -> u32 {
        self.volume.geometry().block_bytes
    }

    /// For `sealblk-luks` to read through.
    pub(crate) fn reader(&self) -> impl ReadAt {
        Reader(&*self.volume)
    }

    /// Zeroes a range and makes that durable.
    pub(crate) fn wipe(&self, offset_bytes: u64, len_bytes: u64) -> Result<(), VolumeError> {
        let zeroes = vec![0; usize::try_from(len_bytes).unwrap_or(usize::MAX)];
        self.volume.write_at(offset_bytes, &zeroes)?;
        self.volume.flush()
    }

    /// Carries out a plan, step by step, and makes it durable. The first error ends it: a plan
    /// that was begun leaves a volume that opens.
    pub(crate) fn execute(&self, plan: Plan) -> Result<(), VolumeError> {
        carry_out(&*self.volume, &plan)?;
        self.volume.flush()
    }
}

/// A volume that is only looked at, also while a daemon serves it: takes no lock. A header that
/// changes at the same moment fails its checksum; whoever looks again sees the new one.
pub(crate) enum Glance {
    /// A file or a block device, through the page cache.
    Local {
        /// Open for reading.
        file: File,
        /// Size of the whole volume.
        size_bytes: u64,
    },
    /// A volume on a network, which needs its driver.
    Remote(Arc<dyn Volume>),
}

impl Glance {
    /// Opens it for reading.
    pub(crate) fn open(uri: &str) -> anyhow::Result<Self> {
        let path = match Uri::parse_argument(uri)? {
            Uri::Device(path) | Uri::File(path) => path,
            Uri::Rbd(_) | Uri::Iscsi(_) => {
                let options = OpenOptions { only_look: true, ..OpenOptions::default() };
                return Ok(Self::Remote(open(uri, &options)?));
            }
        };
        let open = || {
            let mut file = File::open(path)?;
            // The end's offset is a block device's size too; its metadata has none.
            let size_bytes = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
            Ok::<_, io::Error>(Self::Local { file, size_bytes })
        };
        open().with_context(|| format!("{uri}: cannot open it"))
    }
}

impl ReadAt for Glance {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Local { file, .. } => file.read_exact_at(buf, offset_bytes),
            Self::Remote(volume) => Reader(&**volume).read_at(offset_bytes, buf),
        }
    }

    fn size_bytes(&self) -> u64 {
        match self {
            Self::Local { size_bytes, .. } => *size_bytes,
            Self::Remote(volume) => volume.geometry().size_bytes,
        }
    }
}
