//! A rotation that was interrupted, taken up on a volume that has grown meanwhile: what lies behind
//! the old end has one key at any time, and the rotation goes on to the new end.

use super::power::{Recorded, Restarted, dice, record};
use super::*;

/// More than a zone, and no whole number of them.
const MORE_BYTES: u64 = 200 << 10;

impl Recorded {
    /// A guest fills the larger disk as it is served now, and keeps writing while the rotation goes
    /// on to its end.
    fn finish(&self, restarted: Restarted) {
        let Restarted { volume, unlocked, taken } = restarted;
        let unit = self.shape.sector_bytes.max(self.shape.block_bytes);
        let size = DATA_BYTES + MORE_BYTES;
        let ends = |segments: &[sealblk_cipher::SegmentSpec]| {
            segments.last().map(|last| (last.start + last.sectors) * 512)
        };
        assert_eq!(ends(&taken.segments), Some(size), "served to the new end");
        let mut guest = Guest::new(volume.clone(), taken.segments, unit, size, 3);
        if let Some(rotation) = taken.rotation {
            assert_eq!(rotation.total_bytes(), size);
            let outcome = run(Job {
                volume: &volume,
                unlocked: &unlocked,
                rotation,
                gate: &mut guest,
                controls: &controls(),
                watch: &Watch::default(),
                ages: None,
            });
            assert_eq!(outcome.unwrap(), Outcome::Completed);
        }
        let header = Header::load(&mut Reader(&*volume), &Policy::default()).unwrap();
        let limits = KdfLimits::default();
        let last = secret(self.shape.last());
        let unlocked = header.unlock(&mut Reader(&*volume), &last, &limits).unwrap();
        let segments = header.segments(&unlocked, volume.geometry().size_bytes).unwrap();
        assert_eq!((segments.len(), ends(&segments)), (1, Some(size)));
        guest.restart(segments);
        guest.check_all();
    }
}

#[test]
fn a_rotation_goes_on_to_the_new_end_wherever_it_was_interrupted() {
    for shape in Shape::ALL {
        let recorded = record(shape, 21);
        let mut roll = dice(9);
        let states = 24;
        let mut resumed = 0;
        for state in 0..states {
            let cut = recorded.cut_at(state, states, &mut roll);
            match recorded.judge_grown(&cut, MORE_BYTES) {
                Ok(restarted) => {
                    resumed += usize::from(restarted.taken.rotation.is_some());
                    recorded.finish(restarted);
                }
                Err(why) => panic!("{shape:?}, state {state}: {why}"),
            }
        }
        assert!((5..states).contains(&resumed), "{resumed} of {states} had something left to do");
    }
}

/// Why a disk must not grow while a rotation is in its last zone (docs/decisions/0018): its header has
/// no tail, so the next start gives everything behind the zone to the new key, while the queues
/// would have sealed it with the old one.
#[test]
fn what_a_disk_that_grew_beside_the_last_zone_took_would_be_lost() {
    let shape = Shape::ALL[0];
    let recorded = record(shape, 21);
    let mut roll = dice(9);
    let mut old =
        recorded.judge_grown(&recorded.cut_at(0, 40, &mut roll), 0).unwrap().taken.segments;
    assert_eq!(old.len(), 1, "nothing has the new key yet");
    old[0].sectors += MORE_BYTES / 512;
    let in_last_zone = (0..100).filter(|state| {
        let cut = recorded.cut_at(*state, 100, &mut roll);
        if !cut.is_in_a_zone() {
            return false;
        }
        let Restarted { volume, taken, .. } = recorded.judge_grown(&cut, MORE_BYTES).unwrap();
        if taken.rotation.is_some() {
            return false;
        }
        let block = (DATA_BYTES / 512) as usize + 8;
        let read = |segments| Guest::reader(volume.clone(), segments, shape).uniform_byte(block);
        Guest::reader(volume.clone(), old.clone(), shape).fill(block, 0x5a);
        assert_eq!(read(old.clone()), Some(0x5a));
        assert_ne!(read(taken.segments), Some(0x5a), "it would be as well to let it grow");
        true
    });
    assert!(in_last_zone.count() > 0);
}

#[test]
fn a_volume_that_grows_under_a_rotation_ends_as_large_as_it_began() {
    // What the daemon does: the rotation keeps its size, and the disk grows behind it.
    let mut world = World::new(Shape::ALL[0], 4);
    let memory = Arc::new(MemoryVolume::new((16 << 20) + DATA_BYTES, 512).unwrap());
    let mut image = vec![0; memory.geometry().size_bytes as usize];
    world.inner.read_at(0, &mut image).unwrap();
    memory.write_at(0, &image).unwrap();
    world.inner = memory.clone();
    world.volume = memory.clone();
    world.guest.writes_through(memory.clone(), |_, _| {});
    let begun = world.begin();
    let storage = memory.clone();
    world.guest.hook = Some(Box::new(move |call| {
        if call == 5 {
            storage.resize_storage((16 << 20) + DATA_BYTES + MORE_BYTES).unwrap();
        }
    }));
    assert_eq!(world.run(begun, &controls(), &Watch::default()).unwrap(), Outcome::Completed);
    world.check_end();
    assert_eq!(memory.geometry().size_bytes, (16 << 20) + DATA_BYTES);
    let mut tail = vec![1; MORE_BYTES as usize];
    memory.grow_to(memory.measure_size().unwrap());
    memory.read_at((16 << 20) + DATA_BYTES, &mut tail).unwrap();
    assert!(tail.iter().all(|byte| *byte == 0), "nobody has written behind the end");
    let (header, unlocked) = world.unlock(OLD).unwrap();
    let segments = header.segments(&unlocked, memory.geometry().size_bytes).unwrap();
    assert_eq!(segments.len(), 1);
    assert_eq!(segments[0].sectors * 512, DATA_BYTES + MORE_BYTES);
}
