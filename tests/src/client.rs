//! A third party's vhost-user-blk client: the `blkio` crate, the core of libblkio.

// UNSAFETY: blkio reports completions in `MaybeUninit` slots that it says how many it filled.
#![expect(unsafe_code, reason = "reads the completions that blkio says it filled")]

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use blkio::{Blkio, Blkioq, MemoryRegion, ReqFlags};
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

/// How a client connects.
#[derive(Debug, Clone, Copy)]
pub struct ClientOptions {
    /// Number of virtqueues.
    pub queues: u16,
    /// Bytes of memory shared with the daemon, for the data of requests.
    pub memory_bytes: usize,
    /// Accept a disk that can't be written.
    pub read_only: bool,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { queues: 1, memory_bytes: 8 << 20, read_only: false }
    }
}

/// A finished request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// The number given with the request.
    pub tag: usize,
    /// 0, or an error number negated.
    pub result: i32,
}

/// A connection to a disk. Requests take their data from its shared memory.
pub struct Client {
    // Dropped in this order: queues, connection, memory.
    queues: Vec<Blkioq>,
    device: Blkio,
    memory: MmapRegion,
    _file: File,
}

/// No request takes longer, or something hangs.
const LIMIT: Duration = Duration::from_secs(60);

impl Client {
    /// Connects to the disk on `socket`.
    pub fn connect(socket: &Path, options: ClientOptions) -> Result<Self> {
        let mut device = Blkio::new("virtio-blk-vhost-user").map_err(said("blkio"))?;
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        device.set_str("path", path).map_err(said("path"))?;
        device.set_bool("read-only", options.read_only).map_err(said("read-only"))?;
        device.connect().map_err(said("connect"))?;
        device.set_i32("num-queues", options.queues.into()).map_err(said("num-queues"))?;
        let queues = device.start().map_err(said("start"))?.queues;
        let file = File::from(memfd_create("sealblk-test", MemfdFlags::CLOEXEC)?);
        file.set_len(options.memory_bytes as u64)?;
        let offset = FileOffset::new(file.try_clone()?, 0);
        let memory = MmapRegion::from_file(offset, options.memory_bytes)?;
        let region = MemoryRegion {
            addr: memory.as_ptr().addr(),
            iova: 0,
            len: options.memory_bytes,
            fd: file.as_raw_fd(),
            fd_offset: 0,
            flags: 0,
        };
        device.map_mem_region(&region).map_err(said("map memory"))?;
        Ok(Self { queues, device, memory, _file: file })
    }

    /// Connects with one queue.
    pub fn simple(socket: &Path) -> Result<Self> {
        Self::connect(socket, ClientOptions::default())
    }

    /// Size of the disk in bytes.
    pub fn capacity_bytes(&self) -> Result<u64> {
        self.device.get_u64("capacity").map_err(said("capacity"))
    }

    /// A number that the disk states: `request-alignment`, `max-segments`, ... (libblkio's names).
    pub fn property(&self, name: &str) -> Result<i32> {
        self.device.get_i32(name).map_err(said(name))
    }

    /// Bytes of shared memory.
    pub fn memory_bytes(&self) -> usize {
        self.memory.size()
    }

    /// Puts bytes into shared memory.
    pub fn fill(&self, at: usize, data: &[u8]) -> Result<()> {
        Ok(self.memory.as_volatile_slice().write_slice(data, at)?)
    }

    /// Takes bytes from shared memory.
    pub fn take(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.memory.as_volatile_slice().read_slice(&mut data, at)?;
        Ok(data)
    }

    fn address(&self, at: usize, len: usize) -> Result<*mut u8> {
        Ok(self.memory.get_slice(at, len)?.ptr_guard_mut().as_ptr())
    }

    fn queue(&mut self, queue: usize) -> Result<&mut Blkioq> {
        self.queues.get_mut(queue).context("no such queue")
    }

    /// Queues a write of `len` bytes at shared memory `at` to the disk's `offset`.
    pub fn start_write(
        &mut self,
        queue: usize,
        offset: u64,
        at: usize,
        len: usize,
        tag: usize,
    ) -> Result<()> {
        let buffer = self.address(at, len)?;
        self.queue(queue)?.write(offset, buffer, len, tag, ReqFlags::empty());
        Ok(())
    }

