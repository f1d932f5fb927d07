//! Storage in the network: the cluster it is on, and its own libraries without a server.
//!
//! What differs from local storage, for every server alike: the process that keeps the data (OSD,
//! target) needs a processor. It shares the client's, so the client sleeps where it polls otherwise,
//! and the server has its own for itself.

pub(crate) mod cluster;
pub(crate) mod external;
mod watch;
