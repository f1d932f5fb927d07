//! The queue thread: one virtqueue, one ring, one lane, one wait point.
//!
//! A turn of the loop: obey control, reap completions, go on with what waited for room, take new
//! requests, notify the guest. Only a turn that found nothing polls or sleeps.
//!
//! Invariant: every request that was taken is in exactly one slot until its used element is
//! written, and every I/O at the volume is in exactly one chunk until it has come back. Memory of
//! the guest is let go only when no chunk is left.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use sealblk_block::Span;
use sealblk_cipher::KeyMap;
use sealblk_ring::{Completion, FileSlot, Ring, RingOptions, Token};
use sealblk_virtqueue::blk::DiskProfile;
use sealblk_virtqueue::{QueueSetup, StartError, Virtqueue};
use sealblk_volume::{Lane, LaneDone, Volume};

use crate::bounce::Bounce;
use crate::chunk::Chunks;
use crate::control::{Command, Inbox, Order};
use crate::fence::Fence;
use crate::hold::Hold;
use crate::limiter::Limiter;
use crate::line::Line;
use crate::loss::StoragePath;
use crate::path::Path;
use crate::sample::Sample;
use crate::slot::Slots;
use crate::spin::Spin;
use crate::stats::QueueStats;
use crate::throttle::Throttle;
use crate::timing::Stopwatch;
use crate::{EngineConfig, OnError};

/// Watches of the thread's ring.
const WATCH_CONTROL: usize = 0;
const WATCH_KICK: usize = 1;

/// Ring entries beyond those of data I/O: the watches, a cancellation, the timer.
const SPARE_ENTRIES: u32 = 16;

/// Data that a turn moves at most before what it finished and started gets on its way, in bytes
/// (one more request, or run of the bounce buffer, may come on top): some 25 µs of cipher.
const TURN_BYTES_MAX: usize = 256 << 10;

/// Room for a chunk's pieces of memory at first; more only for chains longer than we advertise.
const PIECES: usize = 256;

/// What a queue thread is made of before its queue is started.
pub(crate) struct Worker {
    pub(super) index: u16,
    pub(super) config: EngineConfig,
    pub(super) profile: DiskProfile,
    pub(super) ring: Ring,
    pub(super) lane: Box<dyn Lane>,
    pub(super) keys: KeyMap,
    /// After `ring`, which is dropped first and knows its address.
    pub(super) bounce: Bounce,
    /// Index of the bounce buffer among the ring's registered buffers.
    pub(super) registered: Option<u16>,
    /// Alignment in bytes that the volume wants of memory it is handed directly.
    pub(super) memory_align: usize,
    pub(super) slots: Slots,
    pub(super) chunks: Chunks,
    pub(super) hold: Hold,
    pub(super) path: Path,
    /// Requests for which there was no room, by head; the first goes on first.
    pub(super) waiting: VecDeque<u16>,
    /// Large requests, which are moved a slice per turn.
    pub(super) line: Line,
    /// The disk's limits, and what waits for them. After `ring`: it has the timers' times.
    pub(super) throttle: Throttle,
    /// What a rotation has in work.
    pub(super) fence: Fence,
    /// A flush of a rotation failed, and the guest was not told yet.
    pub(super) flush_failed: bool,
    pub(super) sample: Sample,
    pub(super) watch: Stopwatch,
    /// Some of the disk is encrypted.
    pub(super) enciphers: bool,
    /// Bytes that went through the cipher (or were copied) in this turn.
    pub(super) turn_bytes: usize,
    /// Chunks that the ring had no room for.
    pub(super) unsent: Vec<u32>,
    /// Pieces of guest memory of the chunk at hand.
    pub(super) pieces: Vec<Span>,
    pub(super) writeback: bool,
    pub(super) stats: Arc<QueueStats>,
    pub(super) queue: Option<Queue>,
    /// Index to resume at, from the last stop.
    base: u16,
    inbox: Inbox,
    /// Commands that came while a stop waited for what a rotation parks.
    later: VecDeque<Command>,
    control_slot: FileSlot,
    control_woken: bool,
    spin: Spin,
    done: Vec<LaneDone>,
}

/// A running queue.
pub(super) struct Queue {
    pub(super) virtqueue: Virtqueue,
    pub(super) features: u64,
    /// Used elements were written that the guest may not know of.
    pub(super) unannounced: bool,
    /// The guest broke the ring: nothing is taken from it any more.
    pub(super) broken: bool,
    kick: OwnedFd,
    kick_slot: FileSlot,
    /// A watch of the kick is in the ring.
    kick_armed: bool,
    /// The queue drains: the watch of the kick is not renewed.
    draining: bool,
    /// This kernel doesn't wait in a read of a non-blocking eventfd (before Linux 5.17 or so):
    /// wait with a poll, then read.
    kick_by_poll: bool,
    call: Option<OwnedFd>,
}

