//! librbd as it is called here. It is loaded when the first image is opened, and never unloaded: its
//! threads may run until the process ends.
// UNSAFETY: calls into a C library.
#![expect(unsafe_code, reason = "loads librbd and calls it")]

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use sealblk_block::VolumeError;

use crate::driver::{RBD_PACKAGE, missing};

/// The library's name since 2010: its interface only grows.
const SONAME: &str = "librbd.so.1";

/// `rados_t`
pub(super) type RadosT = *mut c_void;
/// `rados_ioctx_t`
pub(super) type IoctxT = *mut c_void;
/// `rbd_image_t`
pub(super) type ImageT = *mut c_void;
/// `rbd_completion_t`
pub(super) type CompletionT = *mut c_void;
/// `rbd_callback_t`
pub(super) type Callback = extern "C" fn(CompletionT, *mut c_void);
/// `rbd_update_callback_t`
pub(super) type UpdateCallback = extern "C" fn(*mut c_void);

/// `RBD_LOCK_MODE_EXCLUSIVE` (rbd/librbd.h)
pub(super) const LOCK_MODE_EXCLUSIVE: c_int = 0;

/// `rbd_image_watcher_t`
#[repr(C)]
pub(super) struct Watcher {
    pub(super) addr: *mut c_char,
    pub(super) id: i64,
    pub(super) cookie: u64,
}

macro_rules! functions {
    ($(fn $name:ident($($arg:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions; see rbd/librbd.h and rados/librados.h (librbd brings librados along).
        pub(super) struct Api {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
        }

        impl Api {
            /// # Safety
            /// The library is librbd, and is never unloaded.
            unsafe fn find(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the signatures are those of the header, which have not changed since the
                // functions came (none is younger than Ceph 14).
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)*
                    })
                }
            }
        }
    };
}

functions! {
    fn rados_create2(*mut RadosT, *const c_char, *const c_char, u64) -> c_int;
    fn rados_conf_read_file(RadosT, *const c_char) -> c_int;
    fn rados_conf_set(RadosT, *const c_char, *const c_char) -> c_int;
    fn rados_connect(RadosT) -> c_int;
    fn rados_shutdown(RadosT);
    fn rados_ioctx_create(RadosT, *const c_char, *mut IoctxT) -> c_int;
    fn rados_ioctx_set_namespace(IoctxT, *const c_char);
    fn rados_ioctx_destroy(IoctxT);
    fn rados_cluster_fsid(RadosT, *mut c_char, usize) -> c_int;
    fn rados_getaddrs(RadosT, *mut *mut c_char) -> c_int;
    fn rados_buffer_free(*mut c_char);
    fn rbd_version(*mut c_int, *mut c_int, *mut c_int);
    fn rbd_open(IoctxT, *const c_char, *mut ImageT, *const c_char) -> c_int;
    fn rbd_open_read_only(IoctxT, *const c_char, *mut ImageT, *const c_char) -> c_int;
    fn rbd_close(ImageT) -> c_int;
    fn rbd_get_size(ImageT, *mut u64) -> c_int;
    fn rbd_get_features(ImageT, *mut u64) -> c_int;
    fn rbd_get_id(ImageT, *mut c_char, usize) -> c_int;
    fn rbd_metadata_get(ImageT, *const c_char, *mut c_char, *mut usize) -> c_int;
    fn rbd_pool_metadata_get(IoctxT, *const c_char, *mut c_char, *mut usize) -> c_int;
    fn rbd_lock_acquire(ImageT, c_int) -> c_int;
    fn rbd_lock_release(ImageT) -> c_int;
    fn rbd_lock_get_owners(ImageT, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
    fn rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
    fn rbd_lock_break(ImageT, c_int, *const c_char) -> c_int;
    fn rbd_watchers_list(ImageT, *mut Watcher, *mut usize) -> c_int;
    fn rbd_watchers_list_cleanup(*mut Watcher, usize);
    fn rbd_update_watch(ImageT, *mut u64, UpdateCallback, *mut c_void) -> c_int;
    fn rbd_update_unwatch(ImageT, u64) -> c_int;
    fn rbd_read(ImageT, u64, usize, *mut c_char) -> isize;
    fn rbd_write(ImageT, u64, usize, *const c_char) -> isize;
    fn rbd_flush(ImageT) -> c_int;
    fn rbd_aio_create_completion(*mut c_void, Callback, *mut CompletionT) -> c_int;
    fn rbd_aio_get_return_value(CompletionT) -> isize;
    fn rbd_aio_release(CompletionT);
    fn rbd_aio_read(ImageT, u64, usize, *mut c_char, CompletionT) -> c_int;
    fn rbd_aio_readv(ImageT, *const libc::iovec, c_int, u64, CompletionT) -> c_int;
    fn rbd_aio_write(ImageT, u64, usize, *const c_char, CompletionT) -> c_int;
    fn rbd_aio_writev(ImageT, *const libc::iovec, c_int, u64, CompletionT) -> c_int;
    fn rbd_aio_discard(ImageT, u64, u64, CompletionT) -> c_int;
    fn rbd_aio_flush(ImageT, CompletionT) -> c_int;
}

/// The library, loaded at the first call.
pub(super) fn load(uri: &str) -> Result<&'static Api, VolumeError> {
    static API: OnceLock<Result<Api, String>> = OnceLock::new();
    match API.get_or_init(find) {
        Ok(api) => Ok(api),
        Err(reason) => Err(missing(uri, RBD_PACKAGE, reason)),
    }
}

fn find() -> Result<Api, String> {
    // RTLD_LOCAL: none of its forty companions' symbols may take the place of ours.
    // SAFETY: librbd's and its companions' initialisers only set up their own statics.
    let library = unsafe { Library::open(Some(SONAME), RTLD_NOW | RTLD_LOCAL) };
    let library = library.map_err(|error| error.to_string())?;
    // SAFETY: the name says that it is librbd; it is forgotten, so never unloaded.
    let api = unsafe { Api::find(&library) };
    std::mem::forget(library);
    api.map_err(|error| format!("{SONAME} is too old (Ceph 14 or newer is needed): {error}"))
}

/// The library's name and version, for `--version --verbose`.
pub(crate) fn version() -> Result<String, String> {
    let api = load("").map_err(|error| error.what)?;
    let (mut major, mut minor, mut extra) = (0, 0, 0);
    // SAFETY: it writes three integers.
    unsafe { (api.rbd_version)(&raw mut major, &raw mut minor, &raw mut extra) };
    Ok(format!("librbd {major}.{minor}.{extra}"))
}
