//! What a daemon at work tells those who watch it: metrics that Prometheus' own parser takes, with
//! every name that the dashboard and the alerts use; a control API as docs/openapi.json describes it;
//! an audit log of who did what.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sealblk_tests::{Client, Document, Load, Pattern, Rotating, TestVolume, until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Head and body of the answer to a request.
fn http(control: &Path, method: &str, path: &str, body: &str) -> Result<(String, String)> {
    let mut stream = UnixStream::connect(control)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let len = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    let code = head.split(' ').nth(1).context("no status")?;
    Ok((code.to_owned(), body.to_owned()))
}

fn metrics(world: &Rotating) -> Result<String> {
    let (code, body) = http(world.control(), "GET", "/metrics", "")?;
    ensure!(code == "200", "{code}: {body}");
    Ok(body)
}

/// Sum of a metric's samples whose labels contain all of `with`.
fn sum(page: &str, name: &str, with: &[&str]) -> f64 {
    page.lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.split_once("} "))
        .filter(|(labels, _)| with.iter().all(|label| labels.contains(label)))
        .filter_map(|(_, value)| value.parse::<f64>().ok())
        .sum()
}

/// `scripts/promtool.sh`, which must be content.
fn promtool(args: &[&str]) -> Result<String> {
    let output = Command::new(root().join("scripts/promtool.sh")).args(args).output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(output.status.success(), "promtool {args:?}: {said}");
    Ok(said)
}

/// Names of ours in a text, without the suffixes of a histogram's series.
fn our_names(text: &str, families: &BTreeSet<String>) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c)).filter(|word| word.starts_with("sealblk_"));
    let base = |word: &str| {
        let cut = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end));
        cut.filter(|cut| families.contains(*cut)).unwrap_or(word).to_owned()
    };
    words.map(base).collect()
}

/// Expressions of a dashboard, wherever they are in it.
fn expressions(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(object) => {
            for (key, value) in object {
                match (key.as_str(), value) {
                    ("expr" | "query", Value::String(text)) => found.push(text.clone()),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|one| expressions(one, found)),
        _ => {}
    }
}

/// Puts a mixed load on the disk for at least so many requests.
fn load(world: &Rotating, requests: u64) -> Result<()> {
    let content = Pattern(83).bytes(0, 16 << 20);
    let mut load = Load::new(content.clone(), 1, 16, true);
    let mut client = load.connect(world.daemon.socket())?;
    client.write(0, &content)?;
    load.run(&mut client, |done| Ok(done >= requests))?;
    load.check_all(&mut client)
}

#[test]
fn a_daemon_under_load_is_seen_by_prometheus_and_every_metric_in_use_exists() -> Result<()> {
    let volume = TestVolume::formatted(16 * MIB, 512)?;
    let mut world = Rotating::serve(&volume, &["--discard"])?;
    load(&world, 4000)?;
    world.order("start", &["--rate", "4M"])?;
    let page = metrics(&world)?;
    let file = volume.scratch.file("metrics");
    std::fs::write(&file, &page)?;
    promtool(&["metrics", &file.display().to_string()])?;

    // Some of thousands were timed, and their stages are within the whole.
    let name = "sealblk_request_duration_seconds";
    for kind in ["read", "write", "flush", "discard"] {
        let label = format!("type=\"{kind}\"");
        let (timed, all) = (
            sum(&page, &format!("{name}_count"), &[&label]),
            sum(&page, "sealblk_queue_requests_total", &[&label]),
        );
        ensure!(all > 50.0 && timed < all, "{kind}: {timed} of {all}");
    }
    let moves = ["read", "write"].map(|kind| format!("type=\"{kind}\""));
    for label in &moves {
        ensure!(sum(&page, &format!("{name}_count"), &[label]) > 0.0, "none of {label} was timed");
        for stage in ["queue", "cipher", "volume"] {
            let stage = format!("stage=\"{stage}\"");
            let spent = sum(&page, "sealblk_request_stage_seconds_sum", &[label, &stage]);
            let whole = sum(&page, &format!("{name}_sum"), &[label]);
            ensure!(spent > 0.0 && spent < whole, "{label} {stage}: {spent} of {whole}");
        }
        ensure!(sum(&page, "sealblk_request_size_bytes_sum", &[label]) > 0.0);
    }
    ensure!(
        sum(&page, "sealblk_rotation_state", &["state=\"running\""]) == 1.0
            || sum(&page, "sealblk_rotation_state", &["state=\"throttled\""]) == 1.0,
        "{page}"
    );
    ensure!(page.contains("sealblk_rotation_limit_bytes_per_second{volume=\"vu\"} 4194304"));
    let info = page.lines().find(|line| line.starts_with("sealblk_volume_info{"));
    let info = info.context("no sealblk_volume_info")?;
    ensure!(
        info.contains("luks_version=\"2\"") && info.contains("cipher=\"aes-xts-plain64\""),
        "{info}"
    );

    // Dashboard and alerts know no other names.
    let families: BTreeSet<String> = page
        .lines()
        .filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned()))
        .collect();
    // The agent's own are not on a daemon's page.
    let source = std::fs::read_to_string(root().join("backend/src/agent/metrics.rs"))?;
    let agents: BTreeSet<String> = source
        .split('"')
        .filter(|text| text.starts_with("sealblk_agent_"))
        .map(str::to_owned)
        .collect();
    let rules = std::fs::read_to_string(root().join("dist/prometheus/sealblk-alerts.yml"))?;
    let rules: String = rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|l| format!("{l}\n"))
        .collect();
    let dashboard = std::fs::read_to_string(root().join("dist/grafana/sealblk.json"))?;
    let mut used = Vec::new();
    expressions(&serde_json::from_str(&dashboard)?, &mut used);
    ensure!(used.len() > 20, "the dashboard has {} expressions", used.len());
    used.push(rules);
    for text in &used {
        let unknown: Vec<_> = our_names(text, &families)
            .into_iter()
            .filter(|name| !families.contains(name) && !agents.contains(name))
            .collect();
        ensure!(unknown.is_empty(), "{unknown:?} in {text}");
    }
    world.daemon.must_run()
}

