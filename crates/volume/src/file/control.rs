//! Blocking reads and writes of any alignment, for headers. O_DIRECT like the data path's, so that
//! the page cache never holds a second truth.

use std::io;

use sealblk_block::VolumeError;

use super::FileVolume;
use crate::AlignedBuf;
use crate::size::check_range;

/// Bytes moved at once.
const CHUNK_BYTES: u64 = 1 << 20;

pub(super) fn read(
    volume: &FileVolume,
    offset_bytes: u64,
    buf: &mut [u8],
) -> Result<(), VolumeError> {
    check_range(&volume.uri, offset_bytes, buf.len(), volume.size.bytes())?;
    each_chunk(volume, offset_bytes, buf.len(), |chunk, range| {
        read_blocks(volume, chunk)?;
        buf[range].copy_from_slice(chunk.wanted());
        Ok(())
    })
}

pub(super) fn write(
    volume: &FileVolume,
    offset_bytes: u64,
    data: &[u8],
) -> Result<(), VolumeError> {
    check_range(&volume.uri, offset_bytes, data.len(), volume.size.bytes())?;
    each_chunk(volume, offset_bytes, data.len(), |chunk, range| {
        if chunk.wanted().len() < chunk.len {
            read_blocks(volume, chunk)?;
        }
        chunk.wanted_mut().copy_from_slice(&data[range]);
        write_blocks(volume, chunk)
    })
}

/// Whole blocks around the bytes that somebody wants.
struct Chunk {
    memory: AlignedBuf,
    start_bytes: u64,
    len: usize,
    skip: usize,
    want: usize,
}

impl Chunk {
    fn blocks(&self) -> &[u8] {
        &self.memory.as_slice()[..self.len]
    }

    fn blocks_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut_slice()[..self.len]
    }

    fn wanted(&self) -> &[u8] {
        &self.blocks()[self.skip..self.skip + self.want]
    }

    fn wanted_mut(&mut self) -> &mut [u8] {
        let (skip, want) = (self.skip, self.want);
        &mut self.blocks_mut()[skip..skip + want]
    }
}

fn each_chunk(
    volume: &FileVolume,
    offset_bytes: u64,
    len: usize,
    mut work: impl FnMut(&mut Chunk, std::ops::Range<usize>) -> Result<(), VolumeError>,
) -> Result<(), VolumeError> {
    let block = u64::from(volume.geometry.block_bytes);
    let memory = AlignedBuf::new((CHUNK_BYTES + block) as usize)
        .map_err(|error| VolumeError::io(&volume.uri, "memory for its header", error))?;
    let mut chunk = Chunk { memory, start_bytes: 0, len: 0, skip: 0, want: 0 };
    let mut done = 0;
    while done < len {
        let at = offset_bytes + done as u64;
        chunk.start_bytes = at - at % block;
        chunk.skip = (at - chunk.start_bytes) as usize;
        chunk.want = (len - done).min(CHUNK_BYTES as usize - chunk.skip);
        // The volume's size is a multiple of its block, so this never reaches past its end.
        let end = (at + chunk.want as u64).next_multiple_of(block);
        chunk.len = (end - chunk.start_bytes) as usize;
        let range = done..done + chunk.want;
        done = range.end;
        work(&mut chunk, range)?;
    }
    Ok(())
}

fn read_blocks(volume: &FileVolume, chunk: &mut Chunk) -> Result<(), VolumeError> {
    let (start, needed) = (chunk.start_bytes, chunk.skip + chunk.want);
    let mut got = 0;
    while got < needed {
        let at = start + got as u64;
        match rustix::io::pread(&volume.file, &mut chunk.blocks_mut()[got..], at) {
            Ok(0) => {
                let error = io::ErrorKind::UnexpectedEof.into();
                return Err(VolumeError::io(&volume.uri, format!("reading at {at}"), error));
            }
            Ok(n) => got += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(VolumeError::io(&volume.uri, format!("reading at {at}"), error.into()));
            }
        }
    }
    Ok(())
}

fn write_blocks(volume: &FileVolume, chunk: &Chunk) -> Result<(), VolumeError> {
    let mut put = 0;
    while put < chunk.len {
        let at = chunk.start_bytes + put as u64;
        match rustix::io::pwrite(&volume.file, &chunk.blocks()[put..], at) {
            Ok(0) => {
                let error = io::ErrorKind::WriteZero.into();
                return Err(VolumeError::io(&volume.uri, format!("writing at {at}"), error));
            }
            Ok(n) => put += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(VolumeError::io(&volume.uri, format!("writing at {at}"), error.into()));
            }
        }
    }
    Ok(())
}
