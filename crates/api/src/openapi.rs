//! The description of the control API for programs, OpenAPI 3.1: docs/openapi.json.
//!
//! Contract: it has every type of this crate's control API with every field; the tests here fail where
//! it doesn't, those of the daemon where a route is missing. It is written by hand, as what it says
//! beside names and types is for people.

/// `GET`: [`DOCUMENT`].
pub const OPENAPI_PATH: &str = "/v1/openapi.json";

/// The document, as JSON.
pub const DOCUMENT: &str = include_str!("../../../docs/openapi.json");

#[cfg(test)]
mod tests;
