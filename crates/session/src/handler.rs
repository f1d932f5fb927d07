//! The vhost-user messages: the one file that names the `vhost` crate's traits.
//!
//! Contract: every message, at any time and with any content, ends in an answer or in an error; an
//! error changes nothing that a queue depends on. Which errors end the connection is decided in
//! `connection.rs`.
//!
//! Deliberately absent: dirty logging (`LOG_ALL`, `LOG_SHMFD`), post-copy, device state, shared objects: not offered, and refused.

use std::fs::File;
use std::io;
use std::sync::Arc;

use sealblk_virtqueue::blk::{self, DiskProfile};
use sealblk_virtqueue::{
    GuestMemory, InflightError, InflightRegion, MemoryError, QueueHost, Region,
};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use crate::capacity::Capacity;
use crate::channel::Channel;
use crate::rings::{RING_SIZE_MAX, RingAddresses, RingError, RingFeatures, Rings};

/// The protocol features we speak.
const OFFERED: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::BACKEND_REQ);

/// Bytes of configuration space that a front-end may read: QEMU's `VHOST_USER_MAX_CONFIG_SIZE`.
/// What lies past the disk's own fields reads as zero.
const CONFIG_BYTES_MAX: usize = 256;

/// Why a message was refused, for the log.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("the bits {0:#x} were not offered")]
    NotOffered(u64),
    #[error("the message belongs to a feature that was not offered")]
    Unsupported,
    #[error("{len} bytes at {offset} are outside of the configuration space")]
    ConfigRange { offset: u32, len: u64 },
    #[error("only the writeback byte can be written, and only when CONFIG_WCE was negotiated")]
    ConfigReadOnly,
    #[error("the write cache can't be switched off, what is in it can't be made durable: {0}")]
    Writeback(io::Error),
    #[error("an in-flight region for {queues} queues of {size} descriptors is not possible")]
    InflightShape { queues: u16, size: u16 },
    #[error(transparent)]
    Inflight(#[from] InflightError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Ring(#[from] RingError),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::ReqHandlerError(io::Error::other(refusal.to_string()))
    }
}

impl From<RingError> for Error {
    fn from(error: RingError) -> Self {
        Refusal::from(error).into()
    }
}

/// One front-end's view of the disk.
pub(crate) struct Handler<'a> {
    disk: &'a DiskProfile,
    capacity: &'a Capacity,
    rings: Rings<'a>,
    /// The driver's choice of write cache. It outlives the connection: a front-end that reconnects
    /// doesn't repeat it.
    writeback: &'a mut bool,
    features: Option<u64>,
    features_read: bool,
    protocol_features: u64,
    config_refusal: Option<String>,
    /// Where the front-end wants to be told of changes.
    channel: Option<Channel>,
    /// The size that it was told, or told to look at, last; none on a new connection, as QEMU does
    /// not read the configuration again when it reconnects.
    told: Option<u64>,
}

impl<'a> Handler<'a> {
    /// A handler without any state from the front-end.
    pub(crate) fn new(
        disk: &'a DiskProfile,
        capacity: &'a Capacity,
        host: &'a mut dyn QueueHost,
        writeback: &'a mut bool,
    ) -> Self {
        Self {
            disk,
            capacity,
            rings: Rings::new(host, disk.queues()),
            writeback,
            features: None,
            features_read: false,
            protocol_features: 0,
            config_refusal: None,
            channel: None,
            told: None,
        }
    }

    /// Whether an error is told to a front-end that asks for a reply (the `vhost` crate's own rule:
    /// `GET_FEATURES` was answered and `REPLY_ACK` set).
    pub(crate) fn acknowledges(&self) -> bool {
        self.features_read
            && self.protocol_features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0
    }

    /// Why the last `GET_CONFIG` was answered with an error, which the `vhost` crate keeps to
    /// itself.
    pub(crate) fn take_config_refusal(&mut self) -> Option<String> {
        self.config_refusal.take()
    }

    /// Takes the channel that the front-end gave, if that was negotiated.
    pub(crate) fn set_channel(
        &mut self,
        channel: Channel,
    ) -> std::result::Result<(), &'static str> {
        if self.protocol_features & VhostUserProtocolFeatures::BACKEND_REQ.bits() == 0 {
            return Err("BACKEND_REQ was not negotiated");
        }
        self.channel = Some(channel);
        Ok(())
    }

    /// The front-end should be told that the disk has another size than it knows. Not before a
    /// queue runs: QEMU does not listen to that while its device isn't started.
    pub(crate) fn size_is_news(&self) -> bool {
        self.channel.is_some()
            && self.rings.any_running().is_some()
            && self.told != Some(self.capacity.sectors())
    }

    /// Tells it; the size. A channel that fails is let go.
    pub(crate) fn tell_size(&mut self) -> io::Result<u64> {
        let sectors = self.capacity.sectors();
        self.told = Some(sectors);
        if let Some(channel) = &self.channel
            && let Err(error) = channel.config_changed()
        {
            self.channel = None;
            return Err(error);
        }
        Ok(sectors)
    }

    fn offered(&self) -> u64 {
        self.disk.features()
    }

    fn has(&self, bit: u64) -> bool {
        self.features.is_some_and(|features| features & bit != 0)
    }

    /// Leaves the driver's choice where a successor of this process finds it.
    fn note_writeback(&self) {
        if let Some(region) = self.rings.inflight() {
            region.set_write_through(!*self.writeback);
        }
    }

    /// Tells the data plane what the driver's features and choice amount to: without `FLUSH` a
    /// driver cannot make anything durable, so every write has to be (virtio 1.2 section 5.2.6.2).
    fn apply_writeback(&mut self) -> std::result::Result<(), Refusal> {
        let chosen = !self.has(blk::F_CONFIG_WCE) || *self.writeback;
        let writeback = self.has(blk::F_FLUSH) && chosen;
        self.rings.host().set_writeback(writeback).map_err(Refusal::Writeback)
    }

    fn config(&mut self, offset: u32, len: u32) -> std::result::Result<Vec<u8>, Refusal> {
        let mut space = [0; CONFIG_BYTES_MAX];
        let capacity_sectors = self.capacity.sectors();
        let disk = DiskProfile { capacity_sectors, ..self.disk.clone() };
        let fields = disk.config(*self.writeback);
        for (to, from) in space.iter_mut().zip(&fields) {
            *to = *from;
        }
        let range = usize::try_from(offset).ok().zip(usize::try_from(len).ok());
        if offset == 0 && len as usize >= size_of::<u64>() {
            self.told = Some(capacity_sectors);
        }
        range
            .and_then(|(start, len)| space.get(start..start.checked_add(len)?))
            .map(<[u8]>::to_vec)
            .ok_or(Refusal::ConfigRange { offset, len: u64::from(len) })
    }

    fn set_memory(
        &mut self,
        memory: std::result::Result<GuestMemory, MemoryError>,
    ) -> std::result::Result<(), Refusal> {
        Ok(self.rings.set_memory(Arc::new(memory?))?)
    }

    fn inflight_shape(&self, inflight: &VhostUserInflight) -> std::result::Result<(), Refusal> {
        let (queues, size) = (inflight.num_queues, inflight.queue_size);
        let possible = (1..=self.disk.queues()).contains(&queues)
            && (1..=RING_SIZE_MAX).contains(&u32::from(size));
        if possible { Ok(()) } else { Err(Refusal::InflightShape { queues, size }) }
    }
}

