//! A vhost-user front-end of our own: does the handshake as QEMU does, then lets a test put
//! anything at all into the rings.
//!
//! Every request has its header and its status byte at fixed places; the status byte is preset to
//! [`blk::UNTOUCHED`], so a test sees whether the device wrote it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use crate::ring::{Completion, Desc, Ring, blk};

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The status byte.
    pub status: u8,
    /// The length in the used ring.
    pub len: u32,
}

/// A disk driver without manners.
pub struct RawFrontend {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    backing: File,
    inflight: Option<(VhostUserInflight, File)>,
    /// The rings, as many as asked for.
    pub rings: Vec<Ring>,
    /// Features that were negotiated.
    pub features: u64,
    /// The disk's configuration space (virtio 1.2 section 5.2.4).
    pub config: Vec<u8>,
}

/// No request takes longer, or something hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// `VIRTIO_F_VERSION_1`, and what else the tests want: INDIRECT_DESC, FLUSH, MQ, DISCARD,
/// WRITE_ZEROES, CONFIG_WCE. No EVENT_IDX: every used buffer must give an interrupt.
const WANTED: u64 =
    1 << 32 | 1 << 28 | 1 << 5 | 1 << 9 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 6 | 1 << 10;

/// Bytes of configuration space up to and including the write-zeroes fields: what QEMU asks for.
const CONFIG_BYTES: u32 = 57;

fn open(socket: &Path, queues: u16) -> Result<Frontend> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(Frontend::from_stream(stream, queues.into()))
}

fn new_rings(memory: &GuestMemoryMmap, queues: u16, size: u16) -> Result<Vec<Ring>> {
    let base = |index: u16| RawFrontend::MEMORY + u64::from(index) * Ring::BYTES;
    (0..queues).map(|index| Ring::new(memory, base(index), size)).collect()
}

impl RawFrontend {
    /// Guest physical address of the first byte of memory.
    pub const MEMORY: u64 = 1 << 30;
    /// Bytes of memory.
    pub const MEMORY_BYTES: u64 = 32 << 20;
    /// Where data of requests may lie.
    pub const DATA: u64 = Self::MEMORY + (4 << 20);
    /// Where request headers lie.
    pub const HEADER: u64 = Self::MEMORY + (2 << 20);
    /// Where status bytes lie.
    pub const STATUS: u64 = Self::HEADER + 4096;
    /// Where indirect tables lie.
    pub const TABLE: u64 = Self::HEADER + 8192;

