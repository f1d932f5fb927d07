//! Resource limits that the data path needs: locked memory (keys, io_uring buffers), descriptors.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises what can be raised; what can't is only logged, as a small disk may do with less.
pub(crate) fn raise() {
    for (resource, name) in
        [(Resource::Memlock, "RLIMIT_MEMLOCK"), (Resource::Nofile, "RLIMIT_NOFILE")]
    {
        let limit = getrlimit(resource);
        // With CAP_SYS_RESOURCE locked memory can be without limit; descriptors can't (fs.nr_open).
        let unlimited = Rlimit { current: None, maximum: None };
        if resource == Resource::Memlock && setrlimit(resource, unlimited).is_ok() {
            continue;
        }
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(resource, raised) {
            tracing::warn!(%error, limit = name, "cannot be raised");
        }
        tracing::debug!(limit = name, value = ?limit.maximum, "raised");
    }
}