#[test]
fn the_alert_rules_pass_their_tests_and_each_has_one_and_its_advice() -> Result<()> {
    let said = promtool(&["rules"])?;
    ensure!(said.contains("rules found") && said.contains("SUCCESS"), "{said}");
    let read = |path: &str| std::fs::read_to_string(root().join(path));
    let rules = read("dist/prometheus/sealblk-alerts.yml")?;
    let tests = read("dist/prometheus/sealblk-alerts-test.yml")?;
    let docs = read("docs/observability.md")?;
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() > 15, "{alerts:?}");
    // An alert that a test never expects to fire might never fire.
    let fires: BTreeSet<&str> = tests
        .lines()
        .filter(|line| !line.contains("exp_alerts: []"))
        .filter_map(|line| line.trim().strip_prefix("alertname: "))
        .collect();
    let advised: BTreeSet<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `Sealblk")?.split('`').next())
        .collect();
    let short: BTreeSet<&str> =
        alerts.iter().filter_map(|name| name.strip_prefix("Sealblk")).collect();
    ensure!(alerts == fires, "{:?} have no test", alerts.symmetric_difference(&fires));
    ensure!(short == advised, "{:?} in docs", short.symmetric_difference(&advised));
    Ok(())
}

#[test]
fn the_control_api_answers_as_its_document_says() -> Result<()> {
    let volume = TestVolume::formatted(16 * MIB, 512)?;
    let world = Rotating::serve(&volume, &[])?;
    let document = Document::read()?;
    let (rotation, resize) = ("/v1/volumes/{name}/rotation", "/v1/volumes/{name}/resize");
    let ask = |method: &str, path: &str, name: &str, body: &Value, code: &str| -> Result<Value> {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let real = path.replace("{name}", name);
        let (found, answer) = http(world.control(), method, &real, &text)?;
        ensure!(found == code, "{method} {real} {text}: {found} {answer}");
        let answer: Value = serde_json::from_str(&answer)?;
        document.check_answer(path, &method.to_lowercase(), code, &answer)?;
        Ok(answer)
    };
    let none = Value::Null;
    let status = ask("GET", "/v1/status", "", &none, "200")?;
    ensure!(status["volumes"][0]["encryption"]["luks_version"] == 2, "{status}");
    ask("GET", "/healthz", "", &none, "200")?;
    ask("GET", rotation, "vu", &none, "200")?;
    ask("GET", rotation, "nobody", &none, "404")?;
    ask("POST", resize, "vu", &none, "200")?;
    ask("POST", resize, "nobody", &none, "404")?;
    let orders = [
        (serde_json::json!({"action": "pause"}), "409"),
        (serde_json::json!({"action": "start", "rate_bytes": 1 << 20}), "200"),
        (serde_json::json!({"action": "throttle", "rate_bytes": 2 << 20}), "200"),
        (serde_json::json!({"action": "pause"}), "200"),
        (serde_json::json!({"action": "resume"}), "200"),
    ];
    for (order, code) in &orders {
        document.check_order(rotation, "post", order)?;
        ask("POST", rotation, "vu", order, code)?;
    }
    let (code, refusal) =
        http(world.control(), "POST", "/v1/volumes/vu/rotation", "{\"action\":\"explode\"}")?;
    ensure!(code == "422", "{code} {refusal}");
    document.check_answer(rotation, "post", "4XX", &serde_json::from_str(&refusal)?)?;
    let running = ask("GET", "/v1/status", "", &none, "200")?;
    ensure!(running["volumes"][0]["rotation"]["limit_bytes"] == 2 << 20, "{running}");
    let (code, body) = http(world.control(), "GET", "/v1/openapi.json", "")?;
    ensure!(code == "200" && serde_json::from_str::<Value>(&body)? == *document.json());
    Ok(())
}

