use sealblk_cipher::Implementation;
use sealblk_engine::{Disk, EngineConfig};
use sealblk_virtqueue::blk::{DiskProfile, SERIAL_BYTES};
use sealblk_volume::MemoryVolume;

use super::*;

const MIB: u64 = 1 << 20;

fn segment(volume_start: u64, sectors: u64) -> SegmentSpec {
    SegmentSpec { start: 0, sectors, volume_start, iv_start: 0, sector_bytes: 512, crypt: None }
}

/// A disk of 1 MiB behind 1 MiB of header, with blocks of 4096 bytes.
fn disk(dynamic: bool) -> (Arc<MemoryVolume>, Growth, Disk) {
    let memory = Arc::new(MemoryVolume::new(2 * MIB, 512).unwrap());
    let volume: Arc<dyn Volume> = memory.clone();
    let segments = [segment(2048, 2048)];
    let profile = DiskProfile {
        capacity_sectors: 2048,
        block_bytes: 4096,
        physical_block_bytes: 4096,
        queues: 2,
        seg_max: 30,
        size_max_bytes: 1 << 20,
        read_only: false,
        discard: None,
        discard_alignment_sectors: 8,
        write_zeroes: None,
        write_zeroes_may_unmap: false,
        serial: [0; SERIAL_BYTES],
    };
    let config = EngineConfig {
        queues: 2,
        queue_size_max: 32,
        implementation: Implementation::Auto,
        ..EngineConfig::default()
    };
    let disk = Disk::new(&volume, &segments, &profile, &config).unwrap();
    let layout = Layout::new(&segments, 4096, dynamic);
    let growth = Growth::new("a", &volume, disk.grower(), layout, None, 2048);
    (memory, growth, disk)
}

#[test]
fn a_disk_follows_its_volume_in_whole_blocks() {
    let (volume, growth, _disk) = disk(true);
    let unchanged = growth.ask().unwrap();
    assert_eq!((unchanged.volume_bytes, unchanged.capacity_bytes), (2 * MIB, MIB));
    volume.resize_storage(3 * MIB + 4095).unwrap();
    let grown = growth.ask().unwrap();
    assert_eq!((grown.volume_bytes, grown.capacity_bytes), (3 * MIB + 3584, 2 * MIB));
    assert_eq!(volume.geometry().size_bytes, 3 * MIB + 3584);
    assert_eq!(growth.capacity_sectors(), 4096);
    // Less than a block more: the volume is larger, and the disk as it was.
    volume.resize_storage(3 * MIB + 4096).unwrap();
    assert_eq!(growth.ask().unwrap().capacity_bytes, 2 * MIB + 4096);
}

#[test]
fn a_segment_of_fixed_size_stays_as_it_is() {
    let (volume, growth, _disk) = disk(false);
    volume.resize_storage(4 * MIB).unwrap();
    let told = growth.ask().unwrap();
    assert_eq!((told.volume_bytes, told.capacity_bytes), (4 * MIB, MIB));
    // And may lose again what it never used.
    volume.resize_storage(2 * MIB).unwrap();
    assert!(growth.ask().is_ok());
}

#[test]
fn a_disk_never_shrinks_under_its_guest() {
    let (volume, growth, _disk) = disk(true);
    volume.resize_storage(3 * MIB).unwrap();
    growth.ask().unwrap();
    for size_bytes in [3 * MIB - 4096, MIB, 0] {
        volume.resize_storage(size_bytes).unwrap();
        let Err(Refused::Conflict(why)) = growth.ask() else { panic!("{size_bytes}") };
        assert!(why.contains("has shrunk") && why.contains("make the volume large again"), "{why}");
        assert_eq!(growth.capacity_sectors(), 4096);
    }
    volume.resize_storage(3 * MIB).unwrap();
    assert_eq!(growth.ask().unwrap().capacity_bytes, 2 * MIB);
}

#[test]
fn a_volume_that_cannot_grow_says_so() {
    /// As drivers are that know nothing of it.
    struct Stiff(MemoryVolume);

    impl Volume for Stiff {
        fn uri(&self) -> &str {
            self.0.uri()
        }

        fn geometry(&self) -> sealblk_block::Geometry {
            self.0.geometry()
        }

        fn measure_size(&self) -> Result<u64, sealblk_block::VolumeError> {
            self.0.measure_size()
        }

        fn read_at(&self, at: u64, buf: &mut [u8]) -> Result<(), sealblk_block::VolumeError> {
            self.0.read_at(at, buf)
        }

        fn write_at(&self, at: u64, data: &[u8]) -> Result<(), sealblk_block::VolumeError> {
            self.0.write_at(at, data)
        }

        fn flush(&self) -> Result<(), sealblk_block::VolumeError> {
            self.0.flush()
        }

        fn open_lane(
            &self,
            ring: &mut sealblk_ring::Ring,
        ) -> Result<Box<dyn sealblk_volume::Lane>, sealblk_block::VolumeError> {
            self.0.open_lane(ring)
        }
    }

    let (_, _, disk) = disk(true);
    let memory = MemoryVolume::new(2 * MIB, 512).unwrap();
    memory.resize_storage(3 * MIB).unwrap();
    let volume: Arc<dyn Volume> = Arc::new(Stiff(memory));
    let layout = Layout::new(&[segment(2048, 2048)], 4096, true);
    let growth = Growth::new("a", &volume, disk.grower(), layout, None, 2048);
    let Err(Refused::Conflict(why)) = growth.ask() else { panic!("it grew") };
    assert!(why.contains("can't grow"), "{why}");
    assert_eq!(growth.capacity_sectors(), 2048);
}
