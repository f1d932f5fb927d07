//! Storage that fails at any I/O, once or for good: the data is right whatever happens, and the
//! operator reads why.

use super::*;
use crate::Phase;

/// I/Os of a whole rotation.
fn count(shape: Shape) -> u64 {
    let mut world = World::new(shape, 5);
    let begun = world.begin();
    world.faults.set(0..0, 0);
    world.run(begun, &controls(), &Watch::default()).unwrap();
    world.faults.done.load(SeqCst)
}

/// Every I/O of a rotation, each on one of the shapes: in all three they come in the same order, more
/// or less.
pub(super) fn each() -> impl Iterator<Item = (u64, Shape)> {
    let counts = Shape::ALL.map(count);
    let most = counts.into_iter().max().unwrap_or(0);
    let shapes = Shape::ALL.into_iter().zip(counts).cycle();
    (0..most).zip(shapes).filter(|(number, (_, count))| number < count).map(|(n, (s, _))| (n, s))
}

#[test]
fn any_io_may_fail_once_and_the_rotation_recovers_and_ends() {
    let (mut recovered, mut flushes) = (0, 0);
    let errnos = [libc::EIO, libc::ENOSPC].into_iter().cycle();
    for ((number, shape), errno) in each().zip(errnos) {
        let mut world = World::new(shape, 5);
        let begun = world.begin();
        world.faults.set(number..number + 1, errno);
        let watch = Watch::default();
        let outcome = world.run(begun, &controls(), &watch).unwrap();
        assert_eq!(outcome, Outcome::Completed, "I/O {number}");
        assert_eq!(watch.progress().trouble, None);
        world.check_end();
        recovered += u64::from(world.guest.stuck > 0);
        flushes += world.guest.flushes_failed;
    }
    assert!(recovered > 10, "{recovered} times a zone was in doubt");
    assert!(flushes > 5, "a flush that fails is told to the data path: {flushes}");
}

#[test]
fn storage_that_stays_away_holds_the_rotation_and_nothing_is_lost() {
    let mut held = 0;
    for (number, shape) in each() {
        let mut world = World::new(shape, 5);
        let begun = world.begin();
        world.faults.set(number..u64::MAX, libc::EIO);
        let (controls, watch) = (controls(), Watch::default());
        let (operator, seen) = (controls.clone(), watch.clone());
        let operator = std::thread::spawn(move || {
            loop {
                let progress = seen.progress();
                if progress.trouble.is_some() || progress.phase == Phase::Done {
                    operator.change(|wishes| wishes.stop = true);
                    return (progress.phase, progress.trouble);
                }
                std::thread::yield_now();
            }
        });
        let outcome = world.run(begun, &controls, &watch).unwrap();
        let (phase, trouble) = operator.join().unwrap();
        let Some(trouble) = trouble else {
            // All was done: the last look at the header is content with one copy.
            assert_eq!(outcome, Outcome::Completed);
            world.check_end();
            continue;
        };
        held += 1;
        assert_eq!((outcome, phase), (Outcome::Stopped, Phase::Stuck), "I/O {number}");
        assert!(trouble.contains("flaky") && trouble.contains("os error 5"), "{trouble}");
        world.faults.set(0..0, 0);
        world.reopen_and_finish();
    }
    assert!(held > 60, "{held} times");
}

/// A sector that can't be read for a while, in a zone that is not the first.
#[test]
fn a_bad_sector_is_named_and_tried_again_while_guests_go_on() {
    const FAILURES: u64 = 3;
    let mut world = World::new(Shape::ALL[0], 5);
    world.guest.idle = true;
    let begun = world.begin();
    let bad = begun.rotation.zone().unwrap().volume_offset_bytes + 2 * ZONE_BYTES;
    let watch = Watch::default();
    let failed = Arc::new(AtomicU64::new(0));
    let (counted, seen, told) = (failed.clone(), watch.clone(), Arc::new(AtomicU64::new(0)));
    let noted = told.clone();
    let broken: Arc<dyn Volume> = Arc::new(FaultyVolume::new(world.inner.clone(), move |op| {
        let LaneOp::Read { offset_bytes, .. } = op else { return Verdict::Pass };
        if *offset_bytes != bad {
            return Verdict::Pass;
        }
        let number = counted.fetch_add(1, SeqCst);
        // From the second time on the operator has been told, and is told still.
        if let Some(trouble) = seen.progress().trouble {
            assert!(trouble.contains(&format!("offset {bad}")), "{trouble}");
            noted.fetch_add(1, SeqCst);
        }
        if number < FAILURES { Verdict::Fail(libc::EIO) } else { Verdict::Pass }
    }));
    world.volume = broken;
    assert_eq!(world.run(begun, &controls(), &watch).unwrap(), Outcome::Completed);
    assert!(failed.load(SeqCst) > FAILURES, "{} attempts", failed.load(SeqCst));
    assert!(told.load(SeqCst) >= FAILURES, "trouble lasts until a zone was moved");
    assert_eq!(watch.progress().trouble, None);
    world.check_end();
}

#[test]
fn a_guests_failed_flush_makes_the_rotation_doubt_what_it_wrote() {
    let mut recovered = 0;
    for call in 1..20 {
        let mut world = World::new(Shape::ALL[0], 5);
        world.guest.fails_flush_at = Some(call);
        let begun = world.begin();
        let outcome = world.run(begun, &controls(), &Watch::default()).unwrap();
        assert_eq!(outcome, Outcome::Completed);
        world.check_end();
        recovered += u64::from(world.guest.stuck > 0);
    }
    assert!(recovered > 5, "{recovered} times a zone was redone");
}
