//! `GET /v1/openapi.json`, and the promise that it has every route.

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

/// The document as it was when this daemon was built.
pub(super) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], sealblk_api::DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    /// What the router is made of, as this crate's source says it.
    const SOURCE: &str = include_str!("../control.rs");

    /// Routes of the source: the constant that names the path, and the methods.
    fn routes() -> BTreeSet<(String, String)> {
        let mut routes = BTreeSet::new();
        for line in SOURCE.lines().map(str::trim) {
            let Some(route) = line.strip_prefix(".route(") else { continue };
            let (path, handlers) = route.split_once(", ").unwrap();
            for method in ["get", "post", "put", "patch", "delete"] {
                if handlers.starts_with(&format!("{method}("))
                    || handlers.contains(&format!(").{method}("))
                {
                    routes.insert((path_of(path), method.to_owned()));
                }
            }
        }
        routes
    }

    fn path_of(constant: &str) -> String {
        let path = match constant {
            "STATUS_PATH" => sealblk_api::STATUS_PATH,
            "HEALTH_PATH" => sealblk_api::HEALTH_PATH,
            "METRICS_PATH" => sealblk_api::METRICS_PATH,
            "OPENAPI_PATH" => sealblk_api::OPENAPI_PATH,
            "ROTATION_ROUTE" => super::super::ROTATION_ROUTE,
            "RESIZE_ROUTE" => super::super::RESIZE_ROUTE,
            other => panic!("a new route {other}: add it here and to docs/openapi.json"),
        };
        path.to_owned()
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(sealblk_api::DOCUMENT).unwrap();
        let mut described = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                described.insert((path.clone(), method.clone()));
            }
        }
        assert!(described.len() >= 7);
        assert_eq!(routes(), described);
    }
}
