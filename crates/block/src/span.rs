//! A piece of memory that somebody else may write at the same time.

/// Address and length of memory in this process that a guest shares. It is an address on purpose,
/// not a reference: the guest may change the bytes at any moment, so no `&[u8]` of it may ever
/// exist. Who dereferences it states why the mapping is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Address in this process, exposed provenance.
    pub addr: usize,
    /// Length in bytes.
    pub len: usize,
}

impl Span {
    /// The memory's start as a pointer.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.addr)
    }

    /// The part that starts `offset` bytes in and is at most `len` bytes long.
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let offset = offset.min(self.len);
        Self { addr: self.addr + offset, len: len.min(self.len - offset) }
    }
}
