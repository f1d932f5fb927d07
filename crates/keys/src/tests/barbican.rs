//! Keystone and Barbican, on one port.

use serde_json::json;

use super::server::{Reply, Server, json as answer, status};
use super::{failed, impatient, limits, passphrase, secret_file};
use crate::barbican::Barbican;
use crate::config::BarbicanConfig;
use crate::patience::Limits;
use crate::{KeyErrorKind, MAX_KEY_BYTES};

const ID: &str = "1f9a6f1c-35a4-4f6e-9c69-0a1b2c3d4e5f";
const TOKEN: &str = "t0ken-from-keystone";

struct World {
    server: Server,
    barbican: Barbican,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(script: Vec<Reply>) -> Self {
        Self::with(script, limits(), |_| {})
    }

    fn with(script: Vec<Reply>, limits: Limits, change: impl FnOnce(&mut BarbicanConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::http(script);
        let mut config = BarbicanConfig {
            auth_url: server.url("/identity"),
            application_credential_id: Some("the-id".into()),
            application_credential_secret_file: Some(secret_file(dir.path(), "s", b"pass\"word\n")),
            endpoint: Some(server.url("/key-manager/")),
            ..BarbicanConfig::default()
        };
        change(&mut config);
        Self { server, barbican: Barbican::new(config, limits), _dir: dir }
    }

    fn fails(script: Vec<Reply>, kind: KeyErrorKind) -> String {
        let world = Self::new(script);
        let text = failed(world.barbican.fetch(ID), kind);
        // Whatever a server says, it isn't repeated.
        for secret in [TOKEN, "s3cret", "pass\"word"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(!format!("{:?}", world.barbican).contains(TOKEN));
        text
    }
}

fn login() -> Reply {
    login_for(3600)
}

fn login_for(seconds: u32) -> Reply {
    let end = format!(
        "2026-11-24T{:02}:{:02}:{:02}.000000Z",
        10 + seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    );
    let token = json!({"issued_at": "2026-11-24T10:00:00.000000Z", "expires_at": end});
    let field = format!("X-Subject-Token: {TOKEN}\r\n");
    Reply::Http(201, String::leak(field), json!({ "token": token }).to_string())
}

fn metadata(kind: &str) -> Reply {
    let types = json!({"default": "application/octet-stream"});
    answer(json!({"secret_type": kind, "content_types": types, "status": "ACTIVE", "more": [1]}))
}

fn payload(text: &str) -> Reply {
    Reply::Http(200, "content-type: application/octet-stream\r\n", text.to_owned())
}

#[test]
fn a_key_is_hex_and_a_passphrase_is_itself() {
    for (kind, expected) in
        [("symmetric", "5a00ff0a"), ("opaque", "5a00ff0a"), ("later-invention", "5a00ff0a")]
    {
        let mut script = vec![login(), metadata(kind)];
        let mut raw = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n".to_vec();
        raw.extend(b"\x5a\x00\xff\x0a");
        script.push(Reply::Raw(raw));
        assert_eq!(passphrase(World::new(script).barbican.fetch(ID)), expected);
    }
    let world = World::new(vec![login(), metadata("passphrase"), payload("Grüße \n")]);
    assert_eq!(passphrase(world.barbican.fetch(ID)), "Grüße \n");
}

#[test]
fn an_application_credential_logs_in_once_for_many_keys() {
    let world = World::new(vec![
        login(),
        metadata("passphrase"),
        payload("one"),
        metadata("passphrase"),
        payload("two"),
    ]);
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(passphrase(world.barbican.fetch(ID)), "two");
    let asked = world.server.finish();
    assert_eq!(asked[0].line, "POST /identity/v3/auth/tokens?nocatalog");
    assert_eq!(
        asked[0].json(),
        json!({"auth": {"identity": {
            "methods": ["application_credential"],
            "application_credential": {"id": "the-id", "secret": "pass\"word"},
        }}})
    );
    for (index, rest, accept) in [
        (1, "", "application/json"),
        (2, "/payload", "application/octet-stream"),
        (3, "", "application/json"),
        (4, "/payload", "application/octet-stream"),
    ] {
        let asked = &asked[index];
        assert_eq!(asked.line, format!("GET /key-manager/v1/secrets/{ID}{rest}"));
        assert_eq!(asked.field("x-auth-token"), Some(TOKEN));
        assert_eq!(asked.field("accept"), Some(accept));
    }
}

#[test]
fn a_password_logs_in_to_its_project() {
    let script = || vec![login(), metadata("passphrase"), payload("one")];
    let world = World::with(script(), limits(), |config| {
        config.password_file = config.application_credential_secret_file.take();
        config.application_credential_id = None;
        config.username = Some("sealblk".into());
        config.project_name = Some("service".into());
        config.project_domain_id = Some("d1".into());
    });
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(
        world.server.finish()[0].json(),
        json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": "sealblk", "domain": {"name": "Default"}, "password": "pass\"word",
            }}},
            "scope": {"project": {"name": "service", "domain": {"id": "d1"}}},
        }})
    );
}

