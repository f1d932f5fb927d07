//! The power goes while the driver itself rotates beside a guest: what it issued is logged, and any
//! part of what was not flushed yet may be on the disk, torn at the storage's block.

use std::collections::HashMap;
use std::sync::Mutex;

use super::*;
use crate::TakenUp;

/// What was issued, in order.
enum Event {
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Flush,
    /// The guest's view: this block holds this byte from now on.
    Guest {
        block: usize,
        byte: u8,
    },
}

/// A volume that logs. Its lanes carry out an I/O while it is submitted, so what they wrote can be
/// read afterwards.
struct Log {
    inner: Arc<dyn Volume>,
    events: Mutex<Vec<Event>>,
    submitted: Mutex<Vec<(u64, usize)>>,
}

impl Log {
    /// Logs what lanes have written.
    fn settle(&self) {
        for (offset, len) in std::mem::take(&mut *self.submitted.lock().unwrap()) {
            let mut data = vec![0; len];
            self.inner.read_at(offset, &mut data).unwrap();
            self.events.lock().unwrap().push(Event::Write { offset, data });
        }
    }

    fn push(&self, event: Event) {
        self.settle();
        self.events.lock().unwrap().push(event);
    }
}

struct Logged(Arc<Log>);

impl Volume for Logged {
    fn uri(&self) -> &str {
        "logged"
    }

