//! A session with a recording data plane, and a front-end that talks like QEMU.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part of it")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use sealblk_session::{CapacityHandle, Event, Session, SocketConfig, StopHandle};
use sealblk_virtqueue::blk::{DiskProfile, RangeLimits};
use sealblk_virtqueue::{QueueHost, QueueSetup, StartError};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight,
    VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

/// Queues of the disk under test.
pub const QUEUES: u16 = 4;
/// Far longer than anything here takes; reached only by a failing test.
const PATIENCE: Duration = Duration::from_secs(30);

pub fn disk() -> DiskProfile {
    let limits = RangeLimits { sectors_max: 4096, ranges_max: 16 };
    DiskProfile {
        capacity_sectors: 2048,
        block_bytes: 512,
        physical_block_bytes: 4096,
        queues: QUEUES,
        seg_max: 126,
        size_max_bytes: 1 << 20,
        read_only: false,
        discard: Some(limits),
        discard_alignment_sectors: 8,
        write_zeroes: Some(limits),
        write_zeroes_may_unmap: true,
        serial: *b"serial of twenty chr",
    }
}

/// What the data plane was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    Start {
        index: u16,
        size: u16,
        base: u16,
        addresses: [u64; 3],
        features: u64,
        regions: usize,
        inflight: bool,
        call: bool,
    },
    Stop(u16),
    Eventfd(u16, bool),
    Writeback(bool),
}

impl Call {
    pub fn is_start_of(&self, queue: u16) -> bool {
        matches!(self, Self::Start { index, .. } if *index == queue)
    }
}

/// A data plane that notes what it is told. A stopped queue has moved on by 10.
pub struct RecordingHost {
    calls: Arc<Mutex<Vec<Call>>>,
    running: Vec<Option<QueueSetup>>,
}

impl RecordingHost {
    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }
}

impl QueueHost for RecordingHost {
    fn start(&mut self, index: u16, setup: QueueSetup) -> Result<(), StartError> {
        let slot = &mut self.running[usize::from(index)];
        assert!(slot.is_none(), "queue {index} is started twice");
        if setup.memory.from_user(setup.desc_addr, 16 * u64::from(setup.size)).is_none() {
            return Err(StartError { index, reason: "descriptor table outside of memory".into() });
        }
        let call = Call::Start {
            index,
            size: setup.size,
            base: setup.base,
            addresses: [setup.desc_addr, setup.avail_addr, setup.used_addr],
            features: setup.features,
            regions: setup.memory.regions().len(),
            inflight: setup.inflight.is_some(),
            call: setup.call.is_some(),
        };
        *slot = Some(setup);
        self.note(call);
        Ok(())
    }

    fn stop(&mut self, index: u16) -> u16 {
        let setup = self.running[usize::from(index)].take();
        self.note(Call::Stop(index));
        setup.expect("a queue that doesn't run is stopped").base.wrapping_add(10)
    }

    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) {
        let setup = self.running[usize::from(index)].as_mut();
        setup.expect("another call eventfd for a queue that doesn't run");
        if let Some(call) = &call {
            // Whoever gave it can see that it is this one.
            rustix::io::write(call, &1u64.to_ne_bytes()).unwrap();
        }
        self.note(Call::Eventfd(index, call.is_some()));
    }

    fn set_writeback(&mut self, writeback: bool) -> std::io::Result<()> {
        self.note(Call::Writeback(writeback));
        Ok(())
    }
}

/// A session on a thread of its own.
pub struct Served {
    dir: tempfile::TempDir,
    pub stop: StopHandle,
    pub capacity: CapacityHandle,
    thread: Option<JoinHandle<()>>,
    calls: Arc<Mutex<Vec<Call>>>,
    events: Receiver<Event>,
}

impl Served {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let session = Session::bind(&SocketConfig::new(dir.path().join("disk")), disk()).unwrap();
        let (stop, capacity) = (session.stop_handle(), session.capacity_handle());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (sender, events) = channel();
        let mut host = RecordingHost {
            calls: Arc::clone(&calls),
            running: (0..QUEUES).map(|_| None).collect(),
        };
        let thread = std::thread::spawn(move || {
            session.run(&mut host, &|event, _| sender.send(event.clone()).unwrap());
            assert!(host.running.iter().all(Option::is_none), "a queue runs after the end");
        });
        Self { dir, stop, capacity, thread: Some(thread), calls, events }
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// What the data plane was told since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    /// Waits for the next event.
    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).expect("an event should have come")
    }

    /// Waits until the front-end is gone; gives the reasons of refused messages on the way.
    pub fn until_disconnected(&self) -> Vec<String> {
        let mut refused = Vec::new();
        loop {
            match self.event() {
                Event::Disconnected { .. } => return refused,
                event @ Event::Refused { .. } => refused.push(event.to_string()),
                _ => {}
            }
        }
    }

    /// The next refusal.
    pub fn refusal(&self) -> String {
        loop {
            if let event @ Event::Refused { .. } = self.event() {
                return event.to_string();
            }
        }
    }

    /// Stops the session and waits for its end.
    pub fn end(mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.path().exists(), "the socket is left behind");
    }
}

/// Memory as a front-end shares it: guest address, user address, size, file.
pub struct Memory {
    pub info: VhostUserMemoryRegionInfo,
    _file: OwnedFd,
}

pub fn memory(guest_phys_addr: u64, memory_size: u64) -> Memory {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, memory_size).unwrap();
    let info = VhostUserMemoryRegionInfo {
        guest_phys_addr,
        memory_size,
        userspace_addr: user(guest_phys_addr),
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    Memory { info, _file: file }
}

