//! A second initiator that reserves the unit for itself.
#![expect(unsafe_code, reason = "calls libiscsi")]

use std::ffi::{CString, c_char, c_int, c_void};

use libloading::{Library, Symbol};
use sealblk_volume::{FENCED, LaneOp, VolumeEvent};

use crate::rig::{Rig, STEP};
use crate::target::{Like, Target};

type Context = *mut c_void;
type Call = unsafe extern "C" fn(Context, c_int) -> *mut c_void;

/// The other initiator's session.
struct Other {
    library: Library,
    context: Context,
}

impl Other {
    fn login(target: &Target) -> Self {
        let text = |text: String| CString::new(text).unwrap();
        let (name, portal) = (text(target.name()), text(target.address().to_string()));
        // SAFETY: libiscsi's functions with the types of its headers; strings end in NUL.
        unsafe {
            let library = Library::new("libiscsi.so.7").unwrap();
            let create: Symbol<'_, unsafe extern "C" fn(*const c_char) -> Context> =
                library.get(b"iscsi_create_context\0").unwrap();
            let context = create(c"iqn.2026-11.test.sealblk:other".as_ptr());
            let set: Symbol<'_, unsafe extern "C" fn(Context, *const c_char) -> c_int> =
                library.get(b"iscsi_set_targetname\0").unwrap();
            assert_eq!(set(context, name.as_ptr()), 0);
            let normal: Symbol<'_, unsafe extern "C" fn(Context, c_int) -> c_int> =
                library.get(b"iscsi_set_session_type\0").unwrap();
            assert_eq!(normal(context, 2), 0);
            let login: Symbol<'_, unsafe extern "C" fn(Context, *const c_char, c_int) -> c_int> =
                library.get(b"iscsi_full_connect_sync\0").unwrap();
            assert_eq!(login(context, portal.as_ptr(), 1), 0);
            Self { library, context }
        }
    }

    /// Carries out a command without data on the unit.
    fn command(&self, function: &str) {
        // SAFETY: as above; the first member of a task is its status.
        unsafe {
            let call: Symbol<'_, Call> = self.library.get(function.as_bytes()).unwrap();
            let task = call(self.context, 1);
            assert!(!task.is_null() && *task.cast::<c_int>() == 0, "{function}");
            let free: Symbol<'_, unsafe extern "C" fn(*mut c_void)> =
                self.library.get(b"scsi_free_scsi_task\0").unwrap();
            free(task);
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SAFETY: the context is ours and not used again.
        unsafe {
            let destroy: Symbol<'_, unsafe extern "C" fn(Context) -> c_int> =
                self.library.get(b"iscsi_destroy_context\0").unwrap();
            destroy(self.context);
        }
    }
}

#[test]
fn who_finds_the_unit_reserved_writes_nothing_any_more() {
    let target = Target::new(Like::default());
    let mut rig = Rig::new(&target.uri(), &crate::patient(), 1);
    rig.fill(0, 1);
    let write = rig.write(0, 0);
    assert_eq!(rig.run(write), Ok(STEP as u32));
    let other = Other::login(&target);
    other.command("iscsi_reserve6_sync\0");
    rig.fill(0, 2);
    assert_eq!(rig.run(write), Err(FENCED));
    assert!(matches!(rig.event(), VolumeEvent::Fenced { .. }));
    // The other one may have gone, and left its data behind.
    other.command("iscsi_release6_sync\0");
    drop(other);
    assert_eq!(rig.run(write), Err(FENCED));
    assert_eq!(rig.run(LaneOp::Flush), Err(FENCED));
    let error = rig.volume.write_at(0, b"late").unwrap_err();
    let errno = error.source.as_ref().and_then(std::io::Error::raw_os_error);
    assert_eq!(errno, Some(FENCED), "{error}");
    assert_eq!(std::fs::read(target.image()).unwrap()[0], 1);
}
