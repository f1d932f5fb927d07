//! The control API: HTTP and JSON on a Unix socket (types in `sealblk-api`).
//!
//! Guarded twice: by the socket's mode, and by the peer's credentials (root, the daemon's own
//! user, or whoever the socket's group lets in). Of what it may order, nothing can lose data: a
//! rotation is begun, paused, and given a pace.

mod openapi;

use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path as UrlPath, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use sealblk_api::{
    HEALTH_PATH, Health, METRICS_PATH, OPENAPI_PATH, Refusal, Resize, Rotation, RotationOrder,
    STATUS_PATH, Status,
};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::audit;
use crate::metrics::VolumeLatency;
use crate::socket::{self, SocketError, SocketFile};

/// Path of a volume's rotation, as [`sealblk_api::rotation_path`] makes it.
const ROTATION_ROUTE: &str = "/v1/volumes/{name}/rotation";

/// Path of a volume's size, as [`sealblk_api::resize_path`] makes it.
const RESIZE_ROUTE: &str = "/v1/volumes/{name}/resize";

/// Longest body of a request, in bytes: orders are a line of JSON.
const MAX_BODY: usize = 64 << 10;

/// An order is not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There is no such volume.
    NoSuchVolume,
    /// Not now, or not with this volume: why.
    Conflict(String),
}

/// What the API tells: asked for anew by each request.
pub(crate) trait Source: Send + Sync + 'static {
    fn status(&self) -> Status;

    /// How long the requests of each volume took, for [`crate::metrics`].
    fn latencies(&self) -> Vec<VolumeLatency> {
        Vec::new()
    }

    /// Where the rotation of a volume is.
    fn rotation(&self, volume: &str) -> Result<Rotation, Refused>;

    /// Orders something of a volume's rotation. Blocks, seconds if need be (keys are fetched and
    /// stretched): what is wrong with an order is its answer.
    fn order(&self, volume: &str, order: RotationOrder) -> Result<Rotation, Refused>;

    /// Asks a volume how large it is, and lets its disk grow with it. Blocks as storage does.
    fn resize(&self, volume: &str) -> Result<Resize, Refused>;
}

/// Who is at the other end; none where the kernel doesn't say.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// Who may ask, beside root.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    own_uid: u32,
    /// The socket has a group: whoever got past its mode is a member, or root.
    by_mode: bool,
}

impl Allowed {
    fn permits(self, Peer(uid): Peer) -> bool {
        uid.is_some_and(|uid| uid == 0 || uid == self.own_uid || self.by_mode)
    }
}

/// Binds the control socket: mode 0600, or 0660 with a group.
pub(crate) fn bind(
    path: &Path,
    group: Option<&str>,
) -> Result<(UnixListener, SocketFile), SocketError> {
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    let (listener, file) = socket::bind(path, group, mode)?;
    let fail = |e| SocketError::new(path, "cannot listen", e);
    listener.set_nonblocking(true).map_err(fail)?;
    Ok((UnixListener::from_std(listener).map_err(fail)?, file))
}

/// Answers until `stop` says true.
pub(crate) async fn serve(
    listener: UnixListener,
    by_mode: bool,
    source: Arc<dyn Source>,
    mut stop: watch::Receiver<bool>,
) {
    let allowed = Allowed { own_uid: rustix::process::getuid().as_raw(), by_mode };
    let router = router(source, allowed).into_make_service_with_connect_info::<Peer>();
    let stopped = async move {
        // An error means that the sender is gone, which is the end as well.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    // A client that keeps its connection open must not hold up the daemon's end: no graceful
    // shutdown, answers are short.
    tokio::select! {
        result = async { axum::serve(listener, router).await } => {
            if let Err(error) = result {
                tracing::error!(%error, "the control socket ended");
            }
        }
        () = stopped => {}
    }
}

fn router(source: Arc<dyn Source>, allowed: Allowed) -> Router {
    Router::new()
        .route(STATUS_PATH, get(status))
        .route(HEALTH_PATH, get(health))
        .route(METRICS_PATH, get(metrics))
        .route(OPENAPI_PATH, get(openapi::openapi))
        .route(ROTATION_ROUTE, get(rotation).post(order))
        .route(RESIZE_ROUTE, post(resize))
        .fallback(unknown)
        .method_not_allowed_fallback(not_so)
        .layer(middleware::from_fn_with_state(allowed, guard))
        .layer(middleware::from_fn(whole))
        .with_state(source)
}

/// Takes a request's body before anything answers: who answers sooner and closes breaks the
/// connection under a client that still sends, and its answer with it.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match to_bytes(body, MAX_BODY).await {
        Ok(body) => next.run(Request::from_parts(head, Body::from(body))).await,
        Err(_) => refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the request's body ended early or has more than {MAX_BODY} bytes"),
        ),
    }
}

