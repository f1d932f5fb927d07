//! The open image: what it is, blocking I/O for headers, and what an error of it means.
// UNSAFETY: calls librbd.
#![expect(unsafe_code, reason = "calls librbd")]

use std::ffi::CStr;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use sealblk_block::{ErrorKind, Geometry, VolumeError};

use super::cluster::{Cluster, check, failure, text};
use super::library::{Api, ImageT};
use crate::size::check_range;
use crate::{FENCED, Listener, RbdName, Size, VolumeEvent};

/// virtio's unit: an image has no blocks of its own.
const BLOCK_BYTES: u32 = 512;

/// What BlueStore writes without reading first (`bluestore_min_alloc_size`).
const PHYSICAL_BLOCK_BYTES: u32 = 4096;

/// `RBD_FEATURE_EXCLUSIVE_LOCK` (rbd/features.h)
const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;
/// `RBD_FEATURE_NON_PRIMARY`
const FEATURE_NON_PRIMARY: u64 = 1 << 10;
/// `RBD_FEATURE_DIRTY_CACHE`
const FEATURE_DIRTY_CACHE: u64 = 1 << 11;

/// An open image. Nobody uses it any more when it is dropped; then it is closed.
pub(super) struct Image {
    image: ImageT,
    cluster: Cluster,
    uri: String,
    read_only: bool,
    size: Size,
    /// The size that the listener was told of, in bytes.
    told_bytes: AtomicU64,
    /// The size when the cluster was last asked, in bytes.
    there_bytes: AtomicU64,
    fenced: AtomicBool,
    listener: Mutex<Option<Listener>>,
}

