//! Whole sessions over a real socket: what a front-end says, and what the data plane is told.

mod common;

use std::os::fd::AsRawFd;

use common::{
    Call, MEGABYTE, QUEUES, Qemu, Served, Version, inflight_shape, memory, protocol_features,
    read_config, ring_at, user,
};
use sealblk_session::Event;
use sealblk_virtqueue::blk;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::EventFd;

fn starts(calls: &[Call]) -> Vec<u16> {
    calls
        .iter()
        .filter_map(|call| match call {
            Call::Start { index, .. } => Some(*index),
            _ => None,
        })
        .collect()
}

#[test]
fn qemu_of_both_kinds_starts_and_stops_all_queues() {
    for version in [Version::V7, Version::V10] {
        let served = Served::new();
        let mut qemu = Qemu::realize(&served.path(), version);
        assert_eq!(served.event(), Event::Connected);
        assert!(served.stop.connected());
        let inflight = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
        assert_eq!(served.calls(), []);
        qemu.start(Some(&inflight));
        let calls = served.calls();
        assert_eq!(calls[0], Call::Writeback(true));
        assert_eq!(starts(&calls), [0, 1, 2, 3]);
        assert_eq!(
            calls[1],
            Call::Start {
                index: 0,
                size: 128,
                base: 0,
                addresses: [user(0x1_0000), user(0x1_1000), user(0x1_2000)],
                features: qemu.features,
                regions: 1,
                inflight: true,
                call: true,
            }
        );
        assert_eq!(qemu.stop(), [10, 10, 10, 10]);
        assert_eq!(served.calls(), (0..QUEUES).map(Call::Stop).collect::<Vec<_>>());
        drop(qemu);
        assert_eq!(served.until_disconnected(), [""; 0]);
        assert!(!served.stop.connected());
        served.end();
    }
}

#[test]
fn a_ring_starts_only_when_all_of_it_is_there_whatever_the_order() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.front.set_vring_enable(0, true).unwrap_err();
    qemu.front.set_vring_kick(0, &qemu.kicks[0]).unwrap();
    qemu.front.set_vring_addr(0, &ring_at(0)).unwrap();
    qemu.front.set_vring_num(0, 128).unwrap();
    qemu.front.set_features(qemu.features).unwrap();
    qemu.front.set_vring_enable(0, true).unwrap();
    assert_eq!(served.calls(), [Call::Writeback(true)]);
    qemu.front.add_mem_region(&qemu.ram.info).unwrap();
    assert_eq!(starts(&served.calls()), [0]);
    served.end();
}

#[test]
fn disable_then_get_base_stops_once_and_keeps_the_index() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    qemu.front.set_vring_enable(1, false).unwrap();
    qemu.front.set_vring_enable(1, false).unwrap();
    assert_eq!(served.calls(), [Call::Stop(1)]);
    assert_eq!(qemu.front.get_vring_base(1).unwrap(), 10);
    assert_eq!(qemu.front.get_vring_base(1).unwrap(), 10);
    // Enabling alone doesn't start it again: that takes a kick.
    qemu.front.set_vring_enable(1, true).unwrap();
    assert_eq!(served.calls(), []);
    qemu.front.set_vring_kick(1, &qemu.kicks[1]).unwrap();
    assert!(matches!(served.calls()[..], [Call::Start { index: 1, base: 10, .. }]));
    served.end();
}

#[test]
fn a_disabled_ring_goes_on_where_it_stopped() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    qemu.front.set_vring_enable(2, false).unwrap();
    qemu.front.set_vring_enable(2, true).unwrap();
    assert!(matches!(served.calls()[..], [Call::Stop(2), Call::Start { index: 2, base: 10, .. }]));
    served.end();
}

#[test]
fn without_protocol_features_rings_start_at_the_kick() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V7);
    qemu.front.set_features(qemu.features & !(1 << 30)).unwrap();
    qemu.front.add_mem_region(&qemu.ram.info).unwrap();
    qemu.start_ring(3, 7);
    let calls = served.calls();
    assert!(matches!(calls[1], Call::Start { index: 3, base: 7, .. }), "{calls:?}");
    served.end();
}

