use std::collections::BTreeSet;

use super::*;
use crate::mapping::journal::{self, Store};
use crate::testing::{AVAIL, BASE, Driver, END, USED};
use crate::{QueueSetupError, Virtqueue};

/// What a ring of two descriptors can go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Offer(u16),
    Pop,
    Push(u16),
}

/// All stores of one history, with what the guest is owed after each, and the order of pops.
struct World {
    driver: Driver,
    region: InflightRegion,
    ring: Vec<u8>,
    table: Vec<u8>,
}

const START: u16 = 65534;

impl World {
    fn new() -> Self {
        let driver = Driver::new(2, START);
        let (region, _file) = InflightRegion::create(1, 2).unwrap();
        let mut world = Self { driver, region, ring: Vec::new(), table: Vec::new() };
        world.ring = vec![0; (END - BASE) as usize];
        world.driver.memory.read(BASE, &mut world.ring).unwrap();
        world.table = vec![0; world.region.mapping.len()];
        assert!(world.region.mapping.read(0, &mut world.table));
        world
    }

    fn start(&self) -> (Virtqueue, Vec<u16>) {
        Virtqueue::new(&self.driver.setup(0, self.region.queue(0))).unwrap()
    }

    /// Memory as it is after `stores`.
    fn rewind(&self, stores: &[Store]) {
        self.driver.memory.write(BASE, &self.ring).unwrap();
        assert!(self.region.mapping.write(0, &self.table));
        for (addr, bytes) in stores {
            let span = sealblk_block::Span { addr: *addr, len: bytes.len() };
            let offset = addr.wrapping_sub(self.region.mapping.addr());
            assert!(
                self.driver.memory.write_span(span, bytes)
                    || self.region.mapping.write(offset, bytes)
            );
        }
    }

    fn host(&self, gpa: u64) -> usize {
        let mut at = 0;
        self.driver.memory.each_span(gpa, 1, |span| at = span.addr).unwrap();
        at
    }
}

/// Every legal history of `depth` acts.
fn histories(depth: usize) -> Vec<Vec<Act>> {
    fn grow(
        left: usize,
        acts: &mut Vec<Act>,
        offered: &mut Vec<u16>,
        taken: &mut BTreeSet<u16>,
        out: &mut Vec<Vec<Act>>,
    ) {
        if left == 0 {
            out.push(acts.clone());
            return;
        }
        for head in 0..2 {
            if !offered.contains(&head) && !taken.contains(&head) {
                offered.push(head);
                acts.push(Act::Offer(head));
                grow(left - 1, acts, offered, taken, out);
                acts.pop();
                offered.pop();
            } else if taken.remove(&head) {
                acts.push(Act::Push(head));
                grow(left - 1, acts, offered, taken, out);
                acts.pop();
                taken.insert(head);
            }
        }
        if !offered.is_empty() {
            let head = offered.remove(0);
            taken.insert(head);
            acts.push(Act::Pop);
            grow(left - 1, acts, offered, taken, out);
            acts.pop();
            taken.remove(&head);
            offered.insert(0, head);
        }
    }
    let mut out = Vec::new();
    grow(depth, &mut Vec::new(), &mut Vec::new(), &mut BTreeSet::new(), &mut out);
    out
}

/// After a start: what is replayed and then taken is exactly what the guest is owed, in its order.
fn check_start(world: &World, owed: &[u16], history: &[Act]) {
    let (mut queue, replay) = world.start();
    let mut got = replay.clone();
    while let Some(head) = queue.pop().unwrap() {
        got.push(head);
    }
    assert_eq!(got, owed, "replayed {replay:?} after {history:?}");
    // Killed again with all of them in flight, replayed and new ones alike.
    drop(queue);
    let (mut queue, replay) = world.start();
    assert_eq!(replay, got, "the order survives after {history:?}");
    for head in got {
        queue.push_used(head, 0);
    }
    let (mut queue, replay) = world.start();
    assert_eq!((replay, queue.pop()), (vec![], Ok(None)), "nothing is left after {history:?}");
}

#[test]
fn killed_after_any_store_exactly_the_unanswered_requests_are_replayed_once_and_in_order() {
    let world = World::new();
    let (avail_idx, used_idx) = (world.host(AVAIL + 2), world.host(USED + 2));
    let all = histories(8);
    assert!(all.len() > 100);
    let mut crashes = 0;
    for history in all {
        world.rewind(&[]);
        let mut driver = Driver::over(&world.driver, START);
        // Stores, and the act that each belongs to.
        let mut stores: Vec<(Store, Option<Act>)> = Vec::new();
        let mut queue = None;
        stores.extend(journal::of(|| queue = Some(world.start().0)).into_iter().map(|s| (s, None)));
        let mut queue = queue.unwrap();
        for act in &history {
            let made = journal::of(|| match act {
                Act::Offer(head) => driver.offer(*head),
                Act::Pop => assert!(queue.pop().unwrap().is_some()),
                Act::Push(head) => queue.push_used(*head, 1),
            });
            stores.extend(made.into_iter().map(|store| (store, Some(*act))));
        }
        let mut owed: Vec<u16> = Vec::new();
        let mut prefix: Vec<Store> = Vec::new();
        for (store, act) in stores {
            match act {
                Some(Act::Offer(head)) if store.0 == avail_idx => owed.push(head),
                Some(Act::Push(head)) if store.0 == used_idx => owed.retain(|other| *other != head),
                _ => {}
            }
            prefix.push(store);
            world.rewind(&prefix);
            // The one who recovers may be killed, too.
            let recovery = journal::of(|| drop(world.start()));
            for end in 0..=recovery.len() {
                let mut twice = prefix.clone();
                twice.extend_from_slice(&recovery[..end]);
                world.rewind(&twice);
                check_start(&world, &owed, &history);
                crashes += 1;
            }
        }
    }
    assert!(crashes > 10_000, "only {crashes}");
}

