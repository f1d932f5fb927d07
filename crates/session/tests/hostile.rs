//! Front-ends that don't follow the protocol: the next one is served as if nothing had been.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io::Write;
use std::os::unix::net::UnixStream;

use common::{QUEUES, Qemu, Served, Version, message, send_raw};
use proptest::prelude::*;
use sealblk_session::{Event, fuzz_messages};
use vhost::vhost_user::message::FrontendReq;

fn still_serves(served: &Served) {
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    assert_eq!(served.calls().iter().filter(|call| call.is_start_of(QUEUES - 1)).count(), 1);
}

#[test]
fn garbage_costs_its_sender_the_connection_and_nobody_else() {
    let mut wrong_version = message(FrontendReq::GET_FEATURES, false, &[]);
    wrong_version[4] = 2;
    let mut reply_bit = message(FrontendReq::SET_OWNER, false, &[]);
    reply_bit[4] |= 4;
    let mut too_long = message(FrontendReq::SET_FEATURES, false, &[]);
    too_long[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    let garbage = [
        b"GET / HTTP/1.1\r\nHost: sealblk\r\n\r\n".to_vec(),
        vec![0xff; 5000],
        vec![0; 64],
        wrong_version,
        reply_bit,
        too_long,
        // Cut in the middle of header and payload.
        message(FrontendReq::SET_FEATURES, false, &[0; 8])[..7].to_vec(),
        message(FrontendReq::SET_FEATURES, false, &[0; 8])[..15].to_vec(),
        // A payload of the wrong length, a request without its feature, one that nobody offers.
        message(FrontendReq::SET_VRING_NUM, false, &[0; 3]),
        message(FrontendReq::GET_CONFIG, false, &[0; 20]),
        message(FrontendReq::IOTLB_MSG, false, &[0; 40]),
        // A kick that should have a descriptor.
        message(FrontendReq::SET_VRING_KICK, false, &0u64.to_ne_bytes()),
    ];
    for bytes in garbage {
        // A fresh session each: its events are rate-limited.
        let served = Served::new();
        send_raw(&served.path(), &bytes);
        let refused = served.until_disconnected();
        assert_eq!(refused.len(), 1, "{bytes:?}: {refused:?}");
        still_serves(&served);
        served.end();
    }
}

#[test]
fn configuration_past_its_end_is_answered_with_no_bytes() {
    let served = Served::new();
    let features = common::protocol_features().bits().to_ne_bytes();
    let mut bytes = message(FrontendReq::SET_PROTOCOL_FEATURES, false, &features);
    let request: Vec<u8> = [200u32, 57, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(message(FrontendReq::GET_CONFIG, false, &[request, vec![0; 57]].concat()));
    bytes.extend(message(FrontendReq::GET_FEATURES, false, &[]));
    let replies = send_raw(&served.path(), &bytes);
    assert_eq!(replies.len(), 24 + 20, "the answer without bytes, and the next one");
    assert_eq!(replies[16..20], [0; 4], "size 0 means an error");
    let refused = served.until_disconnected();
    assert!(refused[0].contains("outside of the configuration space"), "{refused:?}");
    served.end();
}

#[test]
fn a_refused_message_without_need_reply_closes_the_connection() {
    let served = Served::new();
    let mut bytes = message(FrontendReq::SET_FEATURES, false, &u64::MAX.to_ne_bytes());
    bytes.extend(message(FrontendReq::GET_FEATURES, false, &[]));
    assert_eq!(send_raw(&served.path(), &bytes), [], "the second message is not answered");
    assert_eq!(served.until_disconnected().len(), 1);
    still_serves(&served);
    served.end();
}

#[test]
fn a_kick_without_eventfd_is_refused_and_a_call_without_one_is_not() {
    let served = Served::new();
    let mut bytes = message(FrontendReq::SET_VRING_CALL, false, &0x100u64.to_ne_bytes());
    bytes.extend(message(FrontendReq::SET_VRING_ERR, false, &0x101u64.to_ne_bytes()));
    bytes.extend(message(FrontendReq::GET_FEATURES, false, &[]));
    bytes.extend(message(FrontendReq::SET_VRING_KICK, false, &0x100u64.to_ne_bytes()));
    assert_eq!(send_raw(&served.path(), &bytes).len(), 20, "one answer: the features");
    let refused = served.until_disconnected();
    assert!(refused[0].contains("SET_VRING_KICK refused: queue 0"), "{refused:?}");
    served.end();
}

#[test]
fn what_is_no_eventfd_is_refused_as_kick_and_as_call() {
    let served = Served::new();
    let (pipe, _other_end) = rustix::pipe::pipe().unwrap();
    let zero: std::os::fd::OwnedFd = std::fs::File::open("/dev/zero").unwrap().into();
    for (request, fd) in [
        (FrontendReq::SET_VRING_KICK, &zero),
        (FrontendReq::SET_VRING_KICK, &pipe),
        (FrontendReq::SET_VRING_CALL, &pipe),
    ] {
        common::send_with_fd(&served.path(), &message(request, false, &0u64.to_ne_bytes()), fd);
        let refused = served.until_disconnected();
        assert!(refused[0].contains("no eventfd"), "{refused:?}");
    }
    served.end();
}

#[test]
fn a_message_that_trickles_in_byte_by_byte_is_understood() {
    let served = Served::new();
    let mut stream = UnixStream::connect(served.path()).unwrap();
    for byte in message(FrontendReq::GET_FEATURES, false, &[]) {
        stream.write_all(&[byte]).unwrap();
    }
    let mut reply = [0; 20];
    std::io::Read::read_exact(&mut stream, &mut reply).unwrap();
    assert_eq!(reply[0], 1);
    drop(stream);
    assert_eq!(served.until_disconnected(), [""; 0]);
    served.end();
}

#[test]
fn half_a_message_does_not_hold_up_the_end() {
    let served = Served::new();
    let mut stream = UnixStream::connect(served.path()).unwrap();
    stream.write_all(&message(FrontendReq::SET_FEATURES, false, &[0; 8])[..14]).unwrap();
    assert_eq!(served.event(), Event::Connected);
    served.end();
}

#[test]
fn a_client_that_only_looks_is_no_event() {
    let served = Served::new();
    drop(UnixStream::connect(served.path()).unwrap());
    let _qemu = Qemu::realize(&served.path(), Version::V10);
    assert_eq!(served.event(), Event::Connected);
    assert!(served.stop.connected());
    served.end();
}

/// A record of the fuzz entry: `kind` says which descriptors come along.
fn record(kind: u8, request: FrontendReq, need_reply: bool, payload: &[u8]) -> Vec<u8> {
    let bytes = message(request, need_reply, payload);
    let len = u16::try_from(bytes.len()).unwrap().to_le_bytes();
    [&[kind], &len[..], &bytes].concat()
}

const NO_DESCRIPTOR: u8 = 0;
const MEMORY_FILE: u8 = 1;
const EVENTFD: u8 = 9;

/// Any request with nearly any payload and descriptors.
fn wild() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0u32..6, Just(0x100u32), Just(128), any::<u32>()];
    let payload = proptest::collection::vec(word, 0..16);
    (0u8..16, 0u32..46, any::<bool>(), payload).prop_map(|(kind, request, reply, words)| {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let request = FrontendReq::try_from(request).unwrap_or(FrontendReq::GET_FEATURES);
        record(kind, request, reply, &payload)
    })
}

