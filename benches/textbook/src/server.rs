//! The vhost-user side, by the framework: features, configuration space, a thread per queue.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, anyhow};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::disk::{Buffer, Disk};
use crate::queue::{self, Memory};

const QUEUE_SIZE: usize = 256;

// Feature bits of virtio 1.2, section 5.2.3 and chapter 6.
const F_SEG_MAX: u64 = 1 << 2;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_MQ: u64 = 1 << 12;
const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
const F_VERSION_1: u64 = 1 << 32;

struct Backend {
    disk: Arc<Disk>,
    memory: Memory,
    event_idx: AtomicBool,
    /// One per queue, that is per thread.
    buffers: Vec<Mutex<Buffer>>,
}

impl VhostUserBackend for Backend {
    type Bitmap = ();
    type Vring = VringRwLock<Memory>;

    fn num_queues(&self) -> usize {
        self.buffers.len()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        F_SEG_MAX
            | F_BLK_SIZE
            | F_FLUSH
            | F_MQ
            | F_INDIRECT_DESC
            | F_EVENT_IDX
            | F_VERSION_1
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    fn set_event_idx(&self, enabled: bool) {
        self.event_idx.store(enabled, Ordering::Relaxed);
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let config = self.config();
        let (start, end) = (offset as usize, offset as usize + size as usize);
        config.get(start..end).unwrap_or_default().to_vec()
    }

    fn update_memory(&self, _memory: Memory) -> io::Result<()> {
        // It is the one given to the daemon, which has exchanged what is in it.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.buffers.len()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &self,
        _device_event: u16,
        _events: EventSet,
        vrings: &[Self::Vring],
        thread: usize,
    ) -> io::Result<()> {
        let (Some(vring), Some(buffer)) = (vrings.first(), self.buffers.get(thread)) else {
            return Ok(());
        };
        let buffer = &mut *buffer.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.event_idx.load(Ordering::Relaxed) {
            return queue::run(vring, &self.memory, &self.disk, buffer);
        }
        loop {
            vring.disable_notification().map_err(io::Error::other)?;
            queue::run(vring, &self.memory, &self.disk, buffer)?;
            // True: more became available meanwhile.
            if !vring.enable_notification().map_err(io::Error::other)? {
                return Ok(());
            }
        }
    }
}

impl Backend {
    /// `struct virtio_blk_config` (section 5.2.4), as far as the features say.
    fn config(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = space.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &self.disk.sectors().to_le_bytes());
        put(12, &(QUEUE_SIZE as u32 - 2).to_le_bytes());
        put(20, &self.disk.sector_bytes().to_le_bytes());
        put(34, &(self.buffers.len() as u16).to_le_bytes());
        space
    }
}

/// Serves one connection after the other, until it is killed.
pub(crate) fn serve(disk: Disk, queues: u16, socket: &Path) -> Result<()> {
    let disk = Arc::new(disk);
    let mut listener = Listener::new(socket, true)?;
    loop {
        let memory = Memory::new(GuestMemoryMmap::new());
        let backend = Arc::new(Backend {
            disk: disk.clone(),
            memory: memory.clone(),
            event_idx: AtomicBool::new(false),
            buffers: (0..queues).map(|_| Mutex::default()).collect(),
        });
        let mut daemon = VhostUserDaemon::new("textbook".to_owned(), backend, memory)
            .map_err(|error| anyhow!("{error}"))?;
        daemon.start(&mut listener).map_err(|error| anyhow!("{error}"))?;
        // However the connection ends, the next one is served.
        let _ = daemon.wait();
    }
}
