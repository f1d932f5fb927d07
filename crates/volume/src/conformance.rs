//! What every volume must do, as one suite: a driver passes it before anything is built on it.
// UNSAFETY: drives lanes with buffers that it owns.
#![expect(unsafe_code, reason = "calls Lane::submit")]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a suite of checks for tests: failing loudly is its purpose"
)]

use std::sync::Arc;

use sealblk_block::Geometry;
use sealblk_ring::{Level, Ring, RingOptions, Token};

use crate::{AlignedBuf, Buffer, Lane, LaneDone, LaneIo, LaneOp, Volume};

/// Opens (again) the volume under test: at least 4 MiB, its content is overwritten.
pub type Open<'a> = &'a dyn Fn() -> Arc<dyn Volume>;

/// Runs every check; panics with what is wrong.
pub fn run(open: Open<'_>) {
    units_are_sane(open);
    reads_see_completed_writes(open);
    many_in_flight_stay_apart(open);
    pieces_of_memory_are_one_range(open);
    control_and_lanes_see_the_same_bytes(open);
    control_takes_any_alignment(open);
    the_end_is_the_end(open);
    flushed_data_survives_a_new_open(open);
    discard_spares_the_neighbours(open);
}

/// What makes the storage of the volume under test this large.
pub type Enlarge<'a> = &'a dyn Fn(u64);

/// That a volume grows while it is open; panics with what is wrong. Whatever `enlarge` does, the
/// volume's own handle must notice.
pub fn run_growing(open: Open<'_>, enlarge: Enlarge<'_>) {
    let mut bench = Bench::new(open);
    let (before, block) = (bench.volume.geometry(), bench.block as u64);
    let after = before.size_bytes + 16 * block;
    assert_eq!(bench.volume.measure_size().expect("measure"), before.size_bytes);
    enlarge(after + block / 2);
    assert_eq!(bench.volume.measure_size().expect("measure"), after, "whole blocks");
    assert_eq!(bench.volume.geometry(), before, "nothing changes by itself");
    let mut old_end = vec![0; 1];
    assert!(bench.volume.read_at(before.size_bytes, &mut old_end).is_err(), "not in use yet");
    bench.volume.grow_to(after);
    assert_eq!(bench.volume.geometry(), Geometry { size_bytes: after, ..before });
    let mut wrote = filled(2 * bench.block, 0x3c);
    bench.all(true, after - 2 * block, &mut wrote);
    bench.all(true, before.size_bytes - block, &mut wrote);
    assert_eq!(bench.run(&[LaneOp::Flush])[0], Ok(0));
    let mut read = vec![0; 2 * bench.block];
    for at in [after - 2 * block, before.size_bytes - block] {
        bench.volume.read_at(at, &mut read).expect("read_at");
        assert!(read == wrote.as_slice(), "the lane that was open and control reach to the end");
    }
    assert!(bench.volume.read_at(after - 1, &mut [0; 2]).is_err(), "and no further");
    bench.volume.grow_to(before.size_bytes);
    assert_eq!(bench.volume.geometry().size_bytes, after, "it never shrinks");
    drop(bench);
    assert_eq!(open().geometry().size_bytes, after);
}

/// One thread's ring and lane with a buffer.
struct Bench {
    lane: Box<dyn Lane>,
    ring: Ring,
    volume: Arc<dyn Volume>,
    block: usize,
}

impl Bench {
    fn new(open: Open<'_>) -> Self {
        let volume = open();
        let mut ring =
            Ring::new(RingOptions { entries: 128, best: Level::Deferred }).expect("io_uring");
        ring.enable().expect("io_uring");
        let lane = volume.open_lane(&mut ring).expect("a lane");
        let block = volume.geometry().block_bytes as usize;
        Self { lane, ring, volume, block }
    }

    /// Submits all at once, gives the results by id.
    fn run(&mut self, ops: &[LaneOp]) -> Vec<Result<u32, i32>> {
        for (id, &op) in (0u32..).zip(ops) {
            // SAFETY: the buffers belong to the caller, and all I/O is back before this returns.
            unsafe { self.lane.submit(&mut self.ring, LaneIo { id, op }) }.expect("room");
        }
        let mut done: Vec<LaneDone> = Vec::new();
        while done.len() < ops.len() {
            match self.ring.reap() {
                Some(completion) => {
                    let Token::Lane(token) = completion.token else { panic!("{completion:?}") };
                    self.lane.complete(&mut self.ring, token, completion.result, &mut done);
                }
                None => {
                    self.lane.push_out(&mut self.ring);
                    self.ring.submit_and_wait().expect("io_uring");
                }
            }
        }
        done.sort_by_key(|done| done.id);
        let ids: Vec<_> = done.iter().map(|done| done.id).collect();
        assert_eq!(ids, (0..ops.len() as u32).collect::<Vec<_>>(), "each I/O comes back once");
        done.iter().map(|done| done.result).collect()
    }

