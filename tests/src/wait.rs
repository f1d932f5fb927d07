//! Waiting with a deadline for what gives no event, and lines that tell how far a test is.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `probe` every few milliseconds until it answers, or fails with `what` after `limit`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        #[expect(clippy::disallowed_methods, reason = "the thing waited for gives no event")]
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A line for the person who watches the tests run.
#[expect(clippy::print_stderr, reason = "that is what it is for")]
pub fn progress(line: impl std::fmt::Display) {
    eprintln!("    {line}");
}
