use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::thread::JoinHandle;

use sealblk_api::agent::{Answer, Source};
use sealblk_rpc::Listener;

use super::*;
use crate::orders::{self, Served, orders_socket};

const INSTANCE: &str = "11111111-1111-1111-1111-111111111111";
const OTHER: &str = "22222222-2222-2222-2222-222222222222";
const VOLUME: &str = "33333333-3333-3333-3333-333333333333";

/// A node whose daemons are threads of the test.
struct World {
    dir: tempfile::TempDir,
    node: Node,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let text = format!(
            "[agent]\nrun_dir = {:?}\nstate_dir = {:?}\ndaemon_state_dir = {:?}\nfile_prefixes = [{:?}]\n\
             user = \"0\"\ngroup = \"0\"\nsocket_owner_group = \"\"\nlauncher = \"process\"\n",
            at("run"),
            at("agent"),
            at("state"),
            at("disks"),
        );
        std::fs::create_dir(at("disks")).unwrap();
        std::fs::write(at("disks/a"), vec![0; 1 << 20]).unwrap();
        std::fs::write(at("disks/b"), vec![0; 1 << 20]).unwrap();
        let config = AgentConfig::parse(&text, Path::new("a.toml")).unwrap();
        let root = rustix::process::geteuid().is_root();
        let own = own_ids();
        let ids = Ids { root, uid: own.uid, gid: own.gid, socket_gid: None, socket_group: None };
        // A daemon that doesn't begin.
        let node = Node::new(config, ids, "/bin/false".into()).unwrap();
        Self { dir, node }
    }

    /// A daemon of an instance, which answers until it is told to end; gives what it was ordered.
    fn daemon(&self, instance: &str) -> JoinHandle<Vec<String>> {
        let dir = self.node.make_dir(instance).unwrap();
        let listener = Listener::bind(&orders_socket(&dir)).unwrap();
        std::thread::spawn(move || {
            let mut fake = Fake::default();
            while !fake.ended {
                let connection = listener.accept().unwrap();
                while let Some(message) = connection.receive().unwrap() {
                    connection.send(&fake.obey(message), &[]).unwrap();
                }
            }
            fake.heard
        })
    }

    fn attach(&self, instance: &str, file: &str) -> Attach {
        let path = self.dir.path().join("disks").join(file).to_str().unwrap().to_owned();
        Attach {
            instance: instance.to_owned(),
            volume: VOLUME.to_owned(),
            source: Source::File { path },
            key: Key::Descriptor,
            key_id: Some("kid".to_owned()),
            key_access: KeyAccess::User,
            read_only: false,
            format: Format::Never,
            limits: None,
            serial: None,
            queues: None,
        }
    }
}

