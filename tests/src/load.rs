//! Verified random load: many requests of all kinds under way at once, each read compared with what
//! the disk must hold.
//!
//! Contract: requests under way don't overlap a write that is under way, so every byte has one
//! right value; only what was discarded may be anything until it is written to again. A disk whose
//! daemon died may have, in each sector of a write that was under way, what was there or what was
//! written: [`Load::after_a_crash`] looks which.

use anyhow::{Result, ensure};

use crate::client::{Client, ClientOptions};
use crate::pattern::Pattern;

const SECTOR: usize = 512;

/// Longest request in bytes; every request has so much memory of its own.
const SLOT: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    kind: Kind,
    offset: usize,
    len: usize,
    /// Of what a write writes.
    seed: u64,
}

impl Request {
    fn overlaps(&self, offset: usize, len: usize) -> bool {
        offset < self.offset + self.len && self.offset < offset + len
    }

    /// What the range holds afterwards; nothing: anything, or what it held before.
    fn result(&self) -> Option<Vec<u8>> {
        match self.kind {
            Kind::Write => Some(Pattern(self.seed).bytes(self.offset as u64, self.len)),
            Kind::Zeroes => Some(vec![0; self.len]),
            Kind::Read | Kind::Discard | Kind::Flush => None,
        }
    }
}

/// A load on one disk.
pub struct Load {
    expected: Vec<u8>,
    /// By sector: what it holds is known.
    known: Vec<bool>,
    under_way: Vec<Option<Request>>,
    queues: usize,
    depth: usize,
    unit: usize,
    discards: bool,
    random: u64,
    /// Requests that came back.
    pub done: u64,
    /// Whether a flush may fail, which is told even to a guest that holds (docs/operations.md).
    pub flushes_may_fail: bool,
}

impl Load {
    /// A load on a disk that holds `expected`, `depth` requests at a time in each of the queues.
    pub fn new(expected: Vec<u8>, queues: u16, depth: usize, discards: bool) -> Self {
        let queues = usize::from(queues);
        Self {
            known: vec![true; expected.len() / SECTOR],
            under_way: vec![None; queues * depth],
            expected,
            queues,
            depth,
            unit: SECTOR,
            discards,
            random: 0x1234_5678_9abc_def1,
            done: 0,
            flushes_may_fail: false,
        }
    }

    /// A client with memory for the load.
    pub fn connect(&mut self, socket: &std::path::Path) -> Result<Client> {
        let options = ClientOptions {
            queues: u16::try_from(self.queues)?,
            memory_bytes: (self.queues * self.depth + 1) * SLOT,
            read_only: false,
        };
        let client = Client::connect(socket, options)?;
        self.unit = usize::try_from(client.property("request-alignment")?)?;
        ensure!(client.capacity_bytes()? == self.expected.len() as u64, "another capacity");
        Ok(client)
    }

    fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).unwrap_or(0) % limit
    }

    fn choose(&mut self) -> Request {
        let kind = match self.below(32) {
            0 => Kind::Flush,
            1 | 2 => Kind::Zeroes,
            3 | 4 if self.discards => Kind::Discard,
            5..=16 => Kind::Read,
            _ => Kind::Write,
        };
        if kind == Kind::Flush {
            return Request { kind, offset: 0, len: 0, seed: 0 };
        }
        loop {
            let len = (self.below(SLOT / self.unit) + 1) * self.unit;
            let offset = self.below((self.expected.len() - len) / self.unit + 1) * self.unit;
            let mut beside = self.under_way.iter().flatten();
            if beside.all(|other| {
                !other.overlaps(offset, len) || (kind, other.kind) == (Kind::Read, Kind::Read)
            }) {
                return Request { kind, offset, len, seed: self.random };
            }
        }
    }

    fn send(&mut self, client: &mut Client, tag: usize) -> Result<()> {
        let request = self.choose();
        let Request { kind, offset, len, .. } = request;
        let (queue, at, place) = (tag / self.depth, tag * SLOT, offset as u64);
        match kind {
            Kind::Read => {
                client.fill(at, &vec![0xa5; len])?;
                client.start_read(queue, place, at, len, tag)?;
            }
            Kind::Write => {
                client.fill(at, &request.result().unwrap_or_default())?;
                client.start_write(queue, place, at, len, tag)?;
            }
            Kind::Zeroes => client.start_write_zeroes(queue, place, len as u64, tag)?,
            Kind::Discard => client.start_discard(queue, place, len as u64, tag)?,
            Kind::Flush => client.start_flush(queue, tag)?,
        }
        self.under_way[tag] = Some(request);
        Ok(())
    }

    fn settle(&mut self, client: &Client, tag: usize, result: i32) -> Result<()> {
        let Some(request) = self.under_way[tag].take() else {
            anyhow::bail!("request {tag} came back twice");
        };
        let may_fail = self.flushes_may_fail && request.kind == Kind::Flush;
        let right = result == 0 || may_fail;
        ensure!(right, "{request:?}: {}", std::io::Error::from_raw_os_error(-result));
        self.done += 1;
        let Request { kind, offset, len, .. } = request;
        if kind == Kind::Read {
            self.compare(offset, &client.take(tag * SLOT, len)?)?;
        } else if let Some(data) = request.result() {
            self.expected[offset..offset + len].copy_from_slice(&data);
        }
        if kind != Kind::Read {
            self.known[offset / SECTOR..(offset + len) / SECTOR].fill(kind != Kind::Discard);
        }
        Ok(())
    }

    fn compare(&self, offset: usize, found: &[u8]) -> Result<()> {
        for (index, sector) in found.chunks(SECTOR).enumerate() {
            let at = offset + index * SECTOR;
            let right = !self.known[at / SECTOR] || self.expected[at..at + SECTOR] == *sector;
            ensure!(right, "the sector at {at} is wrong, after {} requests", self.done);
        }
        Ok(())
    }

    /// Keeps all queues full until `over` says so; it is asked after every 64 requests or so.
    pub fn run(
        &mut self,
        client: &mut Client,
        mut over: impl FnMut(u64) -> Result<bool>,
    ) -> Result<()> {
        let mut asked = self.done;
        loop {
            for tag in 0..self.under_way.len() {
                if self.under_way[tag].is_none() {
                    self.send(client, tag)?;
                }
            }
            self.collect(client)?;
            if self.done - asked >= 64 {
                asked = self.done;
                if over(self.done)? {
                    return Ok(());
                }
            }
        }
    }

    /// Fills all queues and waits for nothing: there are requests under way that see what comes.
    pub fn fill(&mut self, client: &mut Client) -> Result<()> {
        for tag in 0..self.under_way.len() {
            if self.under_way[tag].is_none() {
                self.send(client, tag)?;
            }
        }
        for queue in 0..self.queues {
            for done in client.complete(queue, 0)? {
                self.settle(client, done.tag, done.result)?;
            }
        }
        Ok(())
    }

    fn collect(&mut self, client: &mut Client) -> Result<()> {
        for queue in 0..self.queues {
            let tags = queue * self.depth..(queue + 1) * self.depth;
            let any = self.under_way[tags].iter().any(Option::is_some);
            for done in client.complete(queue, usize::from(any))? {
                self.settle(client, done.tag, done.result)?;
            }
        }
        Ok(())
    }

    /// Waits for everything that is under way, and reads the whole disk.
    pub fn check_all(&mut self, client: &mut Client) -> Result<()> {
        while self.under_way.iter().any(Option::is_some) {
            self.collect(client)?;
        }
        let found = client.read(0, self.expected.len())?;
        self.compare(0, &found)
    }

    /// Compares the whole disk as others decrypted it.
    pub fn compare_all(&self, found: &[u8]) -> Result<()> {
        ensure!(found.len() == self.expected.len(), "{} bytes", found.len());
        self.compare(0, found)
    }

    /// With a new client, after the daemon died: finds out what became of the requests that were
    /// under way.
    pub fn after_a_crash(&mut self, client: &mut Client) -> Result<()> {
        for tag in 0..self.under_way.len() {
            let Some(request) = self.under_way[tag].take() else { continue };
            let Request { kind, offset, len, .. } = request;
            if kind == Kind::Discard {
                self.known[offset / SECTOR..(offset + len) / SECTOR].fill(false);
            }
            let Some(new) = request.result() else { continue };
            let found = client.read(offset as u64, len)?;
            for (index, sector) in found.chunks(SECTOR).enumerate() {
                let at = offset + index * SECTOR;
                let old = !self.known[at / SECTOR] || self.expected[at..at + SECTOR] == *sector;
                let written = new[at - offset..][..SECTOR] == *sector;
                ensure!(old || written, "the sector at {at} is neither old nor new: {request:?}");
                self.known[at / SECTOR] |= written;
                self.expected[at..at + SECTOR].copy_from_slice(sector);
            }
        }
        Ok(())
    }
}
