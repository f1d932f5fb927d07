//! LUKS1 volumes: to LUKS2, through a rotation, and back.

mod crash;
mod limits;
mod path;
mod real;

use std::sync::Arc;

use super::super::*;
use super::driver::{Driver, staged};
use super::world::{Guest, Op, Shape, World};
use crate::hash::Hash;
use crate::kdf::Kdf;
use crate::luks1::{GridSlot, Luks1, Parts};
use crate::{Luks2Stay, RotationStatus, material, repair};

/// A LUKS1 volume of some layout.
#[derive(Debug, Clone, Copy)]
struct Layout {
    name: &'static str,
    key_bytes: u32,
    payload_sectors: u32,
    hash: Hash,
    /// Keyslots and what opens them.
    slots: &'static [(u32, &'static str)],
}

const CRYPTSETUP: Layout = Layout {
    name: "cryptsetup 4096",
    key_bytes: 32,
    payload_sectors: 4096,
    hash: Hash::Sha256,
    slots: &[(0, OLD)],
};
const QEMU: Layout =
    Layout { name: "QEMU 4040", key_bytes: 64, payload_sectors: 4040, ..CRYPTSETUP };
const SMALL: Layout = Layout { name: "QEMU 2056", payload_sectors: 2056, ..CRYPTSETUP };

/// Somebody else's keyslot is in the place of the LUKS2 headers, and one in each sector of the
/// header.
const SHARED: Layout = Layout {
    name: "shared",
    hash: Hash::Sha1,
    slots: &[(0, NEW), (1, OLD), (2, NEW), (6, NEW), (7, NEW)],
    ..SMALL
};

/// Only the keyslot that straddles the header's sectors is free.
const FULL: Layout = Layout {
    name: "all but keyslot 6",
    hash: Hash::Sha512,
    slots: &[(0, OLD), (1, NEW), (2, NEW), (3, NEW), (4, NEW), (5, NEW), (7, NEW)],
    ..CRYPTSETUP
};

impl Layout {
    fn shape(&self, new_secret: bool) -> Shape {
        let payload = Some(self.payload_sectors as usize * 512);
        Shape { new_secret, payload, ..Shape::new(512, false) }
    }

    fn grid(&self) -> [u32; 8] {
        let stride = (self.key_bytes * 4000).next_multiple_of(4096) / 512;
        std::array::from_fn(|slot| 8 + stride * slot as u32)
    }

    fn volume_key(&self) -> Arc<SecretBytes> {
        let mut key = SecretBytes::zeroed(self.key_bytes as usize).unwrap();
        rng(77)(key.expose_mut()).unwrap();
        Arc::new(key)
    }

    /// Full of version 0.
    fn volume(&self) -> Vec<u8> {
        let shape = self.shape(false);
        let mut image = vec![0; shape.params().volume_bytes as usize];
        let mut materials = Vec::new();
        let mut slots = Vec::new();
        for (number, passphrase) in self.slots {
            let salt = [*number as u8 + 1; 32];
            let kdf = Kdf::Pbkdf2 {
                hash: self.hash.name().into(),
                iterations: 1000,
                salt: salt.to_vec(),
            };
            let limits = KdfLimits::default();
            let slot_key =
                kdf.derive(&secret(passphrase), self.key_bytes as usize, &limits).unwrap();
            let sealed = material::seal(
                &self.volume_key(),
                &slot_key,
                self.hash,
                &mut rng(100 + u64::from(*number)),
            );
            materials.push((self.grid()[*number as usize] as usize * 512, sealed.unwrap()));
            slots.push(GridSlot { number: *number, iterations: 1000, salt });
        }
        let uuid = format!("00000000-0000-4000-9000-{:012}", std::process::id());
        let mut field = [0; 40];
        field[..36].copy_from_slice(uuid.as_bytes());
        let parts = Parts {
            hash: self.hash,
            payload_sectors: self.payload_sectors,
            uuid: field,
            grid: self.grid(),
            slots,
        };
        // Beside keyslots in use: what was there before.
        rng(5)(&mut image[4096..self.payload_sectors as usize * 512]).unwrap();
        image[..1024].copy_from_slice(
            Luks1::assemble(&parts, &self.volume_key(), &mut rng(6)).unwrap().sectors(),
        );
        for (at, material) in materials {
            image[at..at + material.len()].copy_from_slice(&material);
        }
        shape.fill(&mut image);
        image
    }
}

fn to_luks2(image: &[u8]) -> Plan {
    let unlocked = unlock(image, OLD).unwrap();
    let header = load(image).unwrap();
    header
        .convert_to_luks2(&mut { image }, &unlocked, Luks2Stay::UntilRotated, &mut rng(41))
        .unwrap()
}

fn for_good(image: &[u8]) -> Plan {
    let unlocked = unlock(image, OLD).unwrap();
    let header = load(image).unwrap();
    header.convert_to_luks2(&mut { image }, &unlocked, Luks2Stay::ForGood, &mut rng(43)).unwrap()
}

fn to_luks1(image: &[u8], passphrase: &str) -> Plan {
    let unlocked = unlock(image, passphrase).unwrap();
    load(image).unwrap().convert_to_luks1(&mut { image }, &unlocked, &mut rng(42)).unwrap()
}

fn after(image: &[u8], plan: &Plan) -> Vec<u8> {
    let mut image = image.to_vec();
    execute(&mut image, plan);
    image
}

/// A rotation of a volume that is LUKS2 by now, with a guest beside it.
fn rotated(shape: Shape, image: &[u8]) -> Driver {
    let world = World::new(staged(&shape, image));
    let mut driver = Driver { shape, world, guest: Guest::new(17), broken: Default::default() };
    driver.run();
    driver
}

/// The log of a plan.
fn ops(plan: &Plan) -> Vec<Op> {
    let op = |step: &Step| match step {
        Step::Write { offset_bytes, data } => {
            Op::Write { at: *offset_bytes as usize, data: data.clone(), unit: 512 }
        }
        Step::Flush => Op::Flush,
    };
    plan.steps().iter().map(op).collect()
}

fn carry_out(world: &mut World, plan: &Plan) {
    for step in plan.steps() {
        match step {
            Step::Write { offset_bytes, data } => world.write(*offset_bytes as usize, data, 512),
            Step::Flush => world.flush(),
        }
    }
}

/// What a daemon does with a volume before it serves it.
fn reopened(world: &mut World) -> Result<u8, LuksError> {
    if load(&world.image)?.version() == 2 {
        let (_, plan) = repair(&mut world.image.as_slice(), false, &mut rng(51))?;
        carry_out(world, &plan);
    }
    let header = load(&world.image)?;
    let plan = header.finish_conversion(&mut world.image.as_slice(), &mut rng(52))?;
    carry_out(world, &plan);
    Ok(header.version())
}
