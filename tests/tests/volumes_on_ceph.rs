//! Volumes on a real Ceph: what we write there librbd and cryptsetup read, what librbd wrote we serve,
//! and outages of the cluster cost time and nothing else.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Ceph, Client, Daemon, Guest, GuestBuilder, GuestImage, Load, Pattern, RbdImage, Scratch,
    Storage, TestVolume, kat, oracle, progress, run, sealblk, sealblk_command, unpack_kat, until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;

/// A guest without hardware virtualisation on a busy machine is slow.
const LIMIT: Duration = Duration::from_secs(240);

/// An image on the cluster, served as the user that a hypervisor has.
struct Disk {
    scratch: Scratch,
    key: PathBuf,
    image: RbdImage,
}

impl Disk {
    fn blank(size_bytes: u64) -> Result<Self> {
        let scratch = Scratch::new()?;
        let key = scratch.file("key");
        std::fs::write(&key, "a passphrase of some length")?;
        Ok(Self { scratch, key, image: Ceph::shared()?.image(size_bytes)? })
    }

    fn formatted(data_bytes: u64, arguments: &[&str]) -> Result<Self> {
        let disk = Self::blank(data_bytes + 16 * MIB)?;
        let mut all: Vec<OsString> = ["format", "--kdf", "pbkdf2", "--yes"].map(Into::into).into();
        all.extend(disk.arguments());
        all.extend(arguments.iter().map(OsString::from));
        sealblk(all)?;
        Ok(disk)
    }

    fn uri(&self) -> String {
        self.image.uri_as(&self.image.ceph().user())
    }

    fn arguments(&self) -> [OsString; 4] {
        let key = format!("file:{}", self.key.display());
        ["--volume".into(), self.uri().into(), "--key".into(), key.into()]
    }

    fn control(&self) -> PathBuf {
        self.scratch.file("control.sock")
    }

    fn serve(&self, extra: &[&str]) -> Result<Daemon> {
        self.serve_as("vu.sock", "state", extra)
    }

    fn serve_as(&self, socket: &str, state: &str, extra: &[&str]) -> Result<Daemon> {
        let mut all: Vec<OsString> = self.arguments().into();
        all.extend(["--state-dir".into(), self.scratch.file(state).into()]);
        all.extend(extra.iter().map(OsString::from));
        Daemon::with_args(&self.scratch.file(socket), all)
    }

    /// As Ceph's own tool exports it.
    fn exported(&self) -> Result<TestVolume> {
        let scratch = Scratch::new()?;
        let (image, key) = (scratch.file("volume.img"), scratch.file("key"));
        self.image.export(&image)?;
        std::fs::copy(&self.key, &key)?;
        Ok(TestVolume { scratch, image, key, storage: Storage::File })
    }

    /// QEMU's options for this image through librbd's own encryption.
    fn through_librbd(&self, format: &str) -> [OsString; 4] {
        let secret = format!("secret,id=s,file={}", self.key.display());
        let image = format!(
            "driver=rbd,pool=rbd,image={},conf={},encrypt.format={format},encrypt.key-secret=s",
            self.image.name(),
            self.image.ceph().conf().display()
        );
        ["--object".into(), secret.into(), "--image-opts".into(), image.into()]
    }

    /// The plaintext according to librbd.
    fn librbd_decrypts(&self, format: &str) -> Result<Vec<u8>> {
        let plain = self.scratch.file("plain");
        let mut arguments: Vec<OsString> = vec!["convert".into()];
        arguments.extend(self.through_librbd(format));
        arguments.extend(["-O".into(), "raw".into(), plain.clone().into()]);
        run("qemu-img", arguments)?;
        Ok(std::fs::read(plain)?)
    }

    /// Writes through librbd's own encryption.
    fn librbd_writes(&self, format: &str, plain: &Path) -> Result<()> {
        let mut arguments: Vec<OsString> = vec!["convert".into(), "-n".into()];
        let [object, secret, _, image] = self.through_librbd(format);
        arguments.extend([object, secret, "-f".into(), "raw".into(), plain.into()]);
        arguments.extend(["--target-image-opts".into(), image]);
        run("qemu-img", arguments)?;
        Ok(())
    }
}

fn same(found: &[u8], expected: &[u8]) -> Result<()> {
    ensure!(found.len() == expected.len(), "{} bytes, not {}", found.len(), expected.len());
    let difference = found.iter().zip(expected).position(|(a, b)| a != b);
    ensure!(difference.is_none(), "the first wrong byte is at {difference:?}");
    Ok(())
}

fn what_we_format_others_read(sector_bytes: &str) -> Result<()> {
    let disk = Disk::formatted(DISK, &["--sector-size", sector_bytes])?;
    let mut daemon = disk.serve(&["--queues", "2"])?;
    let plain = Pattern(7).bytes(0, usize::try_from(DISK)?);
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &plain)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;
    same(&disk.librbd_decrypts("luks2")?, &plain).context("librbd")?;
    same(&oracle::cryptsetup_decrypts(&disk.exported()?)?, &plain).context("cryptsetup")
}