#[test]
fn memory_changes_drain_running_queues_and_start_them_again() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    let drained_and_restarted = |regions_now| {
        let calls = served.calls();
        let stops: Vec<_> = (0..QUEUES).map(Call::Stop).collect();
        assert_eq!(calls[..usize::from(QUEUES)], stops);
        assert_eq!(starts(&calls), [0, 1, 2, 3]);
        assert!(calls.iter().all(|call| match call {
            Call::Start { regions, base, .. } => *regions == regions_now && *base > 0,
            _ => true,
        }));
    };
    let dimm = memory(16 * MEGABYTE, MEGABYTE);
    qemu.front.add_mem_region(&dimm.info).unwrap();
    drained_and_restarted(2);
    qemu.front.remove_mem_region(&dimm.info).unwrap();
    drained_and_restarted(1);
    qemu.front.set_mem_table(&[dimm.info, qemu.ram.info]).unwrap();
    drained_and_restarted(2);
    served.end();
}

#[test]
fn memory_that_cannot_be_leaves_everything_as_it_was() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    // Twice the same, a file shorter than the region, one that isn't there to remove.
    qemu.front.add_mem_region(&qemu.ram.info).unwrap_err();
    let mut short = memory(16 * MEGABYTE, MEGABYTE);
    short.info.memory_size += 1;
    qemu.front.add_mem_region(&short.info).unwrap_err();
    qemu.front.remove_mem_region(&short.info).unwrap_err();
    qemu.front.set_mem_table(&[qemu.ram.info, qemu.ram.info]).unwrap_err();
    assert_eq!(served.calls(), []);
    served.end();
}

#[test]
fn taking_away_the_rings_memory_stops_them_with_an_error() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    let dimm = memory(16 * MEGABYTE, MEGABYTE);
    served.calls();
    qemu.front.set_mem_table(&[dimm.info]).unwrap_err();
    let calls = served.calls();
    assert_eq!(calls, (0..QUEUES).map(Call::Stop).collect::<Vec<_>>());
    // The memory back, the queues run again.
    qemu.front.set_mem_table(&[dimm.info, qemu.ram.info]).unwrap();
    assert_eq!(starts(&served.calls()), [0, 1, 2, 3]);
    served.end();
}

#[test]
fn the_in_flight_region_survives_a_reconnect() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let inflight = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
    assert!(inflight.0.mmap_size > 0);
    assert_eq!((inflight.0.num_queues, inflight.0.queue_size), (QUEUES, 128));
    qemu.start(Some(&inflight));
    drop(qemu);
    served.until_disconnected();
    let calls = served.calls();
    let stops: Vec<_> = (0..QUEUES).map(Call::Stop).collect();
    assert_eq!(calls[calls.len() - usize::from(QUEUES)..], stops, "drained at the end");
    let mut again = Qemu::realize(&served.path(), Version::V10);
    again.start(Some(&inflight));
    let calls = served.calls();
    assert_eq!(starts(&calls), [0, 1, 2, 3]);
    assert!(calls.iter().all(|call| !matches!(call, Call::Start { inflight: false, .. })));
    served.end();
}

#[test]
fn impossible_in_flight_regions_are_refused() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let (shape, file) = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
    let mut too_many = shape;
    too_many.num_queues = QUEUES + 1;
    qemu.front.set_inflight_fd(&too_many, file.as_raw_fd()).unwrap_err();
    let mut past_the_file = shape;
    past_the_file.mmap_offset = u64::MAX - 5;
    qemu.front.set_inflight_fd(&past_the_file, file.as_raw_fd()).unwrap_err();
    let mut too_short = shape;
    too_short.mmap_size = 1;
    qemu.front.set_inflight_fd(&too_short, file.as_raw_fd()).unwrap_err();
    // Not while queues run.
    qemu.start(None);
    qemu.front.set_inflight_fd(&shape, file.as_raw_fd()).unwrap_err();
    // An answer of its own, so the only way to refuse is to close.
    assert!(qemu.front.get_inflight_fd(&too_many).is_err());
    let refused = served.until_disconnected();
    assert!(refused.last().unwrap().starts_with("GET_INFLIGHT_FD refused"), "{refused:?}");
    served.end();
}

#[test]
fn a_ring_larger_than_its_in_flight_table_does_not_start() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let inflight = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
    qemu.front.set_features(qemu.features).unwrap();
    qemu.front.set_inflight_fd(&inflight.0, inflight.1.as_raw_fd()).unwrap();
    qemu.front.add_mem_region(&qemu.ram.info).unwrap();
    qemu.front.set_vring_num(0, 256).unwrap();
    let mut ring = ring_at(0);
    ring.queue_max_size = 256;
    ring.queue_size = 256;
    qemu.front.set_vring_addr(0, &ring).unwrap();
    qemu.front.set_vring_kick(0, &qemu.kicks[0]).unwrap();
    qemu.front.set_vring_enable(0, true).unwrap_err();
    assert_eq!(starts(&served.calls()), [0; 0]);
    served.end();
}

