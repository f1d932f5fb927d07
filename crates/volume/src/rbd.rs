//! To come.

use sealblk_block::{Geometry, VolumeError};
use sealblk_ring::Ring;

use crate::{Lane, OpenOptions, RbdName, Volume};

pub(crate) fn library_version() -> Result<String, String> {
    Err("to come".to_owned())
}

pub(crate) struct RbdVolume;

impl RbdVolume {
    pub(crate) fn open(
        uri: &str,
        _name: &RbdName,
        _options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        Err(crate::driver::missing(uri, crate::driver::RBD_PACKAGE, "to come"))
    }
}

impl Volume for RbdVolume {
    fn uri(&self) -> &str {
        ""
    }
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 0,
            block_bytes: 512,
            physical_block_bytes: 512,
            atomic_write_bytes: 512,
            discard: false,
            read_only: true,
        }
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), VolumeError> {
        Ok(())
    }
    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), VolumeError> {
        Ok(())
    }
    fn flush(&self) -> Result<(), VolumeError> {
        Ok(())
    }
    fn open_lane(&self, _ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        Err(VolumeError::new(sealblk_block::ErrorKind::Unsupported, "", "to come"))
    }
}
