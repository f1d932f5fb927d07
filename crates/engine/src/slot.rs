//! A request in work. Slots are indexed by the head descriptor, which names a request uniquely for
//! as long as the guest keeps the rules; that it does is checked.

use sealblk_block::{Extent, Op, SECTOR_BYTES, Status};
use sealblk_virtqueue::Chain;
use sealblk_virtqueue::blk::Request;

/// Pieces of memory that a slot has room for from the start: the header, the status, and 128 KiB
/// in single pages. A slot that meets a longer chain grows once and keeps the room.
const PIECES: usize = 34;

/// What one head descriptor stands for now.
#[derive(Default)]
pub(crate) struct Slot {
    /// The request's descriptors; a buffer that is used again and again.
    pub(crate) chain: Chain,
    /// The request, while there is one.
    pub(crate) request: Option<Request>,
    /// Sectors it covers: one range, or several of a discard or write-zeroes.
    pub(crate) ranges: Vec<Extent>,
    /// How far chunks have been made.
    pub(crate) next_range: usize,
    /// Sectors of that range for which chunks have been made.
    pub(crate) next_sector: u64,
    /// Bytes of the request's data for which chunks have been made.
    pub(crate) data_bytes: u64,
    /// Chunks that have not ended.
    pub(crate) chunks: u32,
    /// Waits in line for room, or for its next slice.
    pub(crate) waits: bool,
    /// Is parked: it has not begun.
    pub(crate) parked: bool,
    /// A rotation waits for its end.
    pub(crate) barred: bool,
    /// Is moved in slices.
    pub(crate) large: bool,
    /// How it ends, unless something else goes wrong.
    pub(crate) status: Option<Status>,
    /// Pieces of guest memory for a direct I/O.
    pub(crate) iovecs: Vec<libc::iovec>,
}

impl Slot {
    /// Takes a request in, with nothing done for it yet.
    pub(crate) fn begin(&mut self, request: Request) {
        self.request = Some(request);
        self.next_range = 0;
        self.next_sector = 0;
        self.data_bytes = 0;
        self.chunks = 0;
        self.waits = false;
        self.parked = false;
        self.barred = false;
        self.large = false;
        self.status = None;
    }

    /// Bytes that pass through the cipher for a request of this kind.
    pub(crate) fn moved_bytes(&self, op: Op) -> u64 {
        match op {
            Op::Read | Op::Write | Op::WriteZeroes { .. } => {
                self.ranges.iter().map(|range| range.sectors * SECTOR_BYTES).sum()
            }
            Op::Flush | Op::Discard | Op::GetId => 0,
        }
    }

    /// Whether no more chunks will be made: all are, or one went wrong.
    pub(crate) fn all_issued(&self) -> bool {
        self.status.is_some() || self.next_range >= self.ranges.len()
    }
}

/// All slots of a queue.
pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// Requests in work.
    busy: usize,
}

impl Slots {
    pub(crate) fn new(queue_size_max: u16) -> Self {
        let slot = |_| Slot {
            chain: Chain::with_capacity(PIECES),
            ranges: Vec::with_capacity(1),
            iovecs: Vec::with_capacity(PIECES),
            ..Slot::default()
        };
        Self { slots: (0..queue_size_max).map(slot).collect(), busy: 0 }
    }

    pub(crate) fn get_mut(&mut self, head: u16) -> &mut Slot {
        &mut self.slots[usize::from(head)]
    }

    /// Requests in work.
    pub(crate) fn busy(&self) -> usize {
        self.busy
    }

    /// Every slot that holds a request.
    pub(crate) fn in_work(&mut self) -> impl Iterator<Item = &mut Slot> {
        let none = self.busy == 0;
        self.slots.iter_mut().take_while(move |_| !none).filter(|slot| slot.request.is_some())
    }

    pub(crate) fn started(&mut self) {
        self.busy += 1;
    }

    pub(crate) fn ended(&mut self) {
        self.busy -= 1;
    }
}
