//! Another client takes the volume in the middle of a rotation.

use sealblk_volume::FENCED;

use super::faults::each;
use super::*;
use crate::Phase;

#[test]
fn a_volume_that_was_taken_ends_the_rotation_wherever_it_is_and_nobody_waits() {
    let mut ended = 0;
    for (number, shape) in each() {
        let mut world = World::new(shape, 5);
        let begun = world.begin();
        world.faults.set(number..u64::MAX, FENCED);
        let watch = Watch::default();
        let outcome = world.run(begun, &controls(), &watch);
        if watch.progress().phase == Phase::Done {
            // All was done: the last look at the header is content with one copy.
            assert_eq!(outcome.unwrap(), Outcome::Completed);
            continue;
        }
        ended += 1;
        let error = outcome.unwrap_err();
        assert!(matches!(error, RotationError::Fenced), "I/O {number}: {error}");
        assert_eq!(world.guest.fenced, 1, "I/O {number}");
        let trouble = watch.progress().trouble.unwrap();
        assert!(trouble.contains("another client"), "{trouble}");
        // Who has taken it goes on with it.
        world.faults.set(0..0, 0);
        world.reopen_and_finish();
    }
    assert!(ended > 60, "{ended} times");
}
