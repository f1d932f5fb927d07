//! The speed at which storage copies onto itself: what a rotation is held against.
//!
//! Every byte is read and written back where it was, as a rotation does it, with nothing in between:
//! O_DIRECT, 1 MiB at a time, as many in flight as a rotation has at most. Whoever has the storage
//! open beside us must leave it alone meanwhile.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

/// Threads, each with one piece in flight.
const IN_FLIGHT: usize = 16;
const PIECE_BYTES: usize = 1 << 20;
/// Good for every block size here.
const ALIGNMENT: usize = 4096;

/// Copies `bytes` from `offset` on onto themselves; gives bytes per second, the flush included.
pub(super) fn onto_itself(path: &Path, offset: u64, bytes: u64) -> Result<f64> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path)?;
    let next = AtomicU64::new(0);
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let copier = || scope.spawn(|| pieces(&file, offset, bytes, &next));
        let threads: Vec<_> = (0..IN_FLIGHT).map(|_| copier()).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(anyhow!("the copier panicked")))
        })
    })
    .with_context(|| path.display().to_string())?;
    file.sync_data()?;
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn pieces(file: &File, offset: u64, bytes: u64, next: &AtomicU64) -> Result<()> {
    let mut memory = vec![0; PIECE_BYTES + ALIGNMENT];
    let pad = memory.as_ptr().align_offset(ALIGNMENT);
    let memory = memory.get_mut(pad..pad + PIECE_BYTES).context("no aligned memory")?;
    loop {
        let at = next.fetch_add(PIECE_BYTES as u64, Ordering::Relaxed);
        if at >= bytes {
            return Ok(());
        }
        file.read_exact_at(memory, offset + at)?;
        file.write_all_at(memory, offset + at)?;
    }
}
