//! Where `sealblk-luks` meets a volume: reading headers from one, carrying out plans on one. (It has
//! no other home: volumes don't know LUKS, LUKS touches no storage.)

use std::io;

use sealblk_block::{SECTOR_BYTES, VolumeError, in_one_line};
use sealblk_luks::{Plan, ReadAt, Step};
use sealblk_volume::{FENCED, Volume};

use crate::error::{RotationError, Trouble};

/// A volume as `sealblk-luks` reads it.
pub struct Reader<'a>(pub &'a dyn Volume);

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.size_bytes()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.read_at(offset_bytes, buf).map_err(|error| io::Error::other(in_one_line(&error)))
    }

    fn size_bytes(&self) -> u64 {
        self.0.geometry().size_bytes
    }
}

/// Carries out a plan, step by step; the last step's flush, if it has none, is left to the next plan
/// (the chain of header writes knows of it).
///
/// # Errors
/// The first one ends it: the header must be loaded anew, and a flush that failed is never repeated.
pub fn carry_out(volume: &dyn Volume, plan: &Plan) -> Result<(), VolumeError> {
    for step in plan.steps() {
        match step {
            Step::Write { offset_bytes, data } => volume.write_at(*offset_bytes, data)?,
            Step::Flush => volume.flush()?,
        }
    }
    Ok(())
}

/// As [`carry_out`], for who tells flushes from writes.
pub(crate) fn carry_out_or_trouble(volume: &dyn Volume, plan: &Plan) -> Result<(), Trouble> {
    for step in plan.steps() {
        match step {
            Step::Write { offset_bytes, data } => write_header(volume, *offset_bytes, data)?,
            Step::Flush => flush(volume)?,
        }
    }
    Ok(())
}

/// Writes a piece of a header.
pub(crate) fn write_header(
    volume: &dyn Volume,
    offset_bytes: u64,
    data: &[u8],
) -> Result<(), Trouble> {
    volume
        .write_at(offset_bytes, data)
        .map_err(|error| trouble(&error, "writing the header", false))
}

/// Makes durable what was written.
pub(crate) fn flush(volume: &dyn Volume) -> Result<(), Trouble> {
    volume.flush().map_err(|error| trouble(&error, "flushing", true))
}

fn trouble(error: &VolumeError, did: &str, flush: bool) -> Trouble {
    if is_fenced(error) {
        return Trouble::Hopeless(RotationError::Fenced);
    }
    Trouble::Storage { what: format!("{did}: {}", in_one_line(error)), flush }
}

/// Whether an error says that another client has taken the volume.
fn is_fenced(error: &VolumeError) -> bool {
    error.source.as_ref().and_then(io::Error::raw_os_error) == Some(FENCED)
}

/// Asks the volume whether another client has taken it, where an error has gone through text.
pub(crate) fn was_taken(volume: &dyn Volume) -> bool {
    volume.read_at(0, &mut [0; SECTOR_BYTES as usize]).is_err_and(|error| is_fenced(&error))
}

/// The operating system's random numbers, as `sealblk-luks` takes them.
///
/// # Errors
/// The system has none, which no running Linux ever says.
pub fn random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|error| io::Error::other(error.to_string()))
}
