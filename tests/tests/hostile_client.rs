//! A guest that breaks every rule of virtio gets an error for that request, and nothing else
//! happens: the next request works, the daemon runs on, the volume is unchanged.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Daemon, Desc, Pattern, RawFrontend, Reply, TestVolume, blk, flags, progress};

const MIB: u64 = 1 << 20;
const DISK: u64 = 16 * MIB;
const QUEUE: u16 = 64;
const DATA: u64 = RawFrontend::DATA;
const LIMIT: Duration = Duration::from_secs(30);

struct Hostile {
    disk: RawFrontend,
    daemon: Daemon,
    _volume: TestVolume,
    round: u64,
}

impl Hostile {
    fn new(extra: &[&str]) -> Result<Self> {
        Self::with_queues(1, extra)
    }

    fn with_queues(queues: u16, extra: &[&str]) -> Result<Self> {
        let volume = TestVolume::formatted(DISK, 512)?;
        let queues_text = queues.to_string();
        let daemon = Daemon::serve(&volume, &[extra, &["--queues", &queues_text]].concat())?;
        let mut disk = RawFrontend::connect(daemon.socket(), queues, QUEUE)?;
        ensure!(disk.capacity_sectors()? == DISK / 512);
        disk.write(0, &Pattern(1).bytes(0, 64 << 10))?;
        Ok(Self { disk, daemon, _volume: volume, round: 0 })
    }

    /// The disk still does what it should, and what must not have changed has not.
    fn still_serves(&mut self, after: &str) -> Result<()> {
        self.round += 1;
        let mut check = || -> Result<()> {
            self.daemon.must_run()?;
            let found = self.disk.read(0, 64 << 10)?;
            let wrong = Pattern(1).first_difference(0, &found);
            ensure!(wrong.is_none(), "byte {wrong:?} of the disk has changed");
            let (sector, data) = (1024, Pattern(100 + self.round).bytes(0, 4096));
            self.disk.write(sector, &data)?;
            ensure!(self.disk.read(sector, 4096)? == data, "read something else than written");
            self.disk.flush()
        };
        check().with_context(|| format!("after {after}"))
    }

    /// Sends a chain; it must come back with this answer.
    fn answers(&mut self, what: &str, chain: &[Desc], expected: Reply) -> Result<()> {
        progress(what);
        let mut expected = expected;
        if expected.status != blk::OK {
            // The length promises that many bytes from the first writable one on (virtio 1.2
            // section 2.7.8.2): with unwritten data before the status byte that is none.
            let first = chain.iter().find(|desc| desc.flags & flags::WRITE != 0);
            let status_is_first = first.is_some_and(|desc| desc.addr == RawFrontend::STATUS);
            expected.len = u32::from(status_is_first);
        }
        let mut reply = self.disk.chain(chain).with_context(|| what.to_owned())?;
        if expected.status != blk::OK && reply.len == 0 {
            reply.len = expected.len; // promising less is allowed
        }
        ensure!(reply == expected, "{what}: {reply:?}, expected {expected:?}");
        self.still_serves(what)
    }
}

// Lengths as they are where the status byte is the first that the device may write.
const IOERR: Reply = Reply { status: blk::IOERR, len: 1 };
const UNSUPP: Reply = Reply { status: blk::UNSUPP, len: 1 };

#[test]
fn requests_that_cannot_be_are_errors() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let end = DISK / 512;
    let read = Desc::writable(DATA, 4096);
    let write = Desc::readable(DATA, 4096);
    hostile.disk.poke(DATA, &[0x66; 8192])?;
    for (what, kind, sector, data) in [
        ("a read that starts at the end", blk::READ, end, read),
        ("a read that crosses the end", blk::READ, end - 7, read),
        ("a read of a sector that wraps around", blk::READ, u64::MAX, read),
        ("a read whose last byte wraps around", blk::READ, u64::MAX / 512, read),
        ("a write that starts at the end", blk::WRITE, end, write),
        ("a write that crosses the end", blk::WRITE, end - 7, write),
        ("a write of a sector that wraps around", blk::WRITE, u64::MAX - 3, write),
        ("a write of part of a sector", blk::WRITE, 0, Desc::readable(DATA, 100)),
        ("a read of part of a sector", blk::READ, 0, Desc::writable(DATA, 513)),
    ] {
        let (header, status) = hostile.disk.header(kind, sector)?;
        hostile.answers(what, &[header, data, status], IOERR)?;
    }
    for kind in [2, 3, 5, 7, 9, 10, 12, 14, 16, 17, 0x7fff_ffff, u32::MAX] {
        let (header, status) = hostile.disk.header(kind, 0)?;
        hostile.answers(&format!("request type {kind}"), &[header, status], UNSUPP)?;
    }
    Ok(())
}

