//! A volume in memory, for tests and for measuring what our own code costs: every I/O is carried
//! out while it is submitted, and comes back through the ring like any other.
// UNSAFETY: copies between the caller's memory and a file in memory.
#![expect(unsafe_code, reason = "reads and writes the caller's memory by address")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use sealblk_block::{ErrorKind, Geometry, VolumeError};
use sealblk_ring::{Full, Ring, Token, opcode};

use crate::{Buffer, Lane, LaneDone, LaneIo, LaneOp, Size, Volume};

/// A volume in memory; everything is "durable" as long as the value lives.
#[derive(Debug)]
pub struct MemoryVolume {
    file: Arc<OwnedFd>,
    /// As it was made.
    geometry: Geometry,
    size: Arc<Size>,
}

impl MemoryVolume {
    /// A zeroed volume of `size_bytes` with blocks of `block_bytes`.
    pub fn new(size_bytes: u64, block_bytes: u32) -> Result<Self, VolumeError> {
        let fail = |error: Errno| VolumeError::io("memory", "making it", error.into());
        let file = rustix::fs::memfd_create("sealblk-memory", MemfdFlags::CLOEXEC).map_err(fail)?;
        rustix::fs::ftruncate(&file, size_bytes).map_err(fail)?;
        let geometry = Geometry {
            size_bytes,
            block_bytes,
            physical_block_bytes: block_bytes.max(4096),
            atomic_write_bytes: block_bytes,
            discard: true,
            read_only: false,
        };
        let size = Arc::new(Size::new(size_bytes));
        Ok(Self { file: Arc::new(file), geometry, size })
    }

    /// Makes the storage larger or smaller, as somebody else would: the volume has to find out.
    pub fn resize_storage(&self, size_bytes: u64) -> Result<(), VolumeError> {
        rustix::fs::ftruncate(&self.file, size_bytes)
            .map_err(|error| VolumeError::io("memory", "resizing it", error.into()))
    }

    fn check(&self, offset_bytes: u64, len: usize) -> Result<(), VolumeError> {
        match offset_bytes.checked_add(len as u64) {
            Some(end) if end <= self.size.bytes() => Ok(()),
            _ => Err(VolumeError::new(ErrorKind::Invalid, "memory", "past its end")),
        }
    }
}

impl Volume for MemoryVolume {
    fn uri(&self) -> &str {
        "memory"
    }

    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.size.bytes(), ..self.geometry }
    }

    fn measure_size(&self) -> Result<u64, VolumeError> {
        let stat = rustix::fs::fstat(&self.file)
            .map_err(|error| VolumeError::io("memory", "asking its size", error.into()))?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(size_bytes - size_bytes % u64::from(self.geometry.block_bytes))
    }

    fn grow_to(&self, size_bytes: u64) {
        self.size.grow_to(size_bytes);
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.check(offset_bytes, buf.len())?;
        let mut done = 0;
        while done < buf.len() {
            match rustix::io::pread(&self.file, &mut buf[done..], offset_bytes + done as u64) {
                Ok(n) => done += n,
                Err(error) => return Err(VolumeError::io("memory", "reading", error.into())),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.check(offset_bytes, data.len())?;
        let mut done = 0;
        while done < data.len() {
            match rustix::io::pwrite(&self.file, &data[done..], offset_bytes + done as u64) {
                Ok(n) => done += n,
                Err(error) => return Err(VolumeError::io("memory", "writing", error.into())),
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }

    fn open_lane(&self, _ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        Ok(Box::new(MemoryLane {
            file: self.file.clone(),
            size: self.size.clone(),
            results: Vec::new(),
        }))
    }
}

struct MemoryLane {
    file: Arc<OwnedFd>,
    size: Arc<Size>,
    /// By I/O id, until its completion comes through the ring.
    results: Vec<Result<u32, i32>>,
}

impl MemoryLane {
    fn carry_out(&self, op: LaneOp) -> Result<u32, i32> {
        let size_bytes = self.size.bytes();
        match op {
            LaneOp::Read { offset_bytes, buffer } => {
                let at = offset_bytes.min(size_bytes);
                // SAFETY: the submitter keeps the memory that it names mapped.
                unsafe { transfer(&self.file, at, size_bytes - at, buffer, false) }
            }
            LaneOp::Write { offset_bytes, buffer, .. } => {
                if offset_bytes >= size_bytes {
                    return Err(libc::ENOSPC);
                }
                let room = size_bytes - offset_bytes;
                // SAFETY: the submitter keeps the memory that it names mapped.
                unsafe { transfer(&self.file, offset_bytes, room, buffer, true) }
            }
            LaneOp::Flush => Ok(0),
            LaneOp::Discard { offset_bytes, len_bytes } => {
                let flags =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(self.file.as_fd(), flags, offset_bytes, len_bytes)
                    .map(|()| 0)
                    .map_err(Errno::raw_os_error)
            }
        }
    }
}

/// Moves up to `room` bytes between the file and the buffer's pieces.
///
/// # Safety
/// The buffer's memory is mapped.
unsafe fn transfer(
    file: &OwnedFd,
    mut at: u64,
    room: u64,
    buffer: Buffer,
    write: bool,
) -> Result<u32, i32> {
    let mut left = room;
    let mut moved = 0;
    let mut piece = |addr: *mut u8, len: usize| -> Result<bool, i32> {
        let len = left.min(len as u64) as usize;
        let (fd, offset) = (std::os::fd::AsRawFd::as_raw_fd(file), at as libc::off_t);
        // SAFETY: the caller vouches for the memory; the kernel checks it once more.
        let n = unsafe {
            if write {
                libc::pwrite(fd, addr.cast_const().cast(), len, offset)
            } else {
                libc::pread(fd, addr.cast(), len, offset)
            }
        };
        let n = usize::try_from(n).map_err(|_| libc::EIO)?;
        at += n as u64;
        left -= n as u64;
        moved += n as u32;
        Ok(n == len)
    };
    match buffer {
        Buffer::Flat { addr, len_bytes, .. } => {
            piece(addr, len_bytes as usize)?;
        }
        Buffer::Vectored { iovecs, count, .. } => {
            for index in 0..count as usize {
                // SAFETY: the caller vouches for `count` iovecs.
                let iovec = unsafe { *iovecs.add(index) };
                if !piece(iovec.iov_base.cast(), iovec.iov_len)? {
                    break;
                }
            }
        }
    }
    Ok(moved)
}

impl Lane for MemoryLane {
    unsafe fn submit(&mut self, ring: &mut Ring, io: LaneIo) -> Result<(), Full> {
        // SAFETY: a no-op points to nothing.
        unsafe { ring.push(opcode::Nop::new().build(), Token::Lane(u64::from(io.id))) }?;
        let result = self.carry_out(io.op);
        let index = io.id as usize;
        if self.results.len() <= index {
            self.results.resize(index + 1, Ok(0));
        }
        self.results[index] = result;
        Ok(())
    }

    fn complete(&mut self, _ring: &mut Ring, token: u64, _result: i32, done: &mut Vec<LaneDone>) {
        done.push(LaneDone { id: token as u32, result: self.results[token as usize] });
    }

    fn close(&mut self, _ring: &mut Ring) {}
}
