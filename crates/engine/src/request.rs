//! The life of a request: taken, begun, waiting for its limit or for room, completed.

use sealblk_block::{Op, Status};
use sealblk_virtqueue::blk::{self, Refusal};

use crate::broken;
use crate::fence::Admission;
use crate::latency::Kind;
use crate::line::LARGE_BYTES;
use crate::worker::Worker;

impl Worker {
    /// Whether the next request may be taken from the guest: those before it have all they need.
    pub(super) fn can_take(&self) -> bool {
        self.waiting.is_empty()
            && self.unsent.is_empty()
            && self.queue.as_ref().is_some_and(|queue| !queue.broken)
    }

    /// Takes requests as long as there are some and there is room, but no more than a queueful: a
    /// guest that keeps offering what ends at once (nonsense, say) must not keep us from the rest
    /// of the turn. Whether there were some.
    pub(super) fn take_requests(&mut self) -> bool {
        let mut any = false;
        let most = self.queue.as_ref().map_or(0, |queue| queue.virtqueue.size());
        for _ in 0..most {
            if !self.can_take() || self.turn_is_full() {
                break;
            }
            let Some(queue) = &mut self.queue else { break };
            match queue.virtqueue.pop() {
                Ok(Some(head)) => {
                    any = true;
                    self.begin(head);
                }
                Ok(None) => break,
                Err(error) => self.ring_is_broken(&error.to_string()),
            }
        }
        any
    }

    /// The guest's ring makes no sense any more: nothing is taken from it until it is restarted.
    fn ring_is_broken(&mut self, what: &str) {
        let Some(queue) = &mut self.queue else { return };
        queue.broken = true;
        self.stats.broken.set(1);
        tracing::warn!(
            disk = self.config.name,
            queue = self.index,
            what,
            "the guest broke the virtqueue: it is not served until the driver resets it"
        );
    }

    /// Starts on the request that begins at descriptor `head`, taken or replayed.
    pub(super) fn begin(&mut self, head: u16) {
        let Some(queue) = &mut self.queue else { return };
        let slot = self.slots.get_mut(head);
        if slot.request.is_some() {
            return self.ring_is_broken("a descriptor was made available that is still in use");
        }
        let parsed = queue.virtqueue.read_chain(head, &mut slot.chain);
        let parsed = match parsed {
            Ok(()) => blk::parse(
                queue.virtqueue.memory(),
                &mut slot.chain,
                &self.profile,
                queue.features,
                &mut slot.ranges,
            ),
            Err(error) => Err(Refusal::from(error)),
        };
        let request = match parsed {
            Ok(request) => request,
            Err(refusal) => {
                self.stats.refused.add(1);
                let used_len = refusal.answer(queue.virtqueue.memory());
                queue.virtqueue.push_used(head, used_len);
                queue.unannounced = true;
                return;
            }
        };
        slot.begin(request);
        self.slots.started();
        self.stats.in_flight.set(self.slots.busy() as u64);
        self.watch.begins(head);
        if !self.throttles(head, request.op) {
            self.proceed(head, request.op);
        }
    }

    /// Goes on with a request that is in its slot and within the disk's limits.
    #[inline]
    pub(super) fn proceed(&mut self, head: u16, op: Op) {
        self.sample.begins(head);
        match op {
            Op::GetId => {
                let slot = self.slots.get_mut(head);
                if let (Some(queue), Some(request)) = (&self.queue, &slot.request) {
                    let memory = queue.virtqueue.memory();
                    slot.status = Some(blk::write_id(memory, request, &slot.chain, &self.profile));
                }
                self.complete(head);
            }
            // Another client has the volume.
            _ if self.path.is_fenced() => {
                self.slots.get_mut(head).status = Some(Status::IoErr);
                self.complete(head);
            }
            Op::Flush if std::mem::take(&mut self.flush_failed) => {
                self.slots.get_mut(head).status = Some(Status::IoErr);
                self.complete(head);
            }
            Op::Flush => {
                if !self.issue_flush(head) {
                    self.wait(head);
                }
            }
            op => self.begin_data(head, op),
        }
    }

    /// Starts on a request that names sectors, unless a rotation has them in work.
    fn begin_data(&mut self, head: u16, op: Op) {
        let slot = self.slots.get_mut(head);
        match self.fence.admit(head, op, slot) {
            Admission::Pass => {}
            Admission::Parked => {
                slot.parked = true;
                slot.waits = true;
                self.stats.parked.add(1);
                self.stats.parked_now.set(self.fence.parked() as u64);
                return;
            }
            Admission::Fails => {
                slot.status = Some(Status::IoErr);
                return self.complete(head);
            }
        }
        if self.enciphers && slot.moved_bytes(op) > LARGE_BYTES {
            slot.large = true;
            slot.waits = true;
            self.line.add(head);
        } else if !self.issue(head) {
            self.wait(head);
        } else if self.slots.get_mut(head).chunks == 0 {
            // Nothing at the volume: an empty range, or all of it lay in memory.
            self.complete(head);
        }
    }

    /// Begins anew with what is no longer parked.
    pub(super) fn unpark(&mut self) {
        while let Some(head) = self.fence.next_parked() {
            self.stats.parked_now.set(self.fence.parked() as u64);
            let slot = self.slots.get_mut(head);
            slot.parked = false;
            slot.waits = false;
            let Some(request) = slot.request else { broken("a parked request is gone") };
            self.begin_data(head, request.op);
        }
    }