    /// Connects and starts `queues` rings of `size` descriptors.
    pub fn connect(socket: &Path, queues: u16, size: u16) -> Result<Self> {
        let backing = File::from(memfd_create("sealblk-guest", MemfdFlags::CLOEXEC)?);
        backing.set_len(Self::MEMORY_BYTES)?;
        let range = (
            GuestAddress(Self::MEMORY),
            usize::try_from(Self::MEMORY_BYTES)?,
            Some(FileOffset::new(backing.try_clone()?, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range])?;
        let rings = new_rings(&memory, queues, size)?;
        let frontend = open(socket, queues)?;
        let (features, config, inflight) = (0, Vec::new(), None);
        let mut raw = Self { frontend, memory, backing, inflight, rings, features, config };
        raw.start()?;
        Ok(raw)
    }

    /// Connects again after the daemon went away, as QEMU does: the rings go on at their used
    /// index, with the in-flight region of before.
    pub fn reconnect(&mut self, socket: &Path) -> Result<()> {
        self.frontend = open(socket, u16::try_from(self.rings.len())?)?;
        self.start()
    }

    /// Ends the session and begins another as a driver that knows nothing of the first.
    pub fn reset(&mut self, socket: &Path) -> Result<()> {
        let (queues, size) = (u16::try_from(self.rings.len())?, self.rings[0].size());
        self.frontend = open(socket, queues)?;
        self.inflight = None;
        self.rings = new_rings(&self.memory, queues, size)?;
        self.start()
    }

    fn start(&mut self) -> Result<()> {
        let frontend = &mut self.frontend;
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let protocol_bit = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        ensure!(offered & protocol_bit != 0, "no protocol features offered");
        ensure!(offered & (1 << 32) != 0, "VERSION_1 not offered");
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        let protocol = frontend.get_protocol_features()? & wanted;
        frontend.set_protocol_features(protocol)?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let space = [0; CONFIG_BYTES as usize];
        let flags = VhostUserConfigFlags::empty();
        self.config = frontend.get_config(0, CONFIG_BYTES, flags, &space)?.1;
        self.features = offered & WANTED;
        frontend.set_features(self.features | protocol_bit)?;
        let region = self.memory.iter().next().context("no memory")?;
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: Self::MEMORY,
            memory_size: region.len(),
            userspace_addr: self.memory.get_host_address(GuestAddress(Self::MEMORY))?.addr() as u64,
            mmap_offset: 0,
            mmap_handle: self.backing.as_raw_fd(),
        }])?;
        if protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            if self.inflight.is_none() {
                let queues = u16::try_from(self.rings.len())?;
                let size = self.rings.first().context("no queue")?.size();
                let ask = VhostUserInflight::new(0, 0, queues, size);
                self.inflight = Some(frontend.get_inflight_fd(&ask)?);
            }
            if let Some((inflight, file)) = &self.inflight {
                frontend.set_inflight_fd(inflight, file.as_raw_fd())?;
            }
        }
        for index in 0..self.rings.len() {
            self.start_ring(index)?;
        }
        Ok(())
    }

    fn start_ring(&mut self, index: usize) -> Result<()> {
        let ring = self.rings.get(index).context("no such ring")?;
        let host = |address| -> Result<u64> {
            Ok(self.memory.get_host_address(GuestAddress(address))?.addr() as u64)
        };
        self.frontend.set_vring_num(index, ring.size())?;
        self.frontend.set_vring_base(index, ring.used_index())?;
        self.frontend.set_vring_addr(
            index,
            &VringConfigData {
                queue_max_size: ring.size(),
                queue_size: ring.size(),
                flags: 0,
                desc_table_addr: host(ring.desc_table())?,
                used_ring_addr: host(ring.used_ring())?,
                avail_ring_addr: host(ring.avail_ring())?,
                log_addr: None,
            },
        )?;
        self.frontend.set_vring_call(index, &ring.call)?;
        self.frontend.set_vring_kick(index, &ring.kick)?;
        Ok(self.frontend.set_vring_enable(index, true)?)
    }

    /// Stops a ring; gives the index where it stopped.
    pub fn stop_ring(&mut self, index: usize) -> Result<u32> {
        Ok(self.frontend.get_vring_base(index)?)
    }

    /// Starts a stopped ring again.
    pub fn restart_ring(&mut self, index: usize) -> Result<()> {
        self.start_ring(index)
    }

    /// The protocol's own messages, for tests that misuse them.
    pub fn protocol(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Size of the disk in sectors, as its configuration says.
    pub fn capacity_sectors(&self) -> Result<u64> {
        let bytes = self.config.first_chunk().context("no configuration")?;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A 32-bit number of the configuration space.
    pub fn config_u32(&self, at: usize) -> Result<u32> {
        let bytes = self.config.get(at..).and_then(<[u8]>::first_chunk);
        Ok(u32::from_le_bytes(*bytes.context("the configuration ends before")?))
    }

    /// Writes the guest's memory.
    pub fn poke(&self, address: u64, data: &[u8]) -> Result<()> {
        Ok(self.memory.write_slice(data, GuestAddress(address))?)
    }

    /// Reads the guest's memory.
    pub fn peek(&self, address: u64, len: usize) -> Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.memory.read_slice(&mut data, GuestAddress(address))?;
        Ok(data)
    }

    /// Writes a request header and presets the status byte; gives the descriptors of both.
    pub fn header(&self, kind: u32, sector: u64) -> Result<(Desc, Desc)> {
        self.header_at(0, kind, sector)
    }

    /// The same for one of several requests that are under way together.
    pub fn header_at(&self, slot: u16, kind: u32, sector: u64) -> Result<(Desc, Desc)> {
        let at = Self::HEADER + u64::from(slot) * 16;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.poke(at, &header)?;
        let status = Self::STATUS + u64::from(slot);
        self.poke(status, &[blk::UNTOUCHED])?;
        Ok((Desc::readable(at, 16), Desc::writable(status, 1)))
    }

    /// Status byte of a slot.
    pub fn status(&self, slot: u16) -> Result<u8> {
        Ok(self.peek(Self::STATUS + u64::from(slot), 1)?.first().copied().unwrap_or_default())
    }

    /// Sends one well-formed request with these data descriptors and waits for its end.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Desc]) -> Result<Reply> {
        let (header, status) = self.header(kind, sector)?;
        let chain: Vec<Desc> = [&[header], data, &[status]].concat();
        self.chain(&chain)
    }

    /// Sends one chain, whatever it is, and waits for its end.
    pub fn chain(&mut self, chain: &[Desc]) -> Result<Reply> {
        let ring = self.rings.first_mut().context("no ring")?;
        ring.put_chain(0, chain)?;
        self.head(0)
    }

    /// Makes descriptor `head` available on ring 0 as it is and waits for its end.
    pub fn head(&mut self, head: u16) -> Result<Reply> {
        let ring = self.rings.first_mut().context("no ring")?;
        ring.publish(head)?;
        ring.kick()?;
        let Completion { len, .. } = ring.wait_for(head, LIMIT)?;
        Ok(Reply { status: self.status(0)?, len })
    }

    /// Writes `data` at `sector`; it must succeed.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        self.poke(Self::DATA, data)?;
        let desc = Desc::readable(Self::DATA, u32::try_from(data.len())?);
        let reply = self.request(blk::WRITE, sector, &[desc])?;
        ensure!(reply == Reply { status: blk::OK, len: 1 }, "write at sector {sector}: {reply:?}");
        Ok(())
    }

    /// Reads `len` bytes at `sector`; it must succeed.
    pub fn read(&mut self, sector: u64, len: u32) -> Result<Vec<u8>> {
        let len_bytes = usize::try_from(len)?;
        self.poke(Self::DATA, &vec![0xee; len_bytes])?;
        let reply = self.request(blk::READ, sector, &[Desc::writable(Self::DATA, len)])?;
        let expected = Reply { status: blk::OK, len: len + 1 };
        ensure!(reply == expected, "read at sector {sector}: {reply:?}");
        self.peek(Self::DATA, len_bytes)
    }

    /// Makes everything written so far durable.
    pub fn flush(&mut self) -> Result<()> {
        let reply = self.request(blk::FLUSH, 0, &[])?;
        ensure!(reply == Reply { status: blk::OK, len: 1 }, "flush: {reply:?}");
        Ok(())
    }
}
