//! A thread's ring and lane, driven as the engine drives it.
#![expect(unsafe_code, reason = "calls Lane::submit")]

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use sealblk_ring::{Level, Ring, RingOptions, Token};
use sealblk_volume::{
    AlignedBuf, Buffer, Lane, LaneDone, LaneIo, LaneOp, OpenOptions, Volume, VolumeEvent, open,
};

pub(crate) struct Rig {
    pub(crate) lane: Box<dyn Lane>,
    pub(crate) ring: Ring,
    pub(crate) volume: Arc<dyn Volume>,
    pub(crate) events: Receiver<VolumeEvent>,
    pub(crate) memory: AlignedBuf,
    done: Vec<LaneDone>,
}

/// Bytes of memory per I/O.
pub(crate) const STEP: usize = 4096;

impl Rig {
    pub(crate) fn new(uri: &str, options: &OpenOptions, depth: usize) -> Self {
        let volume = open(uri, options).unwrap();
        let (tell, events) = channel();
        let tell = Mutex::new(tell);
        volume.listen(Arc::new(move |event| {
            let _gone = tell.lock().unwrap().send(event);
        }));
        let mut ring = Ring::new(RingOptions { entries: 128, best: Level::Deferred }).unwrap();
        ring.enable().unwrap();
        let lane = volume.open_lane(&mut ring).unwrap();
        let memory = AlignedBuf::new(depth * STEP).unwrap();
        Self { lane, ring, volume, events, memory, done: Vec::new() }
    }

    /// The memory of an I/O.
    pub(crate) fn buffer(&mut self, id: u32) -> Buffer {
        // SAFETY: inside the memory.
        let addr = unsafe { self.memory.as_mut_ptr().add(id as usize * STEP) };
        Buffer::Flat { addr, len_bytes: STEP as u32, registered: None }
    }

    pub(crate) fn fill(&mut self, id: u32, byte: u8) {
        let start = id as usize * STEP;
        self.memory.as_mut_slice()[start..start + STEP].fill(byte);
    }

    pub(crate) fn submit(&mut self, id: u32, op: LaneOp) {
        // SAFETY: the memory is the rig's, which gives nothing up before all I/O is back.
        unsafe { self.lane.submit(&mut self.ring, LaneIo { id, op }) }.unwrap();
    }

    pub(crate) fn push_out(&mut self) {
        self.lane.push_out(&mut self.ring);
        self.ring.submit().unwrap();
    }

    /// Waits for at least one result.
    pub(crate) fn wait(&mut self) -> Vec<LaneDone> {
        while self.done.is_empty() {
            self.turn();
        }
        std::mem::take(&mut self.done)
    }

    /// Waits for one completion of the ring.
    pub(crate) fn turn(&mut self) {
        let Some(completion) = self.ring.reap() else {
            self.lane.push_out(&mut self.ring);
            return self.ring.submit_and_wait().unwrap();
        };
        if let Token::Lane(token) = completion.token {
            self.lane.complete(&mut self.ring, token, completion.result, &mut self.done);
        }
    }

    /// Runs the ring until there is an event.
    pub(crate) fn event(&mut self) -> VolumeEvent {
        loop {
            if let Ok(event) = self.events.try_recv() {
                return event;
            }
            self.turn();
        }
    }

    pub(crate) fn run(&mut self, op: LaneOp) -> Result<u32, i32> {
        self.submit(0, op);
        self.wait()[0].result
    }

    pub(crate) fn write(&mut self, id: u32, offset_bytes: u64) -> LaneOp {
        LaneOp::Write { offset_bytes, buffer: self.buffer(id), durable: false }
    }

    pub(crate) fn read(&mut self, id: u32, offset_bytes: u64) -> LaneOp {
        LaneOp::Read { offset_bytes, buffer: self.buffer(id) }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.lane.close(&mut self.ring);
    }
}
