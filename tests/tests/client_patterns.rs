//! A third-party client fills whole disks in all block sizes and alignments and reads them back;
//! the volume holds nothing of what it wrote.

use anyhow::{Result, ensure};
use sealblk_tests::{
    Client, ClientOptions, Daemon, Pattern, TestVolume, chi_square, oracle, progress, shares_blocks,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 24 * MIB;

/// How deep a client queues, each request with memory of its own.
const DEPTH: usize = 16;
const SLOT: usize = 256 << 10;

fn connect(daemon: &Daemon, queues: u16) -> Result<Client> {
    let memory_bytes = usize::from(queues) * DEPTH * (SLOT + 4096);
    Client::connect(daemon.socket(), ClientOptions { queues, memory_bytes, read_only: false })
}

/// Covers the disk with blocks of `block` bytes, dealt out over all queues, `DEPTH` at a time in
/// each; buffers lie `skew` bytes off a page. A write puts the pattern there, a read checks it.
fn sweep(
    client: &mut Client,
    queues: u16,
    block: usize,
    skew: usize,
    write: bool,
    pattern: Pattern,
) -> Result<()> {
    let blocks = DISK.div_ceil(block as u64);
    let place = |queue: usize, slot: usize| (queue * DEPTH + slot) * (SLOT + 4096) + skew;
    let extent = |index: u64| {
        let offset = index * block as u64;
        (offset, usize::try_from((DISK - offset).min(block as u64)).unwrap_or(block))
    };
    let mut next = 0;
    while next < blocks {
        let mut sent = vec![0_usize; usize::from(queues)];
        let first = next;
        for (queue, sent) in sent.iter_mut().enumerate() {
            for slot in 0..DEPTH {
                if next == blocks {
                    break;
                }
                let (offset, len) = extent(next);
                if write {
                    client.fill(place(queue, slot), &pattern.bytes(offset, len))?;
                    client.start_write(queue, offset, place(queue, slot), len, slot)?;
                } else {
                    client.fill(place(queue, slot), &vec![0xa5; len])?;
                    client.start_read(queue, offset, place(queue, slot), len, slot)?;
                }
                *sent += 1;
                next += 1;
            }
        }
        let mut index = first;
        for (queue, &count) in sent.iter().enumerate() {
            let mut left = count;
            while left > 0 {
                let done = client.complete(queue, left.min(1))?;
                ensure!(done.iter().all(|one| one.result == 0), "block {block}: {done:?}");
                left -= done.len();
            }
            for slot in 0..count {
                let (offset, len) = extent(index);
                index += 1;
                let found = client.take(place(queue, slot), len)?;
                let wrong = pattern.first_difference(offset, &found);
                ensure!(wrong.is_none(), "block {block}, skew {skew}: wrong at {wrong:?}");
            }
        }
    }
    Ok(())
}

fn all_sizes(sector_bytes: u32, queues: u16) -> Result<()> {
    let volume = TestVolume::formatted(DISK, sector_bytes)?;
    let mut daemon = Daemon::serve(&volume, &["--queues", &queues.to_string()])?;
    let mut client = connect(&daemon, queues)?;
    assert_eq!(client.capacity_bytes()?, DISK);
    let unit = usize::try_from(client.property("request-alignment")?)?;
    ensure!(unit == 512 || unit == 4096, "a logical block of {unit} bytes");
    // Blocks of one unit, of odd multiples that straddle every larger boundary, of large powers;
    // buffers on a page, off it, and as odd as the client may choose.
    let sizes = [unit, 3 * unit, 8 * unit, 33 * unit, 64 << 10, SLOT];
    let skews = [0, 512, 4, 1];
    for (round, block) in sizes.into_iter().enumerate() {
        let skew = skews[round % skews.len()];
        let pattern = Pattern(100 + round as u64);
        progress(format_args!("{queues} queues, {block}-byte blocks, buffers at page + {skew}"));
        sweep(&mut client, queues, block, skew, true, pattern)?;
        let other = sizes[(round + 3) % sizes.len()];
        sweep(&mut client, queues, other, skews[(round + 1) % skews.len()], false, pattern)?;
    }
    drop(client);
    daemon.stop()?;
    holds_nothing_of(&volume, Pattern(105))
}

/// The volume's data area is noise, without a cipher block of what was written.
fn holds_nothing_of(volume: &TestVolume, pattern: Pattern) -> Result<()> {
    let image = std::fs::read(&volume.image)?;
    let data = &image[usize::try_from(oracle::data_offset(&volume.image)?)?..];
    ensure!(!shares_blocks(&pattern.bytes(0, usize::try_from(DISK)?), data), "plaintext on disk");
    let chi = chi_square(data);
    ensure!((150.0..400.0).contains(&chi), "the volume's bytes are uneven: chi square {chi}");
    Ok(())
}

#[test]
fn every_block_size_on_512_byte_sectors() -> Result<()> {
    all_sizes(512, 1)
}

#[test]
fn every_block_size_on_4096_byte_sectors() -> Result<()> {
    all_sizes(4096, 1)
}

#[test]
fn four_queues_at_once_on_512_byte_sectors() -> Result<()> {
    all_sizes(512, 4)
}

#[test]
fn four_queues_at_once_on_4096_byte_sectors() -> Result<()> {
    all_sizes(4096, 4)
}

#[test]
fn monotonous_content_leaves_no_repetition_on_disk() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let mut daemon = Daemon::serve(&volume, &[])?;
    let mut client = Client::simple(daemon.socket())?;
    let text = b"the same text again and again  \n".repeat(usize::try_from(DISK / 32)?);
    client.write(0, &text)?;
    client.flush()?;
    assert!(client.read(0, text.len())? == text);
    drop(client);
    daemon.stop()?;
    let image = std::fs::read(&volume.image)?;
    let data = &image[usize::try_from(oracle::data_offset(&volume.image)?)?..];
    let blocks: std::collections::HashSet<&[u8]> = data.chunks_exact(16).collect();
    assert_eq!(blocks.len(), data.len() / 16, "two cipher blocks are the same");
    assert!(chi_square(data) < 400.0);
    Ok(())
}

#[test]
fn zeroed_and_discarded_ranges_touch_nothing_beside_them() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let daemon = Daemon::serve(&volume, &["--discard"])?;
    let mut client = Client::simple(daemon.socket())?;
    let pattern = Pattern(7);
    client.write(0, &pattern.bytes(0, usize::try_from(DISK)?))?;
    for (unmap, at, len) in
        [(false, MIB + 512, 3 * MIB + 512), (true, 8 * MIB - 512, 512), (true, 9 * MIB, MIB)]
    {
        client.write_zeroes(at, len, unmap)?;
        assert!(client.read(at, usize::try_from(len)?)?.iter().all(|&byte| byte == 0));
        assert_eq!(pattern.first_difference(at - 4096, &client.read(at - 4096, 4096)?), None);
        assert_eq!(pattern.first_difference(at + len, &client.read(at + len, 4096)?), None);
    }
    // What a discarded range reads as is unspecified; its neighbours are not.
    let (at, len) = (16 * MIB, 2 * MIB);
    client.discard(at, len)?;
    client.read(at, usize::try_from(len)?)?;
    assert_eq!(pattern.first_difference(at - 4096, &client.read(at - 4096, 4096)?), None);
    assert_eq!(pattern.first_difference(at + len, &client.read(at + len, 4096)?), None);
    Ok(())
}
