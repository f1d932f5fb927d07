//! What OpenBao 2.7.2 really said, once (`scripts/record_openbao.py`), and what it must be taken for.

use std::time::Duration;

use serde_json::Value;

use super::server::{Reply, Server};
use super::{failed, limits, passphrase, secret_file};
use crate::KeyErrorKind;
use crate::config::VaultConfig;
use crate::patience::Limits;
use crate::vault::Vault;

fn kind(name: &str) -> KeyErrorKind {
    let all = [
        KeyErrorKind::Denied,
        KeyErrorKind::Missing,
        KeyErrorKind::Unreachable,
        KeyErrorKind::Malformed,
        KeyErrorKind::Unconfigured,
    ];
    all.into_iter().find(|kind| kind.as_str() == name).unwrap()
}

#[test]
fn the_recorded_server_is_asked_and_understood_as_it_was() {
    let recorded: Value = serde_json::from_str(include_str!("openbao.json")).unwrap();
    let secret = recorded["secret"].as_str().unwrap();
    let mut kinds = Vec::new();
    for case in recorded["cases"].as_array().unwrap() {
        let (name, key) = (case["name"].as_str().unwrap(), case["key"].as_str().unwrap());
        let exchanges = case["exchanges"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let replies = exchanges.iter().map(|exchange| {
            let status = u16::try_from(exchange["status"].as_u64().unwrap()).unwrap();
            Reply::Http(status, "content-type: application/json\r\n", text(&exchange["body"]))
        });
        let server = Server::http(replies.collect());
        let dir = tempfile::tempdir().unwrap();
        let file = secret_file(dir.path(), "credential", b"credential");
        let by_role = case["login"] == "role";
        let version = u8::try_from(case["kv_version"].as_u64().unwrap()).unwrap();
        let config = VaultConfig {
            url: server.url(""),
            kv_version: Some(version),
            mount: Some(if version == 1 { "kv1" } else { "secret" }.into()),
            role_id: by_role.then(|| "role".into()),
            secret_id_file: by_role.then(|| file.clone()),
            token_file: (!by_role).then_some(file),
            ..VaultConfig::default()
        };
        // One attempt, as it was recorded: there is no time for a second one.
        let total = Duration::from_secs(20);
        let fetched =
            Vault::new(config, Limits { total, first_pause: 3 * total, ..limits() }).fetch(key);
        match case["kind"].as_str() {
            None if name.starts_with("symmetric") => {
                assert_eq!(passphrase(fetched), secret, "{name}")
            }
            None => {
                let bytes = fetched.unwrap().passphrase;
                let hex = crate::codec::to_hex(bytes.expose()).unwrap();
                assert_eq!(hex.expose(), secret.as_bytes(), "{name}");
            }
            Some(expected) => {
                failed(fetched, kind(expected));
                kinds.push(expected.to_owned());
            }
        }
        let asked = server.finish();
        assert_eq!(asked.len(), exchanges.len(), "{name}");
        for (asked, exchange) in asked.iter().zip(exchanges) {
            assert_eq!(asked.line, text(&exchange["asked"]), "{name}");
            let with_token = exchange["with_token"].as_bool().unwrap();
            assert_eq!(asked.field("x-vault-token").is_some(), with_token, "{name}");
        }
    }
    for expected in ["denied", "missing", "unreachable"] {
        assert!(kinds.iter().any(|kind| kind == expected), "nothing is {expected}");
    }
}
