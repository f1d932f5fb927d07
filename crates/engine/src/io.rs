//! From a request to I/Os at the volume and back: the only file of this crate that touches memory
//! by address.
//!
//! The cipher is the copy: a write is encrypted from guest memory into the bounce buffer, a read
//! is decrypted from the bounce buffer into guest memory. A plain disk hands the guest's memory to
//! the volume as it is, where the alignment allows.
// UNSAFETY: guest memory and the bounce buffer are handed to the cipher and the lane by address.
#![expect(unsafe_code, reason = "guest memory is raw memory")]

use std::os::raw::c_void;

use sealblk_block::{Extent, Op, SECTOR_BYTES, Span, Status};
use sealblk_cipher::{copy_in, copy_out, open, seal};
use sealblk_ring::{Full, Ring};
use sealblk_volume::{Buffer, LaneDone, LaneIo, LaneOp};

use crate::bounce::Bounce;
use crate::broken;
use crate::chunk::{Chunk, ChunkKind, Memory};
use crate::line::Slice;
use crate::worker::Worker;

/// Most pieces in one vectored I/O (`UIO_MAXIOV`, include/uapi/linux/uio.h).
const IOVECS_MAX: usize = 1024;

/// Longest direct I/O in bytes: below the kernel's own limit (`MAX_RW_COUNT`), whole blocks.
const DIRECT_BYTES_MAX: u64 = 1 << 30;

/// What is served from memory at once, in bytes: small requests shall pass.
const MEMORY_PART_BYTES: u64 = 256 << 10;

/// How often the kernel may ask to try an I/O again without moving a byte.
const RETRIES_MAX: u8 = 64;

/// What became of an attempt to make a request's next chunk.
enum Issued {
    /// It is on its way; there may be more.
    Some,
    /// There were none left.
    All,
    /// There is no room for it.
    NoRoom,
}

/// Makes the bounce buffer known to the ring; none if the kernel refuses.
pub(crate) fn register(ring: &mut Ring, bounce: &mut Bounce) -> Option<u16> {
    let (addr, len) = bounce.whole();
    // SAFETY: a worker drops its ring before its bounce buffer (order of its fields), and the
    // buffer never moves.
    unsafe { ring.register_buffer(addr, len) }
}

impl Worker {
    /// Makes and submits chunks for a request until all are made or room runs out; false: it ran
    /// out, and the request must wait.
    pub(super) fn issue(&mut self, head: u16) -> bool {
        loop {
            match self.issue_chunk(head) {
                Issued::Some => {}
                Issued::All => return true,
                Issued::NoRoom => return false,
            }
        }
    }

