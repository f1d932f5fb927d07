//! Logical units of iSCSI targets, through libiscsi.
//!
//! A lane has a session of its own, whose socket waits in the lane's ring: no other thread touches
//! the data. The control handle has another, for headers, which blocks. See `iscsi/session.rs` for
//! what keeps writes in order when a connection is lost, `iscsi/shared.rs` for what a lost
//! connection means for durability.
//!
//! Contract: that of [`crate::Volume`]. An I/O that is in flight when the connection is lost is
//! sent again when it is back; nothing fails for it before [`OpenOptions::io_timeout`].
//!
//! Deliberately absent: several connections per session, several portals (that is multipath's), and
//! a claim among hosts (see `iscsi/claim.rs`).

mod answer;
mod claim;
mod command;
mod control;
mod lane;
mod library;
mod login;
mod session;
mod shared;
mod slot;
mod unit;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sealblk_block::{ErrorKind, Geometry, VolumeError};
use sealblk_ring::Ring;

use claim::Claim;
use command::Command;
use control::{Control, Outcome};
use login::Login;
use shared::{Durability, News, Shared};

use crate::size::check_range;
use crate::{IscsiName, Lane, Listener, OpenOptions, Shape, Size, Volume};

/// How long a portal may keep whoever opens a volume waiting, all its addresses together.
const OPEN_LIMIT: Duration = Duration::from_secs(20);
/// Bytes moved at once by the control handle.
const CHUNK_BYTES: u64 = 256 << 10;

/// The library's name, or why there is none.
pub(crate) fn library_version() -> Result<String, String> {
    library::get().map(|library| library.name.to_owned())
}

/// An open logical unit.
pub(crate) struct IscsiVolume {
    uri: String,
    shared: Arc<Shared>,
    control: Mutex<Control>,
}

impl IscsiVolume {
    pub(crate) fn open(
        uri: &str,
        name: &IscsiName,
        options: &OpenOptions,
    ) -> Result<Self, VolumeError> {
        let library = library::get()
            .map_err(|reason| crate::driver::missing(uri, crate::driver::ISCSI_PACKAGE, &reason))?;
        let logins = Login::all(uri, name, library, options.read_only)?;
        let claim = Claim::take(uri, name, options)?;
        let (login, mut control) = reach(uri, name, logins)?;
        let deadline = Instant::now() + OPEN_LIMIT;
        let unit = unit::ask(uri, &mut control, &login, deadline, options.read_only)?;
        let shared = Shared {
            login,
            unit,
            io_timeout: options.io_timeout,
            durability: Durability::default(),
            size: Size::new(unit.geometry.size_bytes),
            news: News::new(unit.geometry.size_bytes),
            _claim: claim,
        };
        Ok(Self { uri: uri.to_owned(), shared: Arc::new(shared), control: Mutex::new(control) })
    }

    fn deadline(&self) -> Option<Instant> {
        self.shared.io_timeout.map(|limit| Instant::now() + limit)
    }

    fn run(&self, what: &str, command: &Command, data: &mut [u8]) -> Result<(), VolumeError> {
        if self.shared.news.is_fenced() {
            return Err(VolumeError::io(&self.uri, what, control::failure(crate::FENCED)));
        }
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        match control.run(command, data, self.deadline()) {
            Ok(Outcome::Done { missing_bytes: 0 }) => Ok(()),
            Ok(Outcome::Done { .. }) => {
                Err(VolumeError::io(&self.uri, what, control::failure(libc::EIO)))
            }
            Ok(Outcome::Failed(errno)) => {
                if errno == crate::FENCED {
                    self.shared.news.fenced();
                }
                Err(VolumeError::io(&self.uri, what, control::failure(errno)))
            }
            Ok(Outcome::Unknown) => {
                Err(VolumeError::io(&self.uri, what, control::failure(libc::EOPNOTSUPP)))
            }
            Err(fault) => {
                let what = format!("{what}: {}", fault.what);
                Err(VolumeError::io(&self.uri, what, control::failure(libc::ETIMEDOUT)))
            }
        }
    }

    /// Calls `work` with whole blocks for each piece of a range: the first block, memory for the
    /// blocks, and where in that memory the wanted bytes of which part of the range are.
    fn each_chunk(
        &self,
        offset_bytes: u64,
        len: usize,
        mut work: impl FnMut(u64, &mut [u8], Range<usize>, Range<usize>) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let Geometry { size_bytes, block_bytes, .. } = self.geometry();
        check_range(&self.uri, offset_bytes, len, size_bytes)?;
        let block = u64::from(block_bytes);
        let step = CHUNK_BYTES.min(self.shared.unit.transfer_max_bytes.into()).max(block);
        let mut memory = vec![0; step as usize];
        let mut done = 0;
        while done < len {
            let at = offset_bytes + done as u64;
            let start = at - at % block;
            let skip = (at - start) as usize;
            let want = (len - done).min(step as usize - skip);
            // The size is a multiple of the block, so this never reaches past it.
            let whole = (skip + want).next_multiple_of(block as usize);
            work(start, &mut memory[..whole], skip..skip + want, done..done + want)?;
            done += want;
        }
        Ok(())
    }