/// Where a guest address lies in the front-end.
pub fn user(guest_addr: u64) -> u64 {
    0x7f00_0000_0000 + guest_addr
}

pub const MEGABYTE: u64 = 1 << 20;

/// Which QEMU it talks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 7.2: asks 57 bytes of configuration.
    V7,
    /// 10: asks 60 bytes, sets error eventfds.
    V10,
}

/// A front-end, its memory and its eventfds.
pub struct Qemu {
    pub front: Frontend,
    pub features: u64,
    pub ram: Memory,
    pub kicks: Vec<EventFd>,
    pub calls: Vec<EventFd>,
}

impl Qemu {
    /// Connects and does what QEMU does when the device is realized.
    pub fn realize(path: &Path, version: Version) -> Self {
        let mut qemu = Self::connect(path, version);
        let size = if version == Version::V7 { 57 } else { 60 };
        let config = read_config(&mut qemu.front, 0, size);
        assert_eq!(config.len(), size as usize);
        qemu
    }

    /// The same when it has lost its back-end: it believes to know the configuration.
    pub fn reconnect(path: &Path) -> Self {
        Self::connect(path, Version::V10)
    }

    fn connect(path: &Path, version: Version) -> Self {
        let mut front = Frontend::connect(path, u64::from(QUEUES)).unwrap();
        let features = front.get_features().unwrap();
        assert_ne!(features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(), 0);
        let protocol = front.get_protocol_features().unwrap();
        // QEMU asks for the intersection of what both know.
        front.set_protocol_features(protocol).unwrap();
        front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front.get_queue_num().unwrap(), u64::from(QUEUES));
        assert!(front.get_max_mem_slots().unwrap() >= 32);
        front.set_owner().unwrap();
        front.get_features().unwrap();
        let eventfds = || (0..QUEUES).map(|_| EventFd::new(libc_nonblock()).unwrap()).collect();
        let (kicks, calls): (Vec<_>, Vec<_>) = (eventfds(), eventfds());
        for (queue, call) in calls.iter().enumerate() {
            front.set_vring_call(queue, call).unwrap();
            if version == Version::V10 {
                front.set_vring_err(queue, call).unwrap();
            }
        }
        Self { front, features, ram: memory(0, 4 * MEGABYTE), kicks, calls }
    }

    /// What QEMU does when the driver is ready, and again when it has reconnected.
    pub fn start(&mut self, inflight: Option<&(VhostUserInflight, File)>) {
        self.front.set_features(self.features).unwrap();
        if let Some((shape, file)) = inflight {
            self.front.set_inflight_fd(shape, file.as_raw_fd()).unwrap();
        }
        self.front.add_mem_region(&self.ram.info).unwrap();
        for queue in 0..usize::from(QUEUES) {
            self.start_ring(queue, 0);
        }
        for queue in 0..usize::from(QUEUES) {
            self.front.set_vring_enable(queue, true).unwrap();
        }
    }

    /// `vhost_virtqueue_start`
    pub fn start_ring(&mut self, queue: usize, base: u16) {
        self.front.set_vring_num(queue, 128).unwrap();
        self.front.set_vring_base(queue, base).unwrap();
        self.front.set_vring_addr(queue, &ring_at(queue)).unwrap();
        self.front.set_vring_kick(queue, &self.kicks[queue]).unwrap();
    }

    /// `vhost_dev_stop`; gives the bases.
    pub fn stop(&mut self) -> Vec<u32> {
        for queue in 0..usize::from(QUEUES) {
            self.front.set_vring_enable(queue, false).unwrap();
        }
        (0..usize::from(QUEUES)).map(|queue| self.front.get_vring_base(queue).unwrap()).collect()
    }
}

/// Addresses of queue `queue`'s ring of 128.
pub fn ring_at(queue: usize) -> VringConfigData {
    let start = user(0x1_0000 * (queue as u64 + 1));
    VringConfigData {
        queue_max_size: 1024,
        queue_size: 128,
        flags: 0,
        desc_table_addr: start,
        avail_ring_addr: start + 0x1000,
        used_ring_addr: start + 0x2000,
        log_addr: None,
    }
}

/// Where an answer is expected: `Frontend` waits for ever when it is an error.
pub fn read_config(front: &mut Frontend, offset: u32, size: u32) -> Vec<u8> {
    let request = vec![0; size as usize];
    front.get_config(offset, size, VhostUserConfigFlags::empty(), &request).unwrap().1
}

pub fn inflight_shape() -> VhostUserInflight {
    VhostUserInflight::new(0, 0, QUEUES, 128)
}

pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::BACKEND_REQ
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits() as i32
}

/// A message as bytes, without descriptors.
pub fn message(request: FrontendReq, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    let flags = if need_reply { 0x9u32 } else { 0x1 };
    let mut bytes = Vec::new();
    for word in [u32::from(request), flags, u32::try_from(payload.len()).unwrap()] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(payload);
    bytes
}

/// Sends bytes, and reads until the other side closes.
pub fn send_raw(path: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The session may close before it has read all.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut replies = Vec::new();
    let _ = stream.read_to_end(&mut replies);
    replies
}

/// Sends one message with a descriptor, and waits until the other side has closed.
pub fn send_with_fd(path: &Path, bytes: &[u8], fd: &OwnedFd) {
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    let mut stream = UnixStream::connect(path).unwrap();
    let fds = [fd.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let data = [std::io::IoSlice::new(bytes)];
    sendmsg(&stream, &data, &mut control, SendFlags::empty()).unwrap();
    let _ = stream.read(&mut [0; 64]);
}
