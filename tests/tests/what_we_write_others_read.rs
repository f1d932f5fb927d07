//! No lock-in: what the daemon writes, cryptsetup and qemu-img decrypt.

use anyhow::Result;
use sealblk_tests::{Client, Daemon, Pattern, TestVolume, oracle, progress};

const MIB: u64 = 1 << 20;

/// Writes pieces of all kinds to the whole disk; gives what the disk must then hold.
fn write_pieces(client: &mut Client, size: u64) -> Result<Vec<u8>> {
    let align = u64::try_from(client.property("request-alignment")?)?;
    let size_bytes = usize::try_from(size)?;
    let mut expected = vec![0_u8; size_bytes];
    for (index, part) in expected.chunks_mut(usize::try_from(MIB)?).enumerate() {
        let at = index as u64 * MIB;
        part.copy_from_slice(&Pattern(11).bytes(at, part.len()));
        client.write(at, part)?;
    }
    for (index, len) in [align, 3 * align, 64 * align, 65 * align].into_iter().enumerate() {
        let at = (index as u64 + 1) * 300 * align;
        let data = Pattern(12).bytes(at, usize::try_from(len)?);
        client.write(at, &data)?;
        expected[usize::try_from(at)?..][..data.len()].copy_from_slice(&data);
    }
    let last = size - align;
    let data = Pattern(13).bytes(last, usize::try_from(align)?);
    client.write(last, &data)?;
    expected[usize::try_from(last)?..].copy_from_slice(&data);
    client.write_zeroes(2 * MIB, MIB, false)?;
    expected[usize::try_from(2 * MIB)?..][..usize::try_from(MIB)?].fill(0);
    client.flush()?;
    Ok(expected)
}

fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let difference = found.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!(difference, None, "{what}: first wrong byte");
}

fn cryptsetup_reads(arguments: &[&str]) -> Result<()> {
    progress(arguments.join(" "));
    let volume = TestVolume::formatted_with(16 * MIB, arguments)?;
    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    assert_eq!(client.capacity_bytes()?, 16 * MIB);
    let expected = write_pieces(&mut client, 16 * MIB)?;
    drop(client);
    daemon.stop()?;
    assert_same(&oracle::cryptsetup_decrypts(&volume)?, &expected, &arguments.join(" "));
    Ok(())
}

#[test]
fn cryptsetup_reads_aes_256_with_512_byte_sectors() -> Result<()> {
    cryptsetup_reads(&["--sector-size", "512"])
}

#[test]
fn cryptsetup_reads_aes_256_with_4096_byte_sectors() -> Result<()> {
    cryptsetup_reads(&["--sector-size", "4096"])
}

#[test]
fn cryptsetup_reads_aes_128() -> Result<()> {
    cryptsetup_reads(&["--cipher", "aes-128-xts", "--sector-size", "512"])
}

#[test]
fn cryptsetup_reads_what_the_portable_cipher_wrote() -> Result<()> {
    let volume = TestVolume::formatted(16 * MIB, 4096)?;
    let mut daemon = Daemon::serve(&volume, &["--cipher", "portable"])?;
    let mut client = Client::simple(daemon.socket())?;
    let expected = write_pieces(&mut client, 16 * MIB)?;
    drop(client);
    daemon.stop()?;
    assert_same(&oracle::cryptsetup_decrypts(&volume)?, &expected, "portable");
    Ok(())
}

#[test]
fn qemu_img_reads_what_we_write_to_cinder_s_luks1() -> Result<()> {
    for name in ["l1-qemu-aes256.img", "l1-cs-k512.img"] {
        progress(name);
        let volume = TestVolume::known_answer(name)?;
        let offset = oracle::data_offset(&volume.image)?;
        let file = std::fs::OpenOptions::new().write(true).open(&volume.image)?;
        file.set_len(offset + 8 * MIB)?;
        let mut daemon = Daemon::serve(&volume, &[])?;
        let mut client = Client::simple(daemon.socket())?;
        let expected = write_pieces(&mut client, 8 * MIB)?;
        drop(client);
        daemon.stop()?;
        assert_same(&oracle::qemu_img_decrypts(&volume)?, &expected, name);
    }
    Ok(())
}