    /// Runs one to its end, short I/O continued.
    fn all(&mut self, write: bool, offset: u64, memory: &mut AlignedBuf) {
        let (mut done, len) = (0, memory.len());
        while done < len {
            // SAFETY: inside the buffer.
            let addr = unsafe { memory.as_mut_ptr().add(done) };
            let buffer = Buffer::Flat { addr, len_bytes: (len - done) as u32, registered: None };
            let offset_bytes = offset + done as u64;
            let op = if write {
                LaneOp::Write { offset_bytes, buffer, durable: false }
            } else {
                LaneOp::Read { offset_bytes, buffer }
            };
            match self.run(&[op])[0] {
                Ok(0) | Err(_) => panic!("I/O failed at {offset_bytes}"),
                Ok(n) => done += n as usize,
            }
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // A ring lets go of its files some time after it is closed, and the next open of the
        // volume would find it held.
        self.lane.close(&mut self.ring);
    }
}

fn filled(len: usize, seed: u8) -> AlignedBuf {
    let mut memory = AlignedBuf::new(len).expect("memory");
    for (index, byte) in memory.as_mut_slice().iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8) ^ seed;
    }
    memory
}

fn units_are_sane(open: Open<'_>) {
    let geometry = open().geometry();
    assert!(geometry.size_bytes >= 4 << 20, "the suite wants 4 MiB: {geometry:?}");
    assert!(geometry.block_bytes.is_power_of_two() && geometry.block_bytes >= 512);
    assert!(geometry.physical_block_bytes >= geometry.block_bytes);
    assert!(!geometry.read_only);
}

fn reads_see_completed_writes(open: Open<'_>) {
    let mut bench = Bench::new(open);
    for len in [bench.block, 4096.max(bench.block), 1 << 20] {
        for durable in [false, true] {
            let mut wrote = filled(len, len as u8 ^ u8::from(durable));
            if durable {
                let buffer = Buffer::Flat {
                    addr: wrote.as_mut_ptr(),
                    len_bytes: len as u32,
                    registered: None,
                };
                let op = LaneOp::Write { offset_bytes: 1 << 20, buffer, durable };
                assert_eq!(bench.run(&[op])[0], Ok(len as u32));
            } else {
                bench.all(true, 1 << 20, &mut wrote);
            }
            let mut read = AlignedBuf::new(len).expect("memory");
            bench.all(false, 1 << 20, &mut read);
            assert!(read.as_slice() == wrote.as_slice(), "{len} bytes, durable: {durable}");
        }
    }
}

fn many_in_flight_stay_apart(open: Open<'_>) {
    let mut bench = Bench::new(open);
    let block = bench.block.max(4096);
    let mut wrote: Vec<_> = (0..64).map(|n| filled(block, n as u8)).collect();
    let flat = |memory: &mut AlignedBuf| Buffer::Flat {
        addr: memory.as_mut_ptr(),
        len_bytes: block as u32,
        registered: None,
    };
    let at = |n: usize| (n * 2 * block) as u64;
    let writes: Vec<_> = wrote
        .iter_mut()
        .enumerate()
        .map(|(n, memory)| LaneOp::Write {
            offset_bytes: at(n),
            buffer: flat(memory),
            durable: false,
        })
        .collect();
    assert!(bench.run(&writes).iter().all(|result| *result == Ok(block as u32)));
    let mut read: Vec<_> = (0..64).map(|_| AlignedBuf::new(block).expect("memory")).collect();
    let reads: Vec<_> = read
        .iter_mut()
        .enumerate()
        .map(|(n, memory)| LaneOp::Read { offset_bytes: at(n), buffer: flat(memory) })
        .collect();
    assert!(bench.run(&reads).iter().all(|result| *result == Ok(block as u32)));
    assert!(read.iter().zip(&wrote).all(|(read, wrote)| read.as_slice() == wrote.as_slice()));
}

fn pieces_of_memory_are_one_range(open: Open<'_>) {
    let mut bench = Bench::new(open);
    let block = bench.block;
    let mut wrote = filled(7 * block, 0x5a);
    let pieces = |memory: &mut AlignedBuf| -> Vec<libc::iovec> {
        [(0, 1), (1, 4), (5, 2)]
            .map(|(start, blocks)| libc::iovec {
                // SAFETY: inside the buffer.
                iov_base: unsafe { memory.as_mut_ptr().add(start * block) }.cast(),
                iov_len: blocks * block,
            })
            .to_vec()
    };
    let vectored = |iovecs: &[libc::iovec]| Buffer::Vectored {
        iovecs: iovecs.as_ptr(),
        count: iovecs.len() as u32,
        len_bytes: (7 * block) as u32,
    };
    let iovecs = pieces(&mut wrote);
    let write = LaneOp::Write { offset_bytes: 0, buffer: vectored(&iovecs), durable: false };
    assert_eq!(bench.run(&[write])[0], Ok((7 * block) as u32));
    let mut read = AlignedBuf::new(7 * block).expect("memory");
    let iovecs = pieces(&mut read);
    let op = LaneOp::Read { offset_bytes: 0, buffer: vectored(&iovecs) };
    assert_eq!(bench.run(&[op])[0], Ok((7 * block) as u32));
    assert!(read.as_slice() == wrote.as_slice());
}

