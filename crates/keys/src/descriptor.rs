//! Secrets through descriptors: `fd:N`, and sealed memory files that one process hands to another.
//!
//! Contract: [`seal_into_memfd`] makes a file that nobody can change any more, so that who receives
//! it reads what was written; [`read_descriptor`] reads such a file whole, from its beginning,
//! wherever the descriptor stands, and leaves it where it stands: it can be read again. Reading is
//! straight into protected memory. A memory file's own pages are not locked: close it soon.
// UNSAFETY: a number from the command line has to become a descriptor once.
#![expect(unsafe_code, reason = "borrows a descriptor by its number")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, MemfdFlags, SealFlags};
use rustix::io::Errno;
use sealblk_secret::{SecretBytes, SecretError};

use crate::error::Failure;
use crate::file::too_long;
use crate::{Fetched, MAX_KEY_BYTES};

/// A memory file with the secret, sealed against writing, growing, shrinking and other seals.
///
/// # Errors
/// The system's. (There is nothing that the secret could do wrong.)
pub fn seal_into_memfd(secret: &SecretBytes) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 doesn't know NOEXEC_SEAL.
    let fd = match rustix::fs::memfd_create("sealblk-key", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("sealblk-key", flags)?,
        made => made?,
    };
    let mut rest = secret.expose();
    while !rest.is_empty() {
        match rustix::io::write(&fd, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// The whole content of a file that somebody passed, at most `max_bytes` ([`MAX_KEY_BYTES`] for
/// keys).
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is empty, longer, or no regular file (a pipe or a socket
/// could keep the reader waiting); else the system's.
pub fn read_descriptor(fd: impl AsFd, max_bytes: usize) -> io::Result<SecretBytes> {
    let nonsense = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let fd = fd.as_fd();
    let stat = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(nonsense("it is no file (nor a memory file)".to_owned()));
    }
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if size > max_bytes {
        return Err(nonsense(too_long(max_bytes).what));
    }
    // If it grows or is written to meanwhile, what is there at the time of reading counts, up to the
    // size; half a passphrase is none.
    let mut secret = SecretBytes::zeroed(size).map_err(io::Error::other)?;
    let mut filled = 0;
    while filled < size {
        let rest = secret.expose_mut().get_mut(filled..).unwrap_or_default();
        match rustix::io::pread(fd, rest, filled as u64) {
            Ok(0) => return Err(nonsense("it became shorter while it was read".to_owned())),
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if secret.is_empty() {
        return Err(nonsense("it is empty: that is no passphrase".to_owned()));
    }
    Ok(secret)
}

/// `fd:N`. Pipes are read to their end: who starts us chose them.
pub(crate) fn fetch(number: RawFd) -> Result<Fetched, Failure> {
    if number < 0 {
        return Err(Failure::missing("there is no such descriptor"));
    }
    // SAFETY: the borrow lasts for this one call, in which the kernel looks the number up by itself:
    // one that isn't open gives EBADF. Everything else is done with the duplicate, which is ours.
    let fd = rustix::io::fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(number) }, 3)
        .map_err(|error| match error {
            Errno::BADF => Failure::missing("no such descriptor is open in this process"),
            error => Failure::unreachable(format!("cannot use it: {error}")),
        })?;
    let unreadable = |error: io::Error| Failure::unreachable(format!("cannot read it: {error}"));
    let stat = rustix::fs::fstat(&fd).map_err(|error| unreadable(error.into()))?;
    let passphrase = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => match SecretBytes::read_from(&fd, MAX_KEY_BYTES) {
            Ok(secret) if secret.is_empty() => {
                return Err(Failure::malformed(
                    "it is empty: that is no passphrase (a pipe can be read once only)",
                ));
            }
            Ok(secret) => secret,
            Err(SecretError::TooLong { max_bytes }) => return Err(too_long(max_bytes)),
            Err(SecretError::Read(error)) => return Err(unreadable(error)),
            Err(error) => return Err(error.into()),
        },
        _ => read_descriptor(&fd, MAX_KEY_BYTES).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Failure::malformed(error.to_string()),
            _ => unreadable(error),
        })?,
    };
    Ok(Fetched { passphrase, warning: None })
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::{KeyErrorKind, KeySource};

    fn secret(bytes: &[u8]) -> SecretBytes {
        SecretBytes::copy_from(bytes).unwrap()
    }

    #[test]
    fn a_sealed_file_gives_back_what_was_sealed_as_often_as_asked() {
        for len in [1, 4096, MAX_KEY_BYTES] {
            let content: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let mut file = std::fs::File::from(seal_into_memfd(&secret(&content)).unwrap());
            for position in [SeekFrom::Start(0), SeekFrom::End(0)] {
                file.seek(position).unwrap();
                assert_eq!(read_descriptor(&file, MAX_KEY_BYTES).unwrap().expose(), content);
                let source = KeySource::Fd(file.as_raw_fd());
                assert_eq!(source.fetch().unwrap().passphrase.expose(), content);
            }
        }
    }

    #[test]
    fn nobody_can_change_it_any_more() {
        let mut file = std::fs::File::from(seal_into_memfd(&secret(b"secret")).unwrap());
        assert!(file.write_all(b"x").is_err());
        assert!(file.set_len(1).is_err() && file.set_len(100).is_err());
        assert!(rustix::fs::fcntl_add_seals(&file, SealFlags::FUTURE_WRITE).is_err());
    }

    #[test]
    fn what_is_no_passphrase_is_refused() {
        let empty = seal_into_memfd(&secret(b"")).unwrap();
        let long = seal_into_memfd(&secret(&vec![1; MAX_KEY_BYTES + 1])).unwrap();
        let (pipe, _writer) = io::pipe().unwrap();
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
        let texts = [
            read_descriptor(&empty, MAX_KEY_BYTES).unwrap_err(),
            read_descriptor(&long, MAX_KEY_BYTES).unwrap_err(),
            read_descriptor(&pipe, MAX_KEY_BYTES).unwrap_err(),
            read_descriptor(&socket, MAX_KEY_BYTES).unwrap_err(),
        ];
        for (error, expected) in
            texts.iter().zip(["empty", "longer than 65536", "no file", "no file"])
        {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(expected), "{error}");
        }
        for fd in [empty.as_raw_fd(), long.as_raw_fd(), socket.as_raw_fd()] {
            let error = KeySource::Fd(fd).fetch().unwrap_err();
            assert_eq!(error.kind(), KeyErrorKind::Malformed, "{error}");
        }
        let error = KeySource::Fd(RawFd::MAX).fetch().unwrap_err();
        assert_eq!(error.kind(), KeyErrorKind::Missing, "{error}");
    }

    #[test]
    fn a_pipe_by_number_is_read_to_its_end() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"secret").unwrap();
        drop(writer);
        let source = KeySource::Fd(reader.as_raw_fd());
        assert_eq!(source.fetch().unwrap().passphrase.expose(), b"secret");
        assert_eq!(source.fetch().unwrap_err().kind(), KeyErrorKind::Malformed);
    }
}
