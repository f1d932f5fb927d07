//! An I/O at the volume: a piece of a request that lies under one key and fits one buffer.

use crate::bounce::Run;
use crate::broken;

/// Direction of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkKind {
    Read,
    Write,
    Flush,
    Discard,
}

/// Where a chunk's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Flush and discard move none.
    None,
    /// In the bounce buffer.
    Bounce(Run),
    /// In the guest's own memory, by the slot's list of pieces.
    Direct,
}

/// An I/O at the volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    /// The request it belongs to.
    pub(crate) slot: u16,
    pub(crate) kind: ChunkKind,
    pub(crate) memory: Memory,
    /// First guest sector.
    pub(crate) sector: u64,
    /// Where the data starts within the request's data, in bytes.
    pub(crate) data_bytes: u64,
    /// Where it goes on the volume, in bytes.
    pub(crate) volume_bytes: u64,
    /// Length in bytes.
    pub(crate) len_bytes: u64,
    /// Bytes moved so far: the volume may do an I/O in parts.
    pub(crate) moved_bytes: u64,
    /// Times the kernel asked to try again since it last moved a byte.
    pub(crate) retries: u8,
    /// It failed and was kept to be tried again.
    pub(crate) held: bool,
}

impl Chunk {
    /// A chunk that moves no data.
    pub(crate) fn without_data(slot: u16, kind: ChunkKind) -> Self {
        Self {
            slot,
            kind,
            memory: Memory::None,
            sector: 0,
            data_bytes: 0,
            volume_bytes: 0,
            len_bytes: 0,
            moved_bytes: 0,
            retries: 0,
            held: false,
        }
    }
}

/// All chunks of a queue; sized once.
pub(crate) struct Chunks {
    chunks: Box<[Option<Chunk>]>,
    free: Vec<u32>,
    /// How many are with the lane.
    at_volume: usize,
    /// How many ever came back from it.
    returned: u64,
}

impl Chunks {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            chunks: vec![None; capacity].into_boxed_slice(),
            free: (0..capacity as u32).rev().collect(),
            at_volume: 0,
            returned: 0,
        }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.chunks.len()
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Keeps a chunk; its id names the I/O. The caller made sure that there is room.
    pub(crate) fn insert(&mut self, chunk: Chunk) -> u32 {
        let Some(id) = self.free.pop() else { broken("a chunk was made without room for it") };
        self.chunks[id as usize] = Some(chunk);
        id
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> &mut Chunk {
        match &mut self.chunks[id as usize] {
            Some(chunk) => chunk,
            None => broken("an I/O came back that nobody had started"),
        }
    }

    pub(crate) fn remove(&mut self, id: u32) -> Chunk {
        let chunk = *self.get_mut(id);
        self.chunks[id as usize] = None;
        self.free.push(id);
        chunk
    }

    pub(crate) fn left(&mut self) {
        self.at_volume += 1;
    }

    pub(crate) fn came_back(&mut self) {
        self.at_volume -= 1;
        self.returned = self.returned.wrapping_add(1);
    }

    /// How many ever came back from the lane.
    pub(crate) fn returned(&self) -> u64 {
        self.returned
    }

    /// How many are with the lane.
    pub(crate) fn at_volume(&self) -> usize {
        self.at_volume
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.chunks.len()
    }
}
