//! The whole way of a LUKS1 volume in one log: to LUKS2, a rotation beside a guest, and back. From
//! every crash state a daemon that knows nothing but the volume makes LUKS1 again.

use super::super::crash::{crash_states, rounds};
use super::super::driver::{Keys, Recovered, keys_of, recover, stage_plan};
use super::super::world::{Dice, History};
use super::*;
use crate::Progress;

/// Ends whatever is begun. Gives the segments.
fn to_the_end(shape: Shape, state: Vec<u8>, keys: &Keys) -> Result<Vec<u8>, LuksError> {
    let mut world = World::new(state);
    let opens = |image: &[u8]| {
        let passphrases: &[&str] = if shape.new_secret { &[NEW, OLD] } else { &[OLD] };
        let mut last = unlock(image, passphrases[0]);
        for passphrase in &passphrases[1..] {
            last = last.or_else(|_| unlock(image, passphrase));
        }
        last
    };
    for _ in 0..4 {
        if reopened(&mut world)? == 1 {
            let unlocked = opens(&world.image)?;
            let header = load(&world.image)?;
            let specs = header.segments(&unlocked, world.image.len() as u64)?;
            return Ok(plaintext(&world.image, &specs));
        }
        let header = load(&world.image)?;
        let mut io = world.image.as_slice();
        let plan = match header.rotation_status()? {
            RotationStatus::ConvertBack => {
                header.convert_to_luks1(&mut io, &opens(&world.image)?, &mut rng(71))?
            }
            RotationStatus::Staged => header.abandon_rotation(&mut io, &mut rng(72))?,
            _ => match recover(&mut world, &shape, keys)? {
                Recovered::Single(_) => continue,
                Recovered::Rotating(rotation) => {
                    let mut rotation = *rotation;
                    let mut driver = Driver::over(shape, world);
                    let finished = loop {
                        match driver.zone(rotation) {
                            Progress::More(next) => rotation = next,
                            Progress::Done(finished) => break finished,
                        }
                    };
                    world = driver.world;
                    finished.wipe(&mut rng(73))?
                }
            },
        };
        carry_out(&mut world, &plan);
    }
    panic!("no end");
}

#[test]
fn from_every_crash_on_the_whole_way_a_restart_makes_luks1_again() {
    for (layout, new_secret, seed) in (0..rounds().0)
        .flat_map(|round| [(SMALL, true, 3000 + 2 * round), (QEMU, false, 3001 + 2 * round)])
    {
        let shape = layout.shape(new_secret);
        let mut world = World::new(layout.volume());
        let plan = to_luks2(&world.image);
        carry_out(&mut world, &plan);
        let plan = stage_plan(&shape, &world.image);
        carry_out(&mut world, &plan);
        let keys = keys_of(&world.image);
        let guest = Guest::new(seed);
        let mut driver = Driver { shape, world, guest, broken: Default::default() };
        driver.run();
        let plan = to_luks1(&driver.world.image, if new_secret { NEW } else { OLD });
        carry_out(&mut driver.world, &plan);

        let mut sample = Dice::new(seed);
        let mut tried = 0;
        let World { base, log, .. } = &driver.world;
        let states = crash_states(base, log, &mut Dice::new(seed), 0, |state, history, name| {
            if !sample.chance(6) {
                return;
            }
            tried += 1;
            let plain = to_the_end(shape, state, &keys)
                .unwrap_or_else(|e| panic!("{} {name}: {e}", layout.name));
            history
                .check(&shape, &plain)
                .unwrap_or_else(|failure| panic!("{} {name}: {failure}", layout.name));
        });
        println!("{}: seed {seed}: {tried} of {states} crash states", layout.name);
        assert!(tried >= 50, "only {tried} states");
        let plain = to_the_end(shape, driver.world.image.clone(), &keys).unwrap();
        History::after(log).check(&shape, &plain).unwrap();
    }
}
