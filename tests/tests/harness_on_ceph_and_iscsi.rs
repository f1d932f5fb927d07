//! The harness's Ceph, iSCSI targets and proxy, seen by other people's clients: when a scenario on
//! those fails and these pass, it is us.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Ceph, Kind, Proxy, RbdImage, Scratch, Target, TargetOptions, TestVolume, progress, run,
    unpack_kat, until,
};

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

fn qemu_io(image: &str, commands: &[&str]) -> Result<String> {
    let mut args: Vec<OsString> = ["-f", "raw", "-t", "none"].map(OsString::from).into();
    args.extend(commands.iter().flat_map(|command| ["-c".into(), OsString::from(command)]));
    let output = run("qemu-io", args.into_iter().chain([image.into()]))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `qemu-io` on the image that takes its commands from us, one after the other.
struct QemuIo(Child);

impl QemuIo {
    fn open(image: &RbdImage) -> Result<Self> {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "raw", "-t", "none", &image.qemu()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn().context("can't run qemu-io")?))
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.0.stdin.as_mut().context("no input")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Closes its input; all that it printed.
    fn finish(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        until("the end of qemu-io", LIMIT, || Ok(self.0.try_wait()?))?;
        let mut text = String::new();
        self.0.stdout.take().context("no output")?.read_to_string(&mut text)?;
        self.0.stderr.take().context("no errors")?.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn what_qemu_writes_to_rbd_is_what_ceph_exports() -> Result<()> {
    let ceph = Ceph::shared()?;
    let scratch = Scratch::new()?;
    let image = ceph.image(64 << 20)?;
    qemu_io(&image.qemu(), &["write -P 0x5a 1M 2M"])?;
    let bytes = std::fs::read(image.export(&scratch.file("export"))?)?;
    assert_eq!(bytes.len(), 64 * MIB);
    assert!(bytes[MIB..3 * MIB].iter().all(|&byte| byte == 0x5a), "not what was written");
    assert!(bytes[..MIB].iter().chain(&bytes[3 * MIB..]).all(|&byte| byte == 0), "and more");
    image.resize(96 << 20)?;
    assert_eq!(image.size_bytes()?, 96 << 20);
    image.snap_create("s")?;
    let few = ceph.image_with_features(1 << 20, "layering")?;
    assert_eq!(few.info()?.get("features"), Some(&serde_json::json!(["layering"])));
    progress(format_args!("the cluster has {} KiB in use", ceph.resident_kib()?));
    Ok(())
}

#[test]
fn the_restricted_user_reaches_images_and_nothing_else() -> Result<()> {
    let ceph = Ceph::shared()?;
    let image = ceph.image(4 << 20)?;
    let user = ceph.user();
    let keyring = user.keyring.to_str().context("not UTF-8")?;
    let identity = ["--id", user.id, "--keyring", keyring];
    ceph.rbd(&[&identity[..], &["info", &image.spec()]].concat())?;
    let refused = ceph.ceph(&[&identity[..], &["auth", "ls"]].concat());
    let error = refused.err().context("it may read all keys")?.to_string();
    ensure!(error.contains("EACCES"), "{error}");
    Ok(())
}

#[test]
fn an_osd_that_is_killed_under_load_comes_back_and_the_client_goes_on() -> Result<()> {
    let ceph = Ceph::shared()?;
    let image = ceph.image(64 << 20)?;
    let scratch = Scratch::new()?;
    let mut client = QemuIo::open(&image)?;
    client.say("write -P 1 0 1M")?;
    until("the client to have the lock", LIMIT, || image.lock_owner())?;
    let outage = ceph.osd_kill()?;
    client.say("write -P 2 1M 1M")?;
    client.say("flush")?;
    outage.end()?;
    let pause = ceph.osd_pause()?;
    client.say("write -P 3 2M 1M")?;
    pause.end()?;
    drop(ceph.mon_kill()?);
    client.say("write -P 4 3M 1M")?;
    let text = client.finish()?;
    assert_eq!(text.matches("wrote 1048576/1048576").count(), 4, "{text}");
    let bytes = std::fs::read(image.export(&scratch.file("export"))?)?;
    for (index, part) in bytes[..4 * MIB].chunks(MIB).enumerate() {
        assert!(part.iter().all(|&byte| usize::from(byte) == index + 1), "MiB {index}");
    }
    Ok(())
}

#[test]
fn who_loses_the_lock_to_another_writes_no_more() -> Result<()> {
    let ceph = Ceph::shared()?;
    let image = ceph.image(16 << 20)?;
    let scratch = Scratch::new()?;
    let mut client = QemuIo::open(&image)?;
    client.say("write -P 1 0 1M")?;
    until("the client to have the lock", LIMIT, || image.lock_owner())?;
    // The lock comes before the write; wait for that, too.
    until("the first write", LIMIT, || {
        let bytes = std::fs::read(image.export(&scratch.file("before"))?)?;
        std::fs::remove_file(scratch.file("before"))?;
        Ok(bytes[..MIB].iter().all(|&byte| byte == 1).then_some(()))
    })?;
    let owner = image.break_lock()?;
    assert!(ceph.blocklist()?.contains(&owner.address), "{owner:?} is not blocklisted");
    client.say("write -P 2 0 1M")?;
    let text = client.finish()?;
    assert_eq!(text.matches("wrote 1048576/1048576").count(), 1, "{text}");
    let bytes = std::fs::read(image.export(&scratch.file("after"))?)?;
    assert!(bytes[..MIB].iter().all(|&byte| byte == 1), "a blocklisted client has written");
    Ok(())
}

#[test]
fn an_image_vanishes_although_a_client_holds_it() -> Result<()> {
    let ceph = Ceph::shared()?;
    let image = ceph.image(4 << 20)?;
    let name = image.name().to_owned();
    image.snap_create("s")?;
    let mut client = QemuIo::open(&image)?;
    client.say("write -P 1 0 1M")?;
    until("the client to have the lock", LIMIT, || image.lock_owner())?;
    drop(image);
    let output = ceph.rbd(&["ls"])?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!names.lines().any(|line| line == name), "{names}");
    Ok(())
}

fn capacity(target: &Target) -> Result<(u64, u64)> {
    let output = run("iscsi-readcapacity16", [target.qemu()])?;
    let text = String::from_utf8(output.stdout)?;
    let field = |name: &str| -> Result<u64> {
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(value.with_context(|| text.clone())?.trim().parse()?)
    };
    Ok((field("RETURNED LOGICAL BLOCK ADDRESS:")? + 1, field("LOGICAL BLOCK LENGTH IN BYTES:")?))
}

#[test]
fn a_target_that_was_killed_serves_the_same_bytes_again() -> Result<()> {
    let mut target = Target::new(16 << 20, TargetOptions::default())?;
    let url = target.qemu();
    qemu_io(&url, &["write -P 0x77 4k 64k"])?;
    target.kill()?;
    ensure!(qemu_io(&url, &["read 0 512"]).is_err(), "a dead target answers");
    target.start()?;
    assert_eq!(target.qemu(), url);
    qemu_io(&url, &["read -P 0x77 4k 64k", "read -P 0 0 4k"])?;
    let bytes = std::fs::read(target.image())?;
    assert!(bytes[4096..4096 + 65536].iter().all(|&byte| byte == 0x77), "not in the image");
    target.pause()?;
    target.resume()?;
    assert_eq!(capacity(&target)?, (32768, 512));
    target.resize(24 << 20)?;
    assert_eq!(capacity(&target)?, (49152, 512));
    progress(format_args!("tgtd has {} KiB in use", target.resident_kib()?));
    Ok(())
}

#[test]
fn a_target_is_what_its_options_say() -> Result<()> {
    let options = TargetOptions { block_bytes: 4096, ..TargetOptions::with_chap() };
    let target = Target::new(16 << 20, options)?;
    assert_eq!(capacity(&target)?, (4096, 4096));
    qemu_io(&target.qemu(), &["write -P 1 0 8k"])?;
    let without = run("iscsi-readcapacity16", [target.url()]);
    ensure!(without.is_err(), "no secret was needed");
    let options = TargetOptions { read_only: true, thin: false, ..TargetOptions::default() };
    let target = Target::new(16 << 20, options)?;
    ensure!(qemu_io(&target.qemu(), &["write -P 1 0 8k"]).is_err(), "it is writable");
    assert!(std::fs::read(target.image())?.iter().all(|&byte| byte == 0), "it was written to");
    Ok(())
}

#[test]
fn known_answers_are_the_same_bytes_on_every_kind_of_volume() -> Result<()> {
    let scratch = Scratch::new()?;
    let expected = std::fs::read(unpack_kat("l1-cs-k512.img", scratch.path())?)?;
    for kind in Kind::ALL {
        let volume = TestVolume::known_answer_on(kind, "l1-cs-k512.img")?;
        assert!(volume.bytes()? == expected, "{kind:?}: the bytes differ");
    }
    Ok(())
}

/// A server that sends back what it gets; the sum of what it got, when all clients are gone.
fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(len @ 1..) = client.read(&mut buffer) {
                    if client.write_all(&buffer[..len]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

fn echoes(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<bool> {
    let mut back = vec![0; text.len()];
    stream.write_all(text)?;
    stream.read_exact(&mut back)?;
    Ok(back == text)
}

fn connect(proxy: &Proxy) -> Result<TcpStream> {
    let stream = TcpStream::connect(proxy.address())?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

#[test]
fn a_path_can_be_cut_and_closed() -> Result<()> {
    let proxy = Proxy::to(echo()?)?;
    let mut stream = connect(&proxy)?;
    assert!(echoes(&mut stream, &[7; 300_000][..])?);
    proxy.cut()?;
    ensure!(echoes(&mut stream, b"x").is_err(), "a connection that was cut echoes");
    assert_eq!((proxy.counts().open, proxy.counts().cut), (0, 1));
    let mut stream = connect(&proxy)?;
    assert!(echoes(&mut stream, b"again")?);
    proxy.refuse(true)?;
    let refused = TcpStream::connect(proxy.address()).err().context("it listens")?;
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(echoes(&mut stream, b"who is connected stays")?);
    proxy.refuse(false)?;
    assert!(echoes(&mut connect(&proxy)?, b"open again")?);
    assert_eq!(proxy.counts().accepted, 3);
    Ok(())
}

#[test]
fn a_path_can_die_silently_and_in_mid_transfer() -> Result<()> {
    let proxy = Proxy::to(echo()?)?;
    let mut stream = connect(&proxy)?;
    assert!(echoes(&mut stream, b"hello")?);
    proxy.stall(true)?;
    stream.write_all(b"later")?;
    stream.set_nonblocking(true)?;
    let silence = stream.read(&mut [0; 5]).err().context("bytes move while it is stalled")?;
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(proxy.counts().to_target_bytes, 5);
    stream.set_nonblocking(false)?;
    proxy.stall(false)?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    assert_eq!(&back, b"later");
    proxy.drop_after(100_000)?;
    ensure!(echoes(&mut stream, &[1; 200_000]).is_err(), "all went through");
    assert_eq!(proxy.counts().to_target_bytes, 10 + 100_000);
    assert!(echoes(&mut connect(&proxy)?, &[2; 200_000])?, "cut twice");
    Ok(())
}
