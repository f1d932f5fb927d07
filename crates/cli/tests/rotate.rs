//! Rotations and header backups by the command, with cryptsetup as the judge.
#![expect(clippy::unwrap_used, clippy::panic, reason = "all of this is test code, helpers too")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread;

const HEADER: u64 = 16 << 20;
const DISK: u64 = 16 << 20;

struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn key(&self, name: &str) -> String {
        let path = self.path(name);
        fs::write(&path, name).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        format!("file:{}", path.display())
    }

    fn image(&self) -> PathBuf {
        self.path("disk.img")
    }

    fn volume(&self) -> String {
        format!("file:{}", self.image().display())
    }

    fn sealblk(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(line.split_whitespace()).current_dir(self.dir.path());
        command
    }

    fn succeed(&self, line: &str) -> String {
        let output = self.sealblk(line);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{line}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fail(&self, line: &str) -> (i32, String) {
        let output = self.sealblk(line);
        assert!(!output.status.success(), "{line} succeeded");
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// A volume for the key `old`, its ciphertext random.
    fn formatted(&self) -> (String, String) {
        let (volume, key) = (self.volume(), self.key("old"));
        self.succeed(&format!("format --volume {volume} --key {key} --size 16M --kdf pbkdf2"));
        let mut noise = vec![0; usize::try_from(DISK).unwrap()];
        File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        let image = File::options().write(true).open(self.image()).unwrap();
        image.write_all_at(&noise, HEADER).unwrap();
        (volume, key)
    }

    fn opens_with(&self, key: &str) -> bool {
        let file = key.strip_prefix("file:").unwrap();
        let args = ["open", "--test-passphrase", "--key-file", file];
        Command::new("cryptsetup").args(args).arg(self.image()).output().unwrap().status.success()
    }

    fn ciphertext(&self) -> Vec<u8> {
        fs::read(self.image()).unwrap().split_off(usize::try_from(HEADER).unwrap())
    }

    fn backups(&self) -> Vec<PathBuf> {
        let names = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.to_str().unwrap().ends_with(".luks-header")).collect()
    }
}

/// The plaintext, by the volume key that cryptsetup finds with this passphrase.
fn volume_key(scratch: &Scratch, key: &str) -> Vec<u8> {
    let file = scratch.path("volume-key");
    let _ = fs::remove_file(&file);
    let output = Command::new("cryptsetup")
        .args(["luksDump", "-q", "--dump-volume-key", "--key-file", &key["file:".len()..]])
        .arg("--volume-key-file")
        .arg(&file)
        .arg(scratch.image())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::read(file).unwrap()
}

fn decrypt(key: &[u8], mut data: Vec<u8>) -> Vec<u8> {
    let secret = sealblk_secret::SecretBytes::copy_from(key).unwrap();
    let algorithm = sealblk_cipher::Algorithm::Aes256XtsPlain64;
    let which = sealblk_cipher::Implementation::Auto;
    let mut cipher = sealblk_cipher::sector_cipher(algorithm, &secret, 512, which).unwrap();
    sealblk_cipher::decrypt_in_place(&mut *cipher, 0, &mut data);
    data
}

#[test]
fn a_rotation_leaves_the_data_and_only_the_new_secret() {
    let scratch = Scratch::new();
    let (volume, old) = scratch.formatted();
    let new = scratch.key("new");
    let (old_key, before) = (volume_key(&scratch, &old), scratch.ciphertext());
    let plain = decrypt(&old_key, before.clone());
    let out = scratch.succeed(&format!(
        "rotate --volume {volume} --key {old} --new-key {new} --hotzone 2M --yes"
    ));
    assert!(out.contains("completed, 100.0 %, 16 MiB of 16 MiB"), "{out}");
    assert!(out.contains(&format!("secret      {old} -> {new}")), "{out}");
    assert!(!scratch.opens_with(&old) && scratch.opens_with(&new));
    let new_key = volume_key(&scratch, &new);
    assert_ne!(new_key, old_key);
    assert!(decrypt(&new_key, scratch.ciphertext()) == plain);
    assert!(scratch.ciphertext() != before);
    let inspection = scratch.succeed(&format!("inspect --volume {volume}"));
    assert!(inspection.contains("pbkdf2-sha256 1000 iterations"), "as it was: {inspection}");
    assert_eq!(scratch.backups(), [] as [PathBuf; 0], "it holds the old key");
    assert!(!scratch.succeed(&format!("inspect --volume {volume}")).contains("rotation"));
}