    /// Makes and submits the next chunk of a request.
    fn issue_chunk(&mut self, head: u16) -> Issued {
        let slot = self.slots.get_mut(head);
        let Some(request) = slot.request else { broken("a request without a slot is issued") };
        if slot.all_issued() {
            return Issued::All;
        }
        if !self.chunks.has_room() {
            return Issued::NoRoom;
        }
        let large = slot.large;
        let (op, range) = (request.op, slot.ranges[slot.next_range]);
        let rest = Extent::new(range.start + slot.next_sector, range.sectors - slot.next_sector);
        // Only reads come to a zone whose memory is served.
        let rest = self.fence.cut(rest);
        if op == Op::Read && self.fence.memory(rest).is_some() {
            self.read_from_memory(head, rest, range.sectors);
            return Issued::Some;
        }
        let Some(route) = self.keys.route(rest) else {
            broken("a request past the key map's end was let in")
        };
        let (sectors, volume_bytes) = (route.sectors, route.volume_sector * SECTOR_BYTES);
        let plain = route.cipher.is_none();
        let mut chunk = Chunk {
            kind: match op {
                Op::Read => ChunkKind::Read,
                Op::Write | Op::WriteZeroes { .. } => ChunkKind::Write,
                Op::Discard => ChunkKind::Discard,
                Op::Flush | Op::GetId => broken("a request without a range is issued"),
            },
            sector: rest.start,
            data_bytes: slot.data_bytes,
            volume_bytes,
            len_bytes: sectors * SECTOR_BYTES,
            ..Chunk::without_data(head, ChunkKind::Flush)
        };
        if chunk.kind != ChunkKind::Discard {
            let moves_data = matches!(op, Op::Read | Op::Write);
            let whole = chunk.data_bytes == 0 && chunk.len_bytes == request.data_bytes;
            if plain && moves_data && whole && self.can_go_direct(head) {
                chunk.memory = Memory::Direct;
            } else {
                let run_max = self.bounce.run_bytes_max();
                let most = if large { self.line.room_bytes().min(run_max) } else { run_max };
                let bytes = chunk.len_bytes.min(most as u64) as usize;
                let Some(run) = self.bounce.take(bytes) else { return Issued::NoRoom };
                chunk.memory = Memory::Bounce(run);
                chunk.len_bytes = chunk.len_bytes.min(run.bytes() as u64);
            }
        }
        if let Memory::Bounce(run) = chunk.memory
            && large
        {
            self.line.takes(run.bytes());
        }
        let slot = self.slots.get_mut(head);
        slot.chunks += 1;
        slot.next_sector += chunk.len_bytes / SECTOR_BYTES;
        slot.data_bytes += chunk.len_bytes;
        if slot.next_sector == range.sectors {
            slot.next_range += 1;
            slot.next_sector = 0;
        }
        if chunk.kind == ChunkKind::Write {
            self.fill(&chunk, op);
        }
        let id = self.chunks.insert(chunk);
        self.send(id);
        Issued::Some
    }

    /// Serves the next part of a read from the ciphertext that a rotation has in hand; no I/O.
    fn read_from_memory(&mut self, head: u16, part: Extent, range_sectors: u64) {
        let slot = self.slots.get_mut(head);
        let most = MEMORY_PART_BYTES / SECTOR_BYTES;
        let part = Extent::new(part.start, part.sectors.min(most));
        let Some(memory) = self.fence.memory(part) else { broken("a zone in hand is gone") };
        let Some(route) = self.keys.route(part) else { broken("a zone lies in no segment") };
        let len = (route.sectors * SECTOR_BYTES) as usize;
        self.turn_bytes += len;
        let Some(request) = &slot.request else { broken("a read without a request") };
        pieces(request.data(&slot.chain), slot.data_bytes as usize, len, &mut self.pieces);
        let began = self.watch.cipher_begins(head);
        match route.cipher {
            // SAFETY: the pieces lie in guest memory, which stays mapped while the queue runs; the
            // fence holds the zone's memory, which nobody writes to while it is shared, and it has
            // the whole part (`Fence::memory`).
            Some(cipher) => unsafe { open(cipher, route.iv, memory, &self.pieces, len) },
            // SAFETY: as above.
            None => unsafe { copy_out(memory, &self.pieces, len) },
        }
        self.watch.cipher_ends(head, began);
        slot.next_sector += route.sectors;
        slot.data_bytes += len as u64;
        if slot.next_sector == range_sectors {
            slot.next_range += 1;
            slot.next_sector = 0;
        }
    }

    /// Moves the next slice of the large requests; whether there was one to move.
    pub(super) fn move_slice(&mut self) -> bool {
        match self.line.next() {
            Some(Slice::Open { chunk: id }) => {
                let chunk = *self.chunks.get_mut(id);
                self.empty(&chunk);
                self.end_chunk(id, None);
            }
            Some(Slice::Issue { head }) => match self.issue_chunk(head) {
                Issued::Some => {}
                Issued::All => {
                    self.line.issued();
                    self.all_issued(head);
                }
                Issued::NoRoom => {
                    self.line.issued();
                    self.waiting.push_back(head);
                }
            },
            None => return false,
        }
        true
    }

