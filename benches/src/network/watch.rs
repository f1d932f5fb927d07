//! Another program that runs to its end, and the processor time that passes in its steady middle.
//!
//! It connects before and disconnects after what it measures; what that costs is left out by looking
//! at a window of its last seconds only.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cpu::process_ns;
use crate::machine::{CLIENT, SERVER, pin};

/// Between two looks at the clocks.
const STEP: Duration = Duration::from_millis(5);
/// The window's ends, in parts of what is measured, back from the program's end.
const WINDOW: (f64, f64) = (0.9, 0.3);

/// What a program did.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) output: String,
    /// Processor seconds per second, in the window: the program's, the storage service's.
    pub(super) server: f64,
    pub(super) service: f64,
    /// Its processor time from beginning to end, in nanoseconds.
    pub(super) all_ns: u64,
}

/// A look at the clocks.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Duration,
    server_ns: u64,
    service_ns: u64,
}

/// Runs it on the servers' processor; `measured` is how long it measures before it ends.
pub(super) fn watch(command: &mut Command, measured: Duration, service: u32) -> Result<Watched> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What is started inherits the processors of the thread that starts it.
    pin(&[SERVER])?;
    let begin = Instant::now();
    let child = command.spawn();
    pin(&[CLIENT])?;
    let mut child = child.with_context(|| format!("can't run {command:?}"))?;
    let mut looks: Vec<Look> = Vec::new();
    while child.try_wait()?.is_none() {
        if let (Ok(server_ns), Ok(service_ns)) = (process_ns(child.id()), process_ns(service)) {
            looks.push(Look { at: begin.elapsed(), server_ns, service_ns });
        }
        #[expect(clippy::disallowed_methods, reason = "a clock is looked at from time to time")]
        std::thread::sleep(STEP);
    }
    let end = begin.elapsed();
    let output = child.wait_with_output()?;
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    let (server, service) = rates(&looks, end, measured).context("it ended too soon")?;
    let all_ns = looks.last().map_or(0, |last| last.server_ns);
    Ok(Watched { output: text.into_owned(), server, service, all_ns })
}

/// Processor seconds per second within the window.
fn rates(looks: &[Look], end: Duration, measured: Duration) -> Option<(f64, f64)> {
    let (from, to) = (
        end.saturating_sub(measured.mul_f64(WINDOW.0)),
        end.saturating_sub(measured.mul_f64(WINDOW.1)),
    );
    let first = looks.iter().find(|look| look.at >= from)?;
    let last = looks.iter().rfind(|look| look.at <= to)?;
    let passed =
        last.at.checked_sub(first.at).filter(|passed| !passed.is_zero())?.as_nanos() as f64;
    let rate = |of: fn(&Look) -> u64| (of(last) - of(first)) as f64 / passed;
    Some((rate(|look| look.server_ns), rate(|look| look.service_ns)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_steady_part_counts() {
        // One second of connecting at full speed, ten of half speed, one of nothing.
        let look = |ms: u64| {
            let server_ns =
                1_000_000 * (ms.min(1000) + ms.clamp(1000, 11_000).saturating_sub(1000) / 2);
            Look { at: Duration::from_millis(ms), server_ns, service_ns: server_ns / 2 }
        };
        let looks: Vec<Look> = (0..12_000).step_by(100).map(look).collect();
        let end = Duration::from_secs(12);
        let (server, service) = rates(&looks, end, Duration::from_secs(10)).unwrap();
        assert!((server - 0.5).abs() < 1e-9 && (service - 0.25).abs() < 1e-9, "{server} {service}");
        assert!(rates(&looks, end, Duration::ZERO).is_none());
        assert!(rates(&[], end, Duration::from_secs(10)).is_none());
    }
}
