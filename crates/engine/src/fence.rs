//! The zone that a rotation has in work, as one queue thread sees it: what is parked, what is served
//! from memory, and when those before have ended.
//!
//! Contract: the order is watch, hold, serve, and then a new key map, which [opens](Fence::open) the
//! fence; a watch of the next zone may come at any time and outlives that. Each order is answered
//! once no request that was begun before it and that concerns it is in work; requests begin anew
//! when they leave the fence.
//! Invariants: a parked request has no chunk. While the zone's memory is served, no chunk of a
//! request that was begun later reads the zone from the volume.
//! Deliberately absent: waiting. The thread goes on with what lies elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use sealblk_block::{Extent, Op, SECTOR_BYTES};
use sealblk_volume::AlignedBuf;

use crate::broken;
use crate::slot::{Slot, Slots};

/// Answers an order; of [`Fence::hold`] the word tells whether the zone was written to since it is
/// watched.
pub(crate) type Answer = SyncSender<bool>;

/// What to do with a request that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It goes on.
    Pass,
    /// It is parked: [`Fence::next_parked`] gives it back.
    Parked,
    /// It fails: the zone can't be had, and the guest wants to know.
    Fails,
}

/// How the rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// What is parked may have to wait for the storage: a queue that stops doesn't wait for it.
    Delayed,
    /// What touches the zone fails.
    Fails,
}

/// The zone in work.
pub(crate) struct Fence {
    /// The next zone, and whether somebody has written to it.
    watch: Option<(Extent, bool)>,
    /// Writes to it are parked.
    zone: Option<Extent>,
    /// Its old ciphertext, from which reads are served.
    memory: Option<Arc<AlignedBuf>>,
    health: Health,
    parked: VecDeque<u16>,
    /// An order that waits for requests begun before it.
    barrier: Option<(usize, bool, Answer)>,
}

impl Fence {
    pub(crate) fn new(requests: u16) -> Self {
        Self {
            watch: None,
            zone: None,
            memory: None,
            health: Health::Good,
            parked: VecDeque::with_capacity(usize::from(requests)),
            barrier: None,
        }
    }

    /// Writes that begin from now on and touch `zone` are remembered.
    pub(crate) fn watch(&mut self, zone: Extent, slots: &mut Slots, answer: Answer) {
        self.watch = Some((zone, false));
        self.bar(slots, |slot, op| writes(op) && touches(slot, zone), false, answer);
    }

    /// Writes that begin from now on and touch `zone` are parked.
    pub(crate) fn hold(&mut self, zone: Extent, slots: &mut Slots, answer: Answer) {
        let dirty = match self.watch {
            Some((watched, dirty)) if watched == zone => {
                self.watch = None;
                dirty
            }
            _ => true,
        };
        self.zone = Some(zone);
        self.memory = None;
        self.health = Health::Good;
        self.bar(slots, |slot, op| writes(op) && touches(slot, zone), dirty, answer);
    }

    /// Reads that begin from now on are served from `memory` where they lie in the zone.
    pub(crate) fn serve(&mut self, memory: Arc<AlignedBuf>, slots: &mut Slots, answer: Answer) {
        let Some(zone) = self.zone else {
            broken("a rotation serves a zone that it does not hold")
        };
        if memory.len() as u64 / SECTOR_BYTES < zone.sectors {
            broken("a rotation serves a zone from less than its ciphertext");
        }
        self.memory = Some(memory);
        self.bar(slots, |slot, op| op == Op::Read && touches(slot, zone), false, answer);
    }

    /// The zone is no longer in work. What is parked goes on: see [`Self::next_parked`].
    pub(crate) fn open(&mut self) {
        self.zone = None;
        self.memory = None;
        self.health = Health::Good;
        if let Some((_, _, answer)) = self.barrier.take() {
            // The rotation no longer waits for it.
            drop(answer);
        }
    }

    /// The rotation waits for the storage.
    pub(crate) fn delayed(&mut self) {
        if self.health == Health::Good {
            self.health = Health::Delayed;
        }
    }

    /// The rotation can't go on for now; `fails`: guests are to be told.
    pub(crate) fn stuck(&mut self, fails: bool) {
        self.health = if fails { Health::Fails } else { Health::Delayed };
    }

    /// A request is about to begin.
    pub(crate) fn admit(&mut self, head: u16, op: Op, slot: &Slot) -> Admission {
        // The common case first.
        if self.zone.is_none() && self.watch.is_none() || !writes(op) {
            return Admission::Pass;
        }
        if self.zone.is_some_and(|zone| touches(slot, zone)) {
            if self.health == Health::Fails {
                return Admission::Fails;
            }
            self.parked.push_back(head);
            return Admission::Parked;
        }
        if let Some((zone, dirty)) = &mut self.watch {
            *dirty |= touches(slot, *zone);
        }
        Admission::Pass
    }

