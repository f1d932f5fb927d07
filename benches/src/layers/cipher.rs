//! The cipher by itself: gigabytes (10^9) per second of every implementation that can be used here.
//!
//! Contract: as on the data path, from one buffer to another. All calls together go through
//! 64 KiB and then start again, so that source and destination stay in the processor's second-level
//! cache. Implementations take turns within a round; ratios are to AWS-LC in the same round.
//! `openssl speed` stands beside them as a reference: one process after the other, in place, and
//! so in no ratio.
// UNSAFETY: the cipher's interface takes raw pointers, because guests share memory.
#![expect(unsafe_code, reason = "calls the cipher as the data path does")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sealblk_cipher::{Algorithm, Implementation, SectorCipher, sector_cipher};
use sealblk_secret::SecretBytes;
use sealblk_tests::run;
use sealblk_volume::AlignedBuf;

use super::samples::Samples;
use crate::results::LayerFigure;

/// All implementations by their configuration's name, fastest first; what a build or a processor
/// doesn't have is left out.
const NAMES: [&str; 4] = ["vaes-512", "vaes-256", "aws-lc", "portable"];
/// The one that others are compared with.
const REFERENCE: &str = "aws-lc";
/// What all calls together go through, again and again.
const AREA_BYTES: usize = 64 << 10;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Length of a sample.
    pub(crate) sample: Duration,
    /// Ask `openssl speed`, too: a second for each of its four figures.
    pub(crate) openssl: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { rounds: 16, sample: Duration::from_millis(5), openssl: true }
    }
}

/// One kind of call.
#[derive(Debug, Clone, Copy)]
struct Call {
    sector_bytes: u32,
    bytes: usize,
    decrypt: bool,
}

impl Call {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (sector_bytes, calls) in
            [(512, [512, 4096, AREA_BYTES].as_slice()), (4096, &[4096, AREA_BYTES])]
        {
            for decrypt in [false, true] {
                all.extend(calls.iter().map(|&bytes| Self { sector_bytes, bytes, decrypt }));
            }
        }
        all
    }

    fn parameters(self) -> [(&'static str, String); 3] {
        let size = |bytes: usize| match bytes {
            bytes if bytes < 1024 => format!("{bytes} B"),
            bytes => format!("{} KiB", bytes / 1024),
        };
        let direction = if self.decrypt { "decrypt" } else { "encrypt" };
        [
            ("sector", format!("{} B", self.sector_bytes)),
            ("direction", direction.to_owned()),
            ("per call", size(self.bytes)),
        ]
    }
}

/// Measures; `progress` hears what is measured next.
pub(crate) fn measure(plan: Plan, mut progress: impl FnMut(&str)) -> Result<Vec<LayerFigure>> {
    let mut samples = Samples::default();
    let mut source = AlignedBuf::new(AREA_BYTES)?;
    let mut target = AlignedBuf::new(AREA_BYTES)?;
    source.as_mut_slice().iter_mut().enumerate().for_each(|(n, byte)| *byte = ((n * 7) >> 3) as u8);
    for call in Call::all() {
        let parameters = call.parameters();
        let parameters = parameters.each_ref().map(|(name, value)| (*name, value.as_str()));
        progress(&parameters.map(|(_, value)| value).join(", "));
        let mut ciphers = ciphers(call.sector_bytes)?;
        for round in 0..plan.rounds {
            let mut speeds = Vec::with_capacity(ciphers.len());
            for (name, cipher) in &mut ciphers {
                let (source, target) = (source.as_mut_ptr(), target.as_mut_ptr());
                // SAFETY: two buffers of AREA_BYTES, borrowed exclusively here and touched by
                // nobody else until the call ends.
                let speed = unsafe { sample(&mut **cipher, call, source, target, plan.sample) };
                speeds.push((*name, speed));
            }
            if round == 0 {
                // Caches and clocks are warm from here on.
                continue;
            }
            let reference = speeds.iter().find(|(name, _)| *name == REFERENCE).copied();
            for &(name, speed) in &speeds {
                samples.add(name, &parameters, "GB/s", speed);
                if let Some((_, reference)) = reference {
                    samples.add(name, &parameters, "x AWS-LC", speed / reference);
                }
            }
        }
    }
    if plan.openssl {
        for call in Call::all().into_iter().filter(|call| call.bytes == call.sector_bytes as usize)
        {
            let parameters = call.parameters();
            let parameters = parameters.each_ref().map(|(name, value)| (*name, value.as_str()));
            progress("openssl speed");
            // No openssl, no reference.
            if let Ok(speed) = openssl(call) {
                samples.add("openssl speed, in place", &parameters, "GB/s", speed);
            }
        }
    }
    Ok(samples.figures())
}