fn control_and_lanes_see_the_same_bytes(open: Open<'_>) {
    let mut bench = Bench::new(open);
    let len = 8 * bench.block;
    let mut wrote = filled(len, 0x33);
    bench.all(true, 0, &mut wrote);
    let mut read = vec![0; len];
    bench.volume.read_at(0, &mut read).expect("read_at");
    assert!(read == wrote.as_slice(), "control reads what a lane wrote");
    let turned: Vec<u8> = read.iter().map(|byte| !byte).collect();
    bench.volume.write_at(0, &turned).expect("write_at");
    let mut again = AlignedBuf::new(len).expect("memory");
    bench.all(false, 0, &mut again);
    assert!(again.as_slice() == turned, "a lane reads what control wrote");
}

fn control_takes_any_alignment(open: Open<'_>) {
    let volume = open();
    let mut expected = filled(64 << 10, 0x11).as_slice().to_vec();
    volume.write_at(0, &expected).expect("write_at");
    for (offset, len) in [(0, 1), (1, 511), (511, 2), (513, 4096), (4095, 4098), (8191, 20001)] {
        let data: Vec<u8> = (0..len).map(|n| (n * 7) as u8).collect();
        volume.write_at(offset as u64, &data).expect("write_at");
        expected[offset..offset + len].copy_from_slice(&data);
        let mut piece = vec![0; len];
        volume.read_at(offset as u64, &mut piece).expect("read_at");
        assert!(piece == data, "{len} bytes at {offset}");
    }
    let mut whole = vec![0; expected.len()];
    volume.read_at(0, &mut whole).expect("read_at");
    assert!(whole == expected, "the bytes around an unaligned write stay");
}

fn the_end_is_the_end(open: Open<'_>) {
    let mut bench = Bench::new(open);
    let (size, block) = (bench.volume.geometry().size_bytes, bench.block);
    let mut memory = filled(2 * block, 0x77);
    let buffer =
        Buffer::Flat { addr: memory.as_mut_ptr(), len_bytes: 2 * block as u32, registered: None };
    let across = bench.run(&[LaneOp::Read { offset_bytes: size - block as u64, buffer }]);
    assert!(
        across[0].is_err() || across[0] == Ok(block as u32),
        "a read across the end is short or fails: {across:?}"
    );
    let beyond = bench.run(&[LaneOp::Read { offset_bytes: size + block as u64, buffer }]);
    assert!(!matches!(beyond[0], Ok(n) if n > 0), "a read past the end reads nothing");
    assert!(bench.volume.read_at(size - 1, &mut [0; 2]).is_err(), "control read past the end");
    assert!(bench.volume.write_at(size - 1, &[0; 2]).is_err(), "control write past the end");
}

fn flushed_data_survives_a_new_open(open: Open<'_>) {
    let mut wrote = filled(64 << 10, 0xc3);
    {
        let mut bench = Bench::new(open);
        bench.all(true, 2 << 20, &mut wrote);
        assert_eq!(bench.run(&[LaneOp::Flush])[0], Ok(0));
        bench.volume.flush().expect("flush");
    }
    let mut bench = Bench::new(open);
    let mut read = AlignedBuf::new(64 << 10).expect("memory");
    bench.all(false, 2 << 20, &mut read);
    assert!(read.as_slice() == wrote.as_slice());
}

fn discard_spares_the_neighbours(open: Open<'_>) {
    let mut bench = Bench::new(open);
    let mut wrote = filled(3 << 16, 0x99);
    bench.all(true, 0, &mut wrote);
    let discard = LaneOp::Discard { offset_bytes: 1 << 16, len_bytes: 1 << 16 };
    match bench.run(&[discard])[0] {
        Ok(_) => {}
        Err(libc::EOPNOTSUPP) => assert!(!bench.volume.geometry().discard),
        Err(errno) => panic!("discard failed with errno {errno}"),
    }
    let mut read = AlignedBuf::new(3 << 16).expect("memory");
    bench.all(false, 0, &mut read);
    for part in [0..1 << 16, 2 << 16..3 << 16] {
        assert!(read.as_slice()[part.clone()] == wrote.as_slice()[part]);
    }
}
