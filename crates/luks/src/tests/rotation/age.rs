//! A rotation notes the age of the new keys in the header that ends it, and in none before.

use super::super::*;
use super::driver::{Driver, staged};
use super::world::Shape;
use crate::{KeyAge, Progress, RotationStatus};

/// When [`Shape::volume`] was made, and when the driver's rotations begin.
const BORN: u64 = 1_600_000_000;
const BEGUN: u64 = 1_700_000_000;

fn age_of(image: &[u8]) -> KeyAge {
    load(image).unwrap().key_age().unwrap().unwrap()
}

fn after(shape: &Shape) -> KeyAge {
    KeyAge {
        volume_key_since: Some(BEGUN),
        secret_since: Some(if shape.new_secret { BEGUN } else { BORN }),
        rotations: 1,
    }
}

/// Whether the header of a volume that was recovered from a crash notes the age that it should.
pub(super) fn fits(shape: &Shape, image: &[u8]) -> Result<(), String> {
    let over = load(image).unwrap().rotation_status().unwrap() == RotationStatus::None;
    let expected = if over { after(shape) } else { KeyAge::new_at(BORN) };
    let noted = age_of(image);
    if noted == expected { Ok(()) } else { Err(format!("{noted:?} in place of {expected:?}")) }
}

#[test]
fn keys_are_of_the_old_age_until_the_one_header_that_ends_the_rotation() {
    for (sector_bytes, journal, new_secret) in
        [(512, false, false), (512, true, true), (4096, false, true)]
    {
        let shape = Shape { new_secret, ..Shape::new(sector_bytes, journal) };
        let mut driver = Driver::new(shape, 5);
        let mut rotation = driver.begin();
        let after = after(&shape);
        let finished = loop {
            assert_eq!(age_of(&driver.world.image), KeyAge::new_at(BORN), "{shape:?}");
            match driver.zone(rotation) {
                Progress::More(next) => rotation = next,
                Progress::Done(finished) => break finished,
            }
        };
        // The very header that drops the old key.
        let header = load(&driver.world.image).unwrap();
        assert_eq!(header.rotation_status().unwrap(), RotationStatus::WipePending);
        assert_eq!(age_of(&driver.world.image), after, "{shape:?}");
        let plan = finished.wipe(&mut rng(3)).unwrap();
        execute(&mut driver.world.image, &plan);
        assert_eq!(age_of(&driver.world.image), after, "{shape:?}");
    }
}

#[test]
fn a_volume_of_unknown_age_has_one_after_its_first_rotation() {
    let shape = Shape::new(512, false);
    let mut image = shape.volume();
    let mut json = json_of(&image);
    json["tokens"].as_object_mut().unwrap().shift_remove("1");
    image = with_json(&image, &json);
    assert_eq!(load(&image).unwrap().key_age(), Ok(None));
    let mut driver = Driver::new(shape, 5);
    driver.world.image = staged(&shape, &image);
    driver.run();
    let expected = KeyAge { volume_key_since: Some(BEGUN), secret_since: None, rotations: 1 };
    assert_eq!(age_of(&driver.world.image), expected);
}

#[test]
fn an_age_is_not_set_beside_a_rotation() {
    let shape = Shape::new(512, false);
    let image = staged(&shape, &shape.volume());
    let header = load(&image).unwrap();
    let age = KeyAge::new_at(1);
    let set = header.set_key_age(&mut image.as_slice(), age, &mut rng(1));
    assert!(matches!(set, Err(LuksError::Refused(_))));
}
