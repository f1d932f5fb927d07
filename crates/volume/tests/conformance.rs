//! Every kind of volume passes the one suite.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::ErrorKind;
use sealblk_ring::{Level, Ring, RingOptions};
use sealblk_volume::{
    FaultyVolume, Handed, LaneOp, MemoryVolume, OpenOptions, Verdict, Volume, conformance, open,
};

fn file(dir: &tempfile::TempDir) -> String {
    let path = dir.path().join("volume");
    if !path.exists() {
        std::fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
    }
    format!("file:{}", path.display())
}

/// A process that another test forks holds our descriptors, and so our lock, until it has become
/// another program.
fn patient() -> OpenOptions {
    OpenOptions { lock_wait: Duration::from_secs(10), ..OpenOptions::default() }
}

#[test]
fn a_file_conforms() {
    // Not in /tmp, which may lie in memory: the file system under the build is the real thing.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    conformance::run(&|| open(&uri, &patient()).unwrap());
}

#[test]
fn a_file_in_memory_conforms() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let uri = file(&dir);
    conformance::run(&|| open(&uri, &patient()).unwrap());
}

#[test]
fn memory_conforms() {
    let volume: Arc<dyn Volume> = Arc::new(MemoryVolume::new(8 << 20, 512).unwrap());
    conformance::run(&|| volume.clone());
    let volume: Arc<dyn Volume> = Arc::new(MemoryVolume::new(8 << 20, 4096).unwrap());
    conformance::run(&|| volume.clone());
}

#[test]
fn a_file_grows() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let path = dir.path().join("volume");
    let enlarge = |bytes| {
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    };
    conformance::run_growing(&|| open(&uri, &patient()).unwrap(), &enlarge);
}

#[test]
fn memory_grows() {
    let volume = Arc::new(MemoryVolume::new(8 << 20, 4096).unwrap());
    let enlarge = |bytes| volume.resize_storage(bytes).unwrap();
    conformance::run_growing(&|| volume.clone(), &enlarge);
    let inner = Arc::new(MemoryVolume::new(8 << 20, 512).unwrap());
    let enlarge = |bytes| inner.resize_storage(bytes).unwrap();
    let faulty: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner.clone(), |_| Verdict::Pass));
    conformance::run_growing(&|| faulty.clone(), &enlarge);
}

#[test]
fn a_faulty_volume_without_a_fault_conforms() {
    let inner: Arc<dyn Volume> = Arc::new(MemoryVolume::new(8 << 20, 512).unwrap());
    let faulty: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner, |_| Verdict::Pass));
    conformance::run(&|| faulty.clone());
}

#[test]
fn the_suite_notices_lost_writes() {
    let inner: Arc<dyn Volume> = Arc::new(MemoryVolume::new(8 << 20, 512).unwrap());
    let faulty: Arc<dyn Volume> = Arc::new(FaultyVolume::new(inner, |op| match op {
        LaneOp::Write { .. } => Verdict::Short(0),
        _ => Verdict::Pass,
    }));
    let outcome = std::thread::spawn(move || conformance::run(&|| faulty.clone())).join();
    assert!(outcome.is_err());
}

#[test]
fn a_volume_is_held_exclusively() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let reader = OpenOptions { read_only: true, ..OpenOptions::default() };
    let patient_reader = OpenOptions { read_only: true, ..patient() };
    let held = open(&uri, &patient()).unwrap();
    for options in [&OpenOptions::default(), &reader] {
        let error = open(&uri, options).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Busy, "{error}");
        assert!(error.to_string().contains(&uri), "{error}");
    }
    drop(held);
    let first = open(&uri, &patient_reader).unwrap();
    let second = open(&uri, &reader).unwrap();
    assert!(first.geometry().read_only);
    assert!(second.write_at(0, &[1]).is_err());
}

/// Needs the right to set up loop devices, which whoever runs the whole-system tests has.
#[test]
fn a_block_device_conforms_and_its_file_is_in_use() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let losetup = |args: &[&str]| {
        let output = std::process::Command::new("losetup").args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["--find", "--show", "--direct-io=on", &uri["file:".len()..]]);
    let outcome = std::panic::catch_unwind(|| {
        conformance::run(&|| open(&device, &patient()).unwrap());
        let held = open(&device, &patient()).unwrap();
        let second = open(&device, &OpenOptions::default()).err().unwrap();
        assert_eq!(second.kind, ErrorKind::Busy, "{second}");
        drop(held);
        open(&uri, &OpenOptions::default()).err().unwrap()
    });
    losetup(&["--detach", &device]);
    let error = outcome.unwrap();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.to_string().contains(&device), "{error}");
}

