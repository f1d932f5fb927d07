//! One module for each command.

pub(crate) mod check;
pub(crate) mod format;
pub(crate) mod header;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod node;
pub(crate) mod repair;
pub(crate) mod resize;
pub(crate) mod rotate;
pub(crate) mod status;
