//! A first look at what encryption costs: random 4 KiB I/O, encrypted and plain in turns.
//!
//! A smoke figure: one client, seconds, whatever machine this is. The real benchmark, beside the
//! peers and with its spread, is `make bench`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::client::{Client, ClientOptions};
use crate::daemon::Daemon;
use crate::pattern::Pattern;
use crate::volume::TestVolume;

const DISK: u64 = 256 << 20;
const DEPTH: usize = 32;
const BLOCK: usize = 4096;

/// I/O operations per second, encrypted and plain, and their ratio.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// Median over the rounds, encrypted.
    pub encrypted: f64,
    /// Median over the rounds, plain.
    pub plain: f64,
    /// Median over the rounds of encrypted to plain in the same round.
    pub ratio: f64,
}

/// Measures reads, then writes.
pub fn measure(rounds: usize, each: Duration) -> Result<[(&'static str, Figure); 2]> {
    let encrypted = TestVolume::formatted(DISK, 4096)?;
    let plain = TestVolume::blank(DISK)?;
    let daemons = [Daemon::serve(&encrypted, &[])?, Daemon::serve_plain(&plain, &[])?];
    let mut clients = Vec::new();
    for daemon in &daemons {
        let options = ClientOptions { memory_bytes: 4 << 20, ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options)?;
        for at in (0..DISK).step_by(1 << 20) {
            client.write(at, &Pattern(1).bytes(at, 1 << 20))?;
        }
        client.flush()?;
        clients.push(client);
    }
    let mut figures = [("read", Vec::new()), ("write", Vec::new())];
    for round in 0..rounds {
        for (write, (_, samples)) in figures.iter_mut().enumerate() {
            let mut iops = [0.0; 2];
            // Whoever is first in one round is second in the next.
            for turn in 0..2 {
                let which = (round + turn) % 2;
                iops[which] = random_io(&mut clients[which], write == 1, each)?;
            }
            samples.push(iops);
        }
    }
    let [read, write] = figures;
    Ok([(read.0, figure(&read.1)?), (write.0, figure(&write.1)?)])
}

fn figure(samples: &[[f64; 2]]) -> Result<Figure> {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no round")
    };
    Ok(Figure {
        encrypted: median(samples.iter().map(|one| one[0]).collect())?,
        plain: median(samples.iter().map(|one| one[1]).collect())?,
        ratio: median(samples.iter().map(|one| one[0] / one[1]).collect())?,
    })
}

/// Operations per second of random 4 KiB requests at depth 32.
fn random_io(client: &mut Client, write: bool, duration: Duration) -> Result<f64> {
    let mut seed = 1_u64;
    let mut start = |client: &mut Client, slot: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (seed >> 33) % (DISK / BLOCK as u64) * BLOCK as u64;
        if write {
            client.start_write(0, offset, slot * BLOCK, BLOCK, slot)
        } else {
            client.start_read(0, offset, slot * BLOCK, BLOCK, slot)
        }
    };
    let begin = Instant::now();
    for slot in 0..DEPTH {
        start(client, slot)?;
    }
    let (mut open, mut count) = (DEPTH, 0_u32);
    while open > 0 {
        let go_on = begin.elapsed() < duration;
        for done in client.complete(0, 1)? {
            ensure!(done.result == 0, "a request failed: {done:?}");
            count += 1;
            if go_on {
                start(client, done.tag)?;
            } else {
                open -= 1;
            }
        }
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_compares_within_a_round() {
        let samples = [[90.0, 100.0], [45.0, 50.0], [200.0, 400.0]];
        let figure = figure(&samples).unwrap();
        assert_eq!((figure.encrypted, figure.plain, figure.ratio), (90.0, 100.0, 0.9));
    }
}