#[test]
fn a_successor_waits_for_the_volume() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let held = open(&uri, &OpenOptions::default()).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    let successor = std::thread::spawn(move || {
        tell.send(()).unwrap();
        let options = OpenOptions { lock_wait: Duration::from_secs(60), ..OpenOptions::default() };
        open(&uri, &options).is_ok()
    });
    told.recv().unwrap();
    drop(held);
    assert!(successor.join().unwrap());
}

#[test]
fn a_file_is_made_on_demand_and_never_overwritten() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = format!("file:{}/new", dir.path().display());
    let missing = open(&uri, &OpenOptions::default()).err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let create = |bytes| OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() };
    assert_eq!(open(&uri, &create(1 << 20)).unwrap().geometry().size_bytes, 1 << 20);
    let create = |bytes| OpenOptions { create_bytes: Some(bytes), ..patient() };
    assert_eq!(open(&uri, &create(2 << 20)).unwrap().geometry().size_bytes, 1 << 20);
}

#[test]
fn what_is_no_volume_is_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for uri in [format!("file:{}", dir.path().display()), "/dev/null".into()] {
        assert!(open(&uri, &OpenOptions::default()).is_err(), "{uri}");
    }
}

#[test]
fn a_file_that_ends_inside_a_block_keeps_its_length() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("odd");
    std::fs::File::create(&path).unwrap().set_len((1 << 20) + 100).unwrap();
    let volume = open(&format!("file:{}", path.display()), &OpenOptions::default()).unwrap();
    assert_eq!(volume.geometry().size_bytes, 1 << 20);
    volume.write_at((1 << 20) - 10, &[1; 10]).unwrap();
    assert!(volume.write_at(1 << 20, &[1]).is_err());
    assert_eq!(path.metadata().unwrap().len(), (1 << 20) + 100);
}

/// What a process with more rights opened, as it hands it over.
fn handed(dir: &tempfile::TempDir, file: &Arc<OwnedFd>) -> OpenOptions {
    let claim = dir.path().join("claim");
    OpenOptions { handed: Some(Handed { file: file.clone(), claim }), ..patient() }
}

#[test]
fn a_descriptor_from_another_process_conforms() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let path = uri.strip_prefix("file:").unwrap();
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap();
    let opened = Arc::new(OwnedFd::from(opened));
    conformance::run(&|| open(&uri, &handed(&dir, &opened)).unwrap());
}

/// The descriptor may be kept by others: the claim beside it is what a successor waits for.
#[test]
fn who_is_handed_a_volume_waits_for_the_one_before() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let path = uri.strip_prefix("file:").unwrap();
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let opened = Arc::new(OwnedFd::from(opened));
    let first = open(&uri, &handed(&dir, &opened)).unwrap();
    let mut ring = Ring::new(RingOptions { entries: 8, best: Level::Deferred }).unwrap();
    let lane = first.open_lane(&mut ring).unwrap();
    drop((first, lane));
    let impatient = OpenOptions { lock_wait: Duration::ZERO, ..handed(&dir, &opened) };
    let error = open(&uri, &impatient).err().unwrap().to_string();
    assert!(error.contains("another process of ours"), "{error}");
    drop(ring);
    open(&uri, &handed(&dir, &opened)).unwrap();
}

#[test]
fn a_descriptor_without_the_right_to_write_is_for_reading_only() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let uri = file(&dir);
    let opened = std::fs::File::open(uri.strip_prefix("file:").unwrap()).unwrap();
    let opened = Arc::new(OwnedFd::from(opened));
    let error = open(&uri, &handed(&dir, &opened)).err().unwrap().to_string();
    assert!(error.contains("not opened for writing"), "{error}");
    let options = OpenOptions { read_only: true, ..handed(&dir, &opened) };
    assert!(open(&uri, &options).unwrap().geometry().read_only);
}