#[test]
fn what_we_format_librbd_and_cryptsetup_read() -> Result<()> {
    what_we_format_others_read("512")?;
    what_we_format_others_read("4096")
}

/// `format` is librbd's word, `known_as` QEMU's.
fn what_librbd_formats_we_serve(format: &str, known_as: &str) -> Result<()> {
    let disk = Disk::blank(48 * MIB)?;
    let key = disk.key.to_str().context("not UTF-8")?;
    disk.image.ceph().rbd(&["encryption", "format", &disk.image.spec(), format, key])?;
    // Its own idea of the size tells how long the content may be.
    let len = disk.librbd_decrypts(known_as)?.len();
    let theirs = Pattern(8).bytes(0, len);
    let file = disk.scratch.file("theirs");
    std::fs::write(&file, &theirs)?;
    disk.librbd_writes(known_as, &file)?;
    let mut daemon = disk.serve(&[])?;
    let mut client = Client::simple(daemon.socket())?;
    same(&client.read(0, len)?, &theirs).context("what librbd wrote")?;
    let ours = Pattern(9).bytes(0, len);
    client.write(0, &ours)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;
    same(&disk.librbd_decrypts(known_as)?, &ours).context("what we wrote")
}

#[test]
fn what_librbd_formats_as_luks1_we_serve() -> Result<()> {
    what_librbd_formats_we_serve("luks1", "luks")
}

#[test]
fn what_librbd_formats_as_luks2_we_serve() -> Result<()> {
    what_librbd_formats_we_serve("luks2", "luks2")
}

#[test]
fn imported_images_of_others_serve_byte_for_byte() -> Result<()> {
    let scratch = Scratch::new()?;
    let plain = std::fs::read(unpack_kat("plain.raw", scratch.path())?)?;
    for name in ["l1-cs-k512.img", "l1-qemu-aes256.img", "l2-512-k512.img", "l2-4096-k512.img"] {
        progress(name);
        let disk = Disk::blank(MIB)?;
        std::fs::copy(kat("pw"), &disk.key)?;
        disk.image.import(&unpack_kat(name, scratch.path())?)?;
        let mut daemon = disk.serve(&[])?;
        let mut client = Client::simple(daemon.socket())?;
        same(&client.read(0, plain.len())?, &plain).context(name)?;
        drop(client);
        daemon.stop()?;
    }
    Ok(())
}

#[test]
fn the_operators_commands_work_on_an_image() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let (uri, new) = (disk.uri(), disk.scratch.file("new"));
    let key = format!("file:{}", disk.key.display());
    std::fs::write(&new, "another passphrase")?;
    let new_key = format!("file:{}", new.display());
    let backup = disk.scratch.file("header");
    let backup = backup.to_str().context("not UTF-8")?;
    sealblk([
        "key",
        "add",
        "--volume",
        &uri,
        "--key",
        &key,
        "--new-key",
        &new_key,
        "--kdf",
        "pbkdf2",
    ])?;
    sealblk(["header", "backup", "--volume", &uri, "--file", backup])?;
    // Half of the header gets lost, and is made anew from the other half.
    let exported = disk.exported()?;
    let mut image = std::fs::read(&exported.image)?;
    image[..4096].fill(0);
    std::fs::write(&exported.image, image)?;
    disk.image.import(&exported.image)?;
    let told = String::from_utf8(sealblk(["inspect", "--volume", &uri])?.stdout)?;
    ensure!(told.contains("at offset 16384: good"), "{told}");
    sealblk(["repair", "--volume", &uri, "--yes"])?;
    let told = String::from_utf8(sealblk(["inspect", "--volume", &uri])?.stdout)?;
    ensure!(told.contains("at offset 0: good"), "{told}");
    let file = disk.scratch.file("rotation-header");
    let file = file.to_str().context("not UTF-8")?;
    sealblk(["rotate", "--volume", &uri, "--key", &new_key, "--yes", "--header-backup", file])?;
    let taken = disk.exported()?;
    let opens = |key: &Path| -> bool {
        let arguments: [OsString; 6] = [
            "open".into(),
            "--test-passphrase".into(),
            "--batch-mode".into(),
            "--key-file".into(),
            key.into(),
            taken.image.clone().into(),
        ];
        run("cryptsetup", arguments).is_ok()
    };
    ensure!(opens(&new) && !opens(&disk.key));
    // What an image can't be: made, or found where it isn't.
    for arguments in [
        ["format", "--volume", &uri, "--key", &key, "--size", "1G"],
        ["inspect", "--volume", &format!("{uri}x"), "--key", &key, "--json", ""],
    ] {
        let output = sealblk_command()?.args(arguments).output()?;
        ensure!(!output.status.success(), "{arguments:?}");
    }
    Ok(())
}