#[test]
fn another_call_eventfd_reaches_the_running_queue() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    let call = EventFd::new(0).unwrap();
    qemu.front.set_vring_call(2, &call).unwrap();
    assert_eq!(served.calls(), [Call::Eventfd(2, true)]);
    assert_eq!(call.read().unwrap(), 1, "the data plane has written this very eventfd");
    served.end();
}

#[test]
fn another_kick_eventfd_restarts_the_queue() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    qemu.front.set_vring_kick(2, &qemu.kicks[3]).unwrap();
    assert!(matches!(served.calls()[..], [Call::Stop(2), Call::Start { index: 2, base: 10, .. }]));
    served.end();
}

#[test]
fn a_running_ring_keeps_its_size_and_base_but_may_move() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    qemu.front.set_vring_num(0, 64).unwrap_err();
    qemu.front.set_vring_base(0, 3).unwrap_err();
    // The same again, as QEMU says it to switch logging.
    qemu.front.set_vring_num(0, 128).unwrap();
    qemu.front.set_vring_addr(0, &ring_at(0)).unwrap();
    qemu.front.set_features(qemu.features).unwrap();
    qemu.front.set_features(qemu.features & !blk::F_FLUSH).unwrap_err();
    assert_eq!(served.calls(), []);
    qemu.front.set_vring_addr(0, &ring_at(8)).unwrap();
    assert!(matches!(served.calls()[..], [Call::Stop(0), Call::Start { index: 0, base: 10, .. }]));
    served.end();
}

#[test]
fn configuration_is_as_long_as_asked_and_zero_past_the_fields() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V7);
    let fields = common::disk().config(true);
    let fields: &[u8] = fields.as_ref();
    assert_eq!(read_config(&mut qemu.front, 0, 57), fields[..57]);
    assert_eq!(read_config(&mut qemu.front, 20, 4), fields[20..24]);
    let whole = read_config(&mut qemu.front, 0, 256);
    assert_eq!(whole[..fields.len()], *fields);
    assert!(whole[fields.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(read_config(&mut qemu.front, 200, 56), [0; 56]);
    served.end();
}

fn set_config(qemu: &mut Qemu, offset: u32, bytes: &[u8]) -> bool {
    qemu.front.set_config(offset, VhostUserConfigFlags::empty(), bytes).is_ok()
}

#[test]
fn the_writeback_byte_is_honoured_and_nothing_else_is_writable() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let at = u32::try_from(blk::CONFIG_WRITEBACK).unwrap();
    assert!(!set_config(&mut qemu, at, &[0]), "CONFIG_WCE is not negotiated yet");
    qemu.start(None);
    assert_eq!(served.calls()[0], Call::Writeback(true));
    assert!(set_config(&mut qemu, at, &[0]));
    assert_eq!(served.calls(), [Call::Writeback(false)]);
    assert_eq!(read_config(&mut qemu.front, at, 1), [0]);
    assert!(!set_config(&mut qemu, at, &[2]));
    assert!(!set_config(&mut qemu, 0, &[1]));
    assert!(!set_config(&mut qemu, at, &[1, 0]));
    assert_eq!(served.calls(), []);
    // A front-end that comes back doesn't repeat the choice.
    drop(qemu);
    served.until_disconnected();
    served.calls();
    let mut again = Qemu::realize(&served.path(), Version::V10);
    again.start(None);
    assert_eq!(served.calls()[0], Call::Writeback(false));
    assert!(set_config(&mut again, at, &[1]));
    assert_eq!(served.calls().last(), Some(&Call::Writeback(true)));
    served.end();
}

