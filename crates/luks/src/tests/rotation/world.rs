//! A small volume, the log of everything written to it, and the guest beside the rotation.

use std::collections::BTreeMap;

use sealblk_cipher::encrypt_in_place;

use super::super::copies::fix;
use super::super::*;

/// Reproducible choices.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What the storage was told, in order.
#[derive(Debug, Clone)]
pub(super) enum Op {
    /// A power cut may leave any of the aligned pieces of `unit` bytes.
    Write {
        at: usize,
        data: Vec<u8>,
        unit: usize,
    },
    Flush,
    /// The guest was told that all it had written before is durable.
    Promise,
    /// The guest wrote this version of a block; the write is the next op.
    Version {
        block: usize,
        version: u32,
    },
}

/// The volume as whoever reads it now sees it, and how it came to that.
pub(super) struct World {
    pub(super) base: Vec<u8>,
    pub(super) image: Vec<u8>,
    pub(super) log: Vec<Op>,
}

impl World {
    pub(super) fn new(image: Vec<u8>) -> Self {
        Self { base: image.clone(), image, log: Vec::new() }
    }

    pub(super) fn write(&mut self, at: usize, data: &[u8], unit: usize) {
        self.image[at..at + data.len()].copy_from_slice(data);
        self.log.push(Op::Write { at, data: data.to_vec(), unit });
    }

    pub(super) fn flush(&mut self) {
        self.log.push(Op::Flush);
    }
}

/// A volume and how it is rotated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) sector_bytes: u32,
    /// What the storage keeps whole.
    pub(super) atomic_bytes: u32,
    pub(super) zone_bytes: u64,
    pub(super) data_bytes: u64,
    pub(super) new_secret: bool,
    /// Of a LUKS1 volume, where its data begins.
    pub(super) payload: Option<usize>,
}

impl Shape {
    /// Two ranges and a half.
    pub(super) fn new(sector_bytes: u32, journal: bool) -> Self {
        Self {
            sector_bytes,
            atomic_bytes: if journal { 0 } else { sector_bytes },
            zone_bytes: 16 << 10,
            data_bytes: 40 << 10,
            new_secret: false,
            payload: None,
        }
    }

    pub(super) fn is_journal(&self) -> bool {
        self.atomic_bytes < self.sector_bytes
    }

    pub(super) fn params(&self) -> crate::RotationParams {
        crate::RotationParams {
            volume_bytes: self.data_offset() as u64 + self.data_bytes,
            block_bytes: 512,
            atomic_write_bytes: self.atomic_bytes,
            zone_bytes: self.zone_bytes,
        }
    }

    /// Headers, keyslots of AES-128 keys and 64 KiB for the reencrypt area.
    pub(super) fn data_offset(&self) -> usize {
        let slots = if self.new_secret { 4 } else { 2 };
        self.payload.unwrap_or(32768 + slots * 131_072 + 65536)
    }

    pub(super) fn blocks(&self) -> usize {
        (self.data_bytes / u64::from(self.sector_bytes)) as usize
    }

    /// A formatted volume that [`OLD`] opens, full of version 0.
    pub(super) fn volume(&self) -> Vec<u8> {
        let mut image = vec![0; VOLUME_BYTES as usize];
        let params = FormatParams {
            sector_bytes: self.sector_bytes,
            algorithm: Algorithm::Aes128XtsPlain64,
            created_at: Some(1_600_000_000),
            ..params(VOLUME_BYTES)
        };
        execute(&mut image, &format(&params, &secret(OLD), &mut rng(1)).unwrap());
        let mut json = json_of(&image);
        let offset = self.data_offset();
        json["config"]["keyslots_size"] = Value::from((offset - 32768).to_string());
        json["segments"]["0"]["offset"] = Value::from(offset.to_string());
        json["segments"]["0"]["future"] = Value::from("kept");
        json["tokens"]["7"] = serde_json::json!({"type": "other", "keyslots": [], "deep": [1]});
        let mut image = with_json(&image, &json);
        // A UUID of this process (see handover.rs); it has no bearing on anything else.
        let uuid = format!("00000000-0000-4000-8000-{:012}", std::process::id());
        for copy in image[..32768].chunks_mut(16384) {
            copy[168..204].copy_from_slice(uuid.as_bytes());
            fix(copy);
        }
        image.truncate(offset + self.data_bytes as usize);
        self.fill(&mut image);
        image
    }

