//! A guest behind a gate: it reads and writes at every call, keeps to what the gate promises it, and
//! complains when it reads anything but what it wrote last.

use std::ops::Range;
use std::sync::Arc;

use sealblk_block::Extent;
use sealblk_cipher::{
    Implementation, SectorCipher, SegmentSpec, decrypt_in_place, encrypt_in_place, sector_cipher,
};
use sealblk_secret::SecretBytes;
use sealblk_volume::{AlignedBuf, Volume};

use crate::{Ended, Gate, Load};

/// Who is told of each write: its block and the byte that fills it.
type Told = Box<dyn FnMut(usize, u8) + Send>;

/// What a test does at a call of the gate, by its number.
type Hook = Box<dyn FnMut(u64) + Send>;

pub(super) struct Guest {
    volume: Arc<dyn Volume>,
    segments: Vec<SegmentSpec>,
    ciphers: Vec<(Arc<SecretBytes>, Box<dyn SectorCipher>)>,
    /// Smallest piece that it reads or writes, in bytes.
    unit: usize,
    plain: Vec<u8>,
    dice: u64,
    watched: Option<(Extent, bool)>,
    held: Option<Extent>,
    served: Option<Arc<AlignedBuf>>,
    parked: Vec<(usize, u8)>,
    calls: u64,
    told: Option<Told>,
    pub(super) hook: Option<Hook>,
    /// At this call a flush of its own fails.
    pub(super) fails_flush_at: Option<u64>,
    pub(super) parked_ever: u64,
    pub(super) read_from_memory: u64,
    pub(super) dirty_ever: u64,
    pub(super) stuck: u64,
    /// Times it was told that the volume is somebody else's.
    pub(super) fenced: u64,
    pub(super) flushes_failed: u64,
    /// Flushes of its own.
    pub(super) own_flushes_failed: u64,
    /// It does nothing.
    pub(super) idle: bool,
}

impl Guest {
    pub(super) fn new(
        volume: Arc<dyn Volume>,
        segments: Vec<SegmentSpec>,
        unit: u32,
        data_bytes: u64,
        seed: u64,
    ) -> Self {
        let mut guest = Self {
            volume,
            segments,
            ciphers: Vec::new(),
            unit: unit as usize,
            plain: vec![0; data_bytes as usize],
            dice: seed,
            watched: None,
            held: None,
            served: None,
            parked: Vec::new(),
            calls: 0,
            told: None,
            hook: None,
            fails_flush_at: None,
            parked_ever: 0,
            read_from_memory: 0,
            dirty_ever: 0,
            stuck: 0,
            fenced: 0,
            flushes_failed: 0,
            own_flushes_failed: 0,
            idle: false,
        };
        for block in 0..guest.plain.len() / guest.unit {
            guest.write(block, block as u8);
        }
        guest
    }