#[test]
fn data_in_the_wrong_direction_is_an_error() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let (header, status) = hostile.disk.header(blk::READ, 0)?;
    let wrong = [header, Desc::readable(DATA, 4096), status];
    hostile.answers("a read into memory that is not to be written", &wrong, IOERR)?;
    let (header, status) = hostile.disk.header(blk::WRITE, 0)?;
    let wrong = [header, Desc::writable(DATA, 4096), status];
    hostile.answers("a write from memory that is to be written", &wrong, IOERR)?;
    let (header, status) = hostile.disk.header(blk::WRITE, 0)?;
    let mixed = [header, Desc::readable(DATA, 512), Desc::writable(DATA, 512), status];
    hostile.answers("a write with both", &mixed, IOERR)?;
    let (header, status) = hostile.disk.header(blk::READ, 0)?;
    let late = [header, Desc::writable(DATA, 512), Desc::readable(DATA, 512), status];
    hostile.refuses("something to read after something to write", &late)
}

impl Hostile {
    /// Sends a chain that is broken in itself: it must come back, as an error or without a word.
    fn refuses(&mut self, what: &str, chain: &[Desc]) -> Result<()> {
        let ring = self.disk.rings.first_mut().context("no ring")?;
        ring.put_chain(0, chain)?;
        self.refuses_head(what, 0)
    }

    fn refuses_head(&mut self, what: &str, head: u16) -> Result<()> {
        progress(what);
        let reply = self.disk.head(head).with_context(|| what.to_owned())?;
        let said = [blk::IOERR, blk::UNTOUCHED].contains(&reply.status) && reply.len <= 1;
        ensure!(said, "{what}: {reply:?}");
        self.still_serves(what)
    }
}

#[test]
fn memory_that_is_not_there_is_an_error() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let memory_end = RawFrontend::MEMORY + RawFrontend::MEMORY_BYTES;
    for (what, address, len) in [
        ("data at address 0", 0, 4096),
        ("data below memory", RawFrontend::MEMORY - 4096, 4096),
        ("data that begins below memory", RawFrontend::MEMORY - 512, 4096),
        ("data past memory", memory_end, 4096),
        ("data that crosses the end of memory", memory_end - 512, 4096),
        ("data at the end of the address space", u64::MAX - 511, 512),
        ("data that wraps around", u64::MAX - 511, 4096),
        ("data of 4 GiB", DATA, 0xffff_fe00),
    ] {
        for kind in [blk::READ, blk::WRITE] {
            let (header, status) = hostile.disk.header(kind, 0)?;
            let mut data = Desc::readable(address, len);
            if kind == blk::READ {
                data.flags = flags::WRITE;
            }
            hostile.answers(what, &[header, data, status], IOERR)?;
        }
    }
    let (_, status) = hostile.disk.header(blk::READ, 0)?;
    hostile.refuses("a header that is not in memory", &[Desc::readable(8, 16), status])?;
    let (header, _) = hostile.disk.header(blk::FLUSH, 0)?;
    hostile.refuses("a status byte that is not in memory", &[header, Desc::writable(8, 1)])
}

#[test]
fn chains_without_header_or_status_are_refused() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let (header, status) = hostile.disk.header(blk::READ, 0)?;
    hostile.refuses("a header and nothing else", &[header])?;
    hostile.refuses("a status byte and nothing else", &[status])?;
    let (header, _) = hostile.disk.header(blk::READ, 0)?;
    hostile
        .refuses("a status byte that is not to be written", &[header, Desc::readable(DATA, 1)])?;
    let (header, _) = hostile.disk.header(blk::READ, 0)?;
    hostile
        .refuses("a status byte of length 0", &[header, Desc::writable(RawFrontend::STATUS, 0)])?;
    let (_, status) = hostile.disk.header(blk::READ, 0)?;
    let short = Desc::readable(RawFrontend::HEADER, 15);
    hostile.refuses("a header that is too short", &[short, status])?;
    let (_, status) = hostile.disk.header(blk::READ, 0)?;
    hostile.refuses("a header of length 0", &[Desc::readable(RawFrontend::HEADER, 0), status])?;
    let (_, status) = hostile.disk.header(blk::READ, 0)?;
    let device_writes = Desc::writable(RawFrontend::HEADER, 16);
    hostile.refuses("a header that is to be written", &[device_writes, status])
}