    /// A request that an order waits for has ended.
    pub(crate) fn one_ended(&mut self) {
        if let Some((left, ..)) = &mut self.barrier {
            *left -= 1;
            if *left == 0 {
                self.answer();
            }
        }
    }

    /// The next parked request that may begin anew: the fence is open, or it is to fail.
    pub(crate) fn next_parked(&mut self) -> Option<u16> {
        let goes = self.zone.is_none() || self.health == Health::Fails;
        if goes { self.parked.pop_front() } else { None }
    }

    /// Requests that are parked.
    pub(crate) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// The next parked request, fence or not: the queue stops.
    pub(crate) fn abandon(&mut self) -> Option<u16> {
        self.parked.pop_front()
    }

    /// A queue that stops should wait for what is parked.
    pub(crate) fn goes_on_soon(&self) -> bool {
        !self.parked.is_empty() && self.health == Health::Good
    }

    /// The first part of a read that is served in one way: from memory, or from the volume.
    pub(crate) fn cut(&self, extent: Extent) -> Extent {
        let (Some(zone), Some(_)) = (self.zone, &self.memory) else { return extent };
        let (start, end) = (zone.start, zone.start + zone.sectors);
        let edge = match extent.start {
            at if at < start => start,
            at if at < end => end,
            _ => return extent,
        };
        Extent::new(extent.start, extent.sectors.min(edge - extent.start))
    }

    /// Where the ciphertext of a read that was [cut](Self::cut) lies in memory, if it does.
    pub(crate) fn memory(&self, extent: Extent) -> Option<*const u8> {
        let (zone, memory) = (self.zone?, self.memory.as_ref()?);
        let offset = extent.start.checked_sub(zone.start)?;
        if offset >= zone.sectors {
            return None;
        }
        let (from, len) = (offset * SECTOR_BYTES, extent.sectors * SECTOR_BYTES);
        let bytes = memory.as_slice().get(from as usize..(from + len) as usize);
        match bytes {
            Some(bytes) => Some(bytes.as_ptr()),
            None => broken("a read was not cut at the edge of the zone in work"),
        }
    }

    /// Marks the requests in work that an order waits for, or answers at once.
    fn bar(
        &mut self,
        slots: &mut Slots,
        concerns: impl Fn(&Slot, Op) -> bool,
        word: bool,
        answer: Answer,
    ) {
        if self.barrier.is_some() {
            broken("a rotation gave an order before the last one was answered");
        }
        let mut left = 0;
        for slot in slots.in_work() {
            let op = slot.request.map(|request| request.op);
            slot.barred = !slot.parked && op.is_some_and(|op| concerns(slot, op));
            left += usize::from(slot.barred);
        }
        self.barrier = Some((left, word, answer));
        if left == 0 {
            self.answer();
        }
    }

    fn answer(&mut self) {
        if let Some((_, word, answer)) = self.barrier.take() {
            // Whoever asked is gone only while the process ends.
            let _ = answer.send(word);
        }
    }
}

/// Whether a request changes what lies on the volume.
fn writes(op: Op) -> bool {
    matches!(op, Op::Write | Op::WriteZeroes { .. } | Op::Discard)
}

