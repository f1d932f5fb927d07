//! A block device or a regular file, through io_uring with O_DIRECT.

mod control;
mod geometry;
mod loop_device;
mod uring_lane;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use sealblk_block::{ErrorKind, Geometry, VolumeError};
use sealblk_ring::Ring;

use crate::lock::{lock_file, retry};
use crate::{Handed, Lane, OpenOptions, Size, Volume};

/// An open block device or file. Invariant: held exclusively unless it is read-only.
#[derive(Debug)]
pub(crate) struct FileVolume {
    uri: String,
    file: Arc<OwnedFd>,
    /// See [`Handed`]; none where the claim is on `file` itself.
    claim: Option<Arc<OwnedFd>>,
    /// As it was opened.
    geometry: Geometry,
    size: Size,
}

impl FileVolume {
    pub(crate) fn open(uri: &str, path: &Path, options: &OpenOptions) -> Result<Self, VolumeError> {
        let device = uri.starts_with("/dev/");
        let (file, claim) = match &options.handed {
            Some(handed) => {
                let claim = claim_of(uri, handed, options)?;
                (handed.file.clone(), Some(Arc::new(claim)))
            }
            None => (Arc::new(open_path(uri, path, device, options)?), None),
        };
        let fail = |what: &str, error: rustix::io::Errno| VolumeError::io(uri, what, error.into());
        let stat = rustix::fs::fstat(&file).map_err(|error| fail("asking its type", error))?;
        match (FileType::from_raw_mode(stat.st_mode), device) {
            (FileType::BlockDevice, true) => {}
            (FileType::RegularFile, false) if options.only_look || claim.is_some() => {}
            (FileType::RegularFile, false) => {
                lock_file(file.as_fd(), options.read_only, options.lock_wait).map_err(|error| {
                    VolumeError::io(uri, "in use by another program (served already?)", error)
                })?;
                if let Some(device) = loop_device::of_file(&stat).filter(|_| !options.read_only) {
                    let what = format!(
                        "in use as {device} (losetup, or mapped by cryptsetup): detach it first"
                    );
                    return Err(VolumeError::new(ErrorKind::Busy, uri, what));
                }
            }
            (_, true) => {
                return Err(VolumeError::new(ErrorKind::Invalid, uri, "not a block device"));
            }
            (FileType::BlockDevice, false) => {
                let what = "a block device: name it by its path, /dev/NAME";
                return Err(VolumeError::new(ErrorKind::Invalid, uri, what));
            }
            (_, false) => {
                return Err(VolumeError::new(ErrorKind::Invalid, uri, "not a regular file"));
            }
        }
        let geometry = geometry::measure(uri, &file, device, options.read_only)?;
        let size = Size::new(geometry.size_bytes);
        Ok(Self { uri: uri.to_owned(), file, claim, geometry, size })
    }

    /// The descriptor, which has the claim on it.
    pub(crate) fn into_descriptor(self) -> Result<OwnedFd, VolumeError> {
        let uri = self.uri;
        Arc::try_unwrap(self.file).map_err(|_| {
            VolumeError::new(ErrorKind::Busy, &uri, "its descriptor is in use in this process")
        })
    }
}

/// Opens it with a claim of our own.
fn open_path(
    uri: &str,
    path: &Path,
    device: bool,
    options: &OpenOptions,
) -> Result<OwnedFd, VolumeError> {
    let access = if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let mut flags = access | OFlags::CLOEXEC | OFlags::NOCTTY;
    if device && !options.read_only {
        // On a block device O_EXCL without O_CREAT is the kernel's claim (open(2)): mounts,
        // other claims and other daemons are kept away.
        flags |= OFlags::EXCL;
    }
    if let Some(bytes) = options.create_bytes.filter(|_| !device) {
        create(path, bytes).map_err(|error| VolumeError::io(uri, "making the file", error))?;
    }
    let open =
        |flags| retry(options.lock_wait, || Ok(rustix::fs::open(path, flags, Mode::empty())?));
    match open(flags | OFlags::DIRECT) {
        // A file system without O_DIRECT: through the page cache then. Encryption is the same.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(flags),
        result => result,
    }
    .map_err(|error| {
        let what = match error.raw_os_error() {
            Some(libc::EBUSY) => "in use by another program (mounted, or served already)",
            Some(libc::ENOENT) => "no such file or device",
            Some(libc::EACCES | libc::EPERM) => "not allowed to open it",
            Some(libc::EROFS) => "on a read-only file system",
            _ => "opening it",
        };
        VolumeError::io(uri, what, error)
    })
}

/// Takes the claim that goes with a descriptor from another process.
fn claim_of(uri: &str, handed: &Handed, options: &OpenOptions) -> Result<OwnedFd, VolumeError> {
    let fail = |what: &str, error| VolumeError::io(uri, what, error);
    let mode = rustix::fs::fcntl_getfl(&handed.file)
        .map_err(|errno| fail("looking at its descriptor", errno.into()))?
        & OFlags::RWMODE;
    if mode != OFlags::RDWR && !(options.read_only && mode == OFlags::RDONLY) {
        let what = "the descriptor that was handed over was not opened for writing";
        return Err(VolumeError::new(ErrorKind::Invalid, uri, what));
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let claim =
        rustix::fs::open(&handed.claim, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
            fail(&format!("making the claim {}", handed.claim.display()), errno.into())
        })?;
    lock_file(claim.as_fd(), false, options.lock_wait)
        .map_err(|error| fail("another process of ours has it still", error))?;
    Ok(claim)
}

/// Makes a file of `bytes` bytes, readable by its owner alone; one that is there already stays as it is.
fn create(path: &Path, bytes: u64) -> std::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(rustix::fs::ftruncate(&file, bytes)?),
        Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

impl Volume for FileVolume {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.size.bytes(), ..self.geometry }
    }

    fn measure_size(&self) -> Result<u64, VolumeError> {
        geometry::measure_size(&self.uri, &self.file, self.geometry.block_bytes)
    }

    fn grow_to(&self, size_bytes: u64) {
        self.size.grow_to(size_bytes);
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        control::read(self, offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        control::write(self, offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        rustix::fs::fdatasync(&self.file)
            .map_err(|error| VolumeError::io(&self.uri, "flushing it", error.into()))
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        Ok(Box::new(uring_lane::UringLane::new(self.file.clone(), self.claim.clone(), ring)))
    }
}
