//! Data I/O of one thread: librbd's asynchronous calls.
//!
//! Invariant: each I/O that librbd has owns a reference to its [`Pending`], which its completion gives
//! back: whatever becomes of the lane, a completion that comes late finds the inbox.
// UNSAFETY: hands the caller's memory to librbd, and gets pointers back from it.
#![expect(unsafe_code, reason = "calls librbd, and is called by it")]

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use sealblk_block::VolumeError;
use sealblk_ring::{FileSlot, Full, Ring, Token};

use super::image::Image;
use super::inbox::Inbox;
use super::library::{Api, CompletionT};
use crate::{Buffer, FENCED, Lane, LaneDone, LaneIo, LaneOp};

/// The watch of the inbox among the lane's tokens; it has no other.
const RING: Token = Token::Lane(0);

/// An image as one thread sees it.
pub(super) struct RbdLane {
    image: Arc<Image>,
    inbox: Arc<Inbox>,
    slot: FileSlot,
    /// A poll of the inbox's eventfd is in the ring.
    watched: bool,
    closed: bool,
    /// By I/O id.
    pending: Vec<Arc<Pending>>,
    /// By I/O id.
    moves: Vec<Moves>,
    /// The last list that was taken, kept for its memory.
    list: Vec<(u32, isize)>,
}

/// How many bytes an I/O is to move, and which way.
#[derive(Debug, Clone, Copy)]
enum Moves {
    In(u32),
    Out(u32),
}

/// What an I/O's completion needs.
struct Pending {
    inbox: Arc<Inbox>,
    api: &'static Api,
    id: u32,
}

impl RbdLane {
    pub(super) fn new(image: Arc<Image>, ring: &mut Ring) -> Result<Self, VolumeError> {
        let inbox = Inbox::new()
            .map_err(|error| VolumeError::io(image.uri(), "making an eventfd", error.into()))?;
        let slot = ring.add_file(inbox.event());
        let mut this = Self {
            image,
            inbox: Arc::new(inbox),
            slot,
            watched: false,
            closed: false,
            pending: Vec::new(),
            moves: Vec::new(),
            list: Vec::new(),
        };
        this.watch(ring);
        Ok(this)
    }

    fn watch(&mut self, ring: &mut Ring) {
        if !self.watched && !self.closed {
            self.watched = ring.poll(self.slot, libc::POLLIN as u32, RING).is_ok();
        }
    }

    /// Gives the I/O to librbd. An error comes back as a result like any other.
    ///
    /// # Safety
    /// As [`Lane::submit`].
    unsafe fn start(&self, pending: &Arc<Pending>, op: LaneOp) -> Result<(), i32> {
        if self.image.is_fenced() {
            return Err(FENCED);
        }
        let (api, image) = (self.image.api(), self.image.handle());
        let mut completion = ptr::null_mut();
        let arg = Arc::into_raw(pending.clone());
        // SAFETY: it gives a completion, which will call `finished` with the reference that is its own.
        let made = unsafe {
            let arg = arg.cast_mut().cast::<c_void>();
            (api.rbd_aio_create_completion)(arg, finished, &raw mut completion)
        };
        if made < 0 {
            // SAFETY: nobody took it.
            drop(unsafe { Arc::from_raw(arg) });
            return Err(-made);
        }
        // SAFETY: the image is open. The caller keeps the memory that `op` names mapped until the
        // completion has come; librbd copies a list of pieces during the call. Its writes only read.
        let started = unsafe {
            match op {
                LaneOp::Read { offset_bytes, buffer } => match buffer {
                    Buffer::Flat { addr, len_bytes, .. } => (api.rbd_aio_read)(
                        image,
                        offset_bytes,
                        len_bytes as usize,
                        addr.cast(),
                        completion,
                    ),
                    Buffer::Vectored { iovecs, count, .. } => (api.rbd_aio_readv)(
                        image,
                        iovecs,
                        count.cast_signed(),
                        offset_bytes,
                        completion,
                    ),
                },
                LaneOp::Write { offset_bytes, buffer, .. } => match buffer {
                    Buffer::Flat { addr, len_bytes, .. } => (api.rbd_aio_write)(
                        image,
                        offset_bytes,
                        len_bytes as usize,
                        addr.cast_const().cast(),
                        completion,
                    ),
                    Buffer::Vectored { iovecs, count, .. } => (api.rbd_aio_writev)(
                        image,
                        iovecs,
                        count.cast_signed(),
                        offset_bytes,
                        completion,
                    ),
                },
                LaneOp::Flush => (api.rbd_aio_flush)(image, completion),
                LaneOp::Discard { offset_bytes, len_bytes } => {
                    (api.rbd_aio_discard)(image, offset_bytes, len_bytes, completion)
                }
            }
        };
        if started < 0 {
            // Only arguments are refused here (librbd.cc), and then nothing was begun.
            // SAFETY: both are ours, and in nobody's hands.
            unsafe {
                (api.rbd_aio_release)(completion);
                drop(Arc::from_raw(arg));
            }
            return Err(-started);
        }
        Ok(())
    }

