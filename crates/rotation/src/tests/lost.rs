//! Storage whose failed flush loses what was written and shows it nevertheless, as Linux's page cache
//! does: what a power cut leaves later must be right all the same.

use std::ops::Range;
use std::sync::Mutex;

use super::*;

/// A write-back cache in front of a disk.
struct Cache {
    /// What reads see.
    inner: Arc<dyn Volume>,
    disk: MemoryVolume,
    dirty: Mutex<Vec<Range<u64>>>,
    flushes: AtomicU64,
    /// This flush fails ...
    fails: u64,
    /// ... and this one, later, finds the power cut.
    cut: u64,
    after_cut: Mutex<Option<Vec<u8>>>,
}

impl Cache {
    fn new(inner: &Arc<dyn Volume>, fails: u64, cut: u64) -> Self {
        let geometry = inner.geometry();
        let disk = MemoryVolume::new(geometry.size_bytes, geometry.block_bytes).unwrap();
        disk.write_at(0, &content(&**inner)).unwrap();
        let (dirty, flushes) = (Mutex::default(), AtomicU64::new(0));
        Self { inner: inner.clone(), disk, dirty, flushes, fails, cut, after_cut: Mutex::default() }
    }
}

fn content(volume: &dyn Volume) -> Vec<u8> {
    let mut bytes = vec![0; volume.geometry().size_bytes as usize];
    volume.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Shared, as its lane writes into it too.
struct Shared(Arc<Cache>);

impl Volume for Shared {
    fn uri(&self) -> &str {
        "write-back"
    }

    fn geometry(&self) -> Geometry {
        self.0.inner.geometry()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.0.inner.read_at(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.0.dirty.lock().unwrap().push(offset_bytes..offset_bytes + data.len() as u64);
        self.0.inner.write_at(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let dirty = std::mem::take(&mut *self.0.dirty.lock().unwrap());
        let number = self.0.flushes.fetch_add(1, SeqCst);
        if number == self.0.cut {
            let mut left = content(&self.0.disk);
            for range in &dirty {
                // Its first block arrived: of a header the binary part without its JSON.
                let torn = range.start..range.end.min(range.start + 4096);
                let (from, to) = (torn.start as usize, torn.end as usize);
                self.0.inner.read_at(torn.start, &mut left[from..to])?;
            }
            *self.0.after_cut.lock().unwrap() = Some(left);
        }
        if number == self.0.fails {
            let error = std::io::Error::from_raw_os_error(libc::EIO);
            return Err(VolumeError::io("write-back", "flushing", error));
        }
        for range in dirty {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.0.inner.read_at(range.start, &mut bytes)?;
            self.0.disk.write_at(range.start, &bytes)?;
        }
        Ok(())
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        let cache = self.0.clone();
        let judge = move |op: &LaneOp| {
            if let LaneOp::Write { offset_bytes, buffer, .. } = op {
                let sealblk_volume::Buffer::Flat { len_bytes, .. } = buffer else {
                    return Verdict::Pass;
                };
                let end = offset_bytes + u64::from(*len_bytes);
                cache.dirty.lock().unwrap().push(*offset_bytes..end);
            }
            Verdict::Pass
        };
        FaultyVolume::new(self.0.inner.clone(), judge).open_lane(ring)
    }
}

/// The rotation with that flush failing; what it leaves at the end, or where the power was cut.
fn lose(shape: Shape, fails: u64, cut: u64) -> bool {
    let mut world = World::new(shape, 5);
    world.guest.idle = true;
    let begun = world.begin();
    let cache = Arc::new(Cache::new(&world.inner, fails, cut));
    world.volume = Arc::new(Shared(cache.clone()));
    assert_eq!(world.run(begun, &controls(), &Watch::default()).unwrap(), Outcome::Completed);
    let failed = cache.flushes.load(SeqCst) > fails;
    let cut = cache.after_cut.lock().unwrap().take();
    // The cache is gone.
    let left = cut.unwrap_or_else(|| content(&cache.disk));
    world.inner.write_at(0, &left).unwrap();
    world.reopen_and_finish();
    failed
}

#[test]
fn nothing_relies_on_what_a_failed_flush_has_lost() {
    let mut most = 0;
    for (fails, shape) in (0..).zip(Shape::ALL.into_iter().cycle()) {
        // The power is cut at the end, and at some flush after the one that failed.
        if !lose(shape, fails, u64::MAX) {
            break;
        }
        for after in (1 + fails % 2..8).step_by(2) {
            lose(shape, fails, fails + after);
        }
        most = fails;
    }
    assert!(most > 12, "every flush of a rotation failed once: {most}");
}
