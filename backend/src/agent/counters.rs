//! How many requests there were, and how they ended.

use std::collections::BTreeMap;
use std::sync::Mutex;

use sealblk_api::agent::ErrorKind;

use super::node::locked;
use super::server::kind_of;

/// Counters since the agent's start.
#[derive(Debug, Default)]
pub(super) struct Counters(Mutex<BTreeMap<(&'static str, String), u64>>);

impl Counters {
    /// A request has ended: well, or with an error of this kind.
    pub(super) fn request(&self, op: &'static str, error: Option<ErrorKind>) {
        let outcome = error.map_or_else(|| "ok".to_owned(), kind_of);
        *locked(&self.0).entry((op, outcome)).or_default() += 1;
    }

    /// All of them: operation, outcome (`ok` or the error's kind), count.
    pub(super) fn requests(&self) -> Vec<(&'static str, String, u64)> {
        let counts = locked(&self.0);
        counts.iter().map(|((op, outcome), count)| (*op, outcome.clone(), *count)).collect()
    }
}
