//! Descriptors are counted for the whole process, so this has a program to itself.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::os::unix::net::UnixStream;

use common::{Qemu, Served, Version, inflight_shape, message, send_raw};
use sealblk_session::fuzz_messages;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::FrontendReq;

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn one_of_everything(served: &Served) {
    let mut qemu = Qemu::realize(&served.path(), Version::V10);
    let inflight = qemu.front.get_inflight_fd(&inflight_shape()).unwrap();
    let (_channel, theirs) = UnixStream::pair().unwrap();
    qemu.front.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    qemu.start(Some(&inflight));
    qemu.front.add_mem_region(&qemu.ram.info).unwrap_err();
    qemu.front.set_vring_kick(0, &qemu.kicks[1]).unwrap();
    qemu.front.set_vring_call(0, &qemu.kicks[1]).unwrap();
    drop(qemu);
    served.until_disconnected();
    send_raw(&served.path(), &message(FrontendReq::SET_VRING_KICK, false, &[9; 8]));
    served.until_disconnected();
    // Descriptors with messages that take none, too many, or of the wrong kind.
    for request in 0..46 {
        for kind in [1, 2, 7, 9, 15] {
            let request = FrontendReq::try_from(request).unwrap_or(FrontendReq::SET_MEM_TABLE);
            for payload in [&[][..], &[0; 40]] {
                let bytes = message(request, true, payload);
                let len = u16::try_from(bytes.len()).unwrap().to_le_bytes();
                fuzz_messages(&[&[kind], &len[..], &bytes].concat());
            }
        }
    }
}

#[test]
fn no_connection_leaves_a_descriptor_behind() {
    let served = Served::new();
    one_of_everything(&served);
    let before = open_descriptors();
    one_of_everything(&served);
    one_of_everything(&served);
    assert_eq!(open_descriptors(), before);
    served.end();
}