#[test]
fn a_successor_of_the_daemon_keeps_the_write_cache_off() {
    let at = u32::try_from(blk::CONFIG_WRITEBACK).unwrap();
    let first = Served::new();
    let mut qemu = Qemu::realize(&first.path(), Version::V10);
    let inflight = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
    qemu.start(Some(&inflight));
    assert!(set_config(&mut qemu, at, &[0]));
    drop(qemu);
    first.end();

    let second = Served::new();
    let mut qemu = Qemu::realize(&second.path(), Version::V10);
    qemu.start(Some(&inflight));
    let calls = second.calls();
    let start = calls.iter().position(|call| matches!(call, Call::Start { .. })).unwrap();
    let last = calls[..start].iter().rfind(|call| matches!(call, Call::Writeback(_)));
    assert_eq!(last, Some(&Call::Writeback(false)), "before the first queue starts");
    assert_eq!(read_config(&mut qemu.front, at, 1), [0]);
    assert!(set_config(&mut qemu, at, &[1]));
    drop(qemu);
    second.end();

    let third = Served::new();
    let mut qemu = Qemu::realize(&third.path(), Version::V10);
    qemu.start(Some(&inflight));
    assert_eq!(read_config(&mut qemu.front, at, 1), [1], "on again");
    third.end();
}

#[test]
fn a_driver_that_cannot_flush_gets_durable_writes() {
    let served = Served::new();
    let qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.front.set_features(qemu.features & !(blk::F_FLUSH | blk::F_CONFIG_WCE)).unwrap();
    assert_eq!(served.calls(), [Call::Writeback(false)]);
    qemu.front.set_features(qemu.features & !blk::F_FLUSH).unwrap();
    assert_eq!(served.calls(), [Call::Writeback(false)]);
    qemu.front.set_features(qemu.features & !blk::F_CONFIG_WCE).unwrap();
    assert_eq!(served.calls(), [Call::Writeback(true)]);
    served.end();
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let log_all = 1 << 26;
    let packed = 1 << 34;
    assert_eq!(qemu.features & (log_all | packed), 0);
    qemu.front.set_features(qemu.features | log_all).unwrap_err();
    assert!(served.refusal().contains("0x4000000"));
    qemu.front.set_features(qemu.features | packed).unwrap_err();
    assert_eq!(qemu.front.get_protocol_features().unwrap(), protocol_features());
    served.end();
}

#[test]
fn queues_that_do_not_exist_and_impossible_rings_are_refused() {
    let served = Served::new();
    let qemu = Qemu::realize(&served.path(), Version::V10);
    // The front-end under test checks indices itself: one that believes in more queues doesn't.
    let path = served.path();
    drop(qemu);
    served.until_disconnected();
    let mut front = Frontend::connect(&path, 200).unwrap();
    let features = front.get_features().unwrap();
    front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol_features()).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front.set_features(features).unwrap();
    let event = EventFd::new(0).unwrap();
    let none = usize::from(QUEUES);
    front.set_vring_num(none, 128).unwrap_err();
    front.set_vring_base(none, 0).unwrap_err();
    front.set_vring_kick(none, &event).unwrap_err();
    front.set_vring_call(none, &event).unwrap_err();
    front.set_vring_err(none, &event).unwrap_err();
    front.set_vring_enable(none, true).unwrap_err();
    front.set_vring_addr(none, &ring_at(0)).unwrap_err();
    front.set_vring_kick(199, &event).unwrap_err();
    front.set_vring_num(0, 0).unwrap_err();
    front.set_vring_num(0, 100).unwrap_err();
    front.set_vring_num(0, 32768).unwrap();
    front.get_vring_base(usize::from(QUEUES)).unwrap_err();
    served.until_disconnected();
    served.end();
}

#[test]
fn reset_owner_disables_all_rings() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    qemu.front.reset_owner().unwrap();
    assert_eq!(served.calls(), (0..QUEUES).map(Call::Stop).collect::<Vec<_>>());
    served.end();
}

#[test]
fn stopping_drains_a_connected_session_and_ends_an_idle_one() {
    let idle = Served::new();
    idle.end();
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    qemu.start(None);
    served.calls();
    // `end` waits for the thread, which checks that no queue runs.
    let path = served.path();
    served.end();
    qemu.front.get_features().unwrap_err();
    Frontend::connect(&path, 1).map(drop).unwrap_err();
}

#[test]
fn a_second_front_end_waits_for_the_first_to_go() {
    let served = Served::new();
    let first = Qemu::realize(&served.path(), Version::V10);
    let path = served.path();
    let second = std::thread::spawn(move || Qemu::realize(&path, Version::V10));
    first.front.get_features().unwrap();
    drop(first);
    let mut second = second.join().unwrap();
    second.start(None);
    assert_eq!(starts(&served.calls()), [0, 1, 2, 3]);
    served.end();
}