#[test]
fn the_catalogue_says_where_barbican_is() {
    let barbican = Server::http(vec![metadata("passphrase"), payload("one")]);
    let endpoint = |region: &str, interface: &str, url: &str| json!({"region": region, "region_id": region, "interface": interface, "url": url});
    let catalogue = |right: &str| {
        json!([
            {"type": "compute", "endpoints": [endpoint("R2", "internal", "http://127.0.0.1:1")]},
            {"type": "key-manager", "endpoints": [
                endpoint("R1", "internal", "http://127.0.0.1:1"),
                endpoint("R2", "public", "http://127.0.0.1:1"),
                endpoint("R2", "internal", right),
            ]},
        ])
    };
    let login = |catalogue: serde_json::Value| {
        let token = json!({
            "issued_at": "2026-11-24T10:00:00Z", "expires_at": "2026-11-24T11:00:00Z",
            "catalog": catalogue,
        });
        Reply::Http(201, "X-Subject-Token: t\r\n", json!({ "token": token }).to_string())
    };
    let region = |region: &'static str| {
        move |config: &mut BarbicanConfig| {
            config.endpoint = None;
            config.region = Some(region.into());
        }
    };
    let world = World::with(vec![login(catalogue(&barbican.url("")))], limits(), region("R2"));
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(world.server.finish()[0].line, "POST /identity/v3/auth/tokens");

    let world = World::with(vec![login(catalogue("http://x"))], limits(), region("R3"));
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Unconfigured);
    assert!(text.contains("no internal endpoint") && text.contains("\"R3\""), "{text}");

    // A token doesn't travel in the clear because a catalogue says so.
    let world = World::with(vec![login(catalogue("http://barbican:9311"))], limits(), region("R2"));
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Unconfigured);
    assert!(text.contains("insecure_http"), "{text}");
}

#[test]
fn a_token_that_is_refused_is_replaced_once() {
    let world = World::new(vec![
        login(),
        metadata("passphrase"),
        payload("one"),
        status(401),
        login(),
        metadata("passphrase"),
        payload("two"),
        status(401),
        login(),
        status(401),
    ]);
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(passphrase(world.barbican.fetch(ID)), "two");
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Denied);
    assert!(text.contains("refuses a new token (HTTP 401)"), "{text}");
    assert_eq!(world.server.finish().len(), 10);
}

#[test]
fn a_token_that_ends_soon_is_not_kept() {
    let once = || [login_for(0), metadata("passphrase"), payload("one")];
    let world = World::new(once().into_iter().chain(once()).collect());
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
    assert_eq!(world.server.finish().len(), 6);
}

#[test]
fn each_refusal_has_its_kind_and_its_advice() {
    let cases = [
        (403, KeyErrorKind::Denied, "ACL"),
        (404, KeyErrorKind::Missing, "was it deleted"),
        (410, KeyErrorKind::Missing, "was it deleted"),
        (401, KeyErrorKind::Denied, "auth_url"),
        (406, KeyErrorKind::Malformed, "HTTP 406"),
    ];
    for (code, kind, advice) in cases {
        let text = World::fails(vec![login(), status(code)], kind);
        assert!(text.contains(advice) && text.contains("Barbican http://127.0.0.1"), "{text}");
        if code != 401 {
            World::fails(vec![login(), metadata("symmetric"), status(code)], kind);
        }
    }
    let text = World::fails(vec![status(401)], KeyErrorKind::Denied);
    assert!(text.contains("Keystone http://127.0.0.1") && text.contains("credentials"), "{text}");
    let text = World::fails(vec![status(404)], KeyErrorKind::Malformed);
    assert!(text.contains("`auth_url`"), "{text}");
}

