//! `rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][?conf=PATH&user=ID&keyring=PATH]`

use std::path::PathBuf;

use super::options::{decode, split};

/// An image on Ceph, and how to get there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RbdName {
    /// The pool.
    pub pool: String,
    /// The namespace in the pool; none: the pool's own.
    pub namespace: Option<String>,
    /// The image.
    pub image: String,
    /// A snapshot of it, which can only be read; none: the image itself.
    pub snapshot: Option<String>,
    /// The cluster's configuration; none: where Ceph looks by itself (/etc/ceph/ceph.conf).
    pub conf: Option<PathBuf>,
    /// The cephx user, without `client.`; none: `admin`.
    pub user: Option<String>,
    /// The user's keyring; none: what the configuration says.
    pub keyring: Option<PathBuf>,
}

impl RbdName {
    /// Reads what follows `rbd:`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "an image is named rbd:POOL/IMAGE or rbd:POOL/NAMESPACE/IMAGE, \
                            with options behind it: ?conf=PATH&user=ID&keyring=PATH";
        let (place, options) = split(text)?;
        let (place, snapshot) = match place.split_once('@') {
            Some((place, snapshot)) => (place, Some(decode(snapshot)?)),
            None => (place, None),
        };
        let parts = place.split('/').map(decode).collect::<Result<Vec<_>, _>>()?;
        let (pool, namespace, image) = match parts.as_slice() {
            [pool, image] => (pool, None, image),
            [pool, namespace, image] => (pool, Some(namespace.clone()), image),
            _ => return Err(FORM.to_owned()),
        };
        let empty = |part: &String| part.is_empty();
        if parts.iter().any(|part| part.is_empty()) || snapshot.as_ref().is_some_and(empty) {
            return Err(FORM.to_owned());
        }
        if image.contains(":id=") || image.contains(":conf=") {
            return Err(format!("options are not written as QEMU's: {FORM}"));
        }
        let mut name = Self {
            pool: pool.clone(),
            namespace,
            image: image.clone(),
            snapshot,
            conf: None,
            user: None,
            keyring: None,
        };
        for (key, value) in options {
            match key {
                "conf" => name.conf = Some(absolute(key, value)?),
                "keyring" => name.keyring = Some(absolute(key, value)?),
                "user" | "id" => {
                    let id = value.strip_prefix("client.").unwrap_or(&value).to_owned();
                    if name.user.replace(id).is_some() {
                        return Err("`user` and `id` mean the same".to_owned());
                    }
                }
                _ => return Err(format!("there is no option `{key}`: conf, user, keyring")),
            }
        }
        Ok(name)
    }
}

/// A path that doesn't depend on the daemon's directory.
pub(super) fn absolute(key: &str, value: String) -> Result<PathBuf, String> {
    let path = PathBuf::from(value);
    if path.is_absolute() { Ok(path) } else { Err(format!("`{key}` wants an absolute path")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_with_everything() {
        let name = RbdName::parse("vol/ns/a%40b@s1?conf=/c&user=client.cinder&keyring=/k").unwrap();
        assert_eq!((name.pool.as_str(), name.image.as_str()), ("vol", "a@b"));
        assert_eq!((name.namespace.as_deref(), name.snapshot.as_deref()), (Some("ns"), Some("s1")));
        assert_eq!((name.conf, name.user.as_deref()), (Some("/c".into()), Some("cinder")));
        assert_eq!(name.keyring, Some("/k".into()));
    }

    #[test]
    fn what_is_none() {
        for bad in [
            "vol",
            "vol/",
            "/img",
            "a/b/c/d",
            "a/b@",
            "a/b?x=1",
            "a/b?conf=rel",
            "a/b?user=x&id=y",
            "a/b:id=x",
            "",
        ] {
            assert!(RbdName::parse(bad).is_err(), "{bad}");
        }
    }
}
