//! Large requests wait in a line of their own and are moved a slice per turn of the loop, so that
//! small ones pass them: sealing 1 MiB takes as long as many small requests do in all.
//!
//! Contract: virtio orders no requests in flight, so passing is allowed. A slice is one chunk. Data
//! that came back goes first: it frees room.
//! Invariant: large requests never fill the bounce buffer, so a small one finds room beside them.

use std::collections::VecDeque;

/// Requests with more data than this go through the line.
pub(crate) const LARGE_BYTES: u64 = 64 << 10;

/// What is to be done for a large request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slice {
    /// Make its next chunk.
    Issue {
        /// Head of the request.
        head: u16,
    },
    /// Take out what a chunk has read.
    Open {
        /// Id of the chunk.
        chunk: u32,
    },
}

/// The line.
pub(crate) struct Line {
    opens: VecDeque<u32>,
    issues: VecDeque<u16>,
    /// Bounce buffer bytes that large requests may hold.
    share_bytes: usize,
    held_bytes: usize,
}

impl Line {
    /// For a queue with this many requests and chunks, and a bounce buffer of `bounce_bytes`, of
    /// which a quarter stays free for small requests.
    pub(crate) fn new(requests: usize, chunks: usize, bounce_bytes: usize) -> Self {
        Self {
            opens: VecDeque::with_capacity(chunks),
            issues: VecDeque::with_capacity(requests),
            share_bytes: bounce_bytes / 4 * 3,
            held_bytes: 0,
        }
    }

    /// A large request is to be started.
    pub(crate) fn add(&mut self, head: u16) {
        self.issues.push_back(head);
    }

    /// A chunk of a large request has been read.
    pub(crate) fn add_read(&mut self, chunk: u32) {
        self.opens.push_back(chunk);
    }

    /// Bytes of the bounce buffer that a large request may take now.
    pub(crate) fn room_bytes(&self) -> usize {
        self.share_bytes.saturating_sub(self.held_bytes)
    }

    /// A large request took room.
    pub(crate) fn takes(&mut self, bytes: usize) {
        self.held_bytes += bytes;
    }

    /// A large request gave room back.
    pub(crate) fn gives(&mut self, bytes: usize) {
        self.held_bytes -= bytes;
    }

    /// What is to be done next, if it can be. A request stays in front until it is
    /// [finished](Self::issued).
    pub(crate) fn next(&mut self) -> Option<Slice> {
        if let Some(chunk) = self.opens.pop_front() {
            return Some(Slice::Open { chunk });
        }
        let &head = self.issues.front().filter(|_| self.room_bytes() > 0)?;
        Some(Slice::Issue { head })
    }

    /// All chunks of the request in front have been made, or it waits elsewhere.
    pub(crate) fn issued(&mut self) {
        self.issues.pop_front();
    }

    /// The next request that waits for the room of others, when the queue stops.
    pub(crate) fn abandon(&mut self) -> Option<u16> {
        self.issues.pop_front()
    }
}