#[test]
fn a_batch_that_another_back_end_answered_is_forgotten_whole() {
    let (region, _file) = InflightRegion::create(1, 8).unwrap();
    let mut queue = region.queue(0).unwrap();
    assert_eq!(queue.recover(0, 0, 8).unwrap(), Vec::<u16>::new());
    for head in [3, 1, 5, 7] {
        queue.begin(head);
    }
    // 5 and 3 were answered in one go.
    queue.window.store_u16(HEADER_LAST_BATCH_HEAD, 5);
    queue.window.store_u16(desc(5, DESC_NEXT), 3);
    assert_eq!(region.queue(0).unwrap().recover(4, 2, 8).unwrap(), [1, 7]);
}

#[test]
fn a_region_that_contradicts_the_ring_is_refused() {
    let (region, _file) = InflightRegion::create(1, 8).unwrap();
    let mut queue = region.queue(0).unwrap();
    queue.recover(0, 0, 8).unwrap();
    for head in [1, 6] {
        queue.begin(head);
    }
    let recover = |avail, used, size| region.queue(0).unwrap().recover(avail, used, size);
    assert!(matches!(recover(1, 0, 8), Err(InflightError::Stale { .. })), "one was offered");
    assert!(matches!(recover(0, 1, 8), Err(InflightError::Stale { .. })), "a ring run backwards");
    assert!(matches!(recover(2, 0, 4), Err(InflightError::Stale { .. })), "head 6 of 4");
    assert_eq!(recover(2, 0, 8).unwrap(), [1, 6]);
    queue.window.store_u16(HEADER_DESC_NUM, 4);
    assert!(matches!(recover(2, 0, 8), Err(InflightError::Header { desc_num: 4, .. })));
    queue.window.store_u16(HEADER_DESC_NUM, 8);
    queue.window.store_u16(HEADER_VERSION, 2);
    assert!(matches!(recover(2, 0, 8), Err(InflightError::Header { version: 2, .. })));
}

#[test]
fn links_and_counters_of_any_value_end_in_an_answer() {
    let (region, _file) = InflightRegion::create(1, 4).unwrap();
    assert!(region.mapping.write(0, &[0xff; 128]));
    let queue = || region.queue(0).unwrap();
    assert!(queue().recover(0, 0, 4).is_err());
    queue().window.store_u16(HEADER_VERSION, VERSION);
    queue().window.store_u16(HEADER_DESC_NUM, 4);
    assert_eq!(queue().recover(3, 65535, 4).unwrap(), [0, 1, 2, 3]);
    // A batch that is linked to itself.
    queue().window.store_u16(HEADER_LAST_BATCH_HEAD, 2);
    queue().window.store_u16(desc(2, DESC_NEXT), 2);
    assert_eq!(queue().recover(4, 1, 4).unwrap(), [0, 1, 3]);
}

#[test]
fn the_layout_is_the_specifications() {
    let (region, file) = InflightRegion::create(4, 128).unwrap();
    assert_eq!(queue_bytes(128), 2112, "16 + 128 * 16, in steps of 64");
    assert_eq!(region.size_bytes(), 4 * 2112);
    region.queue(3).unwrap().begin(2);
    let seen = InflightRegion::map(&file, 0, region.size_bytes(), 4, 128).unwrap();
    let mut raw = [0; 16];
    assert!(seen.mapping.read(3 * 2112 + 16 + 2 * 16, &mut raw));
    assert_eq!(raw, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert!(region.queue(4).is_none());
}

#[test]
fn a_region_that_is_too_short_is_not_mapped() {
    let (region, file) = InflightRegion::create(1, 128).unwrap();
    let size = region.size_bytes();
    let map = |offset, size, queues| InflightRegion::map(&file, offset, size, queues, 128);
    assert!(matches!(map(0, size - 1, 1), Err(InflightError::Short { .. })));
    assert!(matches!(map(0, size * 2, 2), Err(InflightError::Map(_))), "the file is shorter");
    assert!(matches!(map(64, size, 1), Err(InflightError::Map(_))));
    assert!(matches!(map(u64::MAX, size, 1), Err(InflightError::Map(_))));
    assert!(matches!(map(0, size, 0), Err(InflightError::Shape { .. })));
    assert!(ftruncate(&file, 0).is_err(), "our own file keeps its length");
}

#[test]
fn a_ring_larger_than_its_region_is_not_started() {
    let (region, _file) = InflightRegion::create(1, 4).unwrap();
    let driver = Driver::new(8, 0);
    let started = Virtqueue::new(&driver.setup(0, region.queue(0)));
    assert!(matches!(started, Err(QueueSetupError::InflightRoom { room: 4, size: 8 })));
}

#[test]
fn a_successor_learns_that_the_write_cache_was_switched_off() {
    let (region, file) = InflightRegion::create(2, 8).unwrap();
    let successor = || InflightRegion::map(&file, 0, region.size_bytes(), 2, 8).unwrap();
    assert!(!successor().write_through());
    region.set_write_through(true);
    assert!(successor().write_through());
    region.queue(0).unwrap().recover(0, 0, 8).unwrap();
    assert!(successor().write_through(), "starting the queue keeps it");
    region.set_write_through(false);
    assert!(!successor().write_through());
}
