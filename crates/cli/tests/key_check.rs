//! `sealblk key check`: exit status, and what it says.
#![expect(clippy::unwrap_used, reason = "all of this is test code, helpers too")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Exit status, standard output and standard error.
fn check(key: &str, managers: &Path, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    command.args(["key", "check", "--key", key, "--key-managers"]).arg(managers).args(more);
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn file(path: &Path, content: &str, mode: u32) {
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn each_kind_of_failure_has_its_status_and_no_key_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let (key, managers) = (dir.path().join("key"), dir.path().join("keys.toml"));
    let source = format!("file:{}", key.display());
    let missing = format!("file:{}", dir.path().join("missing").display());
    file(&key, "hunter2", 0o640);
    file(&managers, "[vault]\nurl = \"http://127.0.0.1:9\"\ntoken_file = \"/nowhere\"\n", 0o600);

    let (status, out, err) = check(&source, &managers, &[]);
    assert_eq!((status, out.as_str()), (0, format!("key {source}: it can be got\n").as_str()));
    assert!(err.contains("mode 0640") && !err.contains("hunter2"), "{err}");
    let (status, out, _) = check(&source, &managers, &["--json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &answer["ok"]), (0, &true.into()));
    assert!(answer["warning"].as_str().unwrap().contains("0640") && !out.contains("hunter2"));

    file(&key, "", 0o600);
    for (source, status, kind) in [
        (missing.as_str(), 5, "missing"),
        (source.as_str(), 7, "malformed"),
        ("kmip:1", 8, "unconfigured"),
        ("vault:a", 8, "unconfigured"),
    ] {
        let (code, out, err) = check(source, &managers, &["--json"]);
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, answer["kind"].as_str()), (status, Some(kind)), "{out}{err}");
        assert!(err.contains(&format!("sealblk: key {source}: ")), "{err}");
    }
}

#[test]
fn a_configuration_that_cannot_be_used_is_unconfigured_and_only_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let (key, managers) = (dir.path().join("key"), dir.path().join("keys.toml"));
    file(&key, "hunter2", 0o600);
    file(&managers, "[vault]\ntoken = \"hunter2\"\n", 0o600);
    let (status, out, err) = check("vault:a", &managers, &[]);
    assert_eq!((status, out.as_str()), (8, ""));
    assert!(err.contains("line 2: unknown field `token`") && !err.contains("hunter2"), "{err}");
    let (status, ..) = check(&format!("file:{}", key.display()), &managers, &[]);
    assert_eq!(status, 0);
}