#[test]
fn a_header_or_status_in_pieces_is_fine() -> Result<()> {
    // The driver may lay out a request as it likes (virtio 1.2 section 2.7.4).
    let mut hostile = Hostile::new(&[])?;
    let (header, status) = hostile.disk.header(blk::READ, 0)?;
    let pieces = [
        Desc::readable(header.addr, 7),
        Desc::readable(header.addr + 7, 9),
        Desc::writable(DATA, 100),
        Desc::writable(DATA + 100, 412),
        status,
    ];
    let good = Reply { status: blk::OK, len: 513 };
    hostile.answers("a header in two pieces, data in odd ones", &pieces, good)?;
    let (header, _) = hostile.disk.header(blk::READ, 8)?;
    let joined = [header, Desc::writable(DATA, 513)];
    let ring = hostile.disk.rings.first_mut().context("no ring")?;
    ring.put_chain(0, &joined)?;
    hostile.disk.poke(DATA + 512, &[blk::UNTOUCHED])?;
    let reply = hostile.disk.head(0)?;
    ensure!(reply.len == 513, "{reply:?}");
    let data = hostile.disk.peek(DATA, 513)?;
    assert_eq!(Pattern(1).first_difference(4096, &data[..512]), None);
    assert_eq!(data[512], blk::OK);
    hostile.still_serves("a status byte in the data's descriptor")
}

#[test]
fn descriptor_tables_that_loop_end() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let (header, _) = hostile.disk.header(blk::READ, 0)?;
    let linked = |mut desc: Desc, next: u16| {
        desc.flags |= flags::NEXT;
        desc.next = next;
        desc
    };
    let data = Desc::writable(DATA, 512);
    for (what, chain) in [
        ("a descriptor that follows itself", vec![linked(header, 0)]),
        ("a loop of two", vec![linked(header, 1), linked(data, 0)]),
        ("a loop in the data", vec![linked(header, 1), linked(data, 2), linked(data, 1)]),
        ("a next outside of the table", vec![linked(header, QUEUE)]),
        ("a next far outside of the table", vec![linked(header, u16::MAX)]),
    ] {
        let ring = hostile.disk.rings.first_mut().context("no ring")?;
        for (index, desc) in (0..).zip(&chain) {
            ring.put(index, *desc)?;
        }
        hostile.disk.header(blk::READ, 0)?;
        hostile.refuses_head(what, 0)?;
    }
    Ok(())
}

#[test]
fn indirect_tables_are_checked_like_others() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    let table = RawFrontend::TABLE;
    let indirect = |address, len| Desc { addr: address, len, flags: flags::INDIRECT, next: 0 };
    let (header, status) = hostile.disk.header(blk::READ, 0)?;
    let link = |mut desc: Desc, next: u16| {
        desc.flags |= flags::NEXT;
        desc.next = next;
        desc
    };
    let good = [link(header, 1), link(Desc::writable(DATA, 4096), 2), status];
    let bytes: Vec<u8> = good.iter().flat_map(|desc| desc.to_bytes()).collect();
    hostile.disk.poke(table, &bytes)?;
    let fine = Reply { status: blk::OK, len: 4097 };
    hostile.answers("a good indirect table", &[indirect(table, 48)], fine)?;

    let memory_end = RawFrontend::MEMORY + RawFrontend::MEMORY_BYTES;
    for (what, address, len) in [
        ("an indirect table of length 0", table, 0),
        ("an indirect table of a length that is no multiple of 16", table, 40),
        ("an indirect table that is not in memory", 4096, 48),
        ("an indirect table that crosses the end of memory", memory_end - 16, 48),
        ("an indirect table of 4 GiB", table, 0xffff_fff0),
        ("an indirect table whose chain leaves it", table, 32),
    ] {
        hostile.disk.header(blk::READ, 0)?;
        hostile.refuses(what, &[indirect(address, len)])?;
    }
    let looping = [link(header, 1), link(Desc::writable(DATA, 512), 0)];
    let bytes: Vec<u8> = looping.iter().flat_map(|desc| desc.to_bytes()).collect();
    hostile.disk.poke(table, &bytes)?;
    hostile.disk.header(blk::READ, 0)?;
    hostile.refuses("an indirect table that loops", &[indirect(table, 32)])?;
    hostile.disk.poke(table, &indirect(table, 16).to_bytes())?;
    hostile.disk.header(blk::READ, 0)?;
    hostile.refuses("an indirect table inside an indirect table", &[indirect(table, 16)])?;
    Ok(())
}