#[test]
fn the_audit_log_tells_who_did_what_with_which_key() -> Result<()> {
    let volume = TestVolume::formatted(16 * MIB, 512)?;
    let (path, old) = (volume.scratch.file("audit"), volume.scratch.file("audit.1"));
    let mut world = Rotating::serve(&volume, &["--audit-log", &path.display().to_string()])?;
    let events = |file: &Path| -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(file)?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    };
    let wait_for = |name: &str| {
        until(&format!("the event {name}"), LIMIT, || {
            Ok(events(&path)?.into_iter().find(|event| event["event"] == name))
        })
    };
    let unlocked = wait_for("volume_unlocked")?;
    ensure!(unlocked["volume"] == "vu" && unlocked["key"] == volume.key_uri(), "{unlocked}");
    ensure!(unlocked["pid"] == world.daemon.pid()?, "{unlocked}");

    // logrotate: the old file is moved away, and the daemon told.
    std::fs::rename(&path, &old)?;
    let pid = Pid::from_raw(world.daemon.pid()?.try_into()?).context("no process")?;
    kill_process(pid, Signal::HUP)?;
    until("a new file", LIMIT, || Ok(path.exists().then_some(())))?;

    world.order("start", &[])?;
    let started = wait_for("rotation_started")?;
    ensure!(started["old_volume_key"] == unlocked["volume_key"], "{started} after {unlocked}");
    ensure!(started["new_volume_key"] != unlocked["volume_key"], "{started}");
    let order = wait_for("control_order")?;
    ensure!(
        order["uid"] == rustix::process::getuid().as_raw() && order["action"] == "start",
        "{order}"
    );
    ensure!(order["method"] == "POST" && order["status"] == 200, "{order}");
    let completed = wait_for("rotation_completed")?;
    ensure!(completed["new_volume_key"] == started["new_volume_key"], "{completed}");
    world.daemon.stop()?;
    let names: Vec<String> = events(&path)?
        .iter()
        .map(|event| event["event"].as_str().unwrap_or_default().to_owned())
        .collect();
    ensure!(names.ends_with(&["volume_closed".to_owned(), "daemon_ended".to_owned()]), "{names:?}");
    ensure!(events(&old)?[0]["event"] == "daemon_started");

    // The next start opens it with the new key, and one with a wrong key says so.
    world.daemon.start()?;
    let again = until("the volume's new key", LIMIT, || {
        let all = events(&path)?;
        Ok(all.into_iter().rfind(|event| event["event"] == "volume_unlocked"))
    })?;
    ensure!(again["volume_key"] == started["new_volume_key"], "{again}");
    world.daemon.stop()?;
    let wrong = volume.scratch.file("wrong");
    std::fs::write(&wrong, "not the passphrase")?;
    std::fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    let failures = volume.scratch.file("failures");
    let exit = sealblk_tests::Daemon::run_to_end(&[
        "--volume",
        &volume.uri(),
        "--key",
        &format!("file:{}", wrong.display()),
        "--socket",
        &volume.scratch.file("w.sock").display().to_string(),
        "--audit-log",
        &failures.display().to_string(),
    ])?;
    ensure!(!exit.status.success(), "{}", exit.log);
    let failed = events(&failures)?;
    let failed = failed.iter().find(|event| event["event"] == "key_fetch_failed");
    ensure!(failed.is_some_and(|event| event["volume"] == "w"), "{failed:?}");
    let text = std::fs::read_to_string(&path)? + &std::fs::read_to_string(&failures)?;
    ensure!(!text.contains("not the passphrase"), "a secret is in the audit log");
    Ok(())
}

