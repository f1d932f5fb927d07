use sealblk_luks::{FormatParams, SlotKdf, Step};
use sealblk_ring::Ring;
use sealblk_secret::SecretBytes;
use sealblk_volume::{Lane, MemoryVolume};

use std::io;

use sealblk_block::in_one_line;

use super::*;
use crate::config;

/// A volume's section with these lines more.
fn config(lines: &str) -> VolumeConfig {
    let text = format!("name = \"a\"\nuri = \"file:/a\"\nsocket = \"/a.sock\"\n{lines}");
    config::volume(toml::from_str(&text).unwrap(), &Default::default()).unwrap()
}

/// A volume whose flushes fail.
struct NeverDurable(MemoryVolume);

impl Volume for NeverDurable {
    fn uri(&self) -> &str {
        self.0.uri()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.0.read_at(offset_bytes, buf)
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.0.write_at(offset_bytes, data)
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let error = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        Err(VolumeError::io("memory", "flushing it", error))
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        self.0.open_lane(ring)
    }
}

fn opened(volume: Arc<dyn Volume>) -> Opened {
    let config = config("plain = true");
    let unlocked = plain(volume.geometry());
    let profile = profile(&config, volume.geometry(), &unlocked.segments, "").unwrap();
    let disk = Disk::new(&volume, &unlocked.segments, &profile, &engine_config(&config)).unwrap();
    let layout = Layout::new(&unlocked.segments, profile.block_bytes, unlocked.dynamic);
    let sectors = profile.capacity_sectors;
    Opened {
        rotator: None,
        growth: Growth::new("a", &volume, disk.grower(), layout, None, sectors),
        name: config.name,
        socket: config.socket,
        profile,
        host: Host::new(disk),
        volume,
        status: VolumeStatus::default(),
    }
}

#[test]
fn a_last_flush_that_fails_is_an_error() {
    let memory = || MemoryVolume::new(1 << 20, 512).unwrap();
    opened(Arc::new(memory())).close().unwrap();
    let error = opened(Arc::new(NeverDurable(memory()))).close().unwrap_err();
    let text = in_one_line(error.as_ref());
    assert!(text.contains("last flush") && text.contains("Input/output error"), "{text}");
    assert_eq!(text.matches("os error").count(), 1, "{text}");
}

#[test]
fn a_segment_between_two_blocks_of_the_volume_is_refused() {
    let geometry = |block_bytes| MemoryVolume::new(1 << 20, block_bytes).unwrap().geometry();
    let segment =
        |volume_start| SegmentSpec { volume_start, ..plain(geometry(512)).segments[0].clone() };
    let profile = |start, block_bytes| {
        profile(&config("plain = true"), geometry(block_bytes), &[segment(start)], "")
    };
    assert!(profile(9, 512).is_ok() && profile(16, 4096).is_ok());
    let error = profile(9, 4096).unwrap_err().to_string();
    assert!(error.contains("offset 4608") && error.contains("blocks of 4096"), "{error}");
}

#[test]
fn zeroes_are_written_a_little_at_a_time() {
    for block_bytes in [512, 4096] {
        let geometry = MemoryVolume::new(1 << 20, block_bytes).unwrap().geometry();
        let config = config("plain = true\ndiscard = true");
        let profile = profile(&config, geometry, &plain(geometry).segments, "").unwrap();
        let zeroes = profile.write_zeroes.unwrap();
        assert!(u64::from(zeroes.sectors_max) * SECTOR_BYTES <= 4 << 20);
        assert_eq!(zeroes.ranges_max, 1);
        assert!((zeroes.sectors_max * SECTOR_BYTES as u32).is_multiple_of(profile.block_bytes));
        assert!(profile.discard.unwrap().sectors_max > zeroes.sectors_max);
    }
}

#[test]
fn a_header_of_another_version_or_volume_is_refused() {
    let params = FormatParams {
        volume_bytes: 20 << 20,
        algorithm: sealblk_cipher::Algorithm::Aes256XtsPlain64,
        sector_bytes: 512,
        kdf: SlotKdf::Pbkdf2Sha256 { iterations: 1000 },
        label: String::new(),
        subsystem: String::new(),
        token: None,
        created_at: None,
    };
    let mut next = 0_u8;
    let mut random = |bytes: &mut [u8]| {
        for byte in bytes {
            next = next.wrapping_mul(5).wrapping_add(89);
            *byte = next;
        }
        Ok(())
    };
    let passphrase = SecretBytes::copy_from(b"secret").unwrap();
    let plan = sealblk_luks::format(&params, &passphrase, &mut random).unwrap();
    let mut image = vec![0; 20 << 20];
    for step in plan {
        if let Step::Write { offset_bytes, data } = step {
            image[offset_bytes as usize..][..data.len()].copy_from_slice(&data);
        }
    }
    let pinned = |pins: &str| {
        load(&mut image.as_slice(), &config(&format!("key = \"file:/k\"\n{pins}")))
            .map(|header| header.uuid())
            .map_err(|error| in_one_line(error.as_ref()))
    };
    let uuid = pinned("").unwrap();
    let upper = uuid.to_uppercase();
    assert!(pinned(&format!("luks = 2\nuuid = \"{upper}\"")).is_ok());
    let error = pinned("luks = 1").unwrap_err();
    assert!(error.contains("LUKS2"), "{error}");
    let other = "00000000-0000-4000-8000-000000000000";
    let error = pinned(&format!("uuid = \"{other}\"")).unwrap_err();
    assert!(error.contains(&uuid) && error.contains(other), "{error}");
}
