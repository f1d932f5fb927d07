//! The queue thread: from the virtqueue through the cipher to the volume and back.
//!
//! `avail ring -> request -> key map -> seal -> lane`, and back `lane -> open -> status -> used
//! ring -> call`. A [`Disk`] has one thread per queue, and each thread has all it needs: a ring, a
//! lane, cipher state, a bounce buffer, slots. Nothing is locked, allocated or formatted per
//! request.
//!
//! Back-pressure: what there is no room for waits, first in line; meanwhile nothing more is taken
//! from the guest. The guest never sees an error because we were busy.
//!
//! Invariant: a broken invariant of our own aborts the process at once ([`broken`]); writing on
//! could destroy data, and the in-flight region lets the next process take over.

mod bounce;
mod chunk;
mod config;
mod control;
mod disk;
mod fence;
mod grow;
mod hold;
mod io;
mod key_switch;
mod latency;
mod limiter;
mod limits;
mod line;
mod loss;
mod path;
mod request;
mod sample;
mod slot;
mod spin;
mod stats;
mod throttle;
mod timing;
mod worker;

pub use config::{EngineConfig, OnError};
pub use disk::{Disk, DiskError};
pub use grow::Grower;
pub use key_switch::{GuestLoad, KeySwitch, SwitchError, Switchboard};
pub use latency::{HistogramCounts, Kind, Latency, Stage};
pub use limits::{Burst, Limits, Rate};
pub use loss::{PathNews, PathState, PathView, StoragePath};
pub use stats::{Counter, QueueCounts, QueueStats};
pub use timing::TIMED_ONE_IN;

/// An invariant of this program does not hold: says so and dies, before anything is written on
/// that ground.
#[cold]
fn broken(invariant: &'static str) -> ! {
    tracing::error!(invariant, "internal invariant broken: stopping at once");
    std::process::abort();
}
