//! Rotations that nothing disturbs but a guest and an operator.

use super::*;
use crate::Phase;

#[test]
fn every_sector_ends_under_the_new_key_beside_a_guest() {
    for (seed, shape) in (1..).zip(Shape::ALL) {
        let mut world = World::new(shape, seed);
        let watch = Watch::default();
        let begun = world.begin();
        assert_eq!(world.run(begun, &controls(), &watch).unwrap(), Outcome::Completed);
        world.check_end();
        let progress = watch.progress();
        assert_eq!((progress.phase, progress.done_bytes), (Phase::Done, DATA_BYTES));
        assert_eq!(progress.total_bytes, DATA_BYTES);
        let guest = &world.guest;
        assert!(guest.parked_ever > 0 && guest.read_from_memory > 0 && guest.dirty_ever > 0);
    }
}

#[test]
fn an_idle_disk_is_read_once() {
    let mut world = World::new(Shape::ALL[0], 1);
    world.guest.idle = true;
    let begun = world.begin();
    world.faults.set(0..0, 0);
    world.run(begun, &controls(), &Watch::default()).unwrap();
    world.check_end();
    assert_eq!(world.guest.dirty_ever, 0);
}

#[test]
fn a_rotation_stops_between_any_two_zones_and_goes_on_later() {
    for (seed, shape) in (1..).zip(Shape::ALL) {
        for call in 1.. {
            let mut world = World::new(shape, seed);
            let controls = controls();
            let wishes = controls.clone();
            world.guest.hook = Some(Box::new(move |now| {
                if now == call {
                    wishes.change(|wishes| wishes.stop = true);
                }
            }));
            let begun = world.begin();
            let outcome = world.run(begun, &controls, &Watch::default()).unwrap();
            if outcome == Outcome::Completed {
                assert!(call > 10, "it was stopped in between, too");
                break;
            }
            assert_eq!(outcome, Outcome::Stopped);
            let status = world.unlock(OLD).unwrap().0.rotation_status().unwrap();
            assert!(matches!(status, sealblk_luks::RotationStatus::Clean { .. }), "{status:?}");
            world.guest.hook = None;
            world.reopen_and_finish();
        }
    }
}

#[test]
fn a_paused_rotation_waits_and_is_resumed() {
    let mut world = World::new(Shape::ALL[0], 7);
    let (controls, watch) = (controls(), Watch::default());
    controls.change(|wishes| wishes.pause = true);
    let (operator, seen) = (controls.clone(), watch.clone());
    let operator = std::thread::spawn(move || {
        while seen.progress().phase != Phase::Paused {
            std::thread::yield_now();
        }
        let done = seen.progress().done_bytes;
        operator.change(|wishes| wishes.pause = false);
        done
    });
    let begun = world.begin();
    assert_eq!(world.run(begun, &controls, &watch).unwrap(), Outcome::Completed);
    assert_eq!(operator.join().unwrap(), 0);
    world.check_end();
}

#[test]
fn a_second_rotation_follows_the_first() {
    let mut world = World::new(Shape::ALL[0], 3);
    let fingerprint = |world: &World| {
        world.unlock(OLD).unwrap().0.report().digests.first().unwrap().fingerprint.clone()
    };
    let mut names = vec![fingerprint(&world)];
    for _ in 0..2 {
        let begun = world.begin();
        world.run(begun, &controls(), &Watch::default()).unwrap();
        world.check_end();
        names.push(fingerprint(&world));
    }
    names.dedup();
    assert_eq!(names.len(), 3, "each volume key has a name of its own: {names:?}");
}

#[test]
fn a_rotation_under_way_is_not_begun_anew() {
    let mut world = World::new(Shape::ALL[0], 3);
    let controls = controls();
    controls.change(|wishes| wishes.stop = true);
    let begun = world.begin();
    world.run(begun, &controls, &Watch::default()).unwrap();
    let old = secret(OLD);
    let beginning = Beginning {
        passphrase: &old,
        new_passphrase: None,
        kdf: None,
        notes: RotationNotes::default(),
        keep_luks2: false,
    };
    let params = params(&*world.inner, ZONE_BYTES);
    let error = begin(&*world.inner, &beginning, params).unwrap_err();
    assert!(error.to_string().contains("under way already"), "{error}");
    world.reopen_and_finish();
}

#[test]
fn a_journal_of_several_mib_goes_out_in_pieces() {
    const ZONE: u64 = 2 << 20;
    let mut world = World::sized(Shape::ALL[2], 9, 8 << 20);
    let (controls, watch) = (controls(), Watch::default());
    controls.change(|wishes| wishes.zone_bytes = ZONE);
    let begun = world.begin();
    assert_eq!(begun.rotation.resilience(), "journal");
    assert_eq!(world.run(begun, &controls, &watch).unwrap(), Outcome::Completed);
    assert_eq!(watch.progress().zone_bytes, ZONE, "after two of 1 MiB three of two");
    world.check_end();
}