    fn wait(&mut self, head: u16) {
        self.slots.get_mut(head).waits = true;
        self.waiting.push_back(head);
    }

    /// Goes on with what waited for room or for the storage to come back; whether something moved.
    pub(super) fn go_on(&mut self) -> bool {
        let mut any = self.send_unsent();
        let fenced = self.path.is_fenced();
        while let Some(id) = self.hold.due(fenced) {
            if fenced {
                self.end_chunk(id, Some(Status::IoErr));
            } else {
                self.send(id);
            }
            any = true;
        }
        if self.throttle.waits() {
            any |= self.go_on_throttled(false);
        }
        while let Some(&head) = self.waiting.front() {
            let flush = self.slots.get_mut(head).request.is_some_and(|r| r.op == Op::Flush);
            let all = if flush { self.issue_flush(head) } else { self.issue(head) };
            if !all {
                break;
            }
            self.waiting.pop_front();
            any = true;
            self.all_issued(head);
        }
        any
    }

    /// A request that waited has all its chunks under way, or done.
    pub(super) fn all_issued(&mut self, head: u16) {
        let slot = self.slots.get_mut(head);
        slot.waits = false;
        if slot.chunks == 0 {
            self.complete(head);
        }
    }

    /// Whether something can be done without waiting for the volume.
    pub(super) fn has_work_in_hand(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Tells the guest how a request ended.
    pub(super) fn complete(&mut self, head: u16) {
        let slot = self.slots.get_mut(head);
        let Some(request) = slot.request.take() else { return };
        let status = slot.status.unwrap_or(Status::Ok);
        let bytes = slot.data_bytes;
        self.slots.ended();
        self.left_work(head);
        if let Some(time) = self.sample.ends(head) {
            self.stats.timed.add(1);
            self.stats.timed_ns.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
        if let Some(taken) = self.watch.ends(head)
            && let Some(kind) = kind(request.op)
        {
            self.stats.latency.add(kind, bytes, &taken);
        }
        self.count(request.op, bytes, status);
        let Some(queue) = &mut self.queue else { return };
        let used_len = request.finish(queue.virtqueue.memory(), status);
        queue.virtqueue.push_used(head, used_len);
        queue.unannounced = true;
    }

    /// A request is no longer in work: an order of a rotation may wait for that.
    fn left_work(&mut self, head: u16) {
        if std::mem::take(&mut self.slots.get_mut(head).barred) {
            self.fence.one_ended();
        }
    }

    fn count(&self, op: Op, bytes: u64, status: Status) {
        let stats = &self.stats;
        stats.in_flight.set(self.slots.busy() as u64);
        match (status, op) {
            (Status::Ok, Op::Read) => {
                stats.reads.add(1);
                stats.read_bytes.add(bytes);
            }
            (Status::Ok, Op::Write | Op::WriteZeroes { .. }) => {
                stats.writes.add(1);
                stats.written_bytes.add(bytes);
            }
            (Status::Ok, Op::Flush) => stats.flushes.add(1),
            (Status::Ok, Op::Discard) => stats.discards.add(1),
            (Status::Ok, Op::GetId) => {}
            (Status::IoErr | Status::Unsupported, Op::GetId) => stats.refused.add(1),
            (Status::IoErr | Status::Unsupported, _) => stats.volume_errors.add(1),
        }
    }

    /// The queue stops while the storage is away: what is held back stays in the in-flight region
    /// and is replayed by whoever runs the queue next; without such a region the guest is told.
    pub(super) fn abandon_held(&mut self) {
        let tracked = self.queue.as_ref().is_some_and(|queue| queue.virtqueue.is_tracked());
        while let Some(id) = self.hold.abandon() {
            if tracked {
                self.forget_chunk(id);
            } else {
                self.end_chunk(id, Some(Status::IoErr));
            }
        }
        // Those that waited for the room of the held ones.
        while let Some(head) = self.waiting.pop_front().or_else(|| self.line.abandon()) {
            self.abandon(head, tracked);
        }
        // Those that a rotation holds back which itself waits for the storage.
        while let Some(head) = self.fence.abandon() {
            self.abandon(head, tracked);
        }
        self.stats.parked_now.set(0);
    }

    /// Ends a request that waits.
    fn abandon(&mut self, head: u16, tracked: bool) {
        let slot = self.slots.get_mut(head);
        slot.waits = false;
        slot.parked = false;
        if tracked {
            self.forget(head);
        } else {
            slot.status = Some(Status::IoErr);
            self.complete(head);
        }
    }

    /// Drops a request without an answer: its mark in the in-flight region stays.
    fn forget(&mut self, head: u16) {
        if self.slots.get_mut(head).request.take().is_some() {
            self.slots.ended();
            self.left_work(head);
            let _ = self.watch.ends(head);
            self.stats.in_flight.set(self.slots.busy() as u64);
        }
    }

    fn forget_chunk(&mut self, id: u32) {
        let chunk = self.drop_chunk(id);
        let slot = self.slots.get_mut(chunk.slot);
        // Nothing more is started for it.
        slot.status = Some(Status::IoErr);
        if slot.chunks == 0 && !slot.waits {
            self.forget(chunk.slot);
        }
    }
}

/// What a request counts as where times are told; none: it is not.
fn kind(op: Op) -> Option<Kind> {
    match op {
        Op::Read => Some(Kind::Read),
        Op::Write | Op::WriteZeroes { .. } => Some(Kind::Write),
        Op::Flush => Some(Kind::Flush),
        Op::Discard => Some(Kind::Discard),
        Op::GetId => None,
    }
}