    /// Submits a flush of the volume for a request.
    pub(super) fn issue_flush(&mut self, head: u16) -> bool {
        if !self.chunks.has_room() {
            return false;
        }
        self.slots.get_mut(head).chunks = 1;
        let id = self.chunks.insert(Chunk::without_data(head, ChunkKind::Flush));
        self.send(id);
        true
    }

    /// Whether the guest's memory suits the volume; lists its pieces in the slot if so.
    fn can_go_direct(&mut self, head: u16) -> bool {
        let align = self.memory_align;
        let slot = self.slots.get_mut(head);
        let Some(request) = &slot.request else { return false };
        let spans = request.data(&slot.chain);
        let suits = |span: &Span| span.addr.is_multiple_of(align) && span.len.is_multiple_of(align);
        if request.data_bytes > DIRECT_BYTES_MAX
            || spans.len() > IOVECS_MAX
            || !spans.iter().all(suits)
        {
            return false;
        }
        slot.iovecs.clear();
        slot.iovecs.extend(spans.iter().map(|span| libc::iovec {
            iov_base: span.as_mut_ptr().cast::<c_void>(),
            iov_len: span.len,
        }));
        true
    }

    /// Puts what a write chunk writes into its bounce buffer, encrypted.
    fn fill(&mut self, chunk: &Chunk, op: Op) {
        let Memory::Bounce(run) = chunk.memory else { return };
        let (addr, len) = (self.bounce.addr(run), chunk.len_bytes as usize);
        self.turn_bytes += len;
        let extent = Extent::new(chunk.sector, chunk.len_bytes / SECTOR_BYTES);
        let Some(route) = self.keys.route(extent) else { broken("a chunk lies in no segment") };
        let began = self.watch.cipher_begins(chunk.slot);
        if matches!(op, Op::WriteZeroes { .. }) {
            // SAFETY: the run is ours and has room for `len` bytes.
            unsafe { addr.write_bytes(0, len) };
            if let Some(cipher) = route.cipher {
                // SAFETY: in place is allowed, `len` is whole encryption sectors (checked when the
                // request was let in).
                unsafe { cipher.encrypt(route.iv, addr, addr, len) };
            }
            self.watch.cipher_ends(chunk.slot, began);
            return;
        }
        let slot = self.slots.get_mut(chunk.slot);
        let Some(request) = &slot.request else { broken("a chunk without a request") };
        pieces(request.data(&slot.chain), chunk.data_bytes as usize, len, &mut self.pieces);
        match route.cipher {
            // SAFETY: the pieces lie in guest memory, which stays mapped while the queue runs, and
            // make up `len` bytes; the run is ours and has room for them.
            Some(cipher) => unsafe { seal(cipher, route.iv, &self.pieces, addr, len) },
            // SAFETY: as above.
            None => unsafe { copy_in(&self.pieces, addr, len) },
        }
        self.watch.cipher_ends(chunk.slot, began);
    }

    /// Takes what a read chunk read out of its bounce buffer, decrypted.
    fn empty(&mut self, chunk: &Chunk) {
        let Memory::Bounce(run) = chunk.memory else { return };
        let (addr, len) = (self.bounce.addr(run), chunk.len_bytes as usize);
        self.turn_bytes += len;
        let extent = Extent::new(chunk.sector, chunk.len_bytes / SECTOR_BYTES);
        let Some(route) = self.keys.route(extent) else { broken("a chunk lies in no segment") };
        let began = self.watch.cipher_begins(chunk.slot);
        let slot = self.slots.get_mut(chunk.slot);
        let Some(request) = &slot.request else { broken("a chunk without a request") };
        pieces(request.data(&slot.chain), chunk.data_bytes as usize, len, &mut self.pieces);
        match route.cipher {
            // SAFETY: as in `fill`, the other way round.
            Some(cipher) => unsafe { open(cipher, route.iv, addr, &self.pieces, len) },
            // SAFETY: as above.
            None => unsafe { copy_out(addr, &self.pieces, len) },
        }
        self.watch.cipher_ends(chunk.slot, began);
    }

