//! What lies below the whole system, each layer by itself: the cipher, and the engine without
//! storage and without a session.
//!
//! Contract: a layer measures in rounds, one sample of everything per round, and gives medians and
//! extremes. Deliberately absent: targets, which are about the whole system.

pub(crate) mod cipher;
pub(crate) mod engine;
mod samples;