    /// Queues a read of `len` bytes at the disk's `offset` to shared memory `at`.
    pub fn start_read(
        &mut self,
        queue: usize,
        offset: u64,
        at: usize,
        len: usize,
        tag: usize,
    ) -> Result<()> {
        let buffer = self.address(at, len)?;
        self.queue(queue)?.read(offset, buffer, len, tag, ReqFlags::empty());
        Ok(())
    }

    /// Queues a flush.
    pub fn start_flush(&mut self, queue: usize, tag: usize) -> Result<()> {
        self.queue(queue)?.flush(tag, ReqFlags::empty());
        Ok(())
    }

    /// Queues a discard of `len` bytes at the disk's `offset`.
    pub fn start_discard(&mut self, queue: usize, offset: u64, len: u64, tag: usize) -> Result<()> {
        self.queue(queue)?.discard(offset, len, tag, ReqFlags::empty());
        Ok(())
    }

    /// Queues that `len` bytes at the disk's `offset` read as zeroes.
    pub fn start_write_zeroes(
        &mut self,
        queue: usize,
        offset: u64,
        len: u64,
        tag: usize,
    ) -> Result<()> {
        self.queue(queue)?.write_zeroes(offset, len, tag, ReqFlags::empty());
        Ok(())
    }

    /// Sends what is queued and gives at least `min` finished requests.
    pub fn complete(&mut self, queue: usize, min: usize) -> Result<Vec<Completed>> {
        let mut completed = Vec::new();
        self.complete_into(queue, min, LIMIT, &mut completed)?;
        Ok(completed)
    }

    /// Sends what is queued and appends finished requests: with `min` 0 those that are there,
    /// else it sleeps until there are so many, for `limit` at most.
    pub fn complete_into(
        &mut self,
        queue: usize,
        min: usize,
        limit: Duration,
        completed: &mut Vec<Completed>,
    ) -> Result<()> {
        let mut slots = [const { MaybeUninit::uninit() }; 256];
        let mut left = limit;
        // Who doesn't wait shouldn't pay for looking at the clock.
        let timeout = (min > 0).then_some(&mut left);
        let done = self.queue(queue)?.do_io(&mut slots, min, timeout, None);
        let done = done.map_err(said("I/O"))?;
        ensure!(done >= min, "{done} of {min} requests came back within {} s", limit.as_secs());
        completed.extend(slots[..done].iter().map(|slot| {
            // SAFETY: do_io returns how many slots at the front it has written.
            let completion = unsafe { slot.assume_init_ref() };
            Completed { tag: completion.user_data, result: completion.ret }
        }));
        Ok(())
    }

    fn one(&mut self, what: &str) -> Result<()> {
        let done = self.complete(0, 1)?;
        let result = done.first().map_or(0, |one| one.result);
        ensure!(result == 0, "{what}: {}", std::io::Error::from_raw_os_error(-result));
        Ok(())
    }

    /// Writes and waits, in requests that fit into shared memory.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let most = self.memory_bytes().min(1 << 20);
        for (index, part) in data.chunks(most).enumerate() {
            let at = offset + (index * most) as u64;
            self.fill(0, part)?;
            self.start_write(0, at, 0, part.len(), 0)?;
            self.one(&format!("write of {} bytes at {at}", part.len()))?;
        }
        Ok(())
    }

    /// Reads and waits.
    pub fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let most = self.memory_bytes().min(1 << 20);
        let mut data = Vec::with_capacity(len);
        while data.len() < len {
            let part = most.min(len - data.len());
            let at = offset + data.len() as u64;
            self.start_read(0, at, 0, part, 0)?;
            self.one(&format!("read of {part} bytes at {at}"))?;
            data.extend(self.take(0, part)?);
        }
        Ok(data)
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<()> {
        self.queue(0)?.flush(0, ReqFlags::empty());
        self.one("flush")
    }

    /// Says that a range is no longer needed.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.queue(0)?.discard(offset, len, 0, ReqFlags::empty());
        self.one("discard")
    }

    /// Makes a range read as zeroes.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, may_unmap: bool) -> Result<()> {
        let flags = if may_unmap { ReqFlags::empty() } else { ReqFlags::NO_UNMAP };
        self.queue(0)?.write_zeroes(offset, len, 0, flags);
        self.one("write zeroes")
    }
}

fn said(what: &str) -> impl Fn(blkio::Error) -> anyhow::Error + '_ {
    move |error| anyhow!("{what}: {error}")
}
