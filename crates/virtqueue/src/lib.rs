//! Guest memory, split virtqueues, virtio-blk requests and the in-flight region.
//!
//! Contract: everything here is hostile input (rings, descriptors, request headers, the in-flight
//! region, the memory map itself) and ends in an error value, never in a panic, an endless loop or
//! an access outside the mapped memory. What lies in shared memory is read once, into locals.
//!
//! Invariant: all `unsafe` is in `mapping.rs`. No allocation, lock or formatting per request.
//!
//! Deliberately absent: packed rings, I/O, vhost-user messages, eventfds being waited on.

pub mod blk;
pub mod chain;
mod host;
mod inflight;
mod mapping;
mod memory;
mod split;
#[cfg(test)]
mod testing;

pub use chain::{Chain, ChainError, DescTable};
pub use host::{QueueHost, QueueSetup, StartError};
pub use inflight::{InflightError, InflightQueue, InflightRegion};
pub use memory::{GuestMemory, MemoryError, OutsideMemory, Region};
pub use split::{QueueError, QueueSetupError, Virtqueue};