/// The requests that rings are made of, well-formed but in no order, for queues that may not exist.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    use FrontendReq as Req;
    let state = |request: Req, index: u32, value: u32| {
        record(NO_DESCRIPTOR, request, true, &[index.to_ne_bytes(), value.to_ne_bytes()].concat())
    };
    let words = |kind: u8, request: Req, words: &[u64]| {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        record(kind, request, true, &payload)
    };
    let index = || 0u32..5;
    let size = prop_oneof![4 => Just(128u32), 1 => Just(0), 1 => Just(100), 1 => Just(256)];
    let page = || (0u64..4).prop_map(|page| page * 0x1000);
    // Inflight: size and offset of the region, then number and size of queues.
    let inflight = [0x8000u64, 0, 4 | 128 << 16];
    prop_oneof![
        1 => (index(), size).prop_map(move |(i, size)| state(Req::SET_VRING_NUM, i, size)),
        1 => (index(), 0u32..3).prop_map(move |(i, base)| state(Req::SET_VRING_BASE, i, base)),
        1 => (0u32..4).prop_map(move |i| state(Req::GET_VRING_BASE, i, 0)),
        2 => (index(), 0u32..2).prop_map(move |(i, on)| state(Req::SET_VRING_ENABLE, i, on)),
        2 => (index(), page()).prop_map(move |(i, at)| {
            words(NO_DESCRIPTOR, Req::SET_VRING_ADDR, &[u64::from(i), at, at, at, 0])
        }),
        2 => index().prop_map(move |i| words(EVENTFD, Req::SET_VRING_KICK, &[u64::from(i)])),
        1 => index().prop_map(move |i| words(EVENTFD, Req::SET_VRING_CALL, &[u64::from(i)])),
        1 => index().prop_map(move |i| {
            words(NO_DESCRIPTOR, Req::SET_VRING_CALL, &[u64::from(i) | 0x100])
        }),
        2 => page().prop_map(move |at| {
            words(MEMORY_FILE, Req::ADD_MEM_REG, &[0, at, 0x1000, at, 0])
        }),
        1 => page().prop_map(move |at| words(NO_DESCRIPTOR, Req::REM_MEM_REG, &[0, at, 0x1000, at, 0])),
        1 => page().prop_map(move |at| words(MEMORY_FILE, Req::SET_MEM_TABLE, &[1, at, 0x4000, at, 0])),
        1 => Just(words(MEMORY_FILE, Req::SET_INFLIGHT_FD, &inflight)),
        1 => Just(words(NO_DESCRIPTOR, Req::GET_INFLIGHT_FD, &inflight)),
        1 => any::<bool>().prop_map(move |on| {
            words(NO_DESCRIPTOR, Req::SET_FEATURES, &[1 << 30 | u64::from(on) << 9])
        }),
        1 => Just(record(NO_DESCRIPTOR, Req::RESET_OWNER, true, &[])),
    ]
}

