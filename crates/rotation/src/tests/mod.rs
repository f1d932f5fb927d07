//! Whole rotations over a volume in memory, beside a guest that keeps to the gate's rules and knows
//! what it must read.

mod faults;
mod fenced;
mod grown;
mod guest;
mod lost;
mod power;
mod whole;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use sealblk_block::{ErrorKind, Geometry, VolumeError};
use sealblk_cipher::Algorithm;
use sealblk_luks::{
    FormatParams, Header, KdfLimits, LuksError, Policy, RotationNotes, SlotKdf, Unlocked, format,
};
use sealblk_ring::Ring;
use sealblk_secret::SecretBytes;
use sealblk_volume::{FaultyVolume, Lane, LaneOp, MemoryVolume, Verdict, Volume};

use self::guest::Guest;
use crate::recover::try_take_up;
use crate::{
    Beginning, Begun, Controls, Job, Outcome, Reader, RotationError, Watch, Wishes, begin,
    carry_out, params, random, run, unlock,
};

const OLD: &str = "the old passphrase";
const NEW: &str = "the new passphrase";
const KDF: SlotKdf = SlotKdf::Pbkdf2Sha256 { iterations: 1000 };
const DATA_BYTES: u64 = 384 << 10;
const ZONE_BYTES: u64 = 128 << 10;

fn secret(text: &str) -> SecretBytes {
    SecretBytes::copy_from(text.as_bytes()).unwrap()
}

/// A kind of volume.
#[derive(Debug, Clone, Copy)]
struct Shape {
    block_bytes: u32,
    sector_bytes: u32,
    new_secret: bool,
}

impl Shape {
    /// The cases that differ on the disk: checksums of small and of large blocks, a journal.
    const ALL: [Self; 3] = [
        Self { block_bytes: 512, sector_bytes: 512, new_secret: false },
        Self { block_bytes: 4096, sector_bytes: 4096, new_secret: true },
        Self { block_bytes: 512, sector_bytes: 4096, new_secret: true },
    ];

    /// What opens the volume after a rotation.
    fn last(self) -> &'static str {
        if self.new_secret { NEW } else { OLD }
    }
}

/// Fails I/O by its number: every read, write and flush counts, of headers and of data.
#[derive(Debug, Default)]
struct Faults {
    done: AtomicU64,
    /// I/Os from this number on fail ...
    first: AtomicU64,
    /// ... up to this one.
    end: AtomicU64,
    errno: AtomicU64,
}

impl Faults {
    fn set(&self, range: std::ops::Range<u64>, errno: i32) {
        self.errno.store(errno as u64, SeqCst);
        self.first.store(range.start, SeqCst);
        self.end.store(range.end, SeqCst);
        self.done.store(0, SeqCst);
    }

    fn next(&self) -> Option<i32> {
        let number = self.done.fetch_add(1, SeqCst);
        let fails = (self.first.load(SeqCst)..self.end.load(SeqCst)).contains(&number);
        fails.then(|| self.errno.load(SeqCst) as i32)
    }
}

/// A volume whose I/O fails as [`Faults`] say.
struct Flaky {
    inner: Arc<dyn Volume>,
    faults: Arc<Faults>,
}

impl Flaky {
    fn check(&self) -> Result<(), VolumeError> {
        match self.faults.next() {
            None => Ok(()),
            Some(errno) => {
                let error = std::io::Error::from_raw_os_error(errno);
                Err(VolumeError { kind: ErrorKind::Io, ..VolumeError::io("flaky", "I/O", error) })
            }
        }
    }
}

