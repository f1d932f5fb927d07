//! The state of each ring between the messages that describe it and the queue that runs it.
//!
//! Contract: messages come one ring property at a time, in any order and any number of times; a
//! queue runs exactly while its ring has size, addresses, kick and memory, is enabled, and features
//! are negotiated. Stopping is idempotent and keeps the index for a later `GET_VRING_BASE`.
//!
//! Invariant: `QueueHost::start` is called on stopped queues only, and guest memory is never
//! exchanged under a running queue. When a [`Rings`] goes, all its queues are stopped.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use sealblk_virtqueue::{GuestMemory, InflightRegion, QueueHost, QueueSetup, StartError};

/// Largest split ring (virtio 1.2 section 2.7).
pub(crate) const RING_SIZE_MAX: u32 = 32768;

/// A ring message that can't be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("queue {index} does not exist, there are {queues}")]
    NoSuchQueue { index: u32, queues: usize },
    #[error(
        "queue {index}: a ring of {size} descriptors is not possible (a power of two up to 32768)"
    )]
    Size { index: u16, size: u32 },
    #[error("queue {index}: base {base:#x} is no split-ring index (16 bits)")]
    Base { index: u16, base: u32 },
    #[error("queue {index}: not while it runs")]
    Running { index: u16 },
    #[error("queue {index}: a kick without eventfd (polling the ring) is not supported")]
    NoKick { index: u16 },
    #[error("queue {index}: the descriptor for notifications is no eventfd")]
    NoEventfd { index: u16 },
    #[error("queue {index}: the in-flight region has no room for {size} descriptors")]
    Inflight { index: u16, size: u16 },
    #[error("queue {index}: cannot duplicate an eventfd: {source}")]
    Duplicate { index: u16, source: io::Error },
    #[error(transparent)]
    Start(#[from] StartError),
}

/// The front-end's virtual addresses of a ring's three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

#[derive(Debug, Default)]
struct Ring {
    size: u16,
    addresses: Option<RingAddresses>,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// Negotiated features, as far as they matter to rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    /// What the driver acknowledged.
    pub(crate) bits: u64,
    /// Without `VHOST_USER_F_PROTOCOL_FEATURES` there is no `SET_VRING_ENABLE`, and rings are
    /// enabled from the start.
    pub(crate) start_disabled: bool,
}

/// All rings of a connection.
pub(crate) struct Rings<'a> {
    host: &'a mut dyn QueueHost,
    rings: Vec<Ring>,
    memory: Arc<GuestMemory>,
    inflight: Option<InflightRegion>,
    features: Option<RingFeatures>,
}

impl<'a> Rings<'a> {
    /// `queues` stopped rings without any properties.
    pub(crate) fn new(host: &'a mut dyn QueueHost, queues: u16) -> Self {
        let rings = (0..queues).map(|_| Ring::default()).collect();
        Self { host, rings, memory: Arc::default(), inflight: None, features: None }
    }

    /// The data plane.
    pub(crate) fn host(&mut self) -> &mut dyn QueueHost {
        self.host
    }

    /// Guest memory as it is now.
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// A queue that runs, if there is one.
    pub(crate) fn any_running(&self) -> Option<u16> {
        (0u16..).zip(&self.rings).find_map(|(index, ring)| ring.running.then_some(index))
    }

    /// `SET_FEATURES`. On running rings only a repetition is allowed.
    pub(crate) fn set_features(&mut self, features: RingFeatures) -> Result<(), RingError> {
        if self.features == Some(features) {
            return Ok(());
        }
        if let Some(index) = self.any_running() {
            return Err(RingError::Running { index });
        }
        self.features = Some(features);
        self.settle_all()
    }

    /// Exchanges guest memory: running queues are drained, and go on where they stopped.
    pub(crate) fn set_memory(&mut self, memory: Arc<GuestMemory>) -> Result<(), RingError> {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
        self.memory = memory;
        self.settle_all()
    }

