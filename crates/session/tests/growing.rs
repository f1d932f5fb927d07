//! A disk that grows while a front-end is there: when it is told, and what it then reads.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;

use common::{Qemu, Served, Version, disk, message, read_config, send_with_fd};
use rustix::event::{EventfdFlags, eventfd};
use sealblk_session::Event;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;

/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`, version 1, no reply wanted, no payload.
const CONFIG_CHANGED: [u32; 3] = [2, 1, 0];

/// Our end of a channel; the session gets the other one.
fn channel(qemu: &mut Qemu) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    qemu.front.set_backend_request_fd(&theirs).unwrap();
    ours
}

fn next_message(channel: &mut UnixStream) -> [u32; 3] {
    let mut bytes = [0; 12];
    channel.read_exact(&mut bytes).unwrap();
    let mut words = bytes.chunks_exact(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
    std::array::from_fn(|_| words.next().unwrap())
}

fn nothing_waits(channel: &mut UnixStream) {
    channel.set_nonblocking(true).unwrap();
    let error = channel.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    channel.set_nonblocking(false).unwrap();
}

fn capacity(qemu: &mut Qemu) -> u64 {
    let config = read_config(&mut qemu.front, 0, 60);
    u64::from_le_bytes(config[..8].try_into().unwrap())
}

#[test]
fn a_front_end_is_told_and_reads_the_new_size() {
    for version in [Version::V7, Version::V10] {
        let served = Served::new();
        let mut qemu = Qemu::realize(&served.path(), version);
        assert_eq!(served.event(), Event::Connected);
        let mut channel = channel(&mut qemu);
        qemu.start(None);
        for sectors in [4096, 8192] {
            served.capacity.grown_to(sectors);
            assert_eq!(served.event(), Event::SizeTold { sectors });
            assert_eq!(next_message(&mut channel), CONFIG_CHANGED);
            assert_eq!(capacity(&mut qemu), sectors);
        }
        served.capacity.grown_to(4096);
        assert_eq!(capacity(&mut qemu), 8192, "it never shrinks");
        nothing_waits(&mut channel);
        served.end();
        assert_eq!(channel.read(&mut [0]).unwrap(), 0, "closed with the connection");
    }
}

#[test]
fn nobody_is_told_what_he_knows() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let mut channel = channel(&mut qemu);
    qemu.start(None);
    served.capacity.grown_to(disk().capacity_sectors);
    assert_eq!(capacity(&mut qemu), disk().capacity_sectors);
    qemu.stop();
    nothing_waits(&mut channel);
    served.end();
}

#[test]
fn a_growth_before_the_driver_is_there_is_told_when_it_is() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    assert_eq!(served.event(), Event::Connected);
    let mut channel = channel(&mut qemu);
    served.capacity.grown_to(4096);
    // An answer to something: the news have been seen by then.
    qemu.front.get_queue_num().unwrap();
    qemu.front.get_queue_num().unwrap();
    nothing_waits(&mut channel);
    qemu.start(None);
    assert_eq!(served.event(), Event::SizeTold { sectors: 4096 });
    assert_eq!(next_message(&mut channel), CONFIG_CHANGED);
    served.end();
}

#[test]
fn a_front_end_that_comes_back_without_reading_is_told() {
    let served = Served::new();
    let qemu = Qemu::realize(&served.path(), Version::V10);
    drop(qemu);
    served.until_disconnected();
    let mut qemu = Qemu::reconnect(&served.path());
    let mut channel = channel(&mut qemu);
    qemu.start(None);
    assert_eq!(next_message(&mut channel), CONFIG_CHANGED);
    assert_eq!(capacity(&mut qemu), disk().capacity_sectors);
    served.end();
}

#[test]
fn without_a_channel_the_next_look_shows_the_size() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V7);
    qemu.start(None);
    served.capacity.grown_to(4096);
    assert_eq!(capacity(&mut qemu), 4096);
    served.end();
}

#[test]
fn a_channel_that_is_closed_harms_nobody() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    drop(channel(&mut qemu));
    qemu.start(None);
    served.capacity.grown_to(4096);
    assert_eq!(served.event(), Event::Connected);
    assert!(matches!(served.event(), Event::ChannelFailed { .. }));
    assert_eq!(capacity(&mut qemu), 4096);
    let mut another = channel(&mut qemu);
    served.capacity.grown_to(8192);
    assert_eq!(next_message(&mut another), CONFIG_CHANGED);
    served.end();
}

#[test]
fn what_is_no_channel_is_refused() {
    let served = Served::new();
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    qemu.front.set_backend_request_fd(&event).unwrap_err();
    assert!(served.refusal().contains("no stream socket"));
    assert_eq!(capacity(&mut qemu), disk().capacity_sectors, "the connection goes on");
    drop(qemu);
    served.until_disconnected();
    // Neither negotiated nor with a reply wanted: the connection ends.
    let bytes = message(FrontendReq::SET_BACKEND_REQ_FD, false, &[]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    send_with_fd(&served.path(), &bytes, &theirs.into());
    assert!(served.refusal().contains("not negotiated"));
    served.end();
}
