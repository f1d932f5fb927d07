//! The log: standard error, text or JSON, everything through `tracing`.
//!
//! Standard output stays unused. Secrets never come here: their types print as a length only.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::config::{ConfigError, DaemonConfig, LogFormat};

/// Starts the log. Before it, nothing that is logged appears.
///
/// # Errors
/// The filter can't be understood.
pub(crate) fn init(config: &DaemonConfig) -> Result<(), ConfigError> {
    let level = config.log_level.as_deref().unwrap_or("info");
    let filter = EnvFilter::try_new(level)
        .map_err(|e| ConfigError(format!("`log_level` is {level:?}: {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        // The journal stamps every line itself.
        LogFormat::Text if journal() => builder.with_ansi(false).without_time().init(),
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
    }
    Ok(())
}

/// Whether systemd connected standard error to its journal.
fn journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}
