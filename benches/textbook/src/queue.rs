//! A queue's thread: takes requests one by one and carries each out (virtio 1.2 section 5.2.6).

use std::io::{self, Read, Write};

use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::{DescriptorChain, QueueT, Reader, Writer};
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::disk::{Buffer, Disk};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const ID: &[u8; 20] = b"sealblk-textbook\0\0\0\0";

/// Guest memory as it is now.
pub(crate) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
type Snapshot = <Memory as GuestAddressSpace>::T;

/// Carries out all that is available.
pub(crate) fn run(
    vring: &VringRwLock<Memory>,
    memory: &Memory,
    disk: &Disk,
    buffer: &mut Buffer,
) -> io::Result<()> {
    loop {
        let snapshot = memory.memory();
        let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(snapshot.clone());
        let Some(chain) = chain else { return Ok(()) };
        let head = chain.head_index();
        // A chain that makes no sense is given back as it is: there is no place for a status.
        let written = serve(chain, &snapshot, disk, buffer).unwrap_or(0);
        vring.add_used(head, written).map_err(io::Error::other)?;
        if vring.needs_notification().map_err(io::Error::other)? {
            vring.signal_used_queue()?;
        }
    }
}

/// One request; the number of bytes written to the guest.
fn serve(
    chain: DescriptorChain<Snapshot>,
    memory: &GuestMemoryMmap,
    disk: &Disk,
    buffer: &mut Buffer,
) -> io::Result<u32> {
    let mut reader = chain.clone().reader(memory).map_err(io::Error::other)?;
    let mut writer = chain.writer(memory).map_err(io::Error::other)?;
    let data_bytes = writer.available_bytes().checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
    let mut status = writer.split_at(data_bytes).map_err(io::Error::other)?;
    let kind = u32::from_le(reader.read_obj()?);
    let _priority: u32 = reader.read_obj()?;
    let sector = u64::from_le(reader.read_obj()?);
    let done = match kind {
        IN => read(disk, sector, &mut writer, data_bytes, buffer),
        OUT => write(disk, sector, &mut reader, buffer),
        FLUSH => disk.flush().map(|()| OK),
        GET_ID => writer.write_all(ID.get(..data_bytes.min(ID.len())).unwrap_or(ID)).map(|()| OK),
        _ => Ok(UNSUPPORTED),
    };
    status.write_obj(done.unwrap_or(IOERR))?;
    Ok(u32::try_from(writer.bytes_written() + 1).unwrap_or(u32::MAX))
}

fn read(
    disk: &Disk,
    sector: u64,
    writer: &mut Writer<'_>,
    len: usize,
    buffer: &mut Buffer,
) -> io::Result<u8> {
    let data = buffer.get(len)?;
    disk.read(sector, data)?;
    writer.write_all(data)?;
    Ok(OK)
}

fn write(disk: &Disk, sector: u64, reader: &mut Reader<'_>, buffer: &mut Buffer) -> io::Result<u8> {
    let data = buffer.get(reader.available_bytes())?;
    reader.read_exact(data)?;
    disk.write(sector, data)?;
    Ok(OK)
}