impl Worker {
    /// Allocates everything that a queue will need. Runs on the thread that will run the queue.
    pub(crate) fn new(
        index: u16,
        config: EngineConfig,
        profile: DiskProfile,
        volume: &dyn Volume,
        keys: KeyMap,
        inbox: Inbox,
        (stats, path, limiter): (Arc<QueueStats>, Arc<StoragePath>, Option<Arc<Limiter>>),
    ) -> io::Result<Self> {
        let chunks = Chunks::new(usize::from(config.queue_size_max) * 2);
        let entries = (chunks.capacity() as u32 + SPARE_ENTRIES).next_power_of_two();
        let mut ring = Ring::new(RingOptions { entries, best: config.ring_level })
            .map_err(io::Error::other)?;
        let shape = volume.shape();
        let mut bounce = Bounce::new(config.bounce_bytes, shape.piece_bytes)?;
        let registered = match shape.registered {
            true => crate::io::register(&mut ring, &mut bounce),
            false => None,
        };
        ring.enable().map_err(io::Error::other)?;
        let lane = volume.open_lane(&mut ring).map_err(io::Error::other)?;
        let control_slot = ring.add_file(inbox.wake_fd());
        Ok(Self {
            index,
            slots: Slots::new(config.queue_size_max),
            hold: Hold::new(),
            path: Path::new(path, index, config.silence),
            waiting: VecDeque::with_capacity(usize::from(config.queue_size_max)),
            line: Line::new(
                usize::from(config.queue_size_max),
                chunks.capacity(),
                bounce.whole().1,
            ),
            throttle: Throttle::new(limiter, config.queue_size_max),
            fence: Fence::new(config.queue_size_max),
            flush_failed: false,
            sample: Sample::default(),
            watch: Stopwatch::new(config.queue_size_max, index),
            enciphers: !keys.is_plain(),
            turn_bytes: 0,
            unsent: Vec::with_capacity(chunks.capacity()),
            pieces: Vec::with_capacity(PIECES),
            spin: Spin::new(config.poll_max),
            memory_align: volume.geometry().block_bytes as usize,
            config,
            profile,
            ring,
            lane,
            keys,
            bounce,
            registered,
            chunks,
            writeback: true,
            stats,
            queue: None,
            base: 0,
            inbox,
            later: VecDeque::new(),
            control_slot,
            control_woken: true,
            done: Vec::new(),
        })
    }

    /// What the ring was built with, for the log.
    pub(crate) fn ring_features(&self) -> sealblk_ring::Features {
        self.ring.features()
    }

    /// Runs until [`Command::Exit`].
    pub(crate) fn run(mut self) {
        // A mail may have come before the first watch, and a read of an eventfd takes all of them:
        // the first turn looks without being woken.
        self.watch_control();
        loop {
            let mut busy = false;
            if std::mem::take(&mut self.control_woken) {
                if self.obey() {
                    break;
                }
                busy = true;
            }
            self.turn_bytes = 0;
            busy |= self.reap();
            busy |= self.go_on();
            busy |= self.take_requests();
            let sliced = self.move_slice();
            self.notify_guest();
            self.lane.push_out(&mut self.ring);
            if busy || sliced {
                self.spin.found();
            }
            if sliced {
                // Another turn must follow: there may be more slices, or somebody waits for the
                // room that this one freed.
                self.submit();
            } else if !self.polls() {
                // One enter submits and sleeps.
                self.rest();
            } else if self.ring.wants_enter() {
                self.submit();
            } else if !busy {
                self.rest();
            }
        }
        self.lane.close(&mut self.ring);
    }

    /// Enough data was moved in this turn: what it finished and started must get on its way first.
    pub(super) fn turn_is_full(&self) -> bool {
        self.turn_bytes >= TURN_BYTES_MAX
    }

    /// Requests follow each other closely: waiting for the next one awake is worth it.
    fn polls(&self) -> bool {
        self.queue.is_some() && self.spin.is_open()
    }

    /// Nothing to do: polls a little, or submits what is queued and sleeps until something happens.
    fn rest(&mut self) {
        if self.control_woken {
            return;
        }
        if self.polls() && self.spin.look_again(Instant::now) {
            std::hint::spin_loop();
            return;
        }
        let takes = self.can_take();
        if let Some(queue) = &mut self.queue
            && takes
            && queue.virtqueue.enable_kick()
        {
            // Requests arrived while we made up our mind. Those before must not wait for them.
            queue.virtqueue.disable_kick();
            if self.ring.wants_enter() {
                self.submit();
            }
            return;
        }
        self.watch_path();
        let asleep = Instant::now();
        self.stats.sleeps.add(1);
        let result = self.ring.submit_and_wait();
        self.check_enter(result);
        self.spin.woken(asleep.elapsed());
        if let Some(queue) = &mut self.queue
            && takes
        {
            queue.virtqueue.disable_kick();
        }
    }

