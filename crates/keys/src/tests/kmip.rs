//! A KMIP server's worst. (What a real one says: tests/tests/key_managers.rs.)

use super::server::{Reply, Server};
use super::tls::Authority;
use super::{failed, impatient, limits, passphrase};
use crate::KeyErrorKind;
use crate::config::KmipConfig;
use crate::kmip::Kmip;
use crate::patience::Limits;

fn kmip(server: &Server, authority: &Authority, clients: &Authority, limits: Limits) -> Kmip {
    clients.client();
    let config = KmipConfig {
        host: "127.0.0.1".into(),
        port: Some(server.port()),
        version: Some("1.4".into()),
        ca_file: authority.file("ca.pem"),
        cert_file: clients.file("client.pem"),
        key_file: clients.file("client.key"),
        ..KmipConfig::default()
    };
    Kmip::new(config, limits)
}

/// Get's answer for object `1`, an AES key of 5a 00 ff 0a.
fn key() -> Vec<u8> {
    let item = |tag: u32, kind: u8, value: &[u8]| {
        let mut bytes = tag.to_be_bytes()[1..].to_vec();
        bytes.push(kind);
        bytes.extend((value.len() as u32).to_be_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let of = |tag, items: &[Vec<u8>]| item(tag, 1, &items.concat());
    let value = of(0x420045, &[item(0x420043, 8, b"\x5a\x00\xff\x0a")]);
    let block = of(0x420040, &[item(0x420042, 5, &[0, 0, 0, 1]), value]);
    let payload = of(
        0x42007C,
        &[item(0x420057, 5, &[0, 0, 0, 2]), item(0x420094, 7, b"1"), of(0x42008F, &[block])],
    );
    let batch = of(0x42000F, &[item(0x42007F, 5, &[0, 0, 0, 0]), payload]);
    of(0x42007B, &[of(0x42007A, &[]), batch])
}

#[test]
fn a_key_is_hex() {
    let authority = Authority::new("ours");
    let config = authority.server("127.0.0.1", 4000, Some(&authority));
    let server = Server::tls(vec![Reply::Raw(key())], config);
    let kmip = kmip(&server, &authority, &authority, limits());
    assert_eq!(passphrase(kmip.fetch("1")), "5a00ff0a");
}

#[test]
fn another_key_than_the_one_asked_for_is_malformed() {
    let authority = Authority::new("ours");
    let config = authority.server("127.0.0.1", 4000, Some(&authority));
    let server = Server::tls(vec![Reply::Raw(key())], config);
    let kmip = kmip(&server, &authority, &authority, limits());
    let text = failed(kmip.fetch("2"), KeyErrorKind::Malformed);
    assert!(text.contains("not what such a server says"), "{text}");
}

#[test]
fn a_client_certificate_that_is_refused_is_denied() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let config = authority.server("127.0.0.1", 4000, Some(&authority));
    let server = Server::tls(vec![Reply::Raw(key())], config);
    let kmip = kmip(&server, &authority, &other, limits());
    let text = failed(kmip.fetch("1"), KeyErrorKind::Denied);
    assert!(text.contains("refuses this node's certificate"), "{text}");
}

#[test]
fn a_server_of_another_authority_is_not_asked() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::tls(vec![Reply::Raw(key())], other.server("127.0.0.1", 4000, None));
    let kmip = kmip(&server, &authority, &authority, limits());
    let text = failed(kmip.fetch("1"), KeyErrorKind::Unreachable);
    assert!(text.contains("set `ca_file`"), "{text}");
    assert_eq!(server.finish().len(), 0);
}

#[test]
fn an_answer_that_is_none_or_too_long_is_malformed() {
    let authority = Authority::new("ours");
    for bytes in [
        &b"HTTP/1.1 400 no\r\n"[..],
        b"\x42\x00\x7b\x01\x7f\xff\xff\xf8",
        &[0x42, 0, 0x7b, 1, 0, 0, 0, 8, 0x42, 0, 0x7a, 1, 0xff, 0, 0, 0],
    ] {
        let config = authority.server("127.0.0.1", 4000, Some(&authority));
        let server = Server::tls(vec![Reply::Raw(bytes.to_vec())], config);
        let kmip = kmip(&server, &authority, &authority, limits());
        failed(kmip.fetch("1"), KeyErrorKind::Malformed);
    }
}

#[test]
fn a_server_that_breaks_off_is_asked_again() {
    let authority = Authority::new("ours");
    let config = authority.server("127.0.0.1", 4000, Some(&authority));
    let script = vec![Reply::Raw(Vec::new()), Reply::Raw(key()[..20].to_vec()), Reply::Raw(key())];
    let server = Server::tls(script, config);
    let kmip = kmip(&server, &authority, &authority, limits());
    assert_eq!(passphrase(kmip.fetch("1")), "5a00ff0a");
}

#[test]
fn a_server_that_says_nothing_or_is_not_there_is_unreachable() {
    let authority = Authority::new("ours");
    let silence = (0..9).map(|_| Reply::Silence).collect();
    let server = Server::http(silence);
    let client = kmip(&server, &authority, &authority, impatient());
    let text = failed(client.fetch("1"), KeyErrorKind::Unreachable);
    assert!(text.contains("doesn't answer in time"), "{text}");
    drop(server);
    let text = failed(client.fetch("1"), KeyErrorKind::Unreachable);
    assert!(text.contains("nobody listens there"), "{text}");
}

#[test]
fn files_that_do_not_fit_are_unconfigured() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::http(Vec::new());
    drop(kmip(&server, &authority, &authority, limits()));
    drop(kmip(&server, &authority, &other, limits()));
    let config = |ca: &str, key: std::path::PathBuf| KmipConfig {
        host: "127.0.0.1".into(),
        port: Some(server.port()),
        ca_file: authority.file(ca),
        cert_file: authority.file("client.pem"),
        key_file: key,
        ..KmipConfig::default()
    };
    for (config, expected) in [
        (config("missing", authority.file("client.key")), "ca_file"),
        (config("ca.pem", authority.file("missing")), "key_file"),
        (config("ca.pem", authority.file("ca.pem")), "no private key"),
        (config("ca.pem", other.file("client.key")), "doesn't belong"),
    ] {
        let text = failed(Kmip::new(config, limits()).fetch("1"), KeyErrorKind::Unconfigured);
        assert!(text.contains(expected), "{text}");
    }
}
