//! Resident memory of a process, told apart by whose it is.

use std::collections::HashSet;
use std::fs::read_to_string;

use anyhow::Result;

/// Resident bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    pub(crate) all: u64,
    /// Also mapped by this process, which is the client: what a guest's memory is in real life.
    pub(crate) client: u64,
    /// Pages of the program and its libraries.
    pub(crate) file: u64,
    /// Each page divided by the number of processes that have it.
    pub(crate) proportional: u64,
}

impl Resident {
    /// Of a process, from /proc/PID/smaps (proc(5)).
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let (ours, theirs) =
            (read_to_string("/proc/self/maps")?, read_to_string(format!("/proc/{pid}/smaps"))?);
        Ok(Self::parse(&ours, &theirs))
    }

    fn parse(maps: &str, smaps: &str) -> Self {
        let shared: HashSet<(&str, &str)> =
            maps.lines().filter_map(Mapping::parse).filter_map(|one| one.memfd()).collect();
        let (mut sum, mut current) = (Self::default(), None);
        for line in smaps.lines() {
            if let Some(mapping) = Mapping::parse(line) {
                current = Some(mapping);
            } else if let Some(bytes) = field(line, "Rss:") {
                sum.all += bytes;
                let Some(mapping) = current else { continue };
                if mapping.memfd().is_some_and(|key| shared.contains(&key)) {
                    sum.client += bytes;
                } else if mapping.path.starts_with('/') && mapping.memfd().is_none() {
                    sum.file += bytes;
                }
            } else if let Some(bytes) = field(line, "Pss:") {
                sum.proportional += bytes;
            }
        }
        sum
    }
}

/// The line that begins a mapping: address, permissions, offset, device, inode, path.
#[derive(Clone, Copy)]
struct Mapping<'a> {
    device: &'a str,
    inode: &'a str,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        fields.next()?.contains('-').then_some(())?;
        let device = fields.nth(2)?;
        Some(Self { device, inode: fields.next()?, path: fields.next().unwrap_or_default() })
    }

    /// What names memory that has a descriptor but no name in any directory.
    fn memfd(self) -> Option<(&'a str, &'a str)> {
        self.path.starts_with("/memfd:").then_some((self.device, self.inode))
    }
}

fn field(line: &str, name: &str) -> Option<u64> {
    let kib: u64 = line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_apart_by_whose_it_is() {
        let maps = "7f00-7f10 rw-s 0 00:01 42 /memfd:sealblk-test (deleted)\n";
        let smaps = "55d0-55e0 r-xp 0 fe:00 7 /usr/bin/sealblkd\nRss: 8 kB\nPss: 4 kB\n\
                     7e00-7e10 rw-s 0 00:01 42 /memfd:sealblk-test (deleted)\nRss: 16 kB\nPss: 8 kB\n\
                     7d00-7d10 rw-s 0 00:01 43 /memfd:other (deleted)\nRss: 32 kB\nPss: 32 kB\n\
                     7c00-7c10 rw-p 0 00:00 0\nRss: 64 kB\nPss_Dirty: 9 kB\nPss: 64 kB\n";
        let found = Resident::parse(maps, smaps);
        let kib = |n: u64| n << 10;
        let expected =
            Resident { all: kib(120), client: kib(16), file: kib(8), proportional: kib(108) };
        assert_eq!(found, expected);
    }

    #[test]
    fn our_own_memory_can_be_read() {
        let ours = Resident::of(std::process::id()).unwrap();
        assert!(ours.all > ours.file && ours.file > 0, "{ours:?}");
    }
}