async fn guard(
    State(allowed): State<Allowed>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = if allowed.permits(peer) {
        next.run(request).await
    } else {
        tracing::warn!(uid = peer.0, path, "control request refused");
        refuse(StatusCode::FORBIDDEN, "only root and the daemon's own user may ask")
    };
    let action = answer.extensions().get::<Action>().map(|action| action.0);
    audit::request(peer.0, method.as_str(), &path, action, answer.status().as_u16());
    answer
}

/// What an order was, for the audit log: travels with the answer.
#[derive(Debug, Clone, Copy)]
struct Action(&'static str);

impl Action {
    fn of(order: &RotationOrder) -> Self {
        Self(match order {
            RotationOrder::Start { .. } => "start",
            RotationOrder::Pause => "pause",
            RotationOrder::Resume => "resume",
            RotationOrder::Throttle { .. } => "throttle",
        })
    }
}

async fn status(State(source): State<Arc<dyn Source>>) -> Json<Status> {
    Json(source.status())
}

async fn rotation(
    State(source): State<Arc<dyn Source>>,
    UrlPath(volume): UrlPath<String>,
) -> Response {
    answer(&volume, source.rotation(&volume))
}

async fn order(
    State(source): State<Arc<dyn Source>>,
    UrlPath(volume): UrlPath<String>,
    order: Result<Json<RotationOrder>, JsonRejection>,
) -> Response {
    let order = match order {
        Ok(Json(order)) => order,
        Err(error) => return refuse(error.status(), &error.body_text()),
    };
    tracing::info!(disk = volume, ?order, "rotation: an order came");
    let (name, action) = (volume.clone(), Action::of(&order));
    let outcome = tokio::task::spawn_blocking(move || source.order(&name, order)).await;
    let mut answer = answer(
        &volume,
        outcome.unwrap_or_else(|_| Err(Refused::Conflict("a defect; see the log".into()))),
    );
    answer.extensions_mut().insert(action);
    answer
}

async fn resize(
    State(source): State<Arc<dyn Source>>,
    UrlPath(volume): UrlPath<String>,
) -> Response {
    let name = volume.clone();
    let outcome = tokio::task::spawn_blocking(move || source.resize(&name)).await;
    answer(
        &volume,
        outcome.unwrap_or_else(|_| Err(Refused::Conflict("a defect; see the log".into()))),
    )
}

fn answer(volume: &str, outcome: Result<impl Serialize, Refused>) -> Response {
    match outcome {
        Ok(told) => Json(told).into_response(),
        Err(Refused::NoSuchVolume) => {
            refuse(StatusCode::NOT_FOUND, &format!("no volume has the name {volume:?}"))
        }
        Err(Refused::Conflict(why)) => {
            refuse(StatusCode::CONFLICT, &format!("volume {volume:?}: {why}"))
        }
    }
}

async fn health() -> Json<Health> {
    Json(Health { status: "ok".to_owned() })
}

async fn metrics(State(source): State<Arc<dyn Source>>) -> Response {
    let now = crate::aging::wall_clock();
    let text = crate::metrics::render(&source.status(), &source.latencies(), now);
    ([(CONTENT_TYPE, crate::metrics::CONTENT_TYPE)], text).into_response()
}

async fn unknown(request: Request) -> Response {
    let text = format!("there is no {}; see docs/operations.md", request.uri().path());
    refuse(StatusCode::NOT_FOUND, &text)
}

async fn not_so(request: Request) -> Response {
    let text =
        format!("{} has no {}; see docs/operations.md", request.uri().path(), request.method());
    refuse(StatusCode::METHOD_NOT_ALLOWED, &text)
}

fn refuse(code: StatusCode, error: &str) -> Response {
    (code, Json(Refusal { error: error.to_owned() })).into_response()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    struct Fixed;

    impl Source for Fixed {
        fn status(&self) -> Status {
            Status { version: "1.2.3".to_owned(), pid: 7, ..Status::default() }
        }

        fn rotation(&self, volume: &str) -> Result<Rotation, Refused> {
            match volume {
                "a b" => Ok(Rotation { done_bytes: 7, ..Rotation::default() }),
                _ => Err(Refused::NoSuchVolume),
            }
        }

        fn order(&self, _volume: &str, order: RotationOrder) -> Result<Rotation, Refused> {
            match order {
                RotationOrder::Throttle { rate_bytes } => {
                    Ok(Rotation { limit_bytes: rate_bytes, ..Rotation::default() })
                }
                _ => Err(Refused::Conflict("not now".to_owned())),
            }
        }

        fn resize(&self, volume: &str) -> Result<Resize, Refused> {
            match volume {
                "a b" => Ok(Resize { capacity_bytes: 4096, ..Resize::default() }),
                _ => Err(Refused::NoSuchVolume),
            }
        }
    }

    /// The whole answer to `GET path`, from a server with these rights.
    async fn ask(allowed: Allowed, path: &str) -> String {
        request(allowed, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
            .await
    }

    async fn post(path: &str, body: &str) -> String {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let len = body.len();
        let request_text =
            format!("{head}Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}");
        request(me(), &request_text).await
    }

    /// The whole answer to a request.
    async fn request(allowed: Allowed, request: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("control.sock");
        let (listener, _file) = bind(&at, None).unwrap();
        let app = router(Arc::new(Fixed), allowed).into_make_service_with_connect_info::<Peer>();
        let server = tokio::spawn(async { axum::serve(listener, app).await });
        let mut stream = UnixStream::connect(&at).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let client = tokio::task::spawn_blocking(move || {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = client.await.unwrap();
        server.abort();
        answer
    }

    fn me() -> Allowed {
        Allowed { own_uid: rustix::process::getuid().as_raw(), by_mode: false }
    }

    #[tokio::test]
    async fn status_and_health_are_json() {
        let answer = ask(me(), STATUS_PATH).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        assert_eq!(serde_json::from_str::<Status>(body).unwrap(), Fixed.status());
        let answer = ask(me(), HEALTH_PATH).await;
        assert!(answer.contains("application/json") && answer.ends_with(r#"{"status":"ok"}"#));
    }

    #[tokio::test]
    async fn metrics_are_text() {
        let answer = ask(me(), METRICS_PATH).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\nsealblk_build_info{version=\"1.2.3\"} 1\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_rotation_is_told_and_ordered_by_the_volumes_name() {
        let path = sealblk_api::rotation_path("a b");
        let answer = ask(me(), &path).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"done_bytes\":7"),
            "{answer}"
        );
        let answer = ask(me(), &sealblk_api::rotation_path("b")).await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("no volume"), "{answer}");
        let answer = post(&path, r#"{"action":"throttle","rate_bytes":5}"#).await;
        assert!(answer.contains("\"limit_bytes\":5"), "{answer}");
        let answer = post(&path, r#"{"action":"pause"}"#).await;
        assert!(answer.starts_with("HTTP/1.1 409 ") && answer.contains("not now"), "{answer}");
        let answer = post(&path, r#"{"action":"explode"}"#).await;
        assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
        assert!(answer.contains("{\"error\":\"") && answer.contains("explode"), "{answer}");
    }

    #[tokio::test]
    async fn a_volume_is_asked_for_its_size_by_its_name() {
        let answer = post(&sealblk_api::resize_path("a b"), "null").await;
        assert!(answer.contains("\"capacity_bytes\":4096"), "{answer}");
        let answer = post(&sealblk_api::resize_path("b"), "").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let answer = ask(me(), &sealblk_api::resize_path("a b")).await;
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("{\"error\":"), "{answer}");
    }

    /// Clients send head and body one after the other: whatever the answer is, it has to wait.
    #[tokio::test]
    async fn an_answer_waits_for_the_whole_request() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("control.sock");
        let (listener, _file) = bind(&at, None).unwrap();
        let app = router(Arc::new(Fixed), me()).into_make_service_with_connect_info::<Peer>();
        let server = tokio::spawn(async { axum::serve(listener, app).await });
        let client = tokio::task::spawn_blocking(move || {
            let paths = [sealblk_api::resize_path("a b"), "/v9/nothing".to_owned()];
            paths.map(|path| {
                let mut stream = UnixStream::connect(&at).unwrap();
                let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
                stream.write_all(format!("{head}Content-Length: 4\r\n\r\n").as_bytes()).unwrap();
                stream.set_nonblocking(true).unwrap();
                // Long enough for a server that doesn't wait; one that does passes always.
                for _ in 0..100 {
                    std::thread::yield_now();
                    let early = stream.read(&mut [0; 1]);
                    assert_eq!(early.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
                }
                stream.set_nonblocking(false).unwrap();
                stream.write_all(b"null").unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            })
        });
        let [resized, unknown] = client.await.unwrap();
        assert!(resized.contains("\"capacity_bytes\":4096"), "{resized}");
        assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
        server.abort();
    }

    #[tokio::test]
    async fn an_unknown_path_is_refused_in_json() {
        let answer = ask(me(), "/v9/status").await;
        assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("/v9/status"), "{answer}");
    }

    #[test]
    fn strangers_are_refused_unless_the_socket_has_a_group() {
        let allowed = Allowed { own_uid: 1000, by_mode: false };
        assert!(allowed.permits(Peer(Some(0))) && allowed.permits(Peer(Some(1000))));
        assert!(!allowed.permits(Peer(Some(1001))) && !allowed.permits(Peer(None)));
        let allowed = Allowed { own_uid: 1000, by_mode: true };
        assert!(allowed.permits(Peer(Some(1001))) && !allowed.permits(Peer(None)));
    }

    #[tokio::test]
    async fn serving_ends_when_it_is_told_although_a_client_stays() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("control.sock");
        let (listener, _file) = bind(&at, None).unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve(listener, false, Arc::new(Fixed), stopped));
        let _client = UnixStream::connect(&at).unwrap();
        stop.send(true).unwrap();
        server.await.unwrap();
    }
}