/// Waits until the daemon that was killed has left nothing that its successor waits for.
#[test]
fn ten_crashes_under_deep_queues_lose_nothing_and_cost_no_lock_timeout() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let mut daemon = disk.serve(&["--queues", "2"])?;
    let content = Pattern(41).bytes(0, usize::try_from(DISK)?);
    let mut load = Load::new(content.clone(), 2, 16, false);
    let mut client = load.connect(daemon.socket())?;
    client.write(0, &content)?;
    for _ in 0..10 {
        let goal = load.done + 256;
        load.run(&mut client, |done| Ok(done > goal))?;
        daemon.kill()?;
        drop(client);
        daemon.start()?;
        client = load.connect(daemon.socket())?;
        load.after_a_crash(&mut client)?;
        load.check_all(&mut client)?;
    }
    // Each of the dead was shut out before its successor wrote.
    ensure!(disk.image.ceph().blocklist()?.len() >= 10);
    drop(client);
    daemon.stop()?;
    load.compare_all(&oracle::cryptsetup_decrypts(&disk.exported()?)?)
}

#[test]
fn a_guest_whose_volume_was_taken_writes_nothing_any_more() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    // As after an evacuation: the new host breaks the lock of one that it takes for dead.
    let mut old = disk.serve(&["--on-error", "hold"])?;
    let mut stale = Client::simple(old.socket())?;
    stale.write(0, &[1; 4096])?;
    let refused = disk.serve_as("other.sock", "other", &[]).err().context("served twice")?;
    ensure!(format!("{refused:#}").contains("in use by another client"), "{refused:#}");
    disk.image.break_lock()?;
    let mut new = disk.serve_as("other.sock", "other", &[])?;
    let mut client = Client::simple(new.socket())?;
    client.write(0, &[2; 4096])?;
    ensure!(stale.write(0, &[3; 4096]).is_err(), "it wrote although the volume is another's");
    ensure!(stale.flush().is_err(), "it flushed although the volume is another's");
    same(&client.read(0, 4096)?, &[2; 4096])?;
    old.must_run()?;
    drop((stale, client));
    new.stop()?;
    Ok(())
}

impl Disk {
    /// One volume of what the daemon tells.
    fn told(&self) -> Result<Value> {
        let output = sealblk(["status", "--json", "--control", path_text(&self.control())?])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        Ok(status.pointer("/volumes/0").context("no volume")?.clone())
    }

    fn wait_for_storage(&self, state: &str) -> Result<()> {
        until(&format!("storage that is {state}"), LIMIT, || {
            Ok((self.told()?["storage"]["state"] == state).then_some(()))
        })
    }
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("not UTF-8")
}

#[test]
fn a_guest_that_is_to_be_told_gets_an_error_in_finite_time() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let control = disk.control();
    let policy = ["--on-error", "report", "--io-timeout", "2s", "--control", path_text(&control)?];
    let mut daemon = disk.serve(&policy)?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &[1; 4096])?;
    let outage = disk.image.ceph().osd_pause()?;
    ensure!(client.write(0, &[2; 4096]).is_err(), "written without a storage daemon");
    disk.wait_for_storage("reporting")?;
    outage.end()?;
    client.write(4096, &[3; 4096])?;
    disk.wait_for_storage("ok")?;
    same(&client.read(4096, 4096)?, &[3; 4096])?;
    drop(client);
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_guest_that_is_to_wait_waits_and_the_operator_sees_why() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let control = disk.control();
    let mut daemon = disk.serve(&["--on-error", "hold", "--control", path_text(&control)?])?;
    let mut client = Client::simple(daemon.socket())?;
    client.fill(0, &[7; 4096])?;
    let outage = disk.image.ceph().osd_pause()?;
    client.start_write(0, 0, 0, 4096, 1)?;
    ensure!(client.complete(0, 0)?.is_empty(), "written without a storage daemon");
    disk.wait_for_storage("silent")?;
    ensure!(daemon.log().text().contains("doesn't answer"), "{}", daemon.log().text());
    outage.end()?;
    let done = client.complete(0, 1)?;
    ensure!(done.len() == 1 && done[0].result == 0, "{done:?}");
    disk.wait_for_storage("ok")?;
    let told = disk.told()?;
    ensure!(told["storage"]["losses"] == 1, "{told}");
    same(&client.read(0, 4096)?, &[7; 4096])?;
    drop(client);
    daemon.stop()?;
    Ok(())
}