    fn read_blocks(&self, at: u64, blocks: &mut [u8]) -> Result<(), VolumeError> {
        let block = self.shared.unit.geometry.block_bytes;
        let bytes = blocks.len() as u32;
        let command = Command::read(at / u64::from(block), bytes / block, bytes);
        self.run(&format!("reading at {at}"), &command, blocks)
    }

    fn write_blocks(&self, at: u64, blocks: &mut [u8]) -> Result<(), VolumeError> {
        let block = self.shared.unit.geometry.block_bytes;
        let bytes = blocks.len() as u32;
        let command = Command::write(at / u64::from(block), bytes / block, bytes, false);
        self.run(&format!("writing at {at}"), &command, blocks)?;
        self.shared.durability.wrote();
        Ok(())
    }
}

/// Logs in at the first of the portal's addresses that answers.
fn reach(
    uri: &str,
    name: &IscsiName,
    logins: Vec<Login>,
) -> Result<(Arc<Login>, Control), VolumeError> {
    let mut last = None;
    let deadline = Instant::now() + OPEN_LIMIT;
    for login in logins.into_iter().map(Arc::new) {
        let mut control = Control::new(login.clone());
        match control.connect() {
            Ok(()) => return Ok((login, control)),
            // Whoever answers and refuses would do so at its other addresses.
            Err(fault) if fault.kind != ErrorKind::Io => return Err(unit::told(uri, fault)),
            Err(fault) => last = Some((login.address, fault)),
        }
        if Instant::now() > deadline {
            break;
        }
    }
    let what = match last {
        Some((address, fault)) => format!(
            "the portal {address} can't be used: {}; is the target running, and may this host \
             reach it?",
            fault.what
        ),
        None => format!("the portal's name `{}` has no address", name.host),
    };
    Err(VolumeError::new(ErrorKind::Io, uri, what))
}

impl Volume for IscsiVolume {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn geometry(&self) -> Geometry {
        Geometry { size_bytes: self.shared.size.bytes(), ..self.shared.unit.geometry }
    }

    fn shape(&self) -> Shape {
        Shape::NETWORK
    }

    fn measure_size(&self) -> Result<u64, VolumeError> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = Instant::now() + OPEN_LIMIT;
        let size = unit::measure(&self.uri, &mut control, deadline, self.shared.unit.geometry);
        // Seldom asked: nobody would answer the target's pings until the next time.
        control.disconnect();
        size
    }

    fn grow_to(&self, size_bytes: u64) {
        self.shared.size.grow_to(size_bytes);
    }

    fn read_at(&self, offset_bytes: u64, buf: &mut [u8]) -> Result<(), VolumeError> {
        self.each_chunk(offset_bytes, buf.len(), |at, blocks, wanted, part| {
            self.read_blocks(at, blocks)?;
            buf[part].copy_from_slice(&blocks[wanted]);
            Ok(())
        })
    }

    fn write_at(&self, offset_bytes: u64, data: &[u8]) -> Result<(), VolumeError> {
        if self.shared.unit.geometry.read_only {
            let what = "it is open for reading only";
            return Err(VolumeError::new(ErrorKind::Permission, &self.uri, what));
        }
        self.each_chunk(offset_bytes, data.len(), |at, blocks, wanted, part| {
            if wanted.len() < blocks.len() {
                self.read_blocks(at, blocks)?;
            }
            blocks[wanted].copy_from_slice(&data[part]);
            self.write_blocks(at, blocks)
        })
    }

    fn flush(&self) -> Result<(), VolumeError> {
        let what = "making writes durable";
        let mark = self.shared.durability.mark();
        let flushed = self.run(what, &Command::synchronize_cache(false), &mut []);
        let unknown = |error: &VolumeError| {
            error.source.as_ref().and_then(std::io::Error::raw_os_error) == Some(libc::EOPNOTSUPP)
        };
        let flushed = match flushed {
            Err(error) if unknown(&error) => {
                self.run(what, &Command::synchronize_cache(true), &mut [])
            }
            flushed => flushed,
        };
        match flushed {
            Ok(()) => {}
            // A unit without the command has no cache.
            Err(error) if unknown(&error) => {}
            Err(error) => return Err(error),
        }
        if self.shared.durability.flushed(mark) {
            return Ok(());
        }
        let what = "the unit was powered on: completed writes before that are lost";
        Err(VolumeError::io(&self.uri, what, control::failure(libc::EIO)))
    }

    fn listen(&self, listener: Listener) {
        self.shared.news.listen(listener);
    }

    fn open_lane(&self, ring: &mut Ring) -> Result<Box<dyn Lane>, VolumeError> {
        // The headers have been read: a session that nobody looks after would not answer the
        // target's pings.
        if let Ok(mut control) = self.control.try_lock() {
            control.disconnect();
        }
        Ok(Box::new(lane::IscsiLane::open(self.shared.clone(), ring)))
    }
}