fn map(
    region: &VhostUserMemoryRegion,
    file: &File,
) -> std::result::Result<Arc<Region>, MemoryError> {
    Region::map(
        file,
        region.guest_phys_addr,
        region.user_addr,
        region.memory_size,
        region.mmap_offset,
    )
}

impl VhostUserBackendReqHandlerMut for Handler<'_> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.rings.disable_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.features_read = true;
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered();
        if unknown != 0 {
            return Err(Refusal::NotOffered(unknown).into());
        }
        let before = self.features.replace(features);
        // The cache mode first: a queue must not start with the wrong one.
        if self.rings.any_running().is_none() {
            self.apply_writeback()?;
        }
        let ring_features = RingFeatures {
            bits: features,
            start_disabled: features & blk::F_PROTOCOL_FEATURES != 0,
        };
        let result = self.rings.set_features(ring_features);
        if let Err(RingError::Running { .. }) = result {
            self.features = before;
        }
        Ok(result?)
    }

    fn set_mem_table(
        &mut self,
        ctx: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = ctx.iter().zip(&files).map(|(region, file)| map(region, file));
        let regions = regions.collect::<std::result::Result<_, _>>();
        self.set_memory(regions.and_then(GuestMemory::new))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.rings.set_size(index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses { desc: descriptor, avail: available, used };
        Ok(self.rings.set_addresses(index, addresses)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.rings.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.rings.take_base(index)?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.rings.set_kick(u32::from(index), fd.map(Into::into))?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.rings.set_call(u32::from(index), fd.map(Into::into))?)
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        // Errors go to the log and the metrics; nobody listens on this eventfd in QEMU but to
        // print a line.
        Ok(self.rings.check_index(u32::from(index))?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(OFFERED)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // The `vhost` crate acts on these bits whatever we answer.
        self.protocol_features = features;
        match features & !OFFERED.bits() {
            0 => Ok(()),
            unknown => Err(Refusal::NotOffered(unknown).into()),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.disk.queues()))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.rings.set_enabled(index, enable)?)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        self.config(offset, size).map_err(|refusal| {
            self.config_refusal = Some(refusal.to_string());
            refusal.into()
        })
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        let choice = usize::try_from(offset).ok().and_then(|at| blk::parse_set_config(at, buf));
        match choice.filter(|_| self.has(blk::F_CONFIG_WCE)) {
            Some(writeback) => {
                *self.writeback = writeback;
                self.note_writeback();
                Ok(self.apply_writeback()?)
            }
            None => Err(Refusal::ConfigReadOnly.into()),
        }
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Refusal::Unsupported.into())
    }

    fn get_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        self.inflight_shape(inflight)?;
        let (region, fd) = InflightRegion::create(inflight.num_queues, inflight.queue_size)
            .map_err(Refusal::from)?;
        let reply = VhostUserInflight::new(
            region.size_bytes(),
            0,
            inflight.num_queues,
            inflight.queue_size,
        );
        Ok((reply, File::from(fd)))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        self.inflight_shape(inflight)?;
        let region = InflightRegion::map(
            file,
            inflight.mmap_offset,
            inflight.mmap_size,
            inflight.num_queues,
            inflight.queue_size,
        )
        .map_err(Refusal::from)?;
        self.rings.set_inflight(region)?;
        // The driver spoke to our predecessor, or to us before it got this region: whoever knows of
        // a write cache that is off is right.
        let noted = self.rings.inflight().is_some_and(InflightRegion::write_through);
        if noted && *self.writeback {
            *self.writeback = false;
            self.apply_writeback()?;
        }
        self.note_writeback();
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(GuestMemory::REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        let added = map(region, &fd).and_then(|region| self.rings.memory().with_added(region));
        self.set_memory(added)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let left = self.rings.memory().without(
            region.guest_phys_addr,
            region.user_addr,
            region.memory_size,
        );
        Ok(self.set_memory(left)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Refusal::Unsupported.into())
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Refusal::Unsupported.into())
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Refusal::Unsupported.into())
    }
}
