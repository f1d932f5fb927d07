use serde_json::{Value, json};

use super::*;
use crate::agent::config::AgentConfig;
use crate::agent::host::Ids;

/// A server whose node has nothing, for a client who may ask or not.
fn talk(allowed: bool, requests: &[&[u8]]) -> (Vec<Value>, Arc<Counters>) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = format!(
        "[agent]\nrun_dir = {:?}\nstate_dir = {:?}\ndaemon_state_dir = {:?}\n",
        at("run"),
        at("agent"),
        at("state"),
    );
    let config = AgentConfig::parse(&text, Path::new("a.toml")).unwrap();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ids = Ids { root: false, uid, gid, socket_gid: None, socket_group: None };
    let node = Arc::new(Node::new(config, ids, "/bin/false".into()).unwrap());
    let counters = Arc::new(Counters::default());
    let uids = Allowed(if allowed { vec![uid] } else { Vec::new() });
    let server = Server::new(node.clone(), Arc::new(Rotations::new(node)), uids, counters.clone());
    let (ours, theirs) = Connection::pair().unwrap();
    let answers = std::thread::scope(|scope| {
        scope.spawn(|| {
            server.converse(&theirs);
            drop(theirs);
        });
        let answers = requests
            .iter()
            .map_while(|request| ours.call(request, &[]).ok())
            .map(|answer| serde_json::from_slice(&answer.bytes).unwrap())
            .collect();
        drop(ours);
        answers
    });
    (answers, counters)
}

#[test]
fn a_connection_carries_many_requests() {
    let instance = "11111111-1111-1111-1111-111111111111";
    let forget = json!({"op": "forget", "instance": instance}).to_string();
    let (answers, counters) =
        talk(true, &[br#"{"op": "hello"}"#, forget.as_bytes(), br#"{"op": "list"}"#]);
    assert_eq!(answers[0]["ok"]["api"], 1);
    assert_eq!(answers[0]["ok"]["state"], "ready");
    assert_eq!(answers[1], json!({"ok": {"state": "absent"}}));
    assert_eq!(answers[2], json!({"ok": {"instances": []}}));
    let expected = ["forget", "hello", "list"].map(|op| (op, "ok".to_owned(), 1));
    assert_eq!(counters.requests(), expected);
}

#[test]
fn nonsense_is_answered_and_the_next_request_heard() {
    let nonsense: [&[u8]; 4] = [
        b"\xff",
        br#"{"op": "explode"}"#,
        br#"{"op": "park", "instance": "x", "volume": "y", "force": true}"#,
        br#"{"op": "park", "instance": "x", "volume": "y"}"#,
    ];
    let (answers, _) = talk(true, &[&nonsense[..], &[br#"{"op": "hello"}"#]].concat());
    assert_eq!(answers.len(), 5);
    for answer in &answers[..4] {
        assert_eq!(answer["error"]["kind"], "invalid", "{answer}");
    }
    assert!(answers[4]["ok"].is_object());
}

#[test]
fn who_may_not_ask_learns_so_and_no_more() {
    let (answers, counters) = talk(false, &[br#"{"op": "hello"}"#, br#"{"op": "hello"}"#]);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["error"]["kind"], "refused");
    assert_eq!(counters.requests(), [("refused", "refused".to_owned(), 1)]);
}

#[test]
fn a_socket_replaces_what_a_killed_agent_left_and_no_living_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(bind(&path, None).unwrap());
    let listener = bind(&path, None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(bind(&path, None).unwrap_err().to_string().contains("another agent"));
    drop(listener);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(bind(&path, None).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}