#[test]
fn without_a_new_secret_the_volume_key_alone_changes() {
    let scratch = Scratch::new();
    let (volume, old) = scratch.formatted();
    let key = volume_key(&scratch, &old);
    let out = scratch.succeed(&format!("rotate --volume {volume} --key {old} --yes"));
    assert!(out.contains(&format!("secret      {old}, stays")), "{out}");
    assert!(scratch.opens_with(&old));
    assert_ne!(volume_key(&scratch, &old), key);
}

/// Reads the lines of a rotation until it has moved something; gives what reads on.
fn until_it_moves(child: &mut Child) -> BufReader<ChildStdout> {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for line in output.by_ref().lines() {
        let line = line.unwrap();
        if line.starts_with("running, ") && !line.starts_with("running, 0.0 %")
            || line.starts_with("throttled, ") && !line.starts_with("throttled, 0.0 %")
        {
            return output;
        }
    }
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    panic!("it ended: {errors}");
}

fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

#[test]
fn an_interrupted_rotation_goes_on_with_the_same_command() {
    for how in ["-INT", "-KILL"] {
        let scratch = Scratch::new();
        let (volume, old) = scratch.formatted();
        let new = scratch.key("new");
        let plain = decrypt(&volume_key(&scratch, &old), scratch.ciphertext());
        // So slow that it can't be at its end before it is interrupted.
        let line =
            format!("rotate --volume {volume} --key {old} --new-key {new} --hotzone 256K --yes");
        let mut child = scratch
            .command(&format!("{line} --rate 512K"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = until_it_moves(&mut child);
        signal(&child, how);
        let status = child.wait().unwrap();
        drop(output);
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert!(!status.success());
        if how == "-INT" {
            assert!(errors.contains("the same command goes on"), "{errors}");
            let inspection = scratch.succeed(&format!("inspect --volume {volume}"));
            assert!(inspection.contains("re-encrypted up to "), "{inspection}");
            assert!(inspection.contains("of 16 MiB (") && inspection.contains("CLEAN"));
            assert!(scratch.opens_with(&old) && scratch.opens_with(&new));
            let backup = scratch.backups().pop().unwrap();
            let restore =
                format!("header restore --volume {volume} --file {} --yes", backup.display());
            let (code, why) = scratch.fail(&restore);
            assert!(code == 3 && why.contains("data has moved"), "{why}");
        }
        let json = scratch.succeed(&format!("inspect --volume {volume} --json"));
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(json["rotation"]["done_bytes"].as_u64().unwrap() > 0, "{json}");
        assert_eq!(json["rotation"]["new_secret"], new.as_str());

        let out = scratch.succeed(&line);
        assert!(out.contains("completed, 100.0 %"), "{out}");
        assert!(!scratch.opens_with(&old) && scratch.opens_with(&new));
        assert!(decrypt(&volume_key(&scratch, &new), scratch.ciphertext()) == plain, "{how}");
        assert!(scratch.backups().is_empty());
    }
}

#[test]
fn nothing_is_changed_by_a_wrong_key_or_without_consent() {
    let scratch = Scratch::new();
    let (volume, old) = scratch.formatted();
    let new = scratch.key("new");
    let before = fs::read(scratch.image()).unwrap();
    let (code, why) = scratch.fail(&format!("rotate --volume {volume} --key {new} --yes"));
    assert!(code == 1 && why.contains("no keyslot opens"), "{why}");
    let (code, why) =
        scratch.fail(&format!("rotate --volume {volume} --key {old} --new-key {new}"));
    assert!(code == 3 && why.contains("afterwards only"), "{why}");
    let (code, why) =
        scratch.fail(&format!("rotate --volume {volume} --key {old} --new-key {old} --yes"));
    assert!(code == 3 && why.contains("both keys are the same"), "{why}");
    fs::write(scratch.path("taken"), "precious").unwrap();
    let (code, why) =
        scratch.fail(&format!("rotate --volume {volume} --key {old} --header-backup taken --yes"));
    assert!(code == 3 && why.contains("is there already"), "{why}");
    assert!(fs::read(scratch.image()).unwrap() == before);
    assert!(scratch.backups().is_empty());
}

#[test]
fn a_header_is_backed_up_and_restored() {
    let scratch = Scratch::new();
    let (volume, old) = scratch.formatted();
    scratch.succeed(&format!("header backup --volume {volume} --file saved"));
    let (code, why) = scratch.fail(&format!("header backup --volume {volume} --file saved"));
    assert!(code == 3 && why.contains("is there already"), "{why}");
    let whole = fs::read(scratch.image()).unwrap();
    let image = File::options().write(true).open(scratch.image()).unwrap();
    image.write_all_at(&[0; 32 << 10], 0).unwrap();
    assert!(!scratch.opens_with(&old));
    let restore = format!("header restore --volume {volume} --file saved");
    let (code, why) = scratch.fail(&restore);
    assert!(code == 3 && why.contains("--yes"), "{why}");
    let out = scratch.succeed(&format!("{restore} --yes"));
    assert!(out.contains("has the header of saved again"), "{out}");
    assert!(fs::read(scratch.image()).unwrap() == whole);
    // After a rotation it would destroy the volume.
    scratch.succeed(&format!("rotate --volume {volume} --key {old} --yes"));
    let (code, why) = scratch.fail(&format!("{restore} --yes"));
    assert!(code == 3 && why.contains("has another key now"), "{why}");
}

/// A daemon that answers each connection with the next of `answers`; gives what it was asked.
fn daemon(socket: &Path, answers: Vec<(u16, String)>) -> thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(&stream);
            let (mut head, mut len) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    len = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                if head.is_empty() {
                    head = line.trim().to_owned();
                }
            }
            let mut content = vec![0; len];
            reader.read_exact(&mut content).unwrap();
            asked.push(format!("{head} {}", String::from_utf8(content).unwrap()));
            let len = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {len}\r\nConnection: close");
            (&stream).write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        }
        asked
    })
}

