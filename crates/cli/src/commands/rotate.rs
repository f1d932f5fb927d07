//! `sealblk rotate`: replaces a volume key, by a daemon or by ourselves.

mod live;
mod offline;
mod watch;

use anyhow::anyhow;

use crate::args::{Rotate, RotateCommand};
use crate::console::Console;
use crate::failure::Failure;

/// What `--keep-luks2` costs.
const KEPT_LUKS2: &str = "It stays LUKS2 afterwards: QEMU's own LUKS driver, Nova's native \
    encryption path and Cinder's rekey of `luks1` volumes can't open it any more.";

pub(crate) fn run(args: &Rotate, console: &mut Console<'_>) -> Result<(), Failure> {
    match &args.command {
        Some(RotateCommand::Start(args)) => live::start(args, console),
        Some(RotateCommand::Status(args)) => live::status(args, console),
        Some(RotateCommand::Pause(served)) => live::pause(served, console),
        Some(RotateCommand::Resume(served)) => live::resume(served, console),
        Some(RotateCommand::Throttle(args)) => live::throttle(args, console),
        None => match (&args.volume, &args.key) {
            (Some(volume), Some(key)) => offline::run(volume, key, &args.how, console),
            // clap sees to it that both are there.
            _ => Err(anyhow!("--volume and --key are needed").into()),
        },
    }
}