    /// `SET_INFLIGHT_FD`: the region that queues started from now on note their requests in.
    pub(crate) fn set_inflight(&mut self, region: InflightRegion) -> Result<(), RingError> {
        if let Some(index) = self.any_running() {
            return Err(RingError::Running { index });
        }
        self.inflight = Some(region);
        Ok(())
    }

    /// The region that requests are noted in, where there is one.
    pub(crate) fn inflight(&self) -> Option<&InflightRegion> {
        self.inflight.as_ref()
    }

    /// `SET_VRING_NUM`
    pub(crate) fn set_size(&mut self, index: u32, size: u32) -> Result<(), RingError> {
        let (number, ring) = self.stopped_or(index, |ring| u32::from(ring.size) == size)?;
        if size > RING_SIZE_MAX || !size.is_power_of_two() {
            return Err(RingError::Size { index: number, size });
        }
        ring.size = u16::try_from(size).map_err(|_| RingError::Size { index: number, size })?;
        self.settle(usize::from(number))
    }

    /// `SET_VRING_ADDR`. Other addresses restart a running queue; the same ones (QEMU repeats them
    /// to switch dirty logging) don't disturb it.
    pub(crate) fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
    ) -> Result<(), RingError> {
        let (number, ring) = self.ring(index)?;
        if ring.addresses == Some(addresses) {
            return Ok(());
        }
        self.stop(usize::from(number));
        self.ring(index)?.1.addresses = Some(addresses);
        self.settle(usize::from(number))
    }

    /// `SET_VRING_BASE`
    pub(crate) fn set_base(&mut self, index: u32, base: u32) -> Result<(), RingError> {
        let (number, ring) = self.stopped_or(index, |_| false)?;
        ring.base = u16::try_from(base).map_err(|_| RingError::Base { index: number, base })?;
        Ok(())
    }

    /// `GET_VRING_BASE`: stops the ring until the next kick eventfd, and gives the index to resume
    /// at.
    pub(crate) fn take_base(&mut self, index: u32) -> Result<u16, RingError> {
        let (number, _) = self.ring(index)?;
        self.stop(usize::from(number));
        let ring = self.ring(index)?.1;
        ring.kick = None;
        Ok(ring.base)
    }

    /// `SET_VRING_KICK`: starts the ring if the rest is there; another eventfd restarts it.
    pub(crate) fn set_kick(&mut self, index: u32, kick: Option<OwnedFd>) -> Result<(), RingError> {
        let (number, _) = self.ring(index)?;
        self.stop(usize::from(number));
        let ring = self.ring(index)?.1;
        ring.kick = kick;
        match &ring.kick {
            None => return Err(RingError::NoKick { index: number }),
            Some(kick) if !may_be_eventfd(kick) => {
                ring.kick = None;
                return Err(RingError::NoEventfd { index: number });
            }
            Some(_) => {}
        }
        self.settle(usize::from(number))
    }

    /// `SET_VRING_CALL`: may come at any time; a running queue goes on with the new eventfd.
    pub(crate) fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), RingError> {
        let (number, ring) = self.ring(index)?;
        if call.as_ref().is_some_and(|call| !may_be_eventfd(call)) {
            return Err(RingError::NoEventfd { index: number });
        }
        let running = ring.running;
        let for_host = if running { duplicate(number, call.as_ref())? } else { None };
        ring.call = call;
        if running {
            self.host.set_call(number, for_host);
        }
        Ok(())
    }

    /// `SET_VRING_ENABLE`
    pub(crate) fn set_enabled(&mut self, index: u32, enabled: bool) -> Result<(), RingError> {
        let (number, ring) = self.ring(index)?;
        ring.enabled = enabled;
        self.settle(usize::from(number))
    }

    /// Whether there is such a queue.
    pub(crate) fn check_index(&mut self, index: u32) -> Result<(), RingError> {
        self.ring(index).map(drop)
    }

    /// `RESET_OWNER`: stops and disables all rings, as the specification recommends.
    pub(crate) fn disable_all(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
        for ring in &mut self.rings {
            ring.enabled = false;
            ring.kick = None;
        }
    }

    fn ring(&mut self, index: u32) -> Result<(u16, &mut Ring), RingError> {
        let queues = self.rings.len();
        let none = RingError::NoSuchQueue { index, queues };
        match (u16::try_from(index), usize::try_from(index)) {
            (Ok(number), Ok(at)) => self.rings.get_mut(at).map(|ring| (number, ring)).ok_or(none),
            _ => Err(none),
        }
    }

    /// The ring, if it is stopped or nothing would change.
    fn stopped_or(
        &mut self,
        index: u32,
        unchanged: impl Fn(&Ring) -> bool,
    ) -> Result<(u16, &mut Ring), RingError> {
        let (number, ring) = self.ring(index)?;
        if ring.running && !unchanged(ring) {
            return Err(RingError::Running { index: number });
        }
        Ok((number, ring))
    }

    fn settle_all(&mut self) -> Result<(), RingError> {
        // One bad ring must not keep the others from running.
        let mut first_error = Ok(());
        for index in 0..self.rings.len() {
            first_error = first_error.and(self.settle(index));
        }
        first_error
    }

    /// Makes the queue run, or not, as its ring's properties want.
    fn settle(&mut self, index: usize) -> Result<(), RingError> {
        let (Some(ring), Ok(number)) = (self.rings.get(index), u16::try_from(index)) else {
            return Ok(());
        };
        let wanted = match (self.features, ring.addresses, &ring.kick) {
            (Some(features), Some(addresses), Some(kick))
                if (ring.enabled || !features.start_disabled)
                    && ring.size != 0
                    && !self.memory.regions().is_empty() =>
            {
                Some((features, addresses, kick))
            }
            _ => None,
        };
        let Some((features, addresses, kick)) = wanted else {
            self.stop(index);
            return Ok(());
        };
        if ring.running {
            return Ok(());
        }
        let inflight = match &self.inflight {
            None => None,
            Some(region) => Some(
                region
                    .queue(number)
                    .filter(|queue| queue.size() >= ring.size)
                    .ok_or(RingError::Inflight { index: number, size: ring.size })?,
            ),
        };
        let failed = |source| RingError::Duplicate { index: number, source };
        let setup = QueueSetup {
            size: ring.size,
            desc_addr: addresses.desc,
            avail_addr: addresses.avail,
            used_addr: addresses.used,
            base: ring.base,
            features: features.bits,
            memory: Arc::clone(&self.memory),
            inflight,
            kick: kick.try_clone().map_err(failed)?,
            call: duplicate(number, ring.call.as_ref())?,
        };
        self.host.start(number, setup)?;
        if let Some(ring) = self.rings.get_mut(index) {
            ring.running = true;
        }
        Ok(())
    }

    fn stop(&mut self, index: usize) {
        if let (Some(ring), Ok(number)) = (self.rings.get_mut(index), u16::try_from(index))
            && ring.running
        {
            ring.base = self.host.stop(number);
            ring.running = false;
        }
    }
}

impl Drop for Rings<'_> {
    fn drop(&mut self) {
        for index in 0..self.rings.len() {
            self.stop(index);
        }
    }
}

/// Whether a descriptor can be an eventfd, which is an anonymous inode and has no file type. A
/// regular file or `/dev/zero` as kick would always be readable and keep its queue awake for ever;
/// a full pipe as call would block it.
fn may_be_eventfd(fd: &OwnedFd) -> bool {
    const TYPE: u32 = 0o170_000;
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_mode & TYPE == 0)
}

fn duplicate(index: u16, fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, RingError> {
    fd.map(OwnedFd::try_clone).transpose().map_err(|source| RingError::Duplicate { index, source })
}