    fn geometry(&self) -> Geometry {
        self.0.inner.geometry()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.0.inner.read_at(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.0.push(Event::Write { offset: offset_bytes, data: data.to_vec() });
        self.0.inner.write_at(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.0.push(Event::Flush);
        Ok(())
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        let log = self.0.clone();
        let judge = move |op: &LaneOp| {
            log.settle();
            if let LaneOp::Write { offset_bytes, buffer, .. } = op {
                let place = (*offset_bytes, buffer.len_bytes() as usize);
                log.submitted.lock().unwrap().push(place);
            }
            Verdict::Pass
        };
        FaultyVolume::new(self.0.inner.clone(), judge).open_lane(ring)
    }
}

/// A rotation's log, and what the disk and the guest were before it.
pub(super) struct Recorded {
    pub(super) shape: Shape,
    before: Vec<u8>,
    plain: Vec<u8>,
    events: Vec<Event>,
}

pub(super) fn record(shape: Shape, seed: u64) -> Recorded {
    let mut world = World::new(shape, seed);
    let begun = world.begin();
    let mut before = vec![0; world.inner.geometry().size_bytes as usize];
    world.inner.read_at(0, &mut before).unwrap();
    let plain = world.guest.bytes_by_block();
    let log = Arc::new(Log {
        inner: world.inner.clone(),
        events: Mutex::default(),
        submitted: Mutex::default(),
    });
    world.volume = Arc::new(Logged(log.clone()));
    let told = log.clone();
    world.guest.writes_through(Arc::new(Logged(log.clone())), move |block, byte| {
        told.push(Event::Guest { block, byte });
    });
    assert_eq!(world.run(begun, &controls(), &Watch::default()).unwrap(), Outcome::Completed);
    log.settle();
    let events = std::mem::take(&mut *log.events.lock().unwrap());
    Recorded { shape, before, plain, events }
}

/// A disk after a power cut, and what the guest may read of each block that was not flushed.
pub(super) struct Cut {
    image: Vec<u8>,
    legal: HashMap<usize, Vec<u8>>,
    plain: Vec<u8>,
}

impl Cut {
    /// The header says that a zone is in work.
    pub(super) fn is_in_a_zone(&self) -> bool {
        let bytes = self.image.len() as u64;
        let volume = MemoryVolume::new(bytes, 512).unwrap();
        volume.write_at(0, &self.image).unwrap();
        let header = Header::load(&mut Reader(&volume), &Policy::default()).unwrap();
        matches!(header.rotation_status(), Ok(sealblk_luks::RotationStatus::Crash { .. }))
    }
}

impl Recorded {
    /// The power goes after the `state`th of `states` equal parts of what was issued.
    pub(super) fn cut_at(
        &self,
        state: usize,
        states: usize,
        roll: &mut dyn FnMut(usize) -> usize,
    ) -> Cut {
        self.cut(1 + (self.events.len() - 1) * state / (states - 1), 0, roll)
    }

    /// The power goes after `end` events. Of what came after the last flush but `lies`, any part is
    /// there. `lies` above 0 is a control: a disk whose last flushes did nothing.
    fn cut(&self, end: usize, lies: usize, roll: &mut dyn FnMut(usize) -> usize) -> Cut {
        let flushes: Vec<usize> =
            (0..end).filter(|at| matches!(self.events[*at], Event::Flush)).collect();
        let durable = flushes.iter().rev().nth(lies).map_or(0, |at| at + 1);
        let (mut image, mut plain) = (self.before.clone(), self.plain.clone());
        let mut legal: HashMap<usize, Vec<u8>> = HashMap::new();
        let tear = self.shape.block_bytes as usize;
        for (at, event) in self.events[..end].iter().enumerate() {
            match event {
                Event::Flush => {}
                Event::Guest { block, byte } if at < durable => plain[*block] = *byte,
                Event::Guest { block, byte } => {
                    let before = plain[*block];
                    legal.entry(*block).or_insert_with(|| vec![before]).push(*byte);
                }
                Event::Write { offset, data } => {
                    // All of it, nothing, or some of its blocks. A guest's torn write is torn
                    // without a rotation, too.
                    let guests = at > 0 && matches!(self.events[at - 1], Event::Guest { .. });
                    let tear = if guests { data.len() } else { tear };
                    let how = if at < durable { 0 } else { roll(3) };
                    for (index, part) in data.chunks(tear).enumerate() {
                        if how == 0 || how == 1 && roll(2) == 0 {
                            let from = *offset as usize + index * tear;
                            image[from..from + part.len()].copy_from_slice(part);
                        }
                    }
                }
            }
        }
        Cut { image, legal, plain }
    }

    /// What the next start makes of it; why it is wrong, if it is.
    fn judge(&self, cut: &Cut) -> Result<(), String> {
        self.judge_grown(cut, 0).map(|_| ())
    }

    /// The same on a volume that has grown by `more_bytes` meanwhile, with what may be served.
    pub(super) fn judge_grown(&self, cut: &Cut, more_bytes: u64) -> Result<Restarted, String> {
        let bytes = cut.image.len() as u64 + more_bytes;
        let inner: Arc<dyn Volume> =
            Arc::new(MemoryVolume::new(bytes, self.shape.block_bytes).unwrap());
        inner.write_at(0, &cut.image).unwrap();
        let load = || Header::load(&mut Reader(&*inner), &Policy::default());
        let header = load().map_err(|error| error.to_string())?;
        let (old, new) = (secret(OLD), secret(NEW));
        let unlocked = unlock(&*inner, &header, &[&old])
            .or_else(|_| unlock(&*inner, &header, &[&new]))
            .map_err(|error| error.to_string())?;
        let params = params(&*inner, ZONE_BYTES);
        let taken = try_take_up(&*inner, &unlocked, params, None)
            .map_err(|error| RotationError::from(error).to_string())?;
        let mut reader = Guest::reader(inner.clone(), taken.segments.clone(), self.shape);
        for (block, byte) in cut.plain.iter().enumerate() {
            let read = reader.uniform_byte(block);
            let legal = cut.legal.get(&block);
            let right = match legal {
                Some(legal) => read.is_some_and(|read| legal.contains(&read)),
                None => read == Some(*byte),
            };
            if !right {
                return Err(format!("block {block} reads {read:?}, not {byte} or {legal:?}"));
            }
        }
        Ok(Restarted { volume: inner, unlocked, taken })
    }
}

/// A disk after the next start.
pub(super) struct Restarted {
    pub(super) volume: Arc<dyn Volume>,
    pub(super) unlocked: Unlocked,
    pub(super) taken: TakenUp,
}

/// xorshift64* (Vigna, 2016)
pub(super) fn dice(mut state: u64) -> impl FnMut(usize) -> usize {
    move |sides| {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }
}

fn rounds() -> u64 {
    std::env::var("SEALBLK_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

#[test]
fn the_power_may_go_at_any_time_beside_a_guest() {
    for (shape, seed) in Shape::ALL.into_iter().flat_map(|s| (0..rounds()).map(move |n| (s, n))) {
        let recorded = record(shape, 11 + seed);
        let mut roll = dice(77 + seed);
        let states = 60;
        for state in 0..states {
            let end = 1 + (recorded.events.len() - 1) * state / (states - 1);
            let cut = recorded.cut(end, 0, &mut roll);
            if let Err(why) = recorded.judge(&cut) {
                panic!("{shape:?}, seed {seed}, state {state} after {end} events: {why}");
            }
        }
    }
}

#[test]
fn a_disk_whose_flushes_do_nothing_is_seen_to_lose_data() {
    for shape in Shape::ALL {
        let recorded = record(shape, 11);
        let mut roll = dice(5);
        let states = 40;
        let lost = (0..states)
            .filter(|state| {
                let end = 1 + (recorded.events.len() - 1) * state / (states - 1);
                recorded.judge(&recorded.cut(end, 3, &mut roll)).is_err()
            })
            .count();
        assert!(lost > 0, "{shape:?}: none of {states} states");
    }
}
