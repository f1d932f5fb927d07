//! What a volume tells by itself, in the log. (What a queue notices of its I/O is the engine's to tell.)

use sealblk_volume::VolumeEvent;

/// Logs the news of the volume of this disk.
pub(crate) fn log(disk: &str, event: &VolumeEvent) {
    crate::audit::news(disk, event);
    match event {
        VolumeEvent::Resized { size_bytes } => {
            tracing::info!(disk, size_bytes, "the volume has another size now");
        }
        VolumeEvent::Fenced { why } => {
            tracing::error!(
                disk,
                "the volume was taken from us: {why}; nothing is written any more. If another host \
                 serves it now, stop this guest; if not, restart this daemon to take the volume back"
            );
        }
        VolumeEvent::PathLost { why } => {
            tracing::warn!(disk, "the connection to the storage is lost, trying again: {why}");
        }
        VolumeEvent::PathBack { after } => {
            let seconds = format_args!("{:.3}", after.as_secs_f64());
            tracing::info!(disk, %seconds, "the connection to the storage is back");
        }
        // Others may come with other drivers.
        other => tracing::info!(disk, event = ?other, "the volume tells"),
    }
}