#[test]
fn a_nonsensical_available_ring_costs_that_queue_at_most() -> Result<()> {
    // Nothing can be given back for an entry that is no descriptor, nor found in a ring that runs
    // ahead of itself: the queue stops, as QEMU's own devices do, until the driver resets it.
    let mut hostile = Hostile::with_queues(2, &[])?;
    let socket = hostile.daemon.socket().to_owned();
    for (what, head, ahead) in [
        ("a head just outside of the table", QUEUE, 1),
        ("a head far outside of the table", u16::MAX, 1),
        ("an available index that runs ahead", 0, QUEUE * 3),
    ] {
        progress(what);
        hostile.disk.reset(&socket)?;
        let ring = hostile.disk.rings.first_mut().context("no ring")?;
        ring.publish(head)?;
        ring.jump_avail_index(ahead)?;
        ring.kick()?;
        // The other queue does not care.
        hostile.disk.rings.swap(0, 1);
        hostile.still_serves(what)?;
        hostile.disk.rings.swap(0, 1);
        hostile.disk.stop_ring(0)?;
        hostile.daemon.must_run()?;
    }
    hostile.disk.reset(&socket)?;
    hostile.still_serves("a new driver")
}

#[test]
fn get_id_gives_what_fits() -> Result<()> {
    let mut hostile = Hostile::new(&["--serial", "serial-of-20-letters"])?;
    let (header, status) = hostile.disk.header(blk::GET_ID, 0)?;
    let good = Reply { status: blk::OK, len: 21 };
    hostile.answers("GET_ID", &[header, Desc::writable(DATA, 20), status], good)?;
    let (header, status) = hostile.disk.header(blk::GET_ID, 0)?;
    let reply = hostile.disk.chain(&[header, Desc::writable(DATA, 20), status])?;
    ensure!(reply == good, "{reply:?}");
    assert_eq!(hostile.disk.peek(DATA, 20)?, b"serial-of-20-letters");
    let (header, status) = hostile.disk.header(blk::GET_ID, 0)?;
    hostile.answers("GET_ID without a buffer", &[header, status], IOERR)?;
    let (header, status) = hostile.disk.header(blk::GET_ID, 0)?;
    let wrong = [header, Desc::readable(DATA, 20), status];
    hostile.answers("GET_ID into memory that is not to be written", &wrong, IOERR)
}

#[test]
fn discard_and_write_zeroes_check_their_ranges() -> Result<()> {
    let mut hostile = Hostile::new(&["--discard"])?;
    let segment = |sector: u64, sectors: u32, flags: u32| {
        [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
    };
    let end = DISK / 512;
    for kind in [blk::DISCARD, blk::WRITE_ZEROES] {
        for (what, data, expected) in [
            ("a range past the end", segment(end, 8, 0), IOERR),
            ("a range that crosses the end", segment(end - 1, 8, 0), IOERR),
            ("a range that wraps around", segment(u64::MAX, 8, 0), IOERR),
            ("a range of 2 TiB", segment(2048, u32::MAX, 0), IOERR),
            ("flags that are reserved", segment(2048, 8, 0xffff_fff0), UNSUPP),
            ("half a segment", segment(2048, 8, 0)[..8].to_vec(), IOERR),
            ("one and a half segments", [segment(2048, 8, 0), vec![0; 8]].concat(), IOERR),
            ("no segment", Vec::new(), IOERR),
        ] {
            hostile.disk.poke(DATA, &data)?;
            let (header, status) = hostile.disk.header(kind, 0)?;
            let desc = Desc::readable(DATA, u32::try_from(data.len())?);
            let chain =
                if data.is_empty() { vec![header, status] } else { vec![header, desc, status] };
            hostile.answers(&format!("type {kind}: {what}"), &chain, expected)?;
        }
    }
    // Discard knows no unmap flag (virtio 1.2 section 5.2.6.2).
    hostile.disk.poke(DATA, &segment(2048, 8, 1))?;
    let (header, status) = hostile.disk.header(blk::DISCARD, 0)?;
    hostile.answers("discard with unmap", &[header, Desc::readable(DATA, 16), status], UNSUPP)
}

#[test]
fn a_read_only_disk_takes_no_write() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let before = std::fs::read(&volume.image)?;
    let mut daemon = Daemon::serve(&volume, &["--read-only"])?;
    let mut disk = RawFrontend::connect(daemon.socket(), 1, QUEUE)?;
    for kind in [blk::WRITE, blk::WRITE_ZEROES, blk::DISCARD] {
        disk.poke(DATA, &[0; 512])?;
        let len = if kind == blk::WRITE { 512 } else { 16 };
        let reply = disk.request(kind, 0, &[Desc::readable(DATA, len)])?;
        ensure!(reply == IOERR || reply == UNSUPP, "type {kind}: {reply:?}");
    }
    disk.read(0, 4096)?;
    daemon.stop()?;
    ensure!(std::fs::read(&volume.image)? == before, "the volume has changed");
    Ok(())
}

