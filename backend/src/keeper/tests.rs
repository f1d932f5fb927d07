use sealblk_secret::SecretBytes;

use super::*;
use crate::orders::{AttachOrder, OrderKey, Record};

fn order(name: &str) -> AttachOrder {
    let section = serde_json::json!({"name": name, "uri": "/dev/x", "socket": "/s"});
    AttachOrder {
        section: serde_json::from_value(section).unwrap(),
        key: OrderKey::Descriptor,
        device: true,
        record: Record {
            source: sealblk_api::agent::Source::Device { path: "/dev/x".to_owned() },
            key_id: Some("barbican:1".to_owned()),
            key_access: Default::default(),
        },
    }
}

fn key(text: &str) -> Held {
    Held::new("k", &SecretBytes::copy_from(text.as_bytes()).unwrap()).unwrap()
}

/// A keeper on a thread, as long as the worker's end is open; gives what it has at the end.
fn keeper() -> (Link, std::thread::JoinHandle<Keeper>) {
    let (ours, theirs) = Connection::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut keeper = Keeper { volumes: BTreeMap::new(), ready: false, told_to_end: false };
        while keeper.hear(&ours) {}
        keeper
    });
    (Link::new(theirs), thread)
}

#[test]
fn what_is_kept_is_given_back() {
    let (link, thread) = keeper();
    let device = tempfile::tempfile().unwrap();
    link.ready();
    link.keep(&order("a"), key("secret of a").as_fd(), Some(device.as_fd()));
    link.keep(&order("b"), key("secret of b").as_fd(), None);
    link.keep(&order("c"), key("secret of c").as_fd(), Some(device.as_fd()));
    link.park("c");
    link.drop_volume("b");
    link.drop_volume("unknown");
    let kept = link.restore().unwrap();
    let names: Vec<_> = kept.iter().map(|kept| kept.volume.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    let source = sealblk_keys::KeySource::Held(kept[0].key.clone());
    assert!(source.fetch().unwrap().passphrase.ct_eq(b"secret of a"));
    assert_eq!(source.to_string(), "barbican:1");
    assert_eq!(kept[0].order.as_ref(), &order("a"));
    assert!(kept[0].device.is_some() && !kept[0].parked);
    assert!(kept[1].device.is_none() && kept[1].parked);
    drop((kept, link));
    assert!(thread.join().unwrap().ready);
}

/// Whoever parks a volume disconnects its device next.
#[test]
fn a_parked_device_is_closed_when_the_call_returns() {
    let (link, _thread) = keeper();
    let (reader, writer) = std::io::pipe().unwrap();
    link.keep(&order("a"), key("x").as_fd(), Some(writer.as_fd()));
    drop(writer);
    link.park("a");
    let mut watched = [PollFd::new(&reader, PollFlags::IN)];
    assert_eq!(poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1));
    assert!(watched[0].revents().contains(PollFlags::HUP));
}

#[test]
fn nonsense_is_refused_and_the_keeper_lives() {
    let (ours, theirs) = Connection::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut keeper = Keeper { volumes: BTreeMap::new(), ready: false, told_to_end: false };
        while keeper.hear(&ours) {}
    });
    for nonsense in [&b"{"[..], b"{\"word\":\"explode\"}", b"\xff"] {
        let answer = theirs.call(nonsense, &[]).unwrap();
        assert!(String::from_utf8(answer.bytes).unwrap().contains("refused"));
    }
    // A key that isn't there.
    let word = Word::Keep { volume: "a".to_owned(), order: Box::new(order("a")), device: false };
    let answer = theirs.call(&words::bytes(&word), &[]).unwrap();
    assert!(String::from_utf8(answer.bytes).unwrap().contains("no key came along"));
    let link = Link::new(theirs);
    assert!(link.restore().unwrap().is_empty());
    drop(link);
    thread.join().unwrap();
}

#[test]
fn a_keeper_that_is_gone_stops_nobody() {
    let (ours, theirs) = Connection::pair().unwrap();
    drop(ours);
    let link = Link::new(theirs);
    link.ready();
    link.park("a");
    assert!(link.restore().is_err());
}