    /// Fills a volume that [`OLD`] opens with version 0.
    pub(super) fn fill(&self, image: &mut [u8]) {
        let unlocked = unlock(image, OLD).unwrap();
        let specs = load(image).unwrap().segments(&unlocked, image.len() as u64).unwrap();
        for block in 0..self.blocks() {
            let (at, data) = self.sealed(&specs, block, 0);
            image[at..at + data.len()].copy_from_slice(&data);
        }
    }

    /// The plaintext of a version of a block.
    pub(super) fn content(&self, block: usize, version: u32) -> Vec<u8> {
        let mut data = vec![0; self.sector_bytes as usize];
        rng(((block as u64) << 32) | u64::from(version))(&mut data).unwrap();
        data[..8].copy_from_slice(&((block as u64) << 32 | u64::from(version)).to_be_bytes());
        data
    }

    /// Where a version of a block goes, and its ciphertext.
    pub(super) fn sealed(
        &self,
        specs: &[SegmentSpec],
        block: usize,
        version: u32,
    ) -> (usize, Vec<u8>) {
        let sector = block as u64 * u64::from(self.sector_bytes) / 512;
        let spec = specs
            .iter()
            .find(|spec| (spec.start..spec.start + spec.sectors).contains(&sector))
            .unwrap();
        let (algorithm, key) = spec.crypt.as_ref().unwrap();
        let mut cipher =
            sector_cipher(*algorithm, key, spec.sector_bytes, Implementation::Auto).unwrap();
        let mut data = self.content(block, version);
        let within = sector - spec.start;
        encrypt_in_place(cipher.as_mut(), spec.iv_start + within, &mut data);
        (((spec.volume_start + within) * 512) as usize, data)
    }
}

/// What the guest wrote, and what it may see after a crash.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    versions: BTreeMap<usize, Vec<u32>>,
}

impl History {
    /// The versions that each block may have, after `log`: that of the last promise and all later
    /// ones.
    pub(super) fn after(log: &[Op]) -> Self {
        let mut versions: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for op in log {
            match op {
                Op::Version { block, version } => {
                    versions.entry(*block).or_insert_with(|| vec![0]).push(*version);
                }
                Op::Promise => {
                    // Only the newest is left.
                    versions.values_mut().for_each(|list| {
                        list.drain(..list.len() - 1);
                    });
                }
                Op::Write { .. } | Op::Flush => {}
            }
        }
        Self { versions }
    }

    /// Compares what the guest would read with what it may.
    pub(super) fn check(&self, shape: &Shape, plain: &[u8]) -> Result<(), String> {
        for (block, found) in plain.chunks(shape.sector_bytes as usize).enumerate() {
            let allowed = self.versions.get(&block).map_or(&[0][..], Vec::as_slice);
            if !allowed.iter().any(|version| shape.content(block, *version) == found) {
                return Err(format!("block {block} has none of the versions {allowed:?}"));
            }
        }
        Ok(())
    }
}

/// A guest that writes and flushes.
pub(super) struct Guest {
    pub(super) dice: Dice,
    pub(super) idle: bool,
    next: u32,
}

impl Guest {
    pub(super) fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), idle: false, next: 1 }
    }

    /// One that does nothing.
    pub(super) fn idle() -> Self {
        Self { idle: true, ..Self::new(0) }
    }

    /// Perhaps some writes, perhaps a flush. `specs` is the key map, `held` a range of blocks that it
    /// may not write to.
    pub(super) fn act(
        &mut self,
        world: &mut World,
        shape: &Shape,
        specs: &[SegmentSpec],
        held: &std::ops::Range<usize>,
    ) {
        if self.idle {
            return;
        }
        for _ in 0..self.dice.below(3) {
            // Half of them near the range in work, where it hurts.
            let block = if self.dice.chance(50) && !held.is_empty() {
                (held.start + self.dice.below(held.len() * 2)).min(shape.blocks() - 1)
            } else {
                self.dice.below(shape.blocks())
            };
            if held.contains(&block) {
                continue;
            }
            self.write(world, shape, specs, block);
        }
        if self.dice.chance(25) {
            world.flush();
            world.log.push(Op::Promise);
        }
    }

    pub(super) fn write(
        &mut self,
        world: &mut World,
        shape: &Shape,
        specs: &[SegmentSpec],
        block: usize,
    ) {
        let version = self.next;
        self.next += 1;
        let (at, data) = shape.sealed(specs, block, version);
        world.log.push(Op::Version { block, version });
        world.write(at, &data, data.len());
    }
}
