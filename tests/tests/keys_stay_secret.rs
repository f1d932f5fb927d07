//! Passphrase and volume key are nowhere in the running daemon's memory but in protected pages,
//! and the daemon dumps no core.

use anyhow::{Context, Result, ensure};
use sealblk_tests::memory::Pages::Unprotected;
use sealblk_tests::{Client, Daemon, Pattern, TestVolume, memory, oracle, progress};

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
    let searched = memory::search(daemon.pid()?, Unprotected, &[&passphrase, &key])?;
    progress(format_args!("{} MiB searched", searched >> 20));
    ensure!(searched > 1 << 20, "only {searched} bytes could be searched");
    // Again after a session has ended and another begun.
    drop(client);
    let mut client = Client::simple(daemon.socket())?;
    client.read(0, 4096)?;
    memory::search(daemon.pid()?, Unprotected, &[&passphrase, &key])?;
    // The search itself works: the daemon's memory holds the name of its socket.
    let socket = daemon.socket().as_os_str().as_encoded_bytes();
    ensure!(
        memory::search(daemon.pid()?, Unprotected, &[socket]).is_err(),
        "the search finds nothing at all"
    );
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
        assert!(!memory::holds(&text, &passphrase), "{file}");
    }
    assert!(!daemon.log().text().contains(std::str::from_utf8(&passphrase)?), "the log");
    // A process that may not be dumped belongs to root under /proc and can't be traced by others
    // of its user; its memory then still opens for root, who runs this test.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(status.contains("Name:"), "{status}");
    Ok(())
}
