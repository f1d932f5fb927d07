//! The daemon; see the library beside it.

use std::process::ExitCode;

fn main() -> ExitCode {
    sealblk_backend::sealblkd()
}