#[test]
fn many_requests_at_once_wait_for_their_turn() -> Result<()> {
    // A full ring of large requests is more than the daemon has buffers for: none may fail.
    let mut hostile = Hostile::new(&[])?;
    let per_request = 512 << 10;
    let slots = QUEUE / 4;
    for slot in 0..slots {
        let sector = u64::from(slot) * per_request / 512 + 2048;
        let (header, status) = hostile.disk.header_at(slot, blk::READ, sector)?;
        let data =
            Desc::writable(DATA + u64::from(slot) * per_request, u32::try_from(per_request)?);
        let ring = hostile.disk.rings.first_mut().context("no ring")?;
        ring.put_chain(slot * 4, &[header, data, status])?;
        ring.publish(slot * 4)?;
    }
    let ring = hostile.disk.rings.first_mut().context("no ring")?;
    ring.kick()?;
    for _ in 0..slots {
        let used = ring.wait(LIMIT)?;
        ensure!(u64::from(used.len) == per_request + 1, "{used:?}");
    }
    for slot in 0..slots {
        ensure!(hostile.disk.status(slot)? == blk::OK, "request {slot}");
    }
    hostile.still_serves("a full ring")
}

#[test]
fn requests_in_flight_at_a_crash_are_done_by_the_next_daemon() -> Result<()> {
    let mut hostile = Hostile::new(&[])?;
    for crash in 0..5_u64 {
        let requests = 12_u16;
        let sector = |n: u16| 4096 + u64::from(n) * 16;
        let content = |n: u16| Pattern(1000 + crash * 100 + u64::from(n)).bytes(0, 8192);
        for n in 0..requests {
            let (header, status) = hostile.disk.header_at(n, blk::WRITE, sector(n))?;
            let at = DATA + u64::from(n) * 8192;
            hostile.disk.poke(at, &content(n))?;
            let ring = hostile.disk.rings.first_mut().context("no ring")?;
            ring.put_chain(n * 4, &[header, Desc::readable(at, 8192), status])?;
            ring.publish(n * 4)?;
        }
        hostile.disk.rings.first_mut().context("no ring")?.kick()?;
        hostile.daemon.kill()?;
        // What was used before the crash is known to the driver; the rest must come, once each.
        let mut open: Vec<u32> = (0..requests).map(|n| u32::from(n) * 4).collect();
        let ring = hostile.disk.rings.first_mut().context("no ring")?;
        while let Some(used) = ring.take()? {
            open.retain(|&id| id != used.id);
        }
        progress(format_args!("crash {crash}: {} of {requests} in flight", open.len()));
        hostile.daemon.start()?;
        let socket = hostile.daemon.socket().to_owned();
        hostile.disk.reconnect(&socket)?;
        let ring = hostile.disk.rings.first_mut().context("no ring")?;
        while !open.is_empty() {
            let used = ring.wait(LIMIT)?;
            let before = open.len();
            open.retain(|&id| id != used.id);
            ensure!(open.len() + 1 == before, "{used:?} came twice");
        }
        for n in 0..requests {
            ensure!(hostile.disk.status(n)? == blk::OK, "request {n}");
            ensure!(hostile.disk.read(sector(n), 8192)? == content(n), "request {n} is not there");
        }
        hostile.still_serves("a crash")?;
    }
    Ok(())
}