    /// Whether all of an I/O lies on the image; librbd would cut a write at the end without a word.
    fn fits(&self, op: LaneOp) -> bool {
        let (offset_bytes, len_bytes) = match op {
            LaneOp::Read { offset_bytes, buffer } | LaneOp::Write { offset_bytes, buffer, .. } => {
                (offset_bytes, u64::from(buffer.len_bytes()))
            }
            LaneOp::Discard { offset_bytes, len_bytes } => (offset_bytes, len_bytes),
            LaneOp::Flush => return true,
        };
        offset_bytes.checked_add(len_bytes).is_some_and(|end| end <= self.image.reach_bytes())
    }
}

/// librbd's word that an I/O is done, on a thread of its own.
extern "C" fn finished(completion: CompletionT, arg: *mut c_void) {
    // SAFETY: the argument of the completion is a reference that is its own; it completes once.
    let pending = unsafe { Arc::from_raw(arg.cast_const().cast::<Pending>()) };
    // SAFETY: the completion that librbd hands us; done, so it may be released.
    let result = unsafe {
        let result = (pending.api.rbd_aio_get_return_value)(completion);
        (pending.api.rbd_aio_release)(completion);
        result
    };
    pending.inbox.put(pending.id, result);
}

impl Lane for RbdLane {
    unsafe fn submit(&mut self, _ring: &mut Ring, io: LaneIo) -> Result<(), Full> {
        let index = io.id as usize;
        while self.pending.len() <= index {
            let (id, api) = (self.pending.len() as u32, self.image.api());
            self.pending.push(Arc::new(Pending { inbox: self.inbox.clone(), api, id }));
            self.moves.push(Moves::Out(0));
        }
        self.moves[index] = match io.op {
            LaneOp::Read { buffer, .. } => Moves::In(buffer.len_bytes()),
            LaneOp::Write { buffer, .. } => Moves::Out(buffer.len_bytes()),
            LaneOp::Flush | LaneOp::Discard { .. } => Moves::Out(0),
        };
        let started = if self.fits(io.op) {
            // SAFETY: the caller's promise.
            unsafe { self.start(&self.pending[index], io.op) }
        } else {
            Err(libc::EINVAL)
        };
        if let Err(errno) = started {
            self.inbox.put(io.id, -(errno as isize));
        }
        Ok(())
    }

    fn push_out(&mut self, ring: &mut Ring) {
        // The ring was full when it should have been watched again.
        self.watch(ring);
    }

    fn complete(&mut self, ring: &mut Ring, _token: u64, _result: i32, done: &mut Vec<LaneDone>) {
        self.watched = false;
        let mut list = std::mem::take(&mut self.list);
        self.inbox.take(&mut list);
        done.extend(list.drain(..).map(|(id, result)| {
            let result = match (self.moves[id as usize], result) {
                (_, ..0) => Err(self.image.errno(result)),
                // Fewer than asked for: the image has shrunk, and the memory behind them is as it was.
                (Moves::In(len_bytes), _) => {
                    Ok(u32::try_from(result).map_or(len_bytes, |n| n.min(len_bytes)))
                }
                // What librbd returns for a write is 0 or its length, depending on its age.
                (Moves::Out(len_bytes), _) => Ok(len_bytes),
            };
            LaneDone { id, result }
        }));
        self.list = list;
        self.watch(ring);
    }

    fn close(&mut self, ring: &mut Ring) {
        self.closed = true;
        // A poll that stays in the ring points to nothing, and goes with it.
        let _ = ring.cancel(RING);
        ring.remove_file(self.slot);
    }
}