    fn submit(&mut self) {
        let result = self.ring.submit();
        self.check_enter(result);
    }

    /// A ring that can't be entered will never complete anything: nothing is left to do but to
    /// die, be restarted, and replay.
    fn check_enter(&self, result: io::Result<()>) {
        if let Err(error) = result {
            tracing::error!(disk = self.config.name, queue = self.index, %error, "io_uring failed");
            std::process::abort();
        }
    }

    /// Handles what the ring has completed; whether there was anything.
    pub(super) fn reap(&mut self) -> bool {
        let mut any = false;
        let mut done = std::mem::take(&mut self.done);
        // What is left in the ring when the turn is full ends the next sleep at once.
        while !self.turn_is_full()
            && let Some(Completion { token, result }) = self.ring.reap()
        {
            any = true;
            match token {
                Token::Lane(id) => self.lane.complete(&mut self.ring, id, result, &mut done),
                Token::Event(watch) if watch == WATCH_CONTROL as u64 => {
                    self.control_woken = true;
                    self.watch_control();
                }
                Token::Event(_) => self.kicked(result),
                Token::Timer(crate::path::TIMER) => self.path_timer_ran_out(),
                Token::Timer(crate::hold::TIMER) => self.hold.timer_ran_out(),
                Token::Timer(id) => self.throttle.timer_ran_out(id),
                Token::Ignored => {}
            }
            for done in done.drain(..) {
                self.chunk_done(done);
            }
        }
        self.done = done;
        any
    }

    fn watch_control(&mut self) {
        // The mailbox's eventfd is non-blocking, too. Reading it here costs nothing: control is rare.
        let _ = rustix::io::read(self.inbox.wake_fd(), &mut [0; 8]);
        let armed = self.ring.watch_by_poll(self.control_slot, WATCH_CONTROL);
        assert!(armed.is_ok(), "the ring has room for its watches");
    }

    /// The kick's watch ended.
    fn kicked(&mut self, result: i32) {
        let Some(queue) = &mut self.queue else { return };
        queue.kick_armed = false;
        if queue.draining {
            // A watch that is renewed behind its cancellation would never end.
            return;
        }
        match -result {
            // Passing troubles, and a kernel that doesn't wait in this read.
            libc::EAGAIN | libc::EINTR | libc::ENOMEM | libc::ECANCELED => {
                queue.kick_by_poll = true;
            }
            errno if errno > 0 || result == 0 => {
                let error = io::Error::from_raw_os_error(errno);
                tracing::warn!(disk = self.config.name, queue = self.index, %error,
                    "the kick descriptor can't be read: the queue takes no more requests");
                queue.broken = true;
                self.stats.broken.set(1);
                return;
            }
            _ if queue.kick_by_poll => {
                let _ = rustix::io::read(&queue.kick, &mut [0; 8]);
            }
            _ => {}
        }
        self.watch_kick();
    }

    fn watch_kick(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let armed = if queue.kick_by_poll {
            self.ring.watch_by_poll(queue.kick_slot, WATCH_KICK)
        } else {
            self.ring.watch(queue.kick_slot, WATCH_KICK)
        };
        assert!(armed.is_ok(), "the ring has room for its watches");
        queue.kick_armed = true;
    }

    fn notify_guest(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        if !std::mem::take(&mut queue.unannounced) || !queue.virtqueue.needs_call() {
            return;
        }
        if let Some(call) = &queue.call {
            // EAGAIN: the counter is full, so the guest has been told often enough.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
            self.stats.calls.add(1);
        }
    }

    /// Carries out what is in the mailbox; whether the thread is to end.
    fn obey(&mut self) -> bool {
        while let Some(command) = self.later.pop_front().or_else(|| self.inbox.next()) {
            match command {
                Command::Rotation(order) => self.obey_rotation(order),
                Command::Start(setup, answer) => {
                    let _ = answer.send(self.start(*setup));
                }
                Command::Stop(answer) => self.stop(Some(answer)),
                Command::SetCall(call) => {
                    if let Some(queue) = &mut self.queue {
                        queue.call = call;
                        // What was announced by the old one may have been heard by nobody: QEMU
                        // starts a queue with a notifier of its own and exchanges it afterwards.
                        queue.virtqueue.announce_again();
                        queue.unannounced = true;
                    }
                }
                Command::SetWriteback(writeback, answer) => {
                    if self.writeback && !writeback {
                        self.writeback = false;
                        self.settle();
                    }
                    self.writeback = writeback;
                    let _ = answer.send(());
                }
                Command::Grow(capacity_sectors, answer) => {
                    self.grow(capacity_sectors);
                    let _ = answer.send(());
                }
                Command::SetLimits(limiter) => self.set_limits(limiter),
                Command::Exit => {
                    self.stop(None);
                    return true;
                }
            }
        }
        false
    }

