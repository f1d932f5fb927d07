//! Volumes: where the ciphertext lies.
//!
//! A [`Volume`] is the control handle: geometry, and blocking reads and writes for headers. A
//! [`Lane`] is one thread's data handle: it submits to that thread's ring and gives every I/O back
//! exactly once. The split lets a queue thread own everything it touches.
//!
//! Contract of every volume, checked by [`conformance`]: reads see the last completed write; I/O
//! in flight at once may be carried out in any order; after a completed [`LaneOp::Flush`] every
//! write that had completed before it was submitted is durable; a count smaller than asked for is
//! a short I/O and not an error, the caller goes on where it ended; a volume is held exclusively
//! while it is open for writing.
//!
//! Deliberately absent: keys. A volume never sees plaintext of an encrypted disk.

mod aligned;
mod driver;
mod event;
mod file;
#[cfg(feature = "iscsi")]
mod iscsi;
mod lane;
mod lock;
#[cfg(feature = "rbd")]
mod rbd;
mod size;
mod state_dir;
mod uri;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
mod fault;
#[cfg(feature = "testing")]
mod memory;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use aligned::AlignedBuf;
pub use driver::{Driver, Library, drivers};
pub use event::{Listener, VolumeEvent};
#[cfg(feature = "testing")]
pub use fault::{FaultyVolume, Kept, Verdict};
pub use lane::{Buffer, Lane, LaneDone, LaneIo, LaneOp};
#[cfg(feature = "testing")]
pub use memory::MemoryVolume;
use sealblk_block::{Geometry, VolumeError};
use sealblk_ring::Ring;
pub use size::Size;
pub use state_dir::make_state_dir;
pub use uri::{IscsiName, IscsiSecret, RbdName, Uri, shown};

/// The errno by which a lane, and the system error behind a [`VolumeError`], say that another client
/// has taken the volume (its lock was broken and we were shut out, as after an evacuation): nothing
/// that was in flight is known to be written, nothing will be, and no retry helps. Never held back,
/// never repeated. librados gives it to a client that is blocklisted.
pub const FENCED: i32 = libc::ESHUTDOWN;

/// The control handle of an open volume.
pub trait Volume: Send + Sync {
    /// As the operator named it, without secrets.
    fn uri(&self) -> &str;

    /// Size and units. The units are fixed while it is open, the size changes by [`Self::grow_to`]
    /// alone: what was computed from it stays true until the owner of the volume lets it grow.
    fn geometry(&self) -> Geometry;

    /// How I/O on it should be cut.
    fn shape(&self) -> Shape {
        Shape::LOCAL
    }

    /// Asks the storage how large the volume is now, in whole blocks of the geometry; blocks. It may
    /// be larger or smaller than the geometry says, and changes nothing.
    fn measure_size(&self) -> Result<u64, VolumeError> {
        Ok(self.geometry().size_bytes)
    }

    /// Takes what [`Self::measure_size`] found into use: geometry, control reads and writes and
    /// lanes that are open reach as far from now on. A smaller size has no effect. A driver that
    /// can't grow does nothing, as its geometry then tells.
    fn grow_to(&self, _size_bytes: u64) {}

    /// Reads `buf.len()` bytes at `offset_bytes`, both of any alignment; blocks. Past the end is
    /// an error.
    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError>;

    /// Writes `data` at `offset_bytes`, both of any alignment; blocks. Not durable before
    /// [`Self::flush`]. Bytes that share a block with the edges are read and written back: no lane
    /// may write that block meanwhile.
    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError>;

    /// Makes every completed write durable; blocks. After an error nothing is known about what
    /// is durable: do not try again and believe it.
    fn flush(&self) -> Result<(), VolumeError>;

    /// Has `listener` told what happens to the volume from now on; replaces the one before. Volumes
    /// that can't tell say nothing.
    fn listen(&self, _listener: Listener) {}

    /// A data handle for the calling thread, on its ring.
    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError>;
}

/// How I/O on a volume should be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Longest piece in bytes that a long request is cut into: the volume carries out a shorter one for
    /// less than its share.
    pub piece_bytes: usize,
    /// It makes use of the ring's registered memory.
    pub registered: bool,
}