// SAFETY: librbd allows any thread to use an image (its own tests and QEMU do).
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    pub(super) fn open(
        cluster: Cluster,
        uri: &str,
        name: &RbdName,
        read_only: bool,
    ) -> Result<Self, VolumeError> {
        let api = cluster.api();
        let c_name = text(uri, &name.image)?;
        let snapshot = match &name.snapshot {
            Some(snapshot) => Some(text(uri, snapshot)?),
            None => None,
        };
        let c_snapshot = snapshot.as_ref().map_or(ptr::null(), |snapshot| snapshot.as_ptr());
        let open = if read_only { api.rbd_open_read_only } else { api.rbd_open };
        let mut image = ptr::null_mut();
        // SAFETY: the pool is open, the strings live during the call; it gives a handle.
        let result = unsafe { open(cluster.pool(), c_name.as_ptr(), &raw mut image, c_snapshot) };
        match -result {
            libc::ENOENT => {
                let what = match &name.snapshot {
                    Some(snapshot) => {
                        format!("there is no such image, or no snapshot {snapshot:?}")
                    }
                    None => "there is no such image in the pool".to_owned(),
                };
                return Err(VolumeError::new(ErrorKind::NotFound, uri, what));
            }
            libc::EPERM | libc::EACCES => {
                let what = "the cluster's user may not open it: it needs the capabilities \
                            `profile rbd` on the monitors and on the pool";
                return Err(VolumeError::new(ErrorKind::Permission, uri, what));
            }
            libc::ETIMEDOUT => {
                let what = "no storage daemon (OSD) of its pool answers";
                return Err(VolumeError::new(ErrorKind::Io, uri, what));
            }
            _ => check(uri, "opening the image", result)?,
        }
        let mut this = Self {
            image,
            cluster,
            uri: uri.to_owned(),
            read_only,
            size: Size::new(0),
            told_bytes: AtomicU64::new(0),
            there_bytes: AtomicU64::new(0),
            fenced: AtomicBool::new(false),
            listener: Mutex::new(None),
        };
        if !read_only {
            this.check_features()?;
            this.check_settings()?;
        }
        let size_bytes = this.measure_size()?;
        this.size = Size::new(size_bytes);
        this.told_bytes = AtomicU64::new(size_bytes);
        Ok(this)
    }

    fn check_features(&self) -> Result<(), VolumeError> {
        let mut features = 0;
        // SAFETY: the image is open; it writes one integer.
        let asked = unsafe { (self.api().rbd_get_features)(self.image, &raw mut features) };
        check(&self.uri, "asking its features", asked)?;
        let what = if features & FEATURE_EXCLUSIVE_LOCK == 0 {
            "the image has no exclusive lock, which keeps two hosts from writing to it at once: \
             `rbd feature enable POOL/IMAGE exclusive-lock`"
        } else if features & FEATURE_DIRTY_CACHE != 0 {
            "a persistent write-back cache of another client holds data that is not in the image \
             yet: let that client flush it"
        } else if features & FEATURE_NON_PRIMARY != 0 {
            "it is a mirror of an image on another cluster: promote it first (`rbd mirror image \
             promote`), or serve it read-only"
        } else {
            return Ok(());
        };
        Err(VolumeError::new(ErrorKind::Unsupported, &self.uri, what))
    }

    /// Settings that lie with the image or its pool win over ours: a cache must not come that way,
    /// nor a successor that lets our last writes land behind its own.
    fn check_settings(&self) -> Result<(), VolumeError> {
        const LOST: &str = "a setting on the cluster turns a write-back cache of librbd's on, so that \
                            a crash of this process would lose what a guest was told is written";
        const LATE: &str = "a setting on the cluster keeps a client whose lock is broken from being \
                            shut out, so that what it wrote last may land over its successor's data";
        let off = |value: &[u8]| matches!(value, b"false" | b"0" | b"no" | b"off");
        self.check_setting("rbd_cache", LOST, &|value| off(value))?;
        self.check_setting("rbd_persistent_cache_mode", LOST, &|value| value == b"disabled")?;
        self.check_setting("rbd_blocklist_on_break_lock", LATE, &|value| !off(value))
    }

    fn check_setting(
        &self,
        key: &str,
        why: &str,
        is_good: &dyn Fn(&[u8]) -> bool,
    ) -> Result<(), VolumeError> {
        let c_key = text(&self.uri, format!("conf_{key}"))?;
        let api = self.api();
        let bad = |ask: &dyn Fn(*mut libc::c_char, *mut usize) -> i32| {
            let (mut value, mut len) = ([0u8; 64], 64usize);
            let found = ask(value.as_mut_ptr().cast(), &raw mut len) >= 0;
            let value = CStr::from_bytes_until_nul(&value).unwrap_or_default().to_bytes();
            found && !is_good(value)
        };
        // SAFETY: the image is open; at most `len` bytes are written.
        let of_image = bad(&|value, len| unsafe {
            (api.rbd_metadata_get)(self.image, c_key.as_ptr(), value, len)
        });
        let of_pool = bad(&|value, len| {
            // SAFETY: the pool is open; at most `len` bytes are written.
            unsafe { (api.rbd_pool_metadata_get)(self.cluster.pool(), c_key.as_ptr(), value, len) }
        });
        let what = match (of_image, of_pool) {
            (true, _) => format!("{why}: `rbd config image remove POOL/IMAGE {key}`"),
            (_, true) => format!("{why}: `rbd config pool remove POOL {key}`"),
            _ => return Ok(()),
        };
        Err(VolumeError::new(ErrorKind::Unsupported, &self.uri, what))
    }

    pub(super) fn api(&self) -> &'static Api {
        self.cluster.api()
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// For calls that the other files of this driver make.
    pub(super) fn handle(&self) -> ImageT {
        self.image
    }

    pub(super) fn uri(&self) -> &str {
        &self.uri
    }

    /// The image's id within its pool, which a rename leaves as it is.
    pub(super) fn id(&self) -> Result<String, VolumeError> {
        let mut buffer = [0u8; 128];
        // SAFETY: the image is open; at most as many bytes are written.
        let asked = unsafe {
            (self.api().rbd_get_id)(self.image, buffer.as_mut_ptr().cast(), buffer.len())
        };
        check(&self.uri, "asking its id", asked)?;
        let id = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
        Ok(id.to_string_lossy().into_owned())
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size.bytes(),
            block_bytes: BLOCK_BYTES,
            physical_block_bytes: PHYSICAL_BLOCK_BYTES,
            // A write to one object is a transaction, but a write may reach into two.
            atomic_write_bytes: BLOCK_BYTES,
            discard: !self.read_only,
            read_only: self.read_only,
        }
    }

    /// Whole blocks that there are now, in bytes; asks the cluster, and blocks.
    pub(super) fn measure_size(&self) -> Result<u64, VolumeError> {
        let mut size = 0;
        // SAFETY: the image is open; it writes one integer.
        let asked = unsafe { (self.api().rbd_get_size)(self.image, &raw mut size) };
        check(&self.uri, "asking its size", asked)?;
        let whole = size - size % u64::from(BLOCK_BYTES);
        self.there_bytes.store(whole, Relaxed);
        Ok(whole)
    }

    /// Takes a larger size into use.
    pub(super) fn grow_to(&self, size_bytes: u64) {
        self.there_bytes.fetch_max(size_bytes, Relaxed);
        self.size.grow_to(size_bytes);
    }

    /// Bytes that are in use and, as far as we know, still there: an image can shrink, and librbd
    /// then cuts what reaches over its end.
    pub(super) fn reach_bytes(&self) -> u64 {
        self.size.bytes().min(self.there_bytes.load(Relaxed))
    }

    /// Tells of a size that was not told of yet.
    pub(super) fn tell_size(&self, size_bytes: u64) {
        if self.told_bytes.swap(size_bytes, Relaxed) != size_bytes {
            self.tell(VolumeEvent::Resized { size_bytes });
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Relaxed)
    }

    /// Another client has the image: nothing is sent any more.
    pub(super) fn fence(&self, why: &str) {
        if !self.fenced.swap(true, Relaxed) {
            self.tell(VolumeEvent::Fenced { why: why.to_owned() });
        }
    }

    pub(super) fn listen(&self, listener: Listener) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    pub(super) fn tell(&self, event: VolumeEvent) {
        // Not under the lock: a listener may listen anew.
        let listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(listener) = listener {
            listener(event);
        }
    }

    /// The errno of a result below zero. A client that was shut out, or whose lock is gone, is told
    /// so, whatever librbd calls it.
    pub(super) fn errno(&self, result: isize) -> i32 {
        match i32::try_from(-result).unwrap_or(libc::EIO) {
            FENCED => {
                self.fence("the cluster shut this client out (blocklisted)");
                FENCED
            }
            // librbd refuses to write without the lock that was taken for good.
            libc::EROFS if !self.read_only => {
                self.fence("the image's exclusive lock is gone");
                FENCED
            }
            errno => errno,
        }
    }

    pub(super) fn read(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        check_range(&self.uri, offset_bytes, buf.len(), self.reach_bytes())?;
        let mut done = 0;
        while done < buf.len() {
            let (at, rest) = (offset_bytes + done as u64, &mut buf[done..]);
            // SAFETY: the image is open, and the buffer is as long as said.
            let n = unsafe {
                (self.api().rbd_read)(self.image, at, rest.len(), rest.as_mut_ptr().cast())
            };
            done += self.moved("reading", at, n)?;
        }
        Ok(())
    }

    pub(super) fn write(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        check_range(&self.uri, offset_bytes, data.len(), self.reach_bytes())?;
        let mut done = 0;
        while done < data.len() {
            let (at, rest) = (offset_bytes + done as u64, &data[done..]);
            self.check_fence("writing")?;
            // SAFETY: the image is open, and the data is as long as said.
            let n =
                unsafe { (self.api().rbd_write)(self.image, at, rest.len(), rest.as_ptr().cast()) };
            done += self.moved("writing", at, n)?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<(), VolumeError> {
        self.check_fence("flushing")?;
        // SAFETY: the image is open.
        match unsafe { (self.api().rbd_flush)(self.image) } {
            result if result < 0 => {
                Err(failure(&self.uri, "flushing", self.errno(result as isize)))
            }
            _ => Ok(()),
        }
    }

    fn check_fence(&self, what: &str) -> Result<(), VolumeError> {
        if self.is_fenced() { Err(failure(&self.uri, what, FENCED)) } else { Ok(()) }
    }

    fn moved(&self, what: &str, at: u64, result: isize) -> Result<usize, VolumeError> {
        match usize::try_from(result) {
            Ok(0) => Err(failure(&self.uri, &format!("{what} at {at}: nothing moved"), libc::EIO)),
            Ok(n) => Ok(n),
            Err(_) => Err(failure(&self.uri, &format!("{what} at {at}"), self.errno(result))),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // SAFETY: open, and used by nobody any more: whoever uses it has an `Arc` of this.
        let _ = unsafe { (self.api().rbd_close)(self.image) };
    }
}