#[test]
fn answers_that_make_no_sense_are_malformed() {
    let metadata_with = |types: serde_json::Value| {
        answer(json!({"secret_type": "symmetric", "content_types": types}))
    };
    let cases: Vec<(Vec<Reply>, &str)> = vec![
        (vec![Reply::Http(201, "", "{}".into())], "not what such a server says"),
        (vec![Reply::Http(201, "X-Subject-Token: a b\r\n", "{}".into())], "the token"),
        (vec![login(), answer(json!([1]))], "not what such a server says"),
        (vec![login(), Reply::Http(200, "", "s3cret".into())], "not what such a server says"),
        (vec![login(), Reply::Raw(b"SSH-2.0-s3cret\r\n".to_vec())], "no HTTP"),
        (vec![login(), metadata("private")], "`private`"),
        (vec![login(), metadata_with(json!({"default": "s3cret/x"}))], "neither"),
        (
            vec![login(), Reply::Http(200, "", "x".repeat(crate::http::SECRET_MAX_BYTES + 1))],
            "longer than",
        ),
    ];
    for (script, expected) in cases {
        let text = World::fails(script, KeyErrorKind::Malformed);
        assert!(text.contains(expected), "{text}");
    }
    let text = World::fails(vec![login(), metadata_with(json!(null))], KeyErrorKind::Missing);
    assert!(text.contains("no payload"), "{text}");
}

/// An answer with this head and body.
fn raw(fields: &str, body: &[u8]) -> Reply {
    Reply::Raw([format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes(), body].concat())
}

#[test]
fn a_body_in_chunks_is_limited_too() {
    let chunked = |count: usize| {
        let chunk = [b"1000\r\n".as_slice(), &[b'x'; 4096], b"\r\n"].concat();
        raw(
            "transfer-encoding: chunked\r\n",
            &[chunk.repeat(count), b"0\r\n\r\n".to_vec()].concat(),
        )
    };
    let script = vec![login(), metadata("passphrase"), chunked(MAX_KEY_BYTES / 4096)];
    assert_eq!(passphrase(World::new(script).barbican.fetch(ID)).len(), MAX_KEY_BYTES);
    let script = vec![login(), metadata("passphrase"), chunked(10 * MAX_KEY_BYTES / 4096)];
    assert!(World::fails(script, KeyErrorKind::Malformed).contains("longer than"));
}

#[test]
fn half_a_passphrase_is_none() {
    for half in [
        raw("content-length: 10\r\n", b"12345"),
        raw("transfer-encoding: chunked\r\n", b"5\r\n12345\r\n"),
        raw("transfer-encoding: chunked\r\n", b"5\r\n123"),
    ] {
        let script =
            vec![login(), metadata("passphrase"), half, metadata("passphrase"), payload("whole")];
        assert_eq!(passphrase(World::new(script).barbican.fetch(ID)), "whole");
    }
    let endless = raw("connection: close\r\n", b"12345");
    let text =
        World::fails(vec![login(), metadata("passphrase"), endless], KeyErrorKind::Malformed);
    assert!(text.contains("how long it is"), "{text}");
}

#[test]
fn redirects_are_not_followed() {
    let elsewhere = Server::http(vec![metadata("passphrase")]);
    let to = String::leak(format!("Location: {}\r\n", elsewhere.url("/")));
    let script = vec![login(), Reply::Http(307, to, String::new())];
    let text = World::fails(script, KeyErrorKind::Malformed);
    assert!(text.contains("elsewhere") && text.contains("HTTP 307"), "{text}");
    assert_eq!(elsewhere.finish().len(), 0);
}

#[test]
fn what_passes_is_tried_again() {
    let world = World::new(vec![
        Reply::Close,
        status(503),
        login(),
        status(500),
        Reply::Http(429, "Retry-After: 0\r\n", String::new()),
        metadata("passphrase"),
        status(502),
        metadata("passphrase"),
        payload("one"),
    ]);
    assert_eq!(passphrase(world.barbican.fetch(ID)), "one");
}

#[test]
fn a_server_that_is_not_there_or_says_nothing_is_unreachable() {
    let world = World::with(Vec::new(), impatient(), |config| {
        // Nothing listens at a port that was just given back.
        let port = Server::http(Vec::new()).port();
        config.auth_url = format!("http://127.0.0.1:{port}");
    });
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Unreachable);
    assert!(text.contains("nobody listens there") && text.contains("tried"), "{text}");
    let silence = || (0..9).map(|_| Reply::Silence).collect();
    let world = World::with(silence(), impatient(), |_| {});
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Unreachable);
    assert!(text.contains("doesn't answer in time"), "{text}");
    let world = World::with(Vec::new(), impatient(), |config| {
        config.auth_url = "https://no-such-host.invalid".into();
    });
    failed(world.barbican.fetch(ID), KeyErrorKind::Unreachable);
}

#[test]
fn credentials_that_cannot_be_read_are_unconfigured() {
    let world = World::with(Vec::new(), limits(), |config| {
        config.application_credential_secret_file = Some("/nowhere/secret".into());
    });
    let text = failed(world.barbican.fetch(ID), KeyErrorKind::Unconfigured);
    assert!(text.contains("/nowhere/secret"), "{text}");
}
