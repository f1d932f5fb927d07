//! The encrypted disk: a file with O_DIRECT and a cipher.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use aes::Aes256;
use aes::cipher::{Key, KeyInit};
use anyhow::Result;
use rustix::fs::OFlags;
use xts_mode::{Xts128, get_tweak_default};

/// A virtio sector, and the tweak's unit.
pub(crate) const SECTOR: u64 = 512;
/// What O_DIRECT wants of a buffer's address, on every device.
const ALIGN: usize = 4096;

/// A volume and its key. Blocking; shared by all queues.
pub(crate) struct Disk {
    file: File,
    xts: Xts128<Aes256>,
    sector_bytes: u32,
    size_bytes: u64,
}

impl Disk {
    pub(crate) fn open(path: &Path, key: &[u8; 64], sector_bytes: u32) -> Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(OFlags::DIRECT.bits().cast_signed());
        let mut file = options.open(path)?;
        let size = file.seek(SeekFrom::End(0))?;
        let (data, tweak) = key.split_at(32);
        let (data, tweak) = (<&Key<Aes256>>::try_from(data)?, <&Key<Aes256>>::try_from(tweak)?);
        Ok(Self {
            file,
            xts: Xts128::new(Aes256::new(data), Aes256::new(tweak)),
            sector_bytes,
            size_bytes: size - size % u64::from(sector_bytes),
        })
    }

    /// Size in virtio sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.size_bytes / SECTOR
    }

    /// Encryption sector in bytes.
    pub(crate) fn sector_bytes(&self) -> u32 {
        self.sector_bytes
    }

    /// Reads and decrypts.
    pub(crate) fn read(&self, sector: u64, data: &mut [u8]) -> io::Result<()> {
        let offset = self.check(sector, data.len())?;
        self.file.read_exact_at(data, offset)?;
        let (bytes, first) = (self.sector_bytes as usize, self.index(sector));
        self.xts.decrypt_area(data, bytes, first, |index| self.tweak(index));
        Ok(())
    }

    /// Encrypts `data` in place and writes it.
    pub(crate) fn write(&self, sector: u64, data: &mut [u8]) -> io::Result<()> {
        let offset = self.check(sector, data.len())?;
        let (bytes, first) = (self.sector_bytes as usize, self.index(sector));
        self.xts.encrypt_area(data, bytes, first, |index| self.tweak(index));
        self.file.write_all_at(data, offset)
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// The byte offset of whole encryption sectors inside the disk.
    fn check(&self, sector: u64, len: usize) -> io::Result<u64> {
        let unit = u64::from(self.sector_bytes);
        let offset = sector.checked_mul(SECTOR).ok_or(io::ErrorKind::InvalidInput)?;
        let end = offset.checked_add(len as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let aligned = offset.is_multiple_of(unit) && (len as u64).is_multiple_of(unit);
        if aligned && end <= self.size_bytes {
            Ok(offset)
        } else {
            Err(io::ErrorKind::InvalidInput.into())
        }
    }

    fn index(&self, sector: u64) -> u128 {
        u128::from(sector * SECTOR / u64::from(self.sector_bytes))
    }

    /// plain64: the encryption sector's position in units of 512 bytes.
    fn tweak(&self, index: u128) -> xts_mode::Array<u8, aes::cipher::consts::U16> {
        get_tweak_default(index * u128::from(self.sector_bytes) / u128::from(SECTOR))
    }
}

/// A buffer whose address suits O_DIRECT; grows as needed.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    /// The largest request that is served.
    pub(crate) const MAX: usize = 16 << 20;

    /// `len` bytes, whatever is in them.
    pub(crate) fn get(&mut self, len: usize) -> io::Result<&mut [u8]> {
        if len > Self::MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.0.len() < len + ALIGN {
            self.0.resize(len + ALIGN, 0);
        }
        let start = self.0.as_ptr().align_offset(ALIGN);
        self.0.get_mut(start..start + len).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_aligned_however_it_grows() {
        let mut buffer = Buffer::default();
        for len in [512, 4096, 1 << 20, 512] {
            let bytes = buffer.get(len).unwrap();
            assert_eq!((bytes.len(), bytes.as_ptr().align_offset(ALIGN)), (len, 0));
        }
        assert!(buffer.get(Buffer::MAX + 1).is_err());
    }
}