    /// Hands a chunk, or what is left of it, to the lane.
    pub(super) fn send(&mut self, id: u32) {
        let durable = !self.writeback;
        let registered = self.registered;
        let chunk = *self.chunks.get_mut(id);
        let (offset_bytes, moved) = (chunk.volume_bytes + chunk.moved_bytes, chunk.moved_bytes);
        let len_bytes = (chunk.len_bytes - moved) as u32;
        let buffer = match chunk.memory {
            Memory::Bounce(run) => {
                // SAFETY: fewer bytes have moved than the run has.
                let addr = unsafe { self.bounce.addr(run).add(moved as usize) };
                Buffer::Flat { addr, len_bytes, registered }
            }
            Memory::Direct => {
                let iovecs = &self.slots.get_mut(chunk.slot).iovecs;
                match iovecs.as_slice() {
                    // The kernel takes a single piece for less without a list around it.
                    [one] => {
                        Buffer::Flat { addr: one.iov_base.cast(), len_bytes, registered: None }
                    }
                    list => {
                        let count = list.len() as u32;
                        Buffer::Vectored { iovecs: list.as_ptr(), count, len_bytes }
                    }
                }
            }
            Memory::None => {
                Buffer::Flat { addr: std::ptr::null_mut(), len_bytes: 0, registered: None }
            }
        };
        let op = match chunk.kind {
            ChunkKind::Read => LaneOp::Read { offset_bytes, buffer },
            ChunkKind::Write => LaneOp::Write { offset_bytes, buffer, durable },
            ChunkKind::Flush => LaneOp::Flush,
            ChunkKind::Discard => LaneOp::Discard { offset_bytes, len_bytes: chunk.len_bytes },
        };
        // SAFETY: the run is given back, the slot's list changed and the guest's memory let go only
        // after the chunk has come back.
        match unsafe { self.lane.submit(&mut self.ring, LaneIo { id, op }) } {
            Ok(()) => {
                self.chunks.left();
                self.watch.left(chunk.slot);
            }
            Err(Full) => self.unsent.push(id),
        }
    }

    /// Submits what the ring had no room for; whether there was something.
    pub(super) fn send_unsent(&mut self) -> bool {
        let any = !self.unsent.is_empty();
        for _ in 0..self.unsent.len() {
            let id = self.unsent.swap_remove(0);
            self.send(id);
        }
        any
    }

    /// A chunk came back from the lane.
    pub(super) fn chunk_done(&mut self, done: LaneDone) {
        self.chunks.came_back();
        let chunk = self.chunks.get_mut(done.id);
        self.watch.came_back(chunk.slot);
        match done.result {
            Ok(bytes) => {
                let moves_data = chunk.memory != Memory::None;
                chunk.moved_bytes += u64::from(bytes);
                chunk.retries = 0;
                if chunk.moved_bytes > chunk.len_bytes && moves_data {
                    broken("the volume moved more than it was asked to");
                }
                if !moves_data || chunk.moved_bytes == chunk.len_bytes {
                    if std::mem::take(&mut chunk.held) {
                        self.hold.waits_no_more();
                    }
                    if self.path.awaits_answer() {
                        self.volume_answers();
                    }
                    let chunk = *self.chunks.get_mut(done.id);
                    if chunk.kind == ChunkKind::Read {
                        if self.slots.get_mut(chunk.slot).large {
                            return self.line.add_read(done.id);
                        }
                        self.empty(&chunk);
                    }
                    self.end_chunk(done.id, None);
                } else if bytes == 0 {
                    // The volume ended early: it is shorter than it was when it was opened.
                    self.chunk_failed(done.id, libc::EIO);
                } else {
                    let chunk = *chunk;
                    if chunk.memory == Memory::Direct {
                        advance(&mut self.slots.get_mut(chunk.slot).iovecs, bytes as usize);
                    }
                    self.send(done.id);
                }
            }
            Err(libc::EINTR | libc::EAGAIN)
                if chunk.kind != ChunkKind::Flush && chunk.retries < RETRIES_MAX =>
            {
                chunk.retries += 1;
                self.send(done.id);
            }
            Err(errno) => self.chunk_failed(done.id, errno),
        }
    }

