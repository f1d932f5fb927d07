//! Images on a real cluster: the one that `scripts/ceph.sh` runs.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "calls Lane::submit")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use sealblk_block::ErrorKind;
use sealblk_ring::{Level, Ring, RingOptions, Token};
use sealblk_volume::{
    AlignedBuf, Buffer, LaneIo, LaneOp, OpenOptions, Volume, VolumeEvent, conformance, open,
};

/// The cluster's configuration; starts it if it doesn't run.
fn conf() -> PathBuf {
    static CONF: OnceLock<PathBuf> = OnceLock::new();
    CONF.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/ceph.sh");
        let output = Command::new(script).arg("up").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script} up: {said}");
        String::from_utf8(output.stdout).unwrap().trim_end().into()
    })
    .clone()
}

fn rbd(args: &[&str]) -> String {
    let output = Command::new("rbd").arg("-c").arg(conf()).args(args).output().unwrap();
    assert!(output.status.success(), "rbd {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An image that goes when this does.
struct Image(String);

impl Image {
    fn new(extra: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rbd/volume-{}-{n}", std::process::id());
        rbd(&[&["create", "--size", "8M", &name], extra].concat());
        Self(name)
    }

    fn uri(&self) -> String {
        format!("rbd:{}?conf={}", self.0, conf().display())
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // A snapshot, or a client that is not gone yet, may be in its way; the cluster is ours.
        for args in [&["snap", "purge"][..], &["rm"]] {
            let _ = Command::new("rbd").arg("-c").arg(conf()).args(args).arg(&self.0).output();
        }
    }
}

fn options() -> OpenOptions {
    OpenOptions { io_timeout: Some(Duration::from_secs(60)), ..OpenOptions::default() }
}

#[test]
fn an_image_conforms() {
    let image = Image::new(&[]);
    conformance::run(&|| open(&image.uri(), &options()).unwrap());
}

#[test]
fn an_image_of_small_stripes_conforms() {
    let image =
        Image::new(&["--object-size", "64K", "--stripe-unit", "16K", "--stripe-count", "4"]);
    conformance::run(&|| open(&image.uri(), &options()).unwrap());
}

#[test]
fn an_image_grows() {
    let image = Image::new(&[]);
    let enlarge = |bytes: u64| {
        rbd(&["resize", "--size", &format!("{bytes}B"), &image.0]);
    };
    conformance::run_growing(&|| open(&image.uri(), &options()).unwrap(), &enlarge);
}

#[test]
fn an_image_is_held_exclusively() {
    let image = Image::new(&[]);
    let first = open(&image.uri(), &options()).unwrap();
    let second = open(&image.uri(), &options()).err().unwrap();
    assert_eq!(second.kind, ErrorKind::Busy, "{second}");
    let reader = OpenOptions { read_only: true, ..options() };
    assert!(open(&image.uri(), &reader).unwrap().geometry().read_only);
    drop(first);
    open(&image.uri(), &options()).unwrap();
}

#[test]
fn a_snapshot_can_be_read_and_nothing_else() {
    let image = Image::new(&[]);
    let volume = open(&image.uri(), &options()).unwrap();
    volume.write_at(0, b"before").unwrap();
    rbd(&["snap", "create", &format!("{}@s", image.0)]);
    volume.write_at(0, b"behind").unwrap();
    let uri = image.uri().replace("?", "@s?");
    let error = open(&uri, &options()).err().unwrap();
    assert!(error.to_string().contains("read-only"), "{error}");
    let snapshot = open(&uri, &OpenOptions { read_only: true, ..options() }).unwrap();
    let mut bytes = [0; 6];
    snapshot.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"before");
    assert!(snapshot.write_at(0, b"x").is_err());
}

#[test]
fn what_cannot_be_opened_says_why() {
    let image = Image::new(&["--image-feature", "layering"]);
    let uri = image.uri();
    let no_pool = uri.replace("rbd:rbd/", "rbd:none/");
    let no_image = uri.replace("volume-", "nothing-");
    let no_user = format!("{uri}&user=nobody");
    let no_conf = uri.replace("ceph.conf", "none.conf");
    let no_snapshot = uri.replace("?", "@none?");
    for (uri, kind, hint) in [
        (&uri, ErrorKind::Unsupported, "exclusive-lock"),
        (&no_pool, ErrorKind::NotFound, "no pool \"none\""),
        (&no_image, ErrorKind::NotFound, "no such image"),
        (&no_user, ErrorKind::Permission, "client.nobody"),
        (&no_conf, ErrorKind::NotFound, "none.conf"),
        (&no_snapshot, ErrorKind::Invalid, "read-only"),
    ] {
        let error = open(uri, &options()).err().unwrap();
        assert!(error.to_string().contains(hint), "{uri}: {error}");
        assert_eq!(error.kind, kind, "{uri}: {error}");
    }
    let reader = OpenOptions { read_only: true, ..options() };
    let error = open(&no_snapshot, &reader).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
}

#[test]
fn a_cache_that_somebody_turned_on_is_refused() {
    let image = Image::new(&[]);
    rbd(&["config", "image", "set", &image.0, "rbd_cache", "true"]);
    let error = open(&image.uri(), &options()).err().unwrap();
    assert!(error.to_string().contains("rbd config image remove"), "{error}");
    rbd(&["config", "image", "set", &image.0, "rbd_cache", "false"]);
    open(&image.uri(), &options()).unwrap();
}

#[test]
fn a_successor_that_would_not_shut_us_out_is_refused() {
    let image = Image::new(&[]);
    let key = "rbd_blocklist_on_break_lock";
    rbd(&["config", "image", "set", &image.0, key, "false"]);
    let error = open(&image.uri(), &options()).err().unwrap();
    assert!(error.to_string().contains(key), "{error}");
    rbd(&["config", "image", "set", &image.0, key, "true"]);
    open(&image.uri(), &options()).unwrap();
}

/// One I/O of a lane of its own.
fn run(volume: &dyn Volume, op: LaneOp) -> Result<u32, i32> {
    let mut ring = Ring::new(RingOptions { entries: 8, best: Level::Deferred }).unwrap();
    ring.enable().unwrap();
    let mut lane = volume.open_lane(&mut ring).unwrap();
    // SAFETY: the caller's memory lives until this returns, which is after the I/O's end.
    unsafe { lane.submit(&mut ring, LaneIo { id: 0, op }) }.unwrap();
    let mut done = Vec::new();
    while done.is_empty() {
        lane.push_out(&mut ring);
        ring.submit_and_wait().unwrap();
        while let Some(completion) = ring.reap() {
            if let Token::Lane(token) = completion.token {
                lane.complete(&mut ring, token, completion.result, &mut done);
            }
        }
    }
    lane.close(&mut ring);
    done[0].result
}

#[test]
fn io_across_the_end_of_an_image_that_has_shrunk_is_no_success() {
    const LEN: usize = 8192;
    let image = Image::new(&[]);
    let volume = open(&image.uri(), &options()).unwrap();
    let (send, receive) = channel();
    volume.listen(std::sync::Arc::new(move |event| send.send(event).unwrap()));
    rbd(&["resize", "--size", "4M", "--allow-shrink", &image.0]);
    let event = receive.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(event, VolumeEvent::Resized { size_bytes: 4 << 20 });
    let mut memory = AlignedBuf::new(LEN).unwrap();
    let buffer =
        Buffer::Flat { addr: memory.as_mut_ptr(), len_bytes: LEN as u32, registered: None };
    let offset_bytes = (4 << 20) - 4096;
    let read = run(&*volume, LaneOp::Read { offset_bytes, buffer });
    assert_ne!(read, Ok(LEN as u32));
    let write = run(&*volume, LaneOp::Write { offset_bytes, buffer, durable: false });
    assert_ne!(write, Ok(LEN as u32));
    rbd(&["resize", "--size", "8M", &image.0]);
    let event = receive.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(event, VolumeEvent::Resized { size_bytes: 8 << 20 });
    let write = run(&*volume, LaneOp::Write { offset_bytes, buffer, durable: false });
    assert_eq!(write, Ok(LEN as u32));
}

#[test]
fn a_resize_is_told() {
    let image = Image::new(&[]);
    let volume = open(&image.uri(), &options()).unwrap();
    let (send, receive) = channel();
    volume.listen(std::sync::Arc::new(move |event| send.send(event).unwrap()));
    rbd(&["resize", "--size", "16M", &image.0]);
    let event = receive.recv_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(event, VolumeEvent::Resized { size_bytes: 16 << 20 });
    assert_eq!(volume.geometry().size_bytes, 8 << 20);
    assert!(volume.write_at(8 << 20, b"late").is_err());
    volume.grow_to(volume.measure_size().unwrap());
    volume.write_at((16 << 20) - 4, b"last").unwrap();
}

#[test]
fn whoever_loses_the_lock_writes_nothing_any_more() {
    let image = Image::new(&[]);
    let volume = open(&image.uri(), &options()).unwrap();
    let (send, receive) = channel();
    volume.listen(std::sync::Arc::new(move |event| send.send(event).unwrap()));
    volume.write_at(0, b"mine").unwrap();
    let locks: serde_json::Value =
        serde_json::from_str(&rbd(&["lock", "ls", "--format", "json", &image.0])).unwrap();
    let lock = &locks[0];
    rbd(&["lock", "rm", &image.0, lock["id"].as_str().unwrap(), lock["locker"].as_str().unwrap()]);
    let successor = open(&image.uri(), &options()).unwrap();
    successor.write_at(0, b"his.").unwrap();
    let error = volume.write_at(0, b"late").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy, "{error}");
    let event = receive.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(matches!(event, VolumeEvent::Fenced { .. }), "{event:?}");
    let mut bytes = [0; 4];
    successor.read_at(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"his.");
    drop(volume);
    successor.write_at(0, b"here").unwrap();
}
