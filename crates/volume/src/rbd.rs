//! Images on Ceph, through librbd's asynchronous calls.
//!
//! Contract: one image handle per volume, shared by its lanes, because an image's exclusive lock
//! belongs to a handle. A completion comes on a thread of librbd's; it puts the result into its lane's
//! [`inbox`], whose eventfd the queue thread watches in its ring: still one wait point. librbd's cache
//! is off: a write is acknowledged when the OSDs have it, so that a daemon that is killed loses nothing
//! that a guest which lives on was told is written.
//!
//! Deliberately absent: librbd's own encryption (what leaves this process is ciphertext already) and
//! retries (librados tries again by itself until the time limit).

mod claim;
mod cluster;
mod image;
mod inbox;
mod lane;
mod library;
mod news;

use std::sync::Arc;
use std::time::Duration;

use sealblk_block::{ErrorKind, Geometry, VolumeError};
use sealblk_ring::Ring;

use self::claim::Claim;
use self::cluster::Cluster;
use self::image::Image;
use self::news::News;
use crate::{Lane, Listener, OpenOptions, RbdName, Shape, Volume};

pub(crate) use self::library::version as library_version;

/// How long an image waits for its cluster while it is opened, where I/O on it waits for ever.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// An open image. Fields are dropped in this order: who listens to the image, the claim on it, the
/// image itself.
pub(crate) struct RbdVolume {
    news: Option<News>,
    claim: Option<Claim>,
    image: Arc<Image>,
}

impl RbdVolume {
    pub(crate) fn open(
        uri: &str,
        name: &RbdName,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        if name.snapshot.is_some() && !options.read_only {
            let what = "a snapshot can only be read: serve it read-only";
            return Err(VolumeError::new(ErrorKind::Invalid, uri, what));
        }
        let api = library::load(uri)?;
        let timeout = options.io_timeout.unwrap_or(OPEN_TIMEOUT);
        let cluster = Cluster::connect(api, uri, name, timeout)?;
        let image = Arc::new(Image::open(cluster, uri, name, options.read_only)?);
        let claim = match options.read_only {
            true => None,
            false => Some(Claim::take(image.clone(), name, options)?),
        };
        if options.io_timeout.is_none() {
            image.cluster().wait_for_ever(uri)?;
        }
        // A snapshot never changes, and who may not write can't watch.
        let news = if options.read_only { None } else { Some(News::watch(image.clone())?) };
        Ok(Self { news, claim, image })
    }
}

impl Volume for RbdVolume {
    fn uri(&self) -> &str {
        self.image.uri()
    }

    fn geometry(&self) -> Geometry {
        self.image.geometry()
    }

    fn shape(&self) -> Shape {
        Shape::NETWORK
    }

    fn measure_size(&self) -> Result<u64, VolumeError> {
        self.image.measure_size()
    }

    fn grow_to(&self, size_bytes: u64) {
        self.image.grow_to(size_bytes);
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.image.read(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.image.write(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.image.flush()
    }

    fn listen(&self, listener: Listener) {
        self.image.listen(listener);
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        Ok(Box::new(lane::RbdLane::new(self.image.clone(), ring)?))
    }
}

impl Drop for RbdVolume {
    fn drop(&mut self) {
        // In this order whatever becomes of the fields': the watch and the lock go while the image
        // is still open.
        drop(self.news.take());
        drop(self.claim.take());
    }
}