impl Volume for Flaky {
    fn uri(&self) -> &str {
        "flaky"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.check()?;
        self.inner.read_at(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        if let Err(error) = self.check() {
            // Half of it arrived.
            let half = data.len() / 2 / 512 * 512;
            self.inner.write_at(offset_bytes, &data[..half])?;
            return Err(error);
        }
        self.inner.write_at(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        self.check()?;
        self.inner.flush()
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        let faults = self.faults.clone();
        let judge = move |_: &LaneOp| faults.next().map_or(Verdict::Pass, Verdict::Fail);
        FaultyVolume::new(self.inner.clone(), judge).open_lane(ring)
    }
}

/// A formatted volume with a guest's data on it.
struct World {
    shape: Shape,
    /// Without faults.
    inner: Arc<dyn Volume>,
    /// With them.
    volume: Arc<dyn Volume>,
    faults: Arc<Faults>,
    guest: Guest,
}

impl World {
    fn new(shape: Shape, seed: u64) -> Self {
        Self::sized(shape, seed, DATA_BYTES)
    }

    fn sized(shape: Shape, seed: u64, data_bytes: u64) -> Self {
        let bytes = (16 << 20) + data_bytes;
        let inner: Arc<dyn Volume> = Arc::new(MemoryVolume::new(bytes, shape.block_bytes).unwrap());
        let params = FormatParams {
            volume_bytes: bytes,
            algorithm: Algorithm::Aes256XtsPlain64,
            sector_bytes: shape.sector_bytes,
            kdf: KDF,
            label: String::new(),
            subsystem: String::new(),
            token: None,
            created_at: None,
        };
        carry_out(&*inner, &format(&params, &secret(OLD), &mut random).unwrap()).unwrap();
        let faults = Arc::new(Faults::default());
        let volume = Arc::new(Flaky { inner: inner.clone(), faults: faults.clone() });
        let header = Header::load(&mut Reader(&*inner), &Policy::default()).unwrap();
        let unlocked =
            header.unlock(&mut Reader(&*inner), &secret(OLD), &KdfLimits::default()).unwrap();
        let segments = header.segments(&unlocked, bytes).unwrap();
        let unit = shape.sector_bytes.max(shape.block_bytes);
        let guest = Guest::new(inner.clone(), segments, unit, data_bytes, seed);
        Self { shape, inner, volume, faults, guest }
    }

    fn begin(&self) -> Begun {
        let (old, new) = (secret(OLD), secret(NEW));
        let beginning = Beginning {
            passphrase: &old,
            new_passphrase: self.shape.new_secret.then_some(&new),
            kdf: None,
            notes: RotationNotes::default(),
            keep_luks2: false,
        };
        let params = params(&*self.inner, ZONE_BYTES);
        begin(&*self.inner, &beginning, params).unwrap()
    }

    /// Rotates until the end or a stop.
    fn run(
        &mut self,
        begun: Begun,
        controls: &Controls,
        watch: &Watch,
    ) -> Result<Outcome, RotationError> {
        let Begun { unlocked, rotation } = begun;
        self.guest.serve(rotation.segments().unwrap());
        run(Job {
            volume: &self.volume,
            unlocked: &unlocked,
            rotation,
            gate: &mut self.guest,
            controls,
            watch,
            ages: None,
        })
    }

    /// As another process would find it.
    fn unlock(&self, passphrase: &str) -> Result<(Header, Unlocked), LuksError> {
        let header = Header::load(&mut Reader(&*self.inner), &Policy::default())?;
        let unlocked = unlock(&*self.inner, &header, &[&secret(passphrase)])?;
        Ok((header, unlocked))
    }

    /// Opens the volume anew, as after a crash, and goes on to the end.
    fn reopen_and_finish(&mut self) {
        // Which passphrase the next start has is a matter of luck; both will do until the end.
        let either = self.unlock(OLD).or_else(|_| self.unlock(NEW));
        let (_, unlocked) = either.unwrap();
        let params = params(&*self.inner, ZONE_BYTES);
        let taken = try_take_up(&*self.inner, &unlocked, params, None).unwrap();
        self.guest.restart(taken.segments);
        let outcome = match taken.rotation {
            Some(rotation) => {
                let begun = Begun { unlocked, rotation };
                self.run(begun, &controls(), &Watch::default()).unwrap()
            }
            None => Outcome::Completed,
        };
        assert_eq!(outcome, Outcome::Completed);
        self.check_end();
    }

    /// The right passphrase opens the volume under one new key, and the data is right.
    fn check_end(&mut self) {
        let (header, unlocked) = self.unlock(self.shape.last()).unwrap();
        let segments = header.segments(&unlocked, self.inner.geometry().size_bytes).unwrap();
        assert_eq!(segments.len(), 1);
        self.guest.restart(segments);
        self.guest.check_all();
        let left = |kind: &str| header.report().tokens.iter().any(|token| token.kind == kind);
        assert!(!left("sealblk-rotation"), "nothing is left to be done");
        if self.shape.new_secret {
            assert!(self.unlock(OLD).is_err());
        }
    }
}

fn controls() -> Controls {
    let controls = Controls::default();
    controls.change(|wishes| *wishes = Wishes { zone_bytes: ZONE_BYTES, ..*wishes });
    controls
}
