//! What this crate asks of storage, and what it answers: bytes to read, steps to execute.
//!
//! Contract: nothing here touches a file. Whoever owns the volume implements [`ReadAt`] and
//! executes a [`Plan`] in order, stopping at the first error: a failed flush is not retried, the
//! header is loaded anew instead. Every step's bytes are ciphertext or public, never a key.

use std::io;

/// Read access to a volume.
pub trait ReadAt {
    /// Fills `buf` from `offset_bytes`, any alignment.
    ///
    /// # Errors
    /// What the storage says; [`io::ErrorKind::UnexpectedEof`] for a range past the end.
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Size of the volume in bytes.
    fn size_bytes(&self) -> u64;
}

/// A volume image in memory: for tests and fuzz targets.
impl ReadAt for &[u8] {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let range = usize::try_from(offset_bytes)
            .ok()
            .and_then(|start| Some(start..start.checked_add(buf.len())?))
            .and_then(|range| self.get(range));
        match range {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// One action on the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write `data` at `offset_bytes`; both are multiples of 512.
    Write {
        /// Where, in bytes.
        offset_bytes: u64,
        /// Ciphertext or public bytes.
        data: Vec<u8>,
    },
    /// Everything written before is durable before anything after is written.
    Flush,
}

/// Steps in order. A crash at any point, with the writes since the last [`Step::Flush`] done, not
/// done or torn at 512-byte granularity, leaves a volume in the state before or after the plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan(Vec<Step>);

impl Plan {
    /// The steps, in the order to execute them.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn write(&mut self, offset_bytes: u64, data: Vec<u8>) {
        self.0.push(Step::Write { offset_bytes, data });
    }

    pub(crate) fn flush(&mut self) {
        self.0.push(Step::Flush);
    }
}

impl IntoIterator for Plan {
    type Item = Step;
    type IntoIter = std::vec::IntoIter<Step>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Where salts, keys and anti-forensic stripes come from: the operating system's generator in the
/// daemon, a fixed sequence in tests.
pub type Random<'a> = dyn FnMut(&mut [u8]) -> io::Result<()> + 'a;