fn passphrase() -> Vec<OwnedFd> {
    let memfd = rustix::fs::memfd_create("key", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(memfd);
    file.write_all(b"secret").unwrap();
    vec![file.into()]
}

/// A daemon that serves by saying so.
#[derive(Default)]
struct Fake {
    disks: BTreeMap<String, ListedDisk>,
    heard: Vec<String>,
    ended: bool,
}

impl Fake {
    fn obey(&mut self, message: sealblk_rpc::Message) -> Vec<u8> {
        let bytes = |value: serde_json::Value| serde_json::to_vec(&value).unwrap();
        let gone = |state: &str| bytes(serde_json::json!({"ok": {"state": state}}));
        let came = message.descriptors.len();
        match serde_json::from_slice(&message.bytes).unwrap() {
            orders::Order::Attach(order) => {
                let kept = order.key == OrderKey::Kept;
                let expected = usize::from(!kept) + usize::from(order.device);
                assert_eq!(came, expected, "{order:?}");
                self.heard.push(format!("attach kept={kept} device={}", order.device));
                if order.section.serial.as_deref() == Some("refuse") {
                    let error = error(ErrorKind::KeyWrong, "no keyslot opens");
                    return serde_json::to_vec(&Answer::<()>::Error(error)).unwrap();
                }
                let socket = order.section.socket.display().to_string();
                let served = Served {
                    socket: socket.clone(),
                    capacity_bytes: 1 << 20,
                    serial: order.section.serial.clone().unwrap(),
                    ..Served::default()
                };
                let disk = ListedDisk {
                    volume: order.section.name.clone(),
                    state: "serving".to_owned(),
                    socket,
                    connected: false,
                    record: order.record,
                    trouble: None,
                };
                self.disks.insert(disk.volume.clone(), disk);
                serde_json::to_vec(&Answer::Ok(served)).unwrap()
            }
            orders::Order::Park { volume } => {
                self.heard.push("park".to_owned());
                match self.disks.get_mut(&volume) {
                    Some(disk) => {
                        disk.state = "parked".to_owned();
                        gone("parked")
                    }
                    None => gone("absent"),
                }
            }
            orders::Order::Detach { volume } => {
                self.heard.push("detach".to_owned());
                self.disks.remove(&volume);
                gone("absent")
            }
            orders::Order::List => {
                let volumes = self.disks.values().cloned().collect();
                serde_json::to_vec(&Answer::Ok(Disks { pid: 7, volumes })).unwrap()
            }
            orders::Order::End => {
                self.heard.push("end".to_owned());
                self.ended = true;
                gone("absent")
            }
        }
    }
}

#[test]
fn a_volume_is_attached_parked_and_taken_up_again() {
    let world = World::new();
    let daemon = world.daemon(INSTANCE);
    let request = world.attach(INSTANCE, "a");
    let first = world.node.attach(&request, passphrase()).unwrap();
    assert_eq!(first.socket, world.node.config.volume_socket(VOLUME).to_str().unwrap());
    assert_eq!(first.serial, &VOLUME[..20]);
    let again = world.node.attach(&request, passphrase()).unwrap();
    assert_eq!(again, first);
    let listed = world.node.list(None, None).unwrap();
    assert_eq!((listed.instances.len(), listed.next), (1, None));
    assert_eq!((listed.instances[0].pid, listed.instances[0].state.as_str()), (7, "running"));
    assert_eq!(listed.instances[0].volumes[0].source, Some(request.source.clone()));

    assert_eq!(world.node.park(INSTANCE, VOLUME).unwrap().state, "parked");
    let kept = Attach { key: Key::Kept, ..request };
    // After a reboot the device may have another name.
    let kept = Attach { source: world.attach(INSTANCE, "b").source, ..kept };
    assert_eq!(world.node.attach(&kept, Vec::new()).unwrap(), first);
    assert_eq!(world.node.detach(INSTANCE, VOLUME).unwrap().state, "absent");
    assert_eq!(world.node.detach(INSTANCE, VOLUME).unwrap().state, "absent");
    assert!(world.node.instances().is_empty());
    assert_eq!(
        daemon.join().unwrap(),
        [
            "attach kept=false device=true",
            "attach kept=true device=false",
            "park",
            "attach kept=true device=true",
            "detach",
            "end",
        ]
    );
}

#[test]
fn a_served_volume_has_one_source_and_one_instance() {
    let world = World::new();
    let daemon = world.daemon(INSTANCE);
    let request = world.attach(INSTANCE, "a");
    world.node.attach(&request, passphrase()).unwrap();
    let error = world.node.attach(&world.attach(INSTANCE, "b"), passphrase()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let other = world.daemon(OTHER);
    let error = world.node.attach(&world.attach(OTHER, "a"), passphrase()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert!(error.message.contains(INSTANCE), "{error}");
    world.node.forget(INSTANCE).unwrap();
    assert!(daemon.join().unwrap().ends_with(&["end".to_owned()]));
    world.node.attach(&world.attach(OTHER, "a"), passphrase()).unwrap();
    world.node.forget(OTHER).unwrap();
    other.join().unwrap();
}

#[test]
fn another_agent_knows_what_is_served() {
    let world = World::new();
    let daemon = world.daemon(INSTANCE);
    world.node.attach(&world.attach(INSTANCE, "a"), passphrase()).unwrap();
    // What is left of a daemon that is gone.
    world.node.make_dir(OTHER).unwrap();
    let config = world.node.config.clone();
    let next = Node::new(config, world.node.ids.clone(), "/bin/false".into()).unwrap();
    assert_eq!(next.instances(), [INSTANCE]);
    assert_eq!(next.owner(VOLUME).as_deref(), Some(INSTANCE));
    next.forget(INSTANCE).unwrap();
    daemon.join().unwrap();
}

#[test]
fn what_was_started_for_nothing_does_not_stay() {
    let world = World::new();
    let daemon = world.daemon(INSTANCE);
    let refused = Attach { serial: Some("refuse".to_owned()), ..world.attach(INSTANCE, "a") };
    let error = world.node.attach(&refused, passphrase()).unwrap_err();
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::KeyWrong, "no keyslot opens"));
    assert_eq!(daemon.join().unwrap(), ["attach kept=false device=true", "end"]);
    assert!(world.node.instances().is_empty() && world.node.owner(VOLUME).is_none());
    // The file is free again.
    let place = source::place(VOLUME, &refused.source, &world.node.config.agent).unwrap();
    source::open(VOLUME, &place, &refused.source, false, &world.node.config.agent).unwrap();

    // A daemon that ends at once.
    let error = world.node.attach(&world.attach(OTHER, "a"), passphrase()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(error.message.contains(OTHER) && error.message.contains("log"), "{error}");
    assert!(world.node.instances().is_empty() && world.node.owner(VOLUME).is_none());
}

#[test]
fn requests_that_make_no_sense_start_nothing() {
    let world = World::new();
    let good = world.attach(INSTANCE, "a");
    for (bad, kind) in [
        (Attach { instance: "x".to_owned(), ..good.clone() }, ErrorKind::Invalid),
        (Attach { volume: "../x".to_owned(), ..good.clone() }, ErrorKind::Invalid),
        (Attach { queues: Some(0), ..good.clone() }, ErrorKind::Invalid),
        (Attach { serial: Some("x".repeat(21)), ..good.clone() }, ErrorKind::Invalid),
        (Attach { read_only: true, format: Format::IfBlank, ..good.clone() }, ErrorKind::Invalid),
        (
            Attach { source: Source::Device { path: "/dev/null".to_owned() }, ..good.clone() },
            ErrorKind::Invalid,
        ),
        (
            Attach { source: Source::File { path: "/etc/passwd".to_owned() }, ..good.clone() },
            ErrorKind::Refused,
        ),
        (world.attach(INSTANCE, "none"), ErrorKind::Volume),
    ] {
        let error = world.node.attach(&bad, passphrase()).unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
    let kept = Attach { key: Key::Kept, ..good.clone() };
    assert_eq!(world.node.attach(&kept, Vec::new()).unwrap_err().kind, ErrorKind::KeyMissing);
    assert_eq!(world.node.attach(&kept, passphrase()).unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(world.node.attach(&good, Vec::new()).unwrap_err().kind, ErrorKind::Invalid);
    assert!(world.node.instances().is_empty());
    assert_eq!(world.node.park(INSTANCE, VOLUME).unwrap().state, "absent");
    assert_eq!(world.node.forget(INSTANCE).unwrap().state, "absent");
}