/// What a well-behaved front-end sends first, so that the rest gets past the feature checks.
fn negotiated() -> Vec<u8> {
    let protocol = common::protocol_features().bits().to_ne_bytes();
    [
        record(NO_DESCRIPTOR, FrontendReq::GET_FEATURES, false, &[]),
        record(NO_DESCRIPTOR, FrontendReq::SET_PROTOCOL_FEATURES, false, &protocol),
        record(NO_DESCRIPTOR, FrontendReq::SET_FEATURES, false, &(1u64 << 30).to_ne_bytes()),
    ]
    .concat()
}

/// A first ring that runs.
fn one_ring() -> Vec<u8> {
    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<_>>();
    let state = |value: u32| [0u32.to_ne_bytes(), value.to_ne_bytes()].concat();
    let memory = words(&[1, 0, 0x4000, 0, 0]);
    [
        record(MEMORY_FILE, FrontendReq::SET_MEM_TABLE, true, &memory),
        record(NO_DESCRIPTOR, FrontendReq::SET_VRING_NUM, true, &state(128)),
        record(NO_DESCRIPTOR, FrontendReq::SET_VRING_ADDR, true, &words(&[0; 5])),
        record(NO_DESCRIPTOR, FrontendReq::SET_VRING_ENABLE, true, &state(1)),
        record(EVENTFD, FrontendReq::SET_VRING_KICK, true, &words(&[0])),
    ]
    .concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_order_of_ring_messages_starts_a_queue_twice(
        records in proptest::collection::vec(plausible(), 1..60),
    ) {
        fuzz_messages(&[negotiated(), one_ring(), records.concat()].concat());
    }

    #[test]
    fn no_message_breaks_a_session(records in proptest::collection::vec(wild(), 1..30)) {
        fuzz_messages(&[negotiated(), records.concat()].concat());
    }

    #[test]
    fn no_bytes_break_a_session(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_messages(&bytes);
    }
}
