//! Passphrase and volume key are nowhere in the running daemon's memory but in protected pages,
//! and the daemon dumps no core.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{Client, Daemon, Pattern, TestVolume, oracle, progress};

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
fn windows(secrets: &[&[u8]]) -> std::collections::HashSet<[u8; 16]> {
    let all = secrets.iter().flat_map(|secret| secret.windows(16));
    all.filter_map(|window| window.first_chunk().copied()).collect()
}

/// Where in `data` one of the windows is.
fn find(data: &[u8], windows: &std::collections::HashSet<[u8; 16]>) -> Option<usize> {
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

/// Searches all memory of the process; gives how many bytes were searched.
fn search(pid: u32, secrets: &[&[u8]]) -> Result<u64> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let windows = windows(secrets);
    let mut searched = 0;
    for mapping in mappings(pid)? {
        if !mapping.readable || mapping.protected || mapping.name.starts_with("[v") {
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

fn daemon_under_load(volume: &TestVolume, extra: &[&str]) -> Result<(Daemon, Client)> {
    let daemon = Daemon::serve(volume, extra)?;
    let mut client = Client::simple(daemon.socket())?;
    for at in (0..8).map(|n| n << 20) {
        let data = Pattern(3).bytes(at, 1 << 20);
        client.write(at, &data)?;
        ensure!(client.read(at, 1 << 20)? == data);
    }
    client.flush()?;
    Ok((daemon, client))
}

fn no_secret_in_memory(arguments: &[&str], extra: &[&str]) -> Result<()> {
    progress(format_args!("{} {}", arguments.join(" "), extra.join(" ")));
    let volume = TestVolume::formatted_with(8 << 20, arguments)?;
    let passphrase = std::fs::read(&volume.key)?;
    let key = oracle::volume_key(&volume)?;
    ensure!(key.len() == 64 || key.len() == 32, "cryptsetup gave {} bytes of key", key.len());
    let (daemon, client) = daemon_under_load(&volume, extra)?;
    let searched = search(daemon.pid()?, &[&passphrase, &key])?;
    progress(format_args!("{} MiB searched", searched >> 20));
    ensure!(searched > 1 << 20, "only {searched} bytes could be searched");
    // Again after a session has ended and another begun.
    drop(client);
    let mut client = Client::simple(daemon.socket())?;
    client.read(0, 4096)?;
    search(daemon.pid()?, &[&passphrase, &key])?;
    // The search itself works: the daemon's memory holds the name of its socket.
    let socket = daemon.socket().as_os_str().as_encoded_bytes();
    ensure!(search(daemon.pid()?, &[socket]).is_err(), "the search finds nothing at all");
    Ok(())
}

#[test]
fn neither_passphrase_nor_volume_key_is_in_unprotected_memory() -> Result<()> {
    no_secret_in_memory(&["--sector-size", "4096"], &[])
}

#[test]
fn nor_with_aes_128() -> Result<()> {
    no_secret_in_memory(&["--cipher", "aes-128-xts"], &["--queues", "4"])
}

#[test]
fn nor_with_the_portable_cipher() -> Result<()> {
    no_secret_in_memory(&[], &["--cipher", "portable"])
}

#[test]
fn nor_after_a_memory_hard_key_derivation() -> Result<()> {
    no_secret_in_memory(&["--kdf", "argon2id"], &[])
}

#[test]
fn the_daemon_dumps_no_core_and_shows_no_secret_to_the_machine() -> Result<()> {
    let volume = TestVolume::formatted(8 << 20, 512)?;
    let passphrase = std::fs::read(&volume.key)?;
    let (daemon, _client) = daemon_under_load(&volume, &[])?;
    let pid = daemon.pid()?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<_> = core.context("no core limit")?.split_whitespace().skip(4).collect();
    assert_eq!(core[..2], ["0", "0"], "core file size limits");
    for file in ["cmdline", "environ"] {
        let text = std::fs::read(format!("/proc/{pid}/{file}"))?;
        assert_eq!(find(&text, &windows(&[&passphrase])), None, "{file}");
    }
    assert!(!daemon.log().text().contains(std::str::from_utf8(&passphrase)?), "the log");
    // A process that may not be dumped belongs to root under /proc and can't be traced by others
    // of its user; its memory then still opens for root, who runs this test.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Name:"), "{status}");
    Ok(())
}
