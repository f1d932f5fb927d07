//! libiscsi, loaded when the first volume needs it: its functions and what its structures look like.
//!
//! Contract: the table is complete or loading fails with what is missing; a library whose name we
//! don't know is not taken, for the layout of `struct scsi_task` is part of what we rely on.
//! Deliberately absent: everything in libiscsi that blocks (`*_sync`), reconnects or parses names.
// UNSAFETY: loads a shared object and declares its functions by hand.
#![expect(unsafe_code, reason = "a foreign library's functions and structures")]

use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::sync::OnceLock;

use libloading::Library;

/// Names under which libiscsi is looked for. The layout of [`ScsiTask`] was checked against Debian
/// 12's headers (1.19.0) and the code in this library that uses it.
const NAMES: [&str; 1] = ["libiscsi.so.7"];

/// `struct iscsi_context`, known to libiscsi only.
#[repr(C)]
pub(super) struct Context {
    _opaque: [u8; 0],
}

/// `struct scsi_sense` (scsi-lowlevel.h).
#[repr(C)]
pub(super) struct Sense {
    pub(super) error_type: c_uchar,
    pub(super) key: c_int,
    /// Additional sense code, and its qualifier in the low byte.
    pub(super) ascq: c_int,
    /// Three bits, a bit pointer and a field pointer.
    _specific: [u8; 4],
}

/// The beginning of `struct scsi_task` (scsi-lowlevel.h): what we read of it.
#[repr(C)]
pub(super) struct ScsiTask {
    _status: c_int,
    _cdb_size: c_int,
    _direction: c_int,
    _expected: c_int,
    _cdb: [c_uchar; 16],
    pub(super) residual_status: c_int,
    pub(super) residual: usize,
    pub(super) sense: Sense,
}

/// `enum scsi_xfer_dir`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Direction {
    None = 0,
    In = 1,
    Out = 2,
}

/// `SCSI_RESIDUAL_NO_RESIDUAL` and `SCSI_RESIDUAL_UNDERFLOW`.
pub(super) const RESIDUAL_NONE: c_int = 0;
pub(super) const RESIDUAL_UNDERFLOW: c_int = 1;

/// `ISCSI_SESSION_NORMAL`
pub(super) const SESSION_NORMAL: c_int = 2;
/// `ISCSI_HEADER_DIGEST_NONE`
pub(super) const DIGEST_NONE: c_int = 0;
/// `ISCSI_HEADER_DIGEST_CRC32C`
pub(super) const DIGEST_CRC32C: c_int = 3;
/// `ISCSI_TM_ABORT_TASK_SET`
pub(super) const ABORT_TASK_SET: c_int = 2;

/// `iscsi_command_cb`
pub(super) type Callback = extern "C" fn(*mut Context, c_int, *mut c_void, *mut c_void);

macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions; see iscsi.h and scsi-lowlevel.h.
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            /// What it was loaded by.
            pub(super) name: &'static str,
        }

        impl Functions {
            fn find(library: &'static Library, name: &'static str) -> Result<Self, String> {
                // SAFETY: the types are those of libiscsi's headers.
                unsafe {
                    Ok(Self {
                        $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|error| format!("{name}: {error}"))?,)*
                        name,
                    })
                }
            }
        }
    };
}

functions! {
    iscsi_create_context: fn(*const c_char) -> *mut Context;
    iscsi_destroy_context: fn(*mut Context) -> c_int;
    iscsi_set_targetname: fn(*mut Context, *const c_char) -> c_int;
    iscsi_set_session_type: fn(*mut Context, c_int) -> c_int;
    iscsi_set_header_digest: fn(*mut Context, c_int) -> c_int;
    iscsi_set_initiator_username_pwd: fn(*mut Context, *const c_char, *const c_char) -> c_int;
    iscsi_set_isid_random: fn(*mut Context, u32, u32) -> c_int;
    iscsi_set_noautoreconnect: fn(*mut Context, c_int);
    iscsi_connect_async: fn(*mut Context, *const c_char, Callback, *mut c_void) -> c_int;
    iscsi_login_async: fn(*mut Context, Callback, *mut c_void) -> c_int;
    iscsi_get_target_address: fn(*mut Context) -> *const c_char;
    iscsi_get_error: fn(*mut Context) -> *const c_char;
    iscsi_get_fd: fn(*mut Context) -> c_int;
    iscsi_which_events: fn(*mut Context) -> c_int;
    iscsi_service: fn(*mut Context, c_int) -> c_int;
    iscsi_nop_out_async: fn(*mut Context, Option<Callback>, *mut c_uchar, c_int, *mut c_void) -> c_int;
    iscsi_task_mgmt_async: fn(*mut Context, c_int, c_int, u32, u32, Callback, *mut c_void) -> c_int;
    iscsi_scsi_command_async: fn(*mut Context, c_int, *mut ScsiTask, Callback, *mut c_void, *mut c_void) -> c_int;
    scsi_create_task: fn(c_int, *mut c_uchar, c_int, c_int) -> *mut ScsiTask;
    scsi_free_scsi_task: fn(*mut ScsiTask);
    scsi_task_set_iov_in: fn(*mut ScsiTask, *mut libc::iovec, c_int);
    scsi_task_set_iov_out: fn(*mut ScsiTask, *mut libc::iovec, c_int);
}

/// The library, loaded once per process and never unloaded (a context may outlive any handle).
pub(super) fn get() -> Result<&'static Functions, String> {
    static LOADED: OnceLock<Result<Functions, String>> = OnceLock::new();
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Functions, String> {
    let mut reason = String::new();
    for name in NAMES {
        // SAFETY: libiscsi's initialisers have no preconditions.
        match unsafe { Library::new(name) } {
            Ok(library) => return Functions::find(Box::leak(Box::new(library)), name),
            Err(error) => reason = format!("libiscsi could not be loaded ({error})"),
        }
    }
    Err(reason)
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Offsets as the C compiler gives them for Debian's scsi-lowlevel.h on a 64-bit machine.
    #[test]
    fn the_layout_is_that_of_the_header() {
        assert_eq!(offset_of!(ScsiTask, residual_status), 32);
        assert_eq!(offset_of!(ScsiTask, residual), 40);
        assert_eq!(offset_of!(ScsiTask, sense), 48);
        assert_eq!(offset_of!(Sense, key), 4);
        assert_eq!(offset_of!(Sense, ascq), 8);
        assert_eq!(size_of::<Sense>(), 16);
    }
}
