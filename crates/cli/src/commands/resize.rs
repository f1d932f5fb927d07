//! `sealblk resize`: has a daemon ask a volume how large it is now.

use sealblk_api::{Resize, resize_path};

use crate::args;
use crate::console::Console;
use crate::failure::Failure;
use crate::http;
use crate::size::human;

pub(crate) fn run(args: &args::Resize, console: &mut Console<'_>) -> Result<(), Failure> {
    let path = resize_path(&args.served.volume);
    if args.json {
        // What the daemon said, with what this command doesn't know.
        let resize: serde_json::Value = http::post(&args.served.control, &path, &())?;
        writeln!(console.out, "{resize:#}")?;
    } else {
        let resize: Resize = http::post(&args.served.control, &path, &())?;
        writeln!(console.out, "{}", describe(&resize))?;
    }
    Ok(())
}

fn describe(resize: &Resize) -> String {
    let mut text = format!(
        "the volume has {} ({} bytes), the guest's disk {} ({} bytes)",
        human(resize.volume_bytes),
        resize.volume_bytes,
        human(resize.capacity_bytes),
        resize.capacity_bytes,
    );
    if resize.waits_for_rotation {
        text.push_str("; the disk grows when the rotation that is under way has ended");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_waits_for_a_rotation_says_so() {
        let grown = Resize { volume_bytes: 5 << 30, capacity_bytes: 4 << 30, ..Resize::default() };
        assert!(!describe(&grown).contains("rotation"));
        let waits = describe(&Resize { waits_for_rotation: true, ..grown });
        for part in ["5368709120", "4294967296", "when the rotation"] {
            assert!(waits.contains(part), "{waits}");
        }
    }
}
