//! Looks for secrets in the memory of a process.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// A mapping of a process, from /proc/PID/smaps.
struct Mapping {
    start: u64,
    end: u64,
    name: String,
    readable: bool,
    /// Excluded from core dumps and locked into memory: where keys may be.
    protected: bool,
}

fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let permissions = line.split_whitespace().nth(1).unwrap_or_default();
            found.push(Mapping {
                start: u64::from_str_radix(start, 16)?,
                end: u64::from_str_radix(end, 16)?,
                name: line.split_whitespace().nth(5).unwrap_or("anonymous").to_owned(),
                readable: permissions.starts_with('r'),
                protected: line.contains("secretmem"),
            });
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
            let last = found.last_mut().context("flags before a mapping")?;
            last.protected |= has("dd") && has("lo");
        }
    }
    Ok(found)
}

/// Every 16-byte window of the secrets (all offsets), to be found anywhere.
fn windows(secrets: &[&[u8]]) -> HashSet<[u8; 16]> {
    let all = secrets.iter().flat_map(|secret| secret.windows(16));
    all.filter_map(|window| window.first_chunk().copied()).collect()
}

/// Where in `data` one of the windows is.
fn find(data: &[u8], windows: &HashSet<[u8; 16]>) -> Option<usize> {
    // Most positions are ruled out by their first two bytes.
    let mut first = vec![false; 1 << 16];
    for window in windows {
        first[usize::from(u16::from_le_bytes([window[0], window[1]]))] = true;
    }
    (0..data.len().saturating_sub(15)).find(|&at| {
        first[usize::from(u16::from_le_bytes([data[at], data[at + 1]]))]
            && data[at..].first_chunk().is_some_and(|window| windows.contains(window))
    })
}

/// Whether a part of the secret is in `data`.
pub fn holds(data: &[u8], secret: &[u8]) -> bool {
    find(data, &windows(&[secret])).is_some()
}

/// Which memory is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Where no key may be, ever.
    Unprotected,
    /// All that can be read.
    All,
}

/// Searches the memory of a process for any 16 bytes of the secrets; gives how many bytes were
/// searched.
///
/// # Errors
/// One was found.
pub fn search(pid: u32, pages: Pages, secrets: &[&[u8]]) -> Result<u64> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let windows = windows(secrets);
    let mut searched = 0;
    for mapping in mappings(pid)? {
        let skipped = mapping.protected && pages == Pages::Unprotected;
        if !mapping.readable || skipped || mapping.name.starts_with("[v") {
            continue;
        }
        let piece = 4 << 20;
        let mut at = mapping.start;
        while at < mapping.end {
            let mut data = vec![0; usize::try_from((mapping.end - at).min(piece))?];
            // Pages that nobody can read (a file cut short) hold nothing for a dump either.
            if memory.read_exact_at(&mut data, at).is_ok() {
                searched += data.len() as u64;
                if let Some(found) = find(&data, &windows) {
                    anyhow::bail!(
                        "a secret lies at {:#x} in {} ({:#x}-{:#x})",
                        at + found as u64,
                        mapping.name,
                        mapping.start,
                        mapping.end
                    );
                }
            }
            // Windows may straddle two pieces.
            at += if data.len() as u64 == piece { piece - 16 } else { piece };
        }
    }
    Ok(searched)
}
