//! The connection to a cluster and a pool.
// UNSAFETY: calls librados.
#![expect(unsafe_code, reason = "calls librados")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::time::Duration;

use sealblk_block::{ErrorKind, VolumeError};

use super::library::{Api, IoctxT, RadosT};
use crate::RbdName;

/// What we need of librbd whatever the configuration says.
const SETTINGS: &[(&CStr, &CStr)] = &[
    // Neither a write-back cache in memory nor one on a local disk: see the module above.
    (c"rbd_cache", c"false"),
    (c"rbd_persistent_cache_mode", c"disabled"),
    // Guests may change memory that is being written: librbd copies it before it makes a checksum.
    (c"rbd_disable_zero_copy_writes", c"true"),
    // Whoever takes the image from us must be sure that we write no more; and so must we.
    (c"rbd_blocklist_on_break_lock", c"true"),
];

/// A connection. Nothing refers to it when it is dropped.
pub(super) struct Cluster {
    api: &'static Api,
    cluster: RadosT,
    pool: IoctxT,
}

// SAFETY: librados and librbd allow any thread to use a connection (rados/librados.h: all functions
// are thread-safe once it is connected).
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// Connects, with a time limit for every step and for all I/O afterwards.
    pub(super) fn connect(
        api: &'static Api,
        uri: &str,
        name: &RbdName,
        timeout: Duration,
    ) -> Result<Self, VolumeError> {
        let user = name.user.as_deref().unwrap_or("admin");
        let client = text(uri, format!("client.{user}"))?;
        let mut this = Self { api, cluster: ptr::null_mut(), pool: ptr::null_mut() };
        // SAFETY: the strings end in NUL and live during the call; it gives a handle, which `drop`
        // gives back.
        let made = unsafe {
            (api.rados_create2)(&raw mut this.cluster, c"ceph".as_ptr(), client.as_ptr(), 0)
        };
        check(uri, "making a client", made)?;
        this.configure(uri, name, timeout)?;
        // SAFETY: the handle is configured and not connected.
        let connected = unsafe { (api.rados_connect)(this.cluster) };
        check_connected(uri, user, connected)?;
        let pool = text(uri, &name.pool)?;
        // SAFETY: connected; it gives a handle, which `drop` gives back.
        let opened =
            unsafe { (api.rados_ioctx_create)(this.cluster, pool.as_ptr(), &raw mut this.pool) };
        if opened == -libc::ENOENT {
            let what = format!("there is no pool {:?}", name.pool);
            return Err(VolumeError::new(ErrorKind::NotFound, uri, what));
        }
        check(uri, &format!("opening the pool {:?}", name.pool), opened)?;
        if let Some(namespace) = &name.namespace {
            let namespace = text(uri, namespace)?;
            // SAFETY: the pool is open.
            unsafe { (api.rados_ioctx_set_namespace)(this.pool, namespace.as_ptr()) };
        }
        Ok(this)
    }

    fn configure(&self, uri: &str, name: &RbdName, timeout: Duration) -> Result<(), VolumeError> {
        let conf = match &name.conf {
            Some(path) => Some(text(uri, path.as_os_str().as_bytes())?),
            None => None,
        };
        let path = conf.as_ref().map_or(ptr::null(), |conf| conf.as_ptr());
        // SAFETY: the handle is made; a null pointer stands for Ceph's own places.
        let read = unsafe { (self.api.rados_conf_read_file)(self.cluster, path) };
        let place = name
            .conf
            .as_deref()
            .map_or_else(|| "/etc/ceph/ceph.conf".to_owned(), |path| path.display().to_string());
        check(uri, &format!("reading the cluster's configuration {place}"), read)?;
        for (key, value) in SETTINGS {
            // An old librbd doesn't know each of them; what it doesn't know it doesn't do.
            let _ = self.set(key, value);
        }
        if let Some(path) = &name.keyring {
            let path = text(uri, path.as_os_str().as_bytes())?;
            check(uri, "setting the keyring", self.set(c"keyring", &path))?;
        }
        // At least a second: zero stands for no limit.
        let seconds = text(uri, timeout.as_secs().max(1).to_string())?;
        for key in [c"client_mount_timeout", c"rados_mon_op_timeout", c"rados_osd_op_timeout"] {
            check(uri, "setting a time limit", self.set(key, &seconds))?;
        }
        Ok(())
    }

    fn set(&self, key: &CStr, value: &CStr) -> i32 {
        // SAFETY: the handle is made, and the strings live during the call.
        unsafe { (self.api.rados_conf_set)(self.cluster, key.as_ptr(), value.as_ptr()) }
    }

    /// From now on an I/O waits until the cluster answers, however long that takes.
    pub(super) fn wait_for_ever(&self, uri: &str) -> Result<(), VolumeError> {
        for key in [c"rados_mon_op_timeout", c"rados_osd_op_timeout"] {
            check(uri, "lifting a time limit", self.set(key, c"0"))?;
        }
        Ok(())
    }

    pub(super) fn api(&self) -> &'static Api {
        self.api
    }

    pub(super) fn pool(&self) -> IoctxT {
        self.pool
    }

    /// The cluster's own name, a UUID.
    pub(super) fn fsid(&self, uri: &str) -> Result<String, VolumeError> {
        let mut buffer = [0u8; 64];
        // SAFETY: it writes at most as many bytes, NUL included.
        let len = unsafe {
            (self.api.rados_cluster_fsid)(self.cluster, buffer.as_mut_ptr().cast(), buffer.len())
        };
        check(uri, "asking the cluster's name", len)?;
        let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
        Ok(text.to_string_lossy().into_owned())
    }

    /// Our address, by which others know this client.
    pub(super) fn address(&self, uri: &str) -> Result<String, VolumeError> {
        let mut text = ptr::null_mut();
        // SAFETY: it gives a string that is ours to free.
        check(uri, "asking our address", unsafe {
            (self.api.rados_getaddrs)(self.cluster, &raw mut text)
        })?;
        if text.is_null() {
            return Ok(String::new());
        }
        // SAFETY: it ends in NUL; it is freed after it was copied.
        let address = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
        // SAFETY: what rados_getaddrs gave.
        unsafe { (self.api.rados_buffer_free)(text) };
        Ok(address)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.pool.is_null() {
            // SAFETY: made by us, and no image of it is open any more.
            unsafe { (self.api.rados_ioctx_destroy)(self.pool) };
        }
        if !self.cluster.is_null() {
            // SAFETY: made by us; its pool is closed.
            unsafe { (self.api.rados_shutdown)(self.cluster) };
        }
    }
}