fn running(done: u64) -> (u16, String) {
    let state = if done == 100 { "completed" } else { "running" };
    (200, format!(r#"{{"state":"{state}","done_bytes":{done},"total_bytes":100}}"#))
}

#[test]
fn orders_reach_the_daemon_and_its_refusals_the_operator() {
    let scratch = Scratch::new();
    let status = (200, r#"{"volumes":[{"name":"a b"}]}"#.to_owned());
    let refusal = (409, r#"{"error":"volume \"a b\": no rotation"}"#.to_owned());
    let answers =
        vec![status.clone(), status, running(0), running(1), refusal, running(7), running(100)];
    let asked = daemon(&scratch.path("s"), answers);
    let sealblk = |args: &[&str]| {
        let mut command = scratch.command("rotate");
        command.args(args).args(["--control", "s", "--volume", "a b"]).output().unwrap()
    };
    let refused = sealblk(&["start", "--new-key", "file:/n"]);
    assert_eq!(refused.status.code(), Some(3), "nobody was there to agree");
    let start = ["start", "--new-key", "file:/n", "--rate", "1M", "--yes"];
    assert!(sealblk(&start).status.success());
    assert!(sealblk(&["throttle", "--rate", "none"]).status.success());
    let paused = sealblk(&["pause"]);
    assert_eq!(paused.status.code(), Some(1));
    assert!(String::from_utf8(paused.stderr).unwrap().contains("no rotation"));
    let watched = sealblk(&["status", "--watch"]);
    assert!(watched.status.success());
    let out = String::from_utf8(watched.stdout).unwrap();
    assert!(out.contains("running, 7.0 %") && out.contains("completed, 100.0 %"), "{out}");
    let asked = asked.join().unwrap();
    let rotation = "/v1/volumes/a%20b/rotation HTTP/1.1";
    let order = |at: usize| {
        let body = asked[at].strip_prefix(&format!("POST {rotation} ")).unwrap();
        serde_json::from_str::<serde_json::Value>(body).unwrap()
    };
    let start = order(2);
    assert_eq!(start["action"], "start");
    assert_eq!(start["new_key"], "file:/n");
    assert_eq!(start["rate_bytes"], 1 << 20);
    assert_eq!(order(3), serde_json::json!({"action": "throttle", "rate_bytes": null}));
    assert_eq!(order(4), serde_json::json!({"action": "pause"}));
    assert_eq!(asked[5], format!("GET {rotation} "));
}

#[test]
fn a_failed_rotation_is_a_failure_of_who_watches() {
    let scratch = Scratch::new();
    let failed = r#"{"state":"failed","done_bytes":5,"total_bytes":100,"trouble":"on fire"}"#;
    let asked = daemon(&scratch.path("s"), vec![running(5), (200, failed.to_owned())]);
    let (code, why) = scratch.fail("rotate status --control s --volume a --watch");
    assert!(code == 1 && why.contains("failed: on fire"), "{why}");
    asked.join().unwrap();
}