    fn roll(&mut self, sides: usize) -> usize {
        // xorshift64* (Vigna, 2016)
        self.dice ^= self.dice >> 12;
        self.dice ^= self.dice << 25;
        self.dice ^= self.dice >> 27;
        (self.dice.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % sides
    }

    pub(super) fn serve(&mut self, segments: Vec<SegmentSpec>) {
        self.segments = segments;
    }

    /// The process died, and another one serves: what was parked is replayed.
    pub(super) fn restart(&mut self, segments: Vec<SegmentSpec>) {
        self.segments = segments;
        (self.watched, self.held, self.served) = (None, None, None);
        self.unpark();
    }

    fn unpark(&mut self) {
        for (block, byte) in std::mem::take(&mut self.parked) {
            self.write(block, byte);
        }
    }

    fn bytes(&self, block: usize) -> Range<usize> {
        block * self.unit..(block + 1) * self.unit
    }

    fn block_extent(&self, block: usize) -> Extent {
        let sectors = (self.unit / 512) as u64;
        Extent::new(block as u64 * sectors, sectors)
    }

    fn segment(&self, block: usize) -> &SegmentSpec {
        let sector = (block * self.unit / 512) as u64;
        let found = self.segments.iter().find(|one| sector < one.start + one.sectors);
        found.unwrap()
    }

    /// En- or decrypts a block in place as the segments say.
    fn crypt(&mut self, block: usize, bytes: &mut [u8], encrypt: bool) {
        let segment = self.segment(block);
        let (algorithm, key) = segment.crypt.clone().unwrap();
        let sector_bytes = segment.sector_bytes;
        let iv = segment.iv_start + (block * self.unit / 512) as u64 - segment.start;
        let known = self.ciphers.iter().position(|(known, _)| Arc::ptr_eq(known, &key));
        let index = known.unwrap_or_else(|| {
            let cipher = sector_cipher(algorithm, &key, sector_bytes, Implementation::Portable);
            self.ciphers.push((key.clone(), cipher.unwrap()));
            self.ciphers.len() - 1
        });
        let cipher = &mut self.ciphers[index].1;
        if encrypt {
            encrypt_in_place(cipher.as_mut(), iv, bytes);
        } else {
            decrypt_in_place(cipher.as_mut(), iv, bytes);
        }
    }

    fn offset(&self, block: usize) -> u64 {
        let segment = self.segment(block);
        (segment.volume_start - segment.start) * 512 + (block * self.unit) as u64
    }

    fn write(&mut self, block: usize, byte: u8) {
        let extent = self.block_extent(block);
        if self.held.is_some_and(|zone| zone.overlaps(&extent)) {
            self.parked_ever += 1;
            return self.parked.push((block, byte));
        }
        if let Some((zone, dirty)) = &mut self.watched
            && zone.overlaps(&extent)
        {
            *dirty = true;
        }
        let range = self.bytes(block);
        self.plain[range.clone()].fill(byte);
        let mut bytes = self.plain[range].to_vec();
        self.crypt(block, &mut bytes, true);
        if let Some(told) = &mut self.told {
            told(block, byte);
        }
        self.volume.write_at(self.offset(block), &bytes).unwrap();
    }

    /// From now on it writes through another volume over the same bytes, and says what.
    pub(super) fn writes_through(
        &mut self,
        volume: Arc<dyn Volume>,
        told: impl FnMut(usize, u8) + Send + 'static,
    ) {
        self.volume = volume;
        self.told = Some(Box::new(told));
    }

    /// What fills each of its blocks.
    pub(super) fn bytes_by_block(&self) -> Vec<u8> {
        self.plain.chunks(self.unit).map(|block| block[0]).collect()
    }

    /// One that only reads.
    pub(super) fn reader(
        volume: Arc<dyn Volume>,
        segments: Vec<SegmentSpec>,
        shape: super::Shape,
    ) -> Self {
        let unit = shape.sector_bytes.max(shape.block_bytes);
        let mut guest = Self::new(volume, segments, unit, 0, 1);
        guest.idle = true;
        guest
    }

    /// The byte that fills a block, if one does.
    pub(super) fn uniform_byte(&mut self, block: usize) -> Option<u8> {
        let mut bytes = vec![0; self.unit];
        self.volume.read_at(self.offset(block), &mut bytes).unwrap();
        self.crypt(block, &mut bytes, false);
        let first = bytes[0];
        bytes.iter().all(|byte| *byte == first).then_some(first)
    }

    /// Writes a block without noting it.
    pub(super) fn fill(&mut self, block: usize, byte: u8) {
        let mut bytes = vec![byte; self.unit];
        self.crypt(block, &mut bytes, true);
        self.volume.write_at(self.offset(block), &bytes).unwrap();
    }

    fn check(&mut self, block: usize) {
        let extent = self.block_extent(block);
        let mut bytes = vec![0; self.unit];
        match (&self.served, self.held) {
            (Some(memory), Some(zone)) if zone.overlaps(&extent) => {
                let at = ((extent.start - zone.start) * 512) as usize;
                bytes.copy_from_slice(&memory.as_slice()[at..at + self.unit]);
                self.read_from_memory += 1;
            }
            _ => self.volume.read_at(self.offset(block), &mut bytes).unwrap(),
        }
        self.crypt(block, &mut bytes, false);
        assert!(bytes == self.plain[self.bytes(block)], "block {block} reads wrong");
    }

    pub(super) fn check_all(&mut self) {
        for block in 0..self.plain.len() / self.unit {
            self.check(block);
        }
    }

    /// Some reads and writes, most of them where it hurts.
    fn act(&mut self) {
        self.calls += 1;
        if self.fails_flush_at == Some(self.calls) {
            self.own_flushes_failed += 1;
        }
        if let Some(mut hook) = self.hook.take() {
            hook(self.calls);
            self.hook = Some(hook);
        }
        if self.idle {
            return;
        }
        let blocks = self.plain.len() / self.unit;
        let zone = self.held.or(self.watched.map(|(zone, _)| zone));
        for _ in 0..6 {
            let block = match zone {
                Some(zone) if self.roll(2) == 0 => {
                    let first = (zone.start * 512) as usize / self.unit;
                    first + self.roll((zone.sectors * 512) as usize / self.unit)
                }
                _ => self.roll(blocks),
            };
            if self.roll(4) == 0 {
                let byte = self.roll(256) as u8;
                self.write(block, byte);
            } else {
                self.check(block);
            }
        }
    }
}

impl Gate for Guest {
    fn watch(&mut self, zone: Extent) -> Result<(), Ended> {
        self.act();
        self.watched = Some((zone, false));
        self.act();
        Ok(())
    }

    fn hold_writes(&mut self, zone: Extent) -> Result<bool, Ended> {
        self.act();
        assert!(self.held.is_none(), "one zone at a time");
        let dirty = match self.watched {
            Some((watched, dirty)) if watched == zone => {
                self.watched = None;
                dirty
            }
            _ => true,
        };
        self.dirty_ever += u64::from(dirty);
        self.held = Some(zone);
        self.act();
        Ok(dirty)
    }

    fn serve_from(&mut self, old_ciphertext: &Arc<AlignedBuf>) -> Result<(), Ended> {
        self.act();
        assert!(self.held.is_some() && self.served.is_none(), "held first, and served once");
        self.served = Some(old_ciphertext.clone());
        self.act();
        Ok(())
    }

    fn publish(&mut self, segments: &[SegmentSpec]) -> Result<(), Ended> {
        self.act();
        self.segments = segments.to_vec();
        (self.held, self.served) = (None, None);
        self.unpark();
        self.act();
        Ok(())
    }

    fn stuck(&mut self) {
        assert!(self.held.is_some(), "a zone is in the rotation's hands");
        self.stuck += 1;
        self.act();
    }

    fn fenced(&mut self) {
        self.fenced += 1;
    }

    fn flush_failed(&mut self) {
        self.flushes_failed += 1;
    }

    fn failed_flushes(&mut self) -> u64 {
        self.own_flushes_failed
    }

    fn load(&mut self) -> Load {
        Load::default()
    }
}