/// Everything that can be had here, with its name.
fn ciphers(sector_bytes: u32) -> Result<Vec<(&'static str, Box<dyn SectorCipher>)>> {
    let key: Vec<u8> = (0..64).map(|n: u8| n.wrapping_mul(0x9d) ^ 0x5a).collect();
    let key = SecretBytes::copy_from(&key)?;
    let known = NAMES.iter().filter_map(|&name| Some((name, name.parse::<Implementation>().ok()?)));
    let made = known.filter_map(|(name, which)| {
        let made = sector_cipher(Algorithm::Aes256XtsPlain64, &key, sector_bytes, which);
        Some((name, made.ok()?))
    });
    Ok(made.collect())
}

/// Gigabytes per second in a sample of at least `least`.
///
/// # Safety
/// `source` is readable and `target` writable for [`AREA_BYTES`]; they are disjoint, and no
/// reference to either is live.
unsafe fn sample(
    cipher: &mut dyn SectorCipher,
    call: Call,
    source: *const u8,
    target: *mut u8,
    least: Duration,
) -> f64 {
    let start = Instant::now();
    let mut bytes = 0usize;
    let mut iv = 0;
    loop {
        for at in (0..AREA_BYTES).step_by(call.bytes) {
            let (source, target) = (source.wrapping_add(at), target.wrapping_add(at));
            // SAFETY: `at + call.bytes <= AREA_BYTES`, a multiple of it; the caller's promise.
            unsafe {
                if call.decrypt {
                    cipher.decrypt(iv, source, target, call.bytes);
                } else {
                    cipher.encrypt(iv, source, target, call.bytes);
                }
            }
            iv += 128;
        }
        bytes += AREA_BYTES;
        let time = start.elapsed();
        if time >= least {
            return bytes as f64 / time.as_secs_f64() / 1e9;
        }
    }
}

/// What `openssl speed` says, in gigabytes per second.
fn openssl(call: Call) -> Result<f64> {
    let bytes = call.bytes.to_string();
    let mut args = vec!["speed", "-mr", "-seconds", "1", "-bytes", &bytes, "-evp", "aes-256-xts"];
    if call.decrypt {
        args.push("-decrypt");
    }
    let output = run("openssl", args)?;
    let text = String::from_utf8_lossy(&output.stdout);
    bytes_per_second(&text).map(|speed| speed / 1e9).context("openssl speed: no result line")
}

/// `+F:22:AES-256-XTS:1234567.89` (openssl-speed(1), `-mr`): bytes per second.
fn bytes_per_second(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.starts_with("+F:"))?;
    line.rsplit(':').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openssl_s_report_is_understood() {
        let report = "+DT:AES-256-XTS:1:4096\n+R:1501:AES-256-XTS:1.0\n+H:4096\n\
                      +F:22:AES-256-XTS:6144000000.50\n";
        assert_eq!(bytes_per_second(report), Some(6_144_000_000.5));
        assert_eq!(bytes_per_second("nothing"), None);
    }

    #[test]
    fn the_reference_and_the_oracle_are_measured_at_both_sector_sizes() {
        let plan = Plan { rounds: 2, sample: Duration::ZERO, openssl: false };
        let figures = measure(plan, |_| {}).unwrap();
        for name in ["aws-lc", "portable"] {
            let of_name = |unit| {
                figures.iter().filter(move |one| one.name == name && one.unit == unit).count()
            };
            assert_eq!((of_name("GB/s"), of_name("x AWS-LC")), (10, 10), "{name}");
        }
        assert!(figures.iter().all(|figure| figure.value.median > 0.0));
        let mut itself = figures.iter().filter(|one| one.name == "aws-lc" && one.unit != "GB/s");
        assert!(itself.all(|one| one.value.median == 1.0));
    }
}
