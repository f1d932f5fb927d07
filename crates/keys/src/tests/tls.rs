//! Who is trusted.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;

use super::server::{Reply, Server, json as answer};
use super::{failed, limits, passphrase, secret_file};
use crate::KeyErrorKind;
use crate::config::VaultConfig;
use crate::vault::Vault;

/// An authority, in files and in memory.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(super) dir: tempfile::TempDir,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        secret_file(dir.path(), "ca.pem", issuer.pem().as_bytes());
        Self { issuer, dir }
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(
        &self,
        name: &str,
        year: i32,
        purpose: ExtendedKeyUsagePurpose,
    ) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// `client.pem` and `client.key`.
    pub(super) fn client(&self) {
        let (certificate, key) = self.issue("client", 4000, ExtendedKeyUsagePurpose::ClientAuth);
        secret_file(self.dir.path(), "client.pem", certificate.pem().as_bytes());
        secret_file(self.dir.path(), "client.key", key.serialize_pem().as_bytes());
    }

    /// A server of this name, for clients of `clients`' or for all.
    pub(super) fn server(&self, name: &str, year: i32, clients: Option<&Self>) -> ServerConfig {
        let (certificate, key) = self.issue(name, year, ExtendedKeyUsagePurpose::ServerAuth);
        let builder = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots.add(clients.issuer.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    crate::tls::provider(),
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
    }
}

fn vault(server: &Server, ca_file: Option<PathBuf>, dir: &tempfile::TempDir) -> Vault {
    let config = VaultConfig {
        url: format!("https://127.0.0.1:{}", server.port()),
        token_file: Some(secret_file(dir.path(), "token", b"t")),
        ca_file,
        ..VaultConfig::default()
    };
    Vault::new(config, limits())
}

fn key() -> Reply {
    answer(json!({"data": {"data": {"type": "passphrase", "value": "61"}}}))
}

#[test]
fn a_server_of_the_configured_authority_is_trusted() {
    let authority = Authority::new("ours");
    let server = Server::tls(vec![key()], authority.server("127.0.0.1", 4000, None));
    let vault = vault(&server, Some(authority.file("ca.pem")), &authority.dir);
    assert_eq!(passphrase(vault.fetch("x")), "a");
}

#[test]
fn no_other_server_gets_a_token() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let ours = Some(authority.file("ca.pem"));
    for (config, ca_file, expected) in [
        (other.server("127.0.0.1", 4000, None), ours.clone(), "set `ca_file`"),
        (authority.server("127.0.0.1", 4000, None), Some(other.file("ca.pem")), "set `ca_file`"),
        (authority.server("localhost", 4000, None), ours.clone(), "for another name"),
        (authority.server("127.0.0.1", 2021, None), ours, "has expired"),
    ] {
        let server = Server::tls(vec![key()], config);
        let vault = vault(&server, ca_file, &authority.dir);
        let text = failed(vault.fetch("x"), KeyErrorKind::Unreachable);
        assert!(text.contains(expected), "{text}");
        assert_eq!(server.finish().len(), 0);
    }
}

#[test]
fn a_server_without_tls_is_told() {
    let authority = Authority::new("ours");
    let server = Server::http(vec![Reply::Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())]);
    let vault = vault(&server, Some(authority.file("ca.pem")), &authority.dir);
    let text = failed(vault.fetch("x"), KeyErrorKind::Unreachable);
    assert!(text.contains("doesn't speak TLS"), "{text}");
}

#[test]
fn a_file_without_certificates_is_told() {
    let authority = Authority::new("ours");
    let server = Server::http(Vec::new());
    for (name, expected) in [("missing", "No such file"), ("token", "no certificate in PEM")] {
        let vault = vault(&server, Some(authority.file(name)), &authority.dir);
        let text = failed(vault.fetch("x"), KeyErrorKind::Unconfigured);
        assert!(text.contains(expected) && text.contains(name), "{text}");
    }
}