fn touches(slot: &Slot, zone: Extent) -> bool {
    slot.ranges.iter().any(|range| range.overlaps(&zone))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use sealblk_virtqueue::blk::Request;

    use super::*;

    const ZONE: Extent = Extent::new(100, 50);

    /// A queue with these requests in work, by head.
    fn slots(requests: &[(Op, Extent)]) -> Slots {
        let mut slots = Slots::new(16);
        for (head, (op, range)) in requests.iter().enumerate() {
            let slot = slots.get_mut(head as u16);
            slot.ranges = vec![*range];
            slot.begin(Request::unanswered(*op));
            slots.started();
        }
        slots
    }

    fn slot(range: Extent) -> Slot {
        Slot { ranges: vec![range], ..Slot::default() }
    }

    fn channel() -> (Answer, Receiver<bool>) {
        sync_channel(1)
    }

    #[test]
    fn holding_waits_for_older_writes_to_the_zone_and_for_nothing_else() {
        let mut slots = slots(&[
            (Op::Write, Extent::new(90, 20)),
            (Op::Read, Extent::new(100, 8)),
            (Op::Write, Extent::new(150, 8)),
            (Op::Discard, Extent::new(149, 1)),
        ]);
        let mut fence = Fence::new(16);
        let (answer, answered) = channel();
        fence.hold(ZONE, &mut slots, answer);
        let barred: Vec<_> = (0..4).map(|head| slots.get_mut(head).barred).collect();
        assert_eq!(barred, [true, false, false, true]);
        fence.one_ended();
        assert!(answered.try_recv().is_err());
        fence.one_ended();
        assert_eq!(answered.try_recv(), Ok(true), "nobody watched it: it may have been written to");
    }

    #[test]
    fn a_watched_zone_knows_whether_it_was_written_to() {
        for (range, dirty) in [(Extent::new(149, 8), true), (Extent::new(150, 8), false)] {
            let mut slots = slots(&[]);
            let mut fence = Fence::new(16);
            let (answer, _watched) = channel();
            fence.watch(ZONE, &mut slots, answer);
            assert_eq!(fence.admit(1, Op::Read, &slot(ZONE)), Admission::Pass);
            assert_eq!(fence.admit(2, Op::Write, &slot(range)), Admission::Pass);
            let (answer, answered) = channel();
            fence.hold(ZONE, &mut slots, answer);
            assert_eq!(answered.try_recv(), Ok(dirty));
        }
    }

    #[test]
    fn writes_to_the_zone_are_parked_until_it_opens() {
        let mut fence = Fence::new(16);
        let (answer, _answered) = channel();
        fence.hold(ZONE, &mut slots(&[]), answer);
        assert_eq!(fence.admit(1, Op::Read, &slot(ZONE)), Admission::Pass);
        assert_eq!(fence.admit(2, Op::Write, &slot(Extent::new(0, 100))), Admission::Pass);
        for (head, op) in [(3, Op::Write), (4, Op::Discard), (5, Op::WriteZeroes { unmap: false })]
        {
            assert_eq!(fence.admit(head, op, &slot(Extent::new(0, 101))), Admission::Parked);
        }
        assert!(fence.goes_on_soon());
        assert_eq!(fence.next_parked(), None);
        fence.open();
        let heads: Vec<_> = std::iter::from_fn(|| fence.next_parked()).collect();
        assert_eq!(heads, [3, 4, 5]);
    }

    #[test]
    fn a_watch_outlives_the_zone_before_it() {
        let next = Extent::new(150, 50);
        let mut fence = Fence::new(16);
        let (answer, _held) = channel();
        fence.hold(ZONE, &mut slots(&[]), answer);
        let (answer, _watched) = channel();
        fence.watch(next, &mut slots(&[]), answer);
        let both = slot(Extent::new(149, 2));
        assert_eq!(fence.admit(1, Op::Write, &both), Admission::Parked);
        fence.open();
        assert_eq!(fence.next_parked(), Some(1));
        assert_eq!(fence.admit(1, Op::Write, &both), Admission::Pass);
        let (answer, answered) = channel();
        fence.hold(next, &mut slots(&[]), answer);
        assert_eq!(answered.try_recv(), Ok(true));
    }

    #[test]
    fn a_rotation_that_is_stuck_fails_or_keeps_what_is_parked() {
        for fails in [true, false] {
            let mut fence = Fence::new(16);
            let (answer, _answered) = channel();
            fence.hold(ZONE, &mut slots(&[]), answer);
            assert_eq!(fence.admit(1, Op::Write, &slot(ZONE)), Admission::Parked);
            fence.stuck(fails);
            assert!(!fence.goes_on_soon());
            assert_eq!(fence.next_parked(), fails.then_some(1));
            let later = if fails { Admission::Fails } else { Admission::Parked };
            assert_eq!(fence.admit(2, Op::Write, &slot(ZONE)), later);
        }
    }

    #[test]
    fn reads_are_cut_where_the_memory_begins_and_ends() {
        let mut fence = Fence::new(16);
        let (answer, _held) = channel();
        fence.hold(ZONE, &mut slots(&[]), answer);
        let whole = Extent::new(90, 100);
        assert_eq!(fence.cut(whole), whole, "not served from memory yet");
        let mut memory = AlignedBuf::new(50 * 512).unwrap();
        memory.as_mut_slice()[512..1024].fill(7);
        let (answer, served) = channel();
        fence.serve(Arc::new(memory), &mut slots(&[(Op::Read, ZONE)]), answer);
        assert!(served.try_recv().is_err(), "an older read is at the volume");
        let cut = |start, sectors| fence.cut(Extent::new(start, sectors));
        assert_eq!(cut(90, 100), Extent::new(90, 10));
        assert_eq!(cut(100, 90), Extent::new(100, 50));
        assert_eq!(cut(149, 1), Extent::new(149, 1));
        assert_eq!(cut(150, 8), Extent::new(150, 8));
        assert_eq!(fence.memory(Extent::new(90, 10)), None);
        assert_eq!(fence.memory(Extent::new(150, 8)), None);
        let at = |sector| fence.memory(Extent::new(sector, 1)).unwrap() as usize;
        assert_eq!(at(101) - at(100), 512);
        fence.one_ended();
        assert_eq!(served.try_recv(), Ok(false));
    }
}
