//! The harness against `qemu-storage-daemon`: when a scenario fails and these pass, it is us.

use std::time::Duration;

use anyhow::Result;
use sealblk_tests::{
    Client, Daemon, GuestBuilder, GuestImage, Pattern, RawFrontend, TestVolume, blk,
};

fn peer(queues: u16) -> Result<(TestVolume, Daemon)> {
    let volume = TestVolume::blank(64 << 20)?;
    let socket = volume.scratch.file("vu.sock");
    let daemon = Daemon::qemu_storage_daemon(&volume.image, &socket, queues)?;
    Ok((volume, daemon))
}

#[test]
fn the_client_writes_what_the_image_then_holds() -> Result<()> {
    let (volume, daemon) = peer(1)?;
    let mut client = Client::simple(daemon.socket())?;
    assert_eq!(client.capacity_bytes()?, 64 << 20);
    let data = Pattern(1).bytes(4096, 3 << 20);
    client.write(4096, &data)?;
    client.flush()?;
    assert_eq!(client.read(4096, 3 << 20)?, data);
    assert_eq!(std::fs::read(&volume.image)?[4096..][..3 << 20], data);
    client.write_zeroes(4096, 8192, false)?;
    assert_eq!(client.read(4096, 8192)?, [0; 8192]);
    Ok(())
}

#[test]
fn the_raw_frontend_is_understood() -> Result<()> {
    let (volume, daemon) = peer(2)?;
    let mut disk = RawFrontend::connect(daemon.socket(), 2, 64)?;
    assert_eq!(disk.capacity_sectors()?, (64 << 20) / 512);
    let data = Pattern(2).bytes(0, 8192);
    disk.write(16, &data)?;
    assert_eq!(disk.read(16, 8192)?, data);
    disk.flush()?;
    assert_eq!(std::fs::read(&volume.image)?[8192..][..8192], data);
    let beyond = disk.capacity_sectors()?;
    let to = sealblk_tests::Desc::writable(RawFrontend::DATA, 512);
    assert_eq!(disk.request(blk::READ, beyond, &[to])?.status, blk::IOERR);
    Ok(())
}

#[test]
fn a_guest_boots_and_says_so() -> Result<()> {
    let (volume, daemon) = peer(1)?;
    let script = "echo from-the-guest | dd of=/dev/vda bs=512 count=1 conv=sync,fsync 2>/dev/null";
    let mut guest = GuestBuilder::new(GuestImage::Tiny, script).disk(daemon.socket(), 1).start()?;
    guest.succeed(Duration::from_secs(300))?;
    assert!(std::fs::read(&volume.image)?.starts_with(b"from-the-guest\n"));
    Ok(())
}