    fn obey_rotation(&mut self, order: Order) {
        match order {
            Order::Watch(zone, answer) => self.fence.watch(zone, &mut self.slots, answer),
            Order::Hold(zone, answer) => self.fence.hold(zone, &mut self.slots, answer),
            Order::Serve(memory, answer) => self.fence.serve(memory, &mut self.slots, answer),
            Order::Publish(keys, answer) => {
                self.keys = *keys;
                self.fence.open();
                // The rotation shall not wait for what it held up.
                let _ = answer.send(false);
                self.unpark();
            }
            Order::Delayed => self.fence.delayed(),
            Order::Stuck => {
                let fails = self.config.on_error == OnError::Report || self.path.is_fenced();
                self.fence.stuck(fails);
                self.unpark();
            }
            Order::FlushFailed(answer) => {
                self.flush_failed = true;
                let _ = answer.send(false);
            }
            Order::TakeTimes(on) => self.sample.turn(on),
        }
    }

    /// Obeys a rotation only: what it parks must go on before the queue can stop.
    fn obey_rotation_only(&mut self) {
        while let Some(command) = self.inbox.next() {
            match command {
                Command::Rotation(order) => self.obey_rotation(order),
                other => self.later.push_back(other),
            }
        }
    }

    fn start(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let fail = |reason: String| StartError { index: self.index, reason };
        if self.queue.is_some() {
            return Err(fail("runs already".to_owned()));
        }
        if setup.size > self.config.queue_size_max {
            return Err(fail(format!(
                "{} descriptors, at most {} are served",
                setup.size, self.config.queue_size_max
            )));
        }
        let (mut virtqueue, replay) =
            Virtqueue::new(&setup).map_err(|error| fail(error.to_string()))?;
        virtqueue.disable_kick();
        self.stats.broken.set(0);
        self.queue = Some(Queue {
            virtqueue,
            features: setup.features,
            // The one before us may have died between writing a used element and telling so.
            unannounced: true,
            broken: false,
            kick_slot: self.ring.add_file(setup.kick.as_fd()),
            kick: setup.kick,
            kick_armed: false,
            draining: false,
            kick_by_poll: false,
            call: setup.call,
        });
        self.watch_kick();
        self.stats.replayed.add(replay.len() as u64);
        if !replay.is_empty() {
            tracing::info!(
                disk = self.config.name,
                queue = self.index,
                requests = replay.len(),
                "replaying requests that a predecessor had in work"
            );
        }
        for head in replay {
            self.begin(head);
        }
        Ok(())
    }

    /// Takes no new requests, waits for those at the volume, lets go of the guest's memory.
    fn stop(&mut self, answer: Option<SyncSender<u16>>) {
        if self.queue.is_some() {
            self.drain();
        }
        if let Some(queue) = self.queue.take() {
            self.leave_path();
            self.base = queue.virtqueue.next_avail();
            self.ring.remove_file(queue.kick_slot);
        }
        if let Some(answer) = answer {
            let _ = answer.send(self.base);
        }
    }

    /// Waits until nothing that was sent before is at the volume.
    fn settle(&mut self) {
        while self.chunks.at_volume() > 0 {
            self.lane.push_out(&mut self.ring);
            self.watch_path();
            let result = self.ring.submit_and_wait();
            self.check_enter(result);
            self.turn_bytes = 0;
            self.reap();
        }
    }

    fn drain(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.draining = true;
        }
        let unwatched = self.ring.unwatch(WATCH_KICK);
        assert!(unwatched.is_ok(), "the ring has room for its watches");
        // Whoever stops the queue doesn't wait for a limit.
        self.go_on_throttled(true);
        loop {
            self.turn_bytes = 0;
            self.reap();
            self.obey_rotation_only();
            self.go_on();
            let sliced = self.move_slice();
            let waiting = self.chunks.at_volume() > 0
                || self.fence.goes_on_soon()
                || self.queue.as_ref().is_some_and(|queue| queue.kick_armed);
            if !waiting && !sliced && !self.has_work_in_hand() {
                break;
            }
            self.lane.push_out(&mut self.ring);
            self.watch_path();
            let result = if waiting { self.ring.submit_and_wait() } else { self.ring.submit() };
            self.check_enter(result);
        }
        self.abandon_held();
        self.notify_guest();
        assert!(
            self.chunks.is_empty() && self.bounce.is_whole(),
            "a drained queue has nothing in flight"
        );
    }
}