#[test]
fn an_image_that_grows_grows_the_disk() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let control = disk.control();
    let mut daemon = disk.serve(&["--control", path_text(&control)?])?;
    disk.image.resize(16 * MIB + 2 * DISK)?;
    until("the disk to grow", LIMIT, || {
        Ok((disk.told()?["capacity_bytes"] == 2 * DISK).then_some(()))
    })?;
    let mut client = Client::simple(daemon.socket())?;
    let plain = Pattern(5).bytes(0, usize::try_from(2 * DISK)?);
    client.write(0, &plain)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;
    same(&disk.librbd_decrypts("luks2")?, &plain)
}

/// Writes files without pause, and checks them at the end.
const WRITES: &str = r#"
mkfs.ext4 -q -F /dev/vda
mount -o errors=panic /dev/vda /mnt
for n in $(seq 60); do
  dd if=/dev/urandom of=/mnt/file$n bs=64k count=8 conv=fsync 2>/dev/null || echo "WRITE-ERROR"
  (cd /mnt && sha256sum file$n) >>/tmp/sums
  echo "TICK $n"
done
umount /mnt
e2fsck -fn /dev/vda >/tmp/fsck 2>&1 || { cat /tmp/fsck; exit 1; }
mount -o ro /dev/vda /mnt
cd /mnt && sha256sum -c /tmp/sums >/tmp/checked || { grep -v ': OK' /tmp/checked; exit 1; }
dmesg | grep -i 'I/O error' && exit 1
echo "CHECKED $(grep -c ': OK' /tmp/checked) files"
"#;

fn tick(guest: &mut Guest) -> Result<()> {
    guest.skip_to_now();
    guest.wait_for("TICK", LIMIT)?;
    Ok(())
}

#[test]
fn a_guest_survives_the_loss_of_storage_and_monitor() -> Result<()> {
    let disk = Disk::formatted(128 * MIB, &[])?;
    let mut daemon = disk.serve(&["--on-error", "hold", "--queues", "2"])?;
    let guest = GuestBuilder::new(GuestImage::Tiny, WRITES).processors(2);
    let mut guest = guest.disk(daemon.socket(), 2).start()?;
    let ceph = disk.image.ceph();
    tick(&mut guest)?;
    progress("the OSD is killed and started");
    ceph.osd_kill()?.end()?;
    tick(&mut guest)?;
    progress("the OSD is shut down and started");
    ceph.osd_stop()?.end()?;
    tick(&mut guest)?;
    progress("the monitor is killed; I/O goes on");
    let outage = ceph.mon_kill()?;
    tick(&mut guest)?;
    outage.end()?;
    progress("the daemon is killed while the OSD is away");
    let outage = ceph.osd_kill()?;
    daemon.kill()?;
    outage.end()?;
    daemon.start()?;
    tick(&mut guest)?;
    let checked = guest.wait_for("CHECKED", LIMIT)?;
    ensure!(checked.contains("CHECKED 60 files"), "{checked}");
    guest.succeed(LIMIT)?;
    ensure!(!guest.console().contains("WRITE-ERROR"), "{}", guest.console());
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_guest_boots_from_an_image() -> Result<()> {
    let disk = Disk::formatted(48 * MIB, &[])?;
    let plain = disk.scratch.file("plain.img");
    run(concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/boot-disk.sh"), [&plain])?;
    let mut daemon = disk.serve(&[])?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &std::fs::read(plain)?)?;
    client.flush()?;
    drop(client);
    // Firmware, boot loader, kernel and initramfs all come from the image, the OSD goes meanwhile.
    let script =
        "echo 3 >/proc/sys/vm/drop_caches; echo TICK; sleep 1; sha256sum /dev/vda && echo READ";
    let guest = GuestBuilder::new(GuestImage::FromDisk, script).disk(daemon.socket(), 1);
    let mut guest = guest.start()?;
    guest.wait_for("TICK", LIMIT)?;
    disk.image.ceph().osd_kill()?.end()?;
    guest.wait_for("READ", LIMIT)?;
    guest.succeed(LIMIT)?;
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_daemon_without_the_users_key_says_so() -> Result<()> {
    let disk = Disk::formatted(DISK, &[])?;
    let empty = disk.scratch.file("keyring");
    std::fs::write(&empty, "")?;
    let uri = format!("{}&user=sealblk&keyring={}", disk.image.uri(), empty.display());
    let key = format!("file:{}", disk.key.display());
    let socket = disk.scratch.file("vu.sock");
    let socket = socket.to_str().context("not UTF-8")?;
    let control = disk.control();
    let control = control.to_str().context("not UTF-8")?;
    let exit = Daemon::run_to_end(&[
        "--volume",
        &uri,
        "--key",
        &key,
        "--socket",
        socket,
        "--control",
        control,
    ])?;
    ensure!(exit.status.code() == Some(1), "{}", exit.log);
    ensure!(exit.log.contains("client.sealblk") && exit.log.contains("keyring"), "{}", exit.log);
    Ok(())
}