impl Shape {
    /// Devices and files: pieces are cheap, and the kernel does I/O on registered memory for less.
    pub const LOCAL: Self = Self { piece_bytes: 256 << 10, registered: true };
    /// Storage in a network: each piece is a message there and one back.
    pub const NETWORK: Self = Self { piece_bytes: 1 << 20, registered: false };
}

/// How to open a volume.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Without the right to write; others may read it at the same time.
    pub read_only: bool,
    /// Only to look at it, also while somebody else writes to it: no claim of any kind is taken.
    /// Implies [`Self::read_only`].
    pub only_look: bool,
    /// Make the file if it isn't there, this many bytes long (files only).
    pub create_bytes: Option<u64>,
    /// How long to wait for somebody else to let go of it. A daemon that was killed holds its
    /// volume until the kernel has finished its last writes, so its successor waits.
    pub lock_wait: Duration,
    /// How long an I/O may wait for storage that doesn't answer before it fails with `ETIMEDOUT`;
    /// none: for ever. Only network volumes keep to it: a block device has a time limit of its own.
    pub io_timeout: Option<Duration>,
    /// Directory for notes about claims on volumes, by which the successor of a killed process
    /// knows that it may break its predecessor's; none: it waits until the storage has noticed.
    pub state_dir: Option<PathBuf>,
    /// The device or file, opened already by who may (files and block devices only).
    pub handed: Option<Handed>,
}

/// A device or file that was opened for this process by another one, which claimed it, too.
///
/// That claim can't tell a successor when the kernel has finished the I/O of a killed process, as
/// whoever handed the descriptor may keep one. So there is a second claim, on a file of our own that
/// goes wherever the volume's descriptor goes: whoever has got it sees no late write.
#[derive(Debug, Clone)]
pub struct Handed {
    /// Opened for reading, and for writing unless [`OpenOptions::read_only`].
    pub file: Arc<OwnedFd>,
    /// A file to be locked as long as I/O is possible; made if it isn't there.
    pub claim: PathBuf,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            only_look: false,
            create_bytes: None,
            lock_wait: Duration::ZERO,
            io_timeout: None,
            state_dir: None,
            handed: None,
        }
    }
}

/// Opens a block device or file that another process is to serve, with the claim that keeps others
/// away for as long as a descriptor of it is left; for [`Handed`].
///
/// # Errors
/// As [`open`]'s; also for a volume that is neither.
pub fn open_to_hand(uri: &str, options: &OpenOptions) -> Result<OwnedFd, VolumeError> {
    match Uri::parse(uri)? {
        Uri::Device(path) | Uri::File(path) => {
            file::FileVolume::open(uri, &path, options)?.into_descriptor()
        }
        Uri::Rbd(_) | Uri::Iscsi(_) => {
            let what = "no descriptor stands for a volume on a network";
            Err(VolumeError::new(sealblk_block::ErrorKind::Unsupported, &shown(uri), what))
        }
    }
}

/// Opens the volume that `uri` names: see [`Uri`].
pub fn open(uri: &str, options: &OpenOptions) -> Result<Arc<dyn Volume>, VolumeError> {
    let parsed = Uri::parse(uri)?;
    let uri = &shown(uri);
    let read_only = options.read_only || options.only_look;
    let options = &OpenOptions { read_only, ..options.clone() };
    match parsed {
        Uri::Device(path) | Uri::File(path) => {
            Ok(Arc::new(file::FileVolume::open(uri, &path, options)?))
        }
        #[cfg(feature = "rbd")]
        Uri::Rbd(name) => Ok(Arc::new(rbd::RbdVolume::open(uri, &name, options)?)),
        #[cfg(not(feature = "rbd"))]
        Uri::Rbd(_) => Err(driver::left_out(uri, "rbd")),
        #[cfg(feature = "iscsi")]
        Uri::Iscsi(name) => Ok(Arc::new(iscsi::IscsiVolume::open(uri, &name, options)?)),
        #[cfg(not(feature = "iscsi"))]
        Uri::Iscsi(_) => Err(driver::left_out(uri, "iscsi")),
    }
}
