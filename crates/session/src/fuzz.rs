//! One connection fed with arbitrary bytes and descriptors, for the fuzz target.
//!
//! Contract: [`fuzz_messages`] returns for every input, has left nothing behind then, and asserts
//! what `rings.rs` promises: a queue starts only when stopped and stops only when running.

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sealblk_virtqueue::blk::DiskProfile;
use sealblk_virtqueue::{QueueHost, QueueSetup, StartError};

use crate::capacity::Capacity;
use crate::connection;
use crate::event::{Event, Reporter};

/// Most descriptors in a record.
const FDS_MAX: usize = 8;
/// Bytes in the memory files handed over.
const MEMFD_BYTES: u64 = 64 * 1024;

/// A data plane that runs nothing and keeps count.
struct NullHost {
    running: Vec<bool>,
}

impl NullHost {
    fn set(&mut self, index: u16, running: bool) {
        let slot = self.running.get_mut(usize::from(index));
        assert!(slot.as_ref().is_some_and(|now| **now != running), "queue {index} out of turn");
        if let Some(slot) = slot {
            *slot = running;
        }
    }
}

impl QueueHost for NullHost {
    fn start(&mut self, index: u16, setup: QueueSetup) -> Result<(), StartError> {
        assert!(setup.size.is_power_of_two(), "a ring of {} descriptors", setup.size);
        if setup.memory.from_user(setup.desc_addr, 16).is_none() {
            return Err(StartError { index, reason: "descriptors outside of memory".to_owned() });
        }
        self.set(index, true);
        Ok(())
    }

    fn stop(&mut self, index: u16) -> u16 {
        self.set(index, false);
        index
    }

    fn set_call(&mut self, index: u16, _call: Option<OwnedFd>) {
        assert!(self.running.get(usize::from(index)) == Some(&true), "call for a stopped queue");
    }

    fn set_writeback(&mut self, _writeback: bool) -> std::io::Result<()> {
        Ok(())
    }
}

fn disk() -> DiskProfile {
    DiskProfile {
        capacity_sectors: 2048,
        block_bytes: 512,
        physical_block_bytes: 4096,
        queues: 4,
        seg_max: 126,
        size_max_bytes: 1 << 20,
        read_only: false,
        discard: None,
        discard_alignment_sectors: 8,
        write_zeroes: None,
        write_zeroes_may_unmap: false,
        serial: [b'f'; 20],
    }
}

/// Serves one connection that sends `input`: records of a byte (how many descriptors come along,
/// modulo 8; eventfds if its bit 3 is set, else memory files of 64 KiB), a length of 16 bits, little
/// endian, and as many bytes.
pub fn fuzz_messages(input: &[u8]) {
    let disk = disk();
    let Ok(capacity) = Capacity::new(disk.capacity_sectors) else { return };
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    std::thread::scope(|threads| {
        let _unblock = ShutDown(&ours);
        threads.spawn(|| {
            send_records(&theirs, input);
            // An error means that our side has closed already.
            let _ = theirs.shutdown(std::net::Shutdown::Write);
        });
        threads.spawn(|| {
            let mut replies = [0; 4096];
            while (&theirs).read(&mut replies).is_ok_and(|got| got > 0) {}
        });
        let mut host = NullHost { running: vec![false; usize::from(disk.queues())] };
        let mut writeback = true;
        let ignore = |_: &Event, _| {};
        let mut reporter = Reporter::new(&ignore);
        connection::serve(
            &ours,
            &disk,
            &capacity,
            &mut host,
            &mut writeback,
            &mut reporter,
            &|_| {},
        );
        assert!(!host.running.contains(&true), "a queue still runs after the connection's end");
    });
}

/// Lets the threads at the other end go, also when an assertion has failed.
struct ShutDown<'a>(&'a UnixStream);

impl Drop for ShutDown<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn send_records(to: &UnixStream, mut input: &[u8]) {
    while let Some(([kind, low, high], rest)) = input.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (mut bytes, rest) = rest.split_at(len);
        input = rest;
        let fds: Vec<_> =
            (0..usize::from(*kind) % FDS_MAX).filter_map(|_| descriptor(kind & 8 != 0)).collect();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&borrowed));
        }
        while !bytes.is_empty() {
            match sendmsg(to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(_) => return,
            }
            control.clear();
        }
    }
}

fn descriptor(event: bool) -> Option<OwnedFd> {
    if event {
        return eventfd(0, EventfdFlags::CLOEXEC).ok();
    }
    let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?;
    ftruncate(&file, MEMFD_BYTES).ok()?;
    Some(file)
}
