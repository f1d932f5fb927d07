//! What a file or device says about its size and units.
// UNSAFETY: block device ioctls that rustix doesn't wrap.
#![expect(unsafe_code, reason = "ioctl BLKPBSZGET")]

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, OFlags, StatxFlags};
use sealblk_block::{ErrorKind, Geometry, VolumeError};

/// Largest block that a guest's file system can live on: its page.
const BLOCK_BYTES_MAX: u32 = 4096;

pub(super) fn measure(
    uri: &str,
    file: &OwnedFd,
    device: bool,
    read_only: bool,
) -> Result<Geometry, VolumeError> {
    let fail = |what: &str, error: rustix::io::Errno| VolumeError::io(uri, what, error.into());
    let (block_bytes, physical, discard) = if device {
        let logical = rustix::fs::ioctl_blksszget(file)
            .map_err(|error| fail("asking its block size", error))?;
        let physical = physical_block_bytes(file).unwrap_or(logical);
        (logical, physical, discards(file))
    } else {
        let block = direct_io_alignment(file);
        // A hole can be punched in blocks of the file system; smaller ranges are zeroed by it.
        (block, block.max(4096), true)
    };
    if !block_bytes.is_power_of_two() || !(512..=BLOCK_BYTES_MAX).contains(&block_bytes) {
        let what = format!(
            "its block size of {block_bytes} bytes is not one that guests can use (512 to {BLOCK_BYTES_MAX})"
        );
        return Err(VolumeError::new(ErrorKind::Unsupported, uri, what));
    }
    Ok(Geometry {
        size_bytes: measure_size(uri, file, block_bytes)?,
        block_bytes,
        physical_block_bytes: physical.max(block_bytes),
        // Nobody promises more of a long write: the physical block may be torn while a part of it is
        // made anew, and what statx(2) says of atomic writes holds for writes no longer than that.
        atomic_write_bytes: block_bytes,
        discard: discard && !read_only,
        read_only,
    })
}

/// The size as it is now. Whole blocks only: writing the last part of one would make a file longer.
pub(super) fn measure_size(
    uri: &str,
    file: &OwnedFd,
    block_bytes: u32,
) -> Result<u64, VolumeError> {
    // Works for both kinds, and leaves the offset where nobody looks at it.
    let size_bytes = rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))
        .map_err(|error| VolumeError::io(uri, "asking its size", error.into()))?;
    Ok(size_bytes - size_bytes % u64::from(block_bytes))
}

/// The alignment that O_DIRECT wants of offsets and memory on this file (statx(2), Linux 6.1);
/// 512 where the file is not open for direct I/O.
fn direct_io_alignment(file: &OwnedFd) -> u32 {
    /// What every Linux file system is content with when it doesn't say.
    const UNKNOWN: u32 = 4096;
    match rustix::fs::fcntl_getfl(file) {
        Ok(flags) if flags.contains(OFlags::DIRECT) => {}
        _ => return 512,
    }
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(stat) if stat.stx_dio_offset_align > 0 => {
            stat.stx_dio_offset_align.max(stat.stx_dio_mem_align).max(512)
        }
        _ => UNKNOWN,
    }
}

/// `BLKPBSZGET`, include/uapi/linux/fs.h.
fn physical_block_bytes(file: &OwnedFd) -> Option<u32> {
    const BLKPBSZGET: libc::c_ulong = 0x127b;
    let mut bytes: libc::c_uint = 0;
    // SAFETY: this ioctl writes one unsigned int, to a variable that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BLKPBSZGET, &raw mut bytes) };
    (result == 0 && bytes.is_power_of_two()).then_some(bytes)
}

fn discards(file: &OwnedFd) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else { return false };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    // A partition has no queue of its own; its disk's is one up.
    ["queue", "../queue"].iter().any(|queue| {
        std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{queue}/discard_max_bytes"))
            .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
    })
}