/// A string for C.
pub(super) fn text(uri: &str, text: impl AsRef<[u8]>) -> Result<CString, VolumeError> {
    CString::new(text.as_ref())
        .map_err(|_| VolumeError::new(ErrorKind::Invalid, uri, "there is a NUL in its name"))
}

/// A negative result is an errno.
pub(super) fn check(uri: &str, what: &str, result: i32) -> Result<(), VolumeError> {
    if result >= 0 { Ok(()) } else { Err(failure(uri, what, -result)) }
}

/// An error of librados or librbd, in words.
pub(super) fn failure(uri: &str, what: &str, errno: i32) -> VolumeError {
    if errno == crate::FENCED {
        let what = format!(
            "{what}: this client was shut out of the cluster (blocklisted), as after another client \
             took the image from it"
        );
        let error = VolumeError::io(uri, what, io::Error::from_raw_os_error(errno));
        return VolumeError { kind: ErrorKind::Busy, ..error };
    }
    VolumeError::io(uri, what, io::Error::from_raw_os_error(errno))
}

fn check_connected(uri: &str, user: &str, result: i32) -> Result<(), VolumeError> {
    let (kind, what) = match -result {
        errno if errno <= 0 => return Ok(()),
        libc::ETIMEDOUT => (
            ErrorKind::Io,
            "no monitor of the cluster answers: check `mon_host` in its configuration and the \
             network"
                .to_owned(),
        ),
        libc::EACCES | libc::EPERM => (
            ErrorKind::Permission,
            format!("the cluster refuses client.{user}: check `user`, and the key in its keyring"),
        ),
        libc::ENOENT => (
            ErrorKind::Permission,
            format!("there is no key for client.{user}: name its keyring with `?keyring=PATH`"),
        ),
        errno => return Err(failure(uri, "connecting to the cluster", errno)),
    };
    Err(VolumeError::new(kind, uri, what))
}
