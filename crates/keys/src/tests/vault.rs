//! Vault and OpenBao.

use serde_json::json;

use super::server::{Reply, Server, json as answer, status};
use super::{failed, impatient, limits, passphrase, secret_file};
use crate::KeyErrorKind;
use crate::config::VaultConfig;
use crate::patience::Limits;
use crate::vault::Vault;

struct World {
    server: Server,
    vault: Vault,
    dir: tempfile::TempDir,
}

impl World {
    fn new(script: Vec<Reply>, change: impl FnOnce(&mut VaultConfig)) -> Self {
        Self::with(script, limits(), change)
    }

    fn with(script: Vec<Reply>, limits: Limits, change: impl FnOnce(&mut VaultConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::http(script);
        let mut config = VaultConfig {
            url: server.url("/"),
            token_file: Some(secret_file(dir.path(), "token", b"s.token\n")),
            ..VaultConfig::default()
        };
        change(&mut config);
        Self { server, vault: Vault::new(config, limits), dir }
    }

    fn with_role(script: Vec<Reply>) -> Self {
        let world = Self::new(script, |config| {
            config.secret_id_file = config.token_file.take();
            config.role_id = Some("role".into());
        });
        secret_file(world.dir.path(), "token", b"secret-id\n");
        world
    }
}

fn record(kind: &str, value: &str) -> serde_json::Value {
    json!({"type": kind, "value": value, "algorithm": "aes", "bit_length": 32, "name": null, "created": 1})
}

fn version2(kind: &str, value: &str) -> Reply {
    answer(
        json!({"lease_id": "", "data": {"data": record(kind, value), "metadata": {"version": 1}}}),
    )
}

fn login(lease: u32) -> Reply {
    answer(
        json!({"auth": {"client_token": format!("t{lease}"), "lease_duration": lease, "renewable": true}}),
    )
}

#[test]
fn both_versions_of_the_engine_are_read_as_castellan_writes_them() {
    let world = World::new(vec![version2("symmetric", "5A00ff0a")], |config| {
        config.namespace = Some("ns/a".into());
    });
    assert_eq!(passphrase(world.vault.fetch("ab12")), "5a00ff0a");
    let asked = &world.server.finish()[0];
    assert_eq!(asked.line, "GET /v1/secret/data/ab12");
    assert_eq!(asked.field("x-vault-token"), Some("s.token"));
    assert_eq!(asked.field("x-vault-namespace"), Some("ns/a"));
    assert_eq!(asked.field("x-vault-request"), Some("true"));

    let version1 = answer(json!({"data": record("passphrase", "536573616d")}));
    let world = World::new(vec![version1], |config| {
        config.kv_version = Some(1);
        config.mount = Some("kv/1".into());
        config.path = Some("volumes".into());
    });
    assert_eq!(passphrase(world.vault.fetch("ab12")), "Sesam");
    let asked = &world.server.finish()[0];
    assert_eq!(asked.line, "GET /v1/kv/1/volumes/ab12");
    assert_eq!(asked.field("x-vault-namespace"), None);
}

#[test]
fn a_token_is_read_anew_each_time() {
    let world =
        World::new(vec![version2("passphrase", "61"), version2("passphrase", "62")], |_| {});
    assert_eq!(passphrase(world.vault.fetch("x")), "a");
    secret_file(world.dir.path(), "token", b"s.renewed");
    assert_eq!(passphrase(world.vault.fetch("x")), "b");
    let asked = world.server.finish();
    assert_eq!(asked[1].field("x-vault-token"), Some("s.renewed"));
}

#[test]
fn a_role_logs_in_once_and_again_when_its_token_is_refused() {
    let world = World::with_role(vec![
        login(3600),
        version2("passphrase", "61"),
        version2("passphrase", "62"),
        status(403),
        login(1800),
        version2("passphrase", "63"),
        status(403),
        login(900),
        status(403),
    ]);
    for expected in ["a", "b", "c"] {
        assert_eq!(passphrase(world.vault.fetch("x")), expected);
    }
    let text = failed(world.vault.fetch("x"), KeyErrorKind::Denied);
    assert!(text.contains("secret/x (HTTP 403)") && text.contains("policy"), "{text}");
    let asked = world.server.finish();
    assert_eq!(asked[0].line, "POST /v1/auth/approle/login");
    assert_eq!(asked[0].json(), json!({"role_id": "role", "secret_id": "secret-id"}));
    assert_eq!(asked[0].field("x-vault-token"), None);
    let tokens: Vec<_> = asked.iter().filter_map(|asked| asked.field("x-vault-token")).collect();
    assert_eq!(tokens, ["t3600", "t3600", "t3600", "t1800", "t1800", "t900"]);
}

#[test]
fn each_refusal_has_its_kind_and_its_advice() {
    let soft = json!({"data": {"data": null, "metadata": {"deletion_time": "2026-11-24T10:00:00Z", "destroyed": false}}});
    let hard =
        json!({"data": {"data": null, "metadata": {"deletion_time": "", "destroyed": true}}});
    let gone = |body: &serde_json::Value| Reply::Http(404, "", body.to_string());
    let cases = [
        (status(403), KeyErrorKind::Denied, "policy"),
        (status(404), KeyErrorKind::Missing, "kv_version"),
        (gone(&soft), KeyErrorKind::Missing, "undelete"),
        (gone(&hard), KeyErrorKind::Missing, "destroyed"),
        (status(405), KeyErrorKind::Malformed, "HTTP 405"),
        (status(307), KeyErrorKind::Malformed, "elsewhere"),
        (version2("passphrase", "no hex"), KeyErrorKind::Malformed, "not in hex"),
        (
            answer(json!({"data": {"value": "61"}})),
            KeyErrorKind::Malformed,
            "not what such a server",
        ),
        (
            answer(json!({"data": {"data": {"value": "61"}}})),
            KeyErrorKind::Malformed,
            "not what such a",
        ),
    ];
    for (reply, kind, advice) in cases {
        let world = World::new(vec![reply], |_| {});
        let text = failed(world.vault.fetch("x"), kind);
        assert!(text.contains(advice) && text.contains("Vault http://127.0.0.1"), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("s.token"), "{text}");
    }
    for (code, kind, advice) in [
        (400, KeyErrorKind::Denied, "AppRole"),
        (403, KeyErrorKind::Denied, "AppRole"),
        (404, KeyErrorKind::Malformed, "approle_mount"),
    ] {
        let text = failed(World::with_role(vec![status(code)]).vault.fetch("x"), kind);
        assert!(text.contains(advice) && !text.contains("secret-id"), "{text}");
    }
}

#[test]
fn a_sealed_server_is_waited_for_and_told() {
    let world = World::new(vec![status(503), version2("passphrase", "61")], |_| {});
    assert_eq!(passphrase(world.vault.fetch("x")), "a");
    let sealed = (0..100).map(|_| status(503)).collect();
    let world = World::with(sealed, impatient(), |_| {});
    let text = failed(world.vault.fetch("x"), KeyErrorKind::Unreachable);
    assert!(text.contains("sealed") && text.contains("tried"), "{text}");
}
