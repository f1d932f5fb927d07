//! What protects secrets outside the arena: the process's own settings and the dead stack.

use std::hint::black_box;

use rustix::process::{DumpableBehavior, Resource, Rlimit};
use zeroize::Zeroize;

use crate::SecretError;

/// How much dead stack is overwritten: more than any key derivation's or key schedule's frames,
/// far less than the smallest thread stack (2 MiB).
const WIPE_BYTES: usize = 64 << 10;

/// Forbids core dumps, `ptrace` and `/proc/PID/mem` of this process to other users than root
/// (`PR_SET_DUMPABLE` 0, `RLIMIT_CORE` 0). Call before the first secret is read.
///
/// From then on root owns this process's `/proc/self` (proc(5)): an unprivileged process can't open
/// `/proc/self/fd/N` any more.
///
/// # Errors
/// [`SecretError::Harden`], which no normal kernel returns.
pub fn harden_process() -> Result<(), SecretError> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| SecretError::Harden { what: "RLIMIT_CORE", source: error.into() })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| SecretError::Harden { what: "PR_SET_DUMPABLE", source: error.into() })
}

/// Overwrites 64 KiB of stack below the caller, where functions that have returned left copies of
/// keys. Call it after a key derivation, from the frame that called it.
#[inline(never)]
pub fn wipe_stack() {
    let mut dead = [0u8; WIPE_BYTES];
    // Volatile writes, then a use: the array can be neither left out nor shrunk.
    dead.zeroize();
    black_box(&dead);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hardened_process_dumps_no_core() {
        harden_process().unwrap();
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