/// The storage path is lost by cutting the volume short, as in path_loss.rs.
#[test]
fn a_lost_path_is_in_metrics_and_audit_log_and_a_hangup_without_a_file_ends_nothing() -> Result<()>
{
    let volume = TestVolume::formatted(16 * MIB, 512)?;
    let path = volume.scratch.file("audit");
    let audit = path.display().to_string();
    let mut world = Rotating::serve(&volume, &["--on-error", "hold", "--audit-log", &audit])?;
    let image = std::fs::File::options().write(true).open(&volume.image)?;
    let size = image.metadata()?.len();
    let mut client = Client::simple(world.daemon.socket())?;
    client.write(0, &[7; 4096])?;
    image.set_len(size - 16 * MIB)?;
    client.start_read(0, 4096, 0, 4096, 1)?;
    client.complete(0, 0)?;
    let event = |name: &str| {
        until(&format!("the event {name}"), LIMIT, || {
            let text = std::fs::read_to_string(&path)?;
            let lines = text.lines().map(serde_json::from_str::<Value>);
            let all = lines.collect::<Result<Vec<_>, _>>()?;
            Ok(all.into_iter().find(|event| event["event"] == name))
        })
    };
    let lost = event("storage_lost")?;
    ensure!(lost["volume"] == "vu" && lost["state"] == "holding", "{lost}");
    ensure!(sum(&metrics(&world)?, "sealblk_storage_state", &["state=\"holding\""]) == 1.0);
    image.set_len(size)?;
    let done = client.complete(0, 1)?;
    ensure!(done[0].tag == 1 && done[0].result == 0, "{done:?}");
    let back = event("storage_back")?;
    ensure!(back["volume"] == "vu" && back["lost_ms"].is_u64(), "{back}");
    drop(client);
    world.daemon.stop()?;

    let other = TestVolume::formatted(16 * MIB, 512)?;
    let mut world = Rotating::serve(&other, &["--audit-log", "journal"])?;
    let (line, _) = world.daemon.log().wait_for("volume_unlocked", 0, LIMIT)?;
    ensure!(line.contains("sealblk::audit") || line.contains("{\"time\":"), "{line}");
    world.daemon.stop()?;
    let mut world = Rotating::serve(&other, &[])?;
    let pid = Pid::from_raw(world.daemon.pid()?.try_into()?).context("no process")?;
    kill_process(pid, Signal::HUP)?;
    // Signals are delivered before the next answer is made.
    metrics(&world)?;
    world.daemon.must_run()?;
    world.daemon.stop()?;
    Ok(())
}
