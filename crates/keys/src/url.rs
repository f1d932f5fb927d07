//! Addresses of servers that tokens and secrets may be sent to.

use ureq::http::Uri;

/// Refuses what isn't plainly the address of a server, and unencrypted ones unless they are this
/// machine's own or `insecure_http` allows them. `name` is the setting's.
pub(crate) fn check(name: &str, text: &str, insecure_http: bool) -> Result<(), String> {
    // What stands in it may be a password that somebody put there, so it isn't repeated.
    let uri: Uri = text.parse().map_err(|_| format!("`{name}` is no URL"))?;
    let (Some(scheme), Some(host), Some(authority)) =
        (uri.scheme_str(), uri.host(), uri.authority())
    else {
        return Err(format!("`{name}` must be a whole URL: https://HOST[:PORT][/PATH]"));
    };
    if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
        return Err(format!("`{name}` must have no user, query or fragment"));
    }
    match scheme {
        "https" => Ok(()),
        "http" if insecure_http || is_loopback(host) => Ok(()),
        "http" => Err(format!(
            "`{name}` is not encrypted (http://{host}): whoever listens gets tokens and keys. Use \
             https, or allow it with `insecure_http = true`"
        )),
        _ => Err(format!("`{name}` must begin with https://")),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
}

/// The base without slashes at its end, with `version` as its last segment.
pub(crate) fn versioned(base: &str, version: &str) -> String {
    let base = base.trim_end_matches('/');
    if base.ends_with(&format!("/{version}")) {
        base.to_owned()
    } else {
        format!("{base}/{version}")
    }
}

/// Scheme, host and port, for messages.
pub(crate) fn server(url: &str) -> String {
    let uri: Option<Uri> = url.parse().ok();
    let parts = uri.as_ref().and_then(|uri| Some((uri.scheme_str()?, uri.authority()?)));
    parts.map_or_else(
        || "the server".to_owned(),
        |(scheme, authority)| format!("{scheme}://{authority}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_encrypted_or_local_servers_are_taken() {
        let fine = [
            "https://h",
            "https://h:5000/v3/",
            "https://[2001:db8::1]/x",
            "http://127.0.0.1:1",
            "http://[::1]:1",
            "http://localhost",
        ];
        for url in fine {
            check("url", url, false).unwrap();
        }
        for url in ["http://h", "http://10.0.0.1:1/x", "http://127.0.0.1.evil.example"] {
            let error = check("url", url, false).unwrap_err();
            assert!(error.contains("insecure_http"), "{error}");
            check("url", url, true).unwrap();
        }
    }

    #[test]
    fn what_is_no_plain_address_is_refused_and_not_repeated() {
        for url in [
            "",
            "hunter2",
            "h:5000",
            "/hunter2",
            "ftp://h",
            "https://u:hunter2@h",
            "https://h?hunter2",
            "https://h/#hunter2",
            "https://h /",
        ] {
            let error = check("url", url, true).unwrap_err();
            assert!(error.contains("`url`") && !error.contains("hunter2"), "{url}: {error}");
        }
    }

    #[test]
    fn a_version_is_appended_once() {
        for base in ["https://h:1", "https://h:1/", "https://h:1/v3", "https://h:1/v3/"] {
            assert_eq!(versioned(base, "v3"), "https://h:1/v3");
        }
        assert_eq!(versioned("https://h/identity", "v3"), "https://h/identity/v3");
        assert_eq!(server("https://h:1/v3/auth"), "https://h:1");
    }
}