    /// Ends a chunk, and its request with it if it was the last.
    pub(super) fn end_chunk(&mut self, id: u32, failure: Option<Status>) {
        let chunk = self.drop_chunk(id);
        let slot = self.slots.get_mut(chunk.slot);
        if failure.is_some() {
            slot.status = failure;
        }
        if slot.chunks == 0 && slot.all_issued() && !slot.waits {
            self.complete(chunk.slot);
        }
    }

    /// Gives up what a chunk holds.
    pub(super) fn drop_chunk(&mut self, id: u32) -> Chunk {
        let chunk = self.chunks.remove(id);
        if chunk.held {
            self.hold.waits_no_more();
        }
        let slot = self.slots.get_mut(chunk.slot);
        slot.chunks -= 1;
        if let Memory::Bounce(run) = chunk.memory {
            if slot.large {
                self.line.gives(run.bytes());
            }
            self.bounce.give(run);
        }
        chunk
    }
}

/// The part of `spans` from `skip` bytes on, `len` bytes long.
fn pieces(spans: &[Span], mut skip: usize, mut len: usize, out: &mut Vec<Span>) {
    out.clear();
    for span in spans {
        if len == 0 {
            break;
        }
        if skip >= span.len {
            skip -= span.len;
            continue;
        }
        let piece = span.slice(skip, len);
        skip = 0;
        len -= piece.len;
        out.push(piece);
    }
    if len != 0 {
        broken("a request has less data than was checked");
    }
}

/// Takes `bytes` off the front of the list.
fn advance(iovecs: &mut Vec<libc::iovec>, mut bytes: usize) {
    let mut whole = 0;
    for iovec in iovecs.iter_mut() {
        if bytes < iovec.iov_len {
            iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            iovec.iov_len -= bytes;
            break;
        }
        bytes -= iovec.iov_len;
        whole += 1;
    }
    iovecs.drain(..whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(addr: usize, len: usize) -> Span {
        Span { addr, len }
    }

    #[test]
    fn pieces_of_a_request() {
        let spans = [span(0x1000, 100), span(0x2000, 0), span(0x3000, 50)];
        let mut out = Vec::new();
        pieces(&spans, 0, 150, &mut out);
        assert_eq!(out, [span(0x1000, 100), span(0x3000, 50)]);
        pieces(&spans, 90, 20, &mut out);
        assert_eq!(out, [span(0x1064 - 10, 10), span(0x3000, 10)]);
        pieces(&spans, 100, 50, &mut out);
        assert_eq!(out, [span(0x3000, 50)]);
        pieces(&spans, 7, 0, &mut out);
        assert_eq!(out, []);
    }

    #[test]
    fn a_list_of_pieces_goes_on_where_it_ended() {
        let iovec = |addr: usize, iov_len| libc::iovec { iov_base: addr as *mut c_void, iov_len };
        let mut list = vec![iovec(0x1000, 512), iovec(0x2000, 1024), iovec(0x3000, 512)];
        advance(&mut list, 512);
        assert_eq!((list.len(), list[0].iov_base as usize), (2, 0x2000));
        advance(&mut list, 600);
        assert_eq!((list[0].iov_base as usize, list[0].iov_len), (0x2258, 424));
        advance(&mut list, 424 + 100);
        assert_eq!((list.len(), list[0].iov_base as usize, list[0].iov_len), (1, 0x3064, 412));
    }
}
