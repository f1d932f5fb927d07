//! Listens to what the image's other clients and its operators do: a resize, above all.
//!
//! librbd calls on a thread that its own calls need, so a thread of ours asks what has happened.
// UNSAFETY: calls librbd, and is called by it.
#![expect(unsafe_code, reason = "calls librbd, and is called by it")]

use std::ffi::c_void;
use std::ptr;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;

use sealblk_block::VolumeError;

use super::cluster::check;
use super::image::Image;

/// A watch of an image's header.
pub(super) struct News {
    image: Arc<Image>,
    /// None: there is no watch. (librbd counts them from 0.)
    handle: Option<u64>,
    poke: Box<Poke>,
    thread: Option<JoinHandle<()>>,
}

/// What the callback pokes; none when nobody listens any more.
struct Poke(RwLock<Option<SyncSender<()>>>);

impl News {
    pub(super) fn watch(image: Arc<Image>) -> Result<Self, VolumeError> {
        // One poke waiting is enough: who is poked looks at everything.
        let (send, receive) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("rbd-news".to_owned())
            .spawn({
                let image = image.clone();
                move || {
                    while receive.recv().is_ok() {
                        look(&image);
                    }
                }
            })
            .map_err(|error| VolumeError::io(image.uri(), "starting a thread", error))?;
        let poke = Box::new(Poke(RwLock::new(Some(send))));
        let mut this = Self { image, handle: None, poke, thread: Some(thread) };
        let arg = ptr::from_ref(&*this.poke).cast_mut().cast::<c_void>();
        let mut handle = 0;
        // SAFETY: the image is open; the argument is boxed, and lives until the watch has ended.
        let watched = unsafe {
            let api = this.image.api();
            (api.rbd_update_watch)(this.image.handle(), &raw mut handle, updated, arg)
        };
        check(this.image.uri(), "watching it", watched)?;
        this.handle = Some(handle);
        Ok(this)
    }
}

impl Drop for News {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // It waits for a callback that runs.
            // SAFETY: the watch that was made.
            let ended =
                unsafe { (self.image.api().rbd_update_unwatch)(self.image.handle(), handle) };
            debug_assert_eq!(ended, 0, "librbd knows the watch");
        }
        self.poke.0.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take() {
            // It ends when nobody can poke it any more. What it panicked of was told then.
            let _ = thread.join();
        }
    }
}

extern "C" fn updated(arg: *mut c_void) {
    // SAFETY: the argument of the watch, which lives until the watch has ended.
    let poke = unsafe { &*arg.cast_const().cast::<Poke>() };
    if let Some(send) = &*poke.0.read().unwrap_or_else(PoisonError::into_inner) {
        // Full: it will look anyway.
        let _ = send.try_send(());
    }
}

fn look(image: &Image) {
    // If it can't be asked now, its I/O says why.
    if let Ok(size_bytes) = image.measure_size() {
        image.tell_size(size_bytes);
    }
}
