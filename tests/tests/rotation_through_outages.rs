//! The storage goes away in the middle of a rotation, by its real parts' deaths: the osd, the monitor,
//! the target, a connection, the daemon's own host, the image's lock. A guest that holds sees nothing of
//! it, one that is to be told is told, nothing is lost, and the rotation goes on by itself. All of it is
//! left to `make test-storage`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Ceph, Client, Kind, Load, Outage, Pattern, Proxy, RbdImage, Rotating, Storage, Target,
    TestVolume, oracle, progress, until,
};

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;

/// A dead client's watch on an image goes after half a minute; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(240);

const HOLD: [&str; 4] = ["--queues", "2", "--on-error", "hold"];

/// An I/O without an answer counts as failed as soon as can be.
const SOON: [&str; 2] = ["--io-timeout", "2s"];

fn formatted(kind: Kind) -> Result<TestVolume> {
    TestVolume::formatted_on(kind, DISK, &["--sector-size", "512"])
}

fn image(volume: &TestVolume) -> Result<&RbdImage> {
    match &volume.storage {
        Storage::Rbd(image) => Some(image),
        Storage::File | Storage::Iscsi(_) => None,
    }
    .context("no image")
}

fn target(volume: &mut TestVolume) -> Result<&mut Target> {
    match &mut volume.storage {
        Storage::Iscsi(target) => Some(target),
        Storage::File | Storage::Rbd(_) => None,
    }
    .context("no target")
}

/// A disk with known content, a load for it, and a rotation that is slow enough to be disturbed.
fn rotated_slowly(disk: &Rotating) -> Result<(Load, Client)> {
    let content = Pattern(61).bytes(0, usize::try_from(DISK)?);
    let mut load = Load::new(content.clone(), 2, 8, false);
    let mut client = load.connect(disk.daemon.socket())?;
    client.write(0, &content)?;
    disk.order("start", &["--rate", "1M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(MIB)?;
    Ok((load, client))
}

/// Waits until the rotation has got further by so much.
fn further(disk: &Rotating, bytes: u64) -> Result<()> {
    let goal = disk.done_bytes()? + bytes;
    disk.wait_for_bytes(goal)?;
    let status = disk.status()?;
    progress(format_args!("{} at {}", status["state"], status["done_bytes"]));
    ensure!(status["state"] != "completed", "too fast to be disturbed: {status}");
    Ok(())
}

/// The guest's requests are held, and the operator sees it. The rotation either fails at the storage
/// itself or waits for requests that are held to get out of its way.
fn wait_until_held(disk: &Rotating) -> Result<()> {
    let storage = until("requests that are held", LIMIT, || {
        let storage = disk.ask("/v1/status")?["volumes"][0]["storage"].clone();
        Ok((storage["state"] == "holding").then_some(storage))
    })?;
    let status = disk.status()?;
    progress(format_args!("{storage}, the rotation is {}", status["state"]));
    ensure!(status["state"] != "failed" && status["state"] != "completed", "{status}");
    Ok(())
}

/// The rotation waits for the storage and says so.
fn wait_until_stuck(disk: &Rotating) -> Result<()> {
    let status = disk.wait_for_state("stuck")?;
    let trouble = status["trouble"].as_str().context("stuck without a reason")?;
    progress(trouble);
    ensure!(trouble.contains("trying again"), "{trouble}");
    Ok(())
}

/// Ends the rotation, its last part under load, and compares everything: as the guest sees it, as cryptsetup does.
fn end_and_compare(
    mut disk: Rotating,
    volume: &TestVolume,
    mut load: Load,
    mut client: Client,
) -> Result<()> {
    disk.order("throttle", &["--rate", "none"])?;
    // It makes way for a guest, which takes minutes on a network: the middle of it goes without one.
    load.check_all(&mut client)?;
    disk.wait_for_bytes(DISK / 8 * 7)?;
    load.run(&mut client, |_| Ok(matches!(disk.state()?.as_str(), "completed" | "failed")))?;
    load.check_all(&mut client)?;
    let status = disk.wait_for_end()?;
    ensure!(status["trouble"].is_null(), "trouble that is over is still shown: {status}");
    drop(client);
    disk.daemon.stop()?;
    load.compare_all(&oracle::cryptsetup_decrypts(volume)?)
}

/// Full queues of a guest that holds, while the storage is disturbed.
fn a_guest_that_holds(
    volume: &mut TestVolume,
    uri: &str,
    extra: &[&str],
    disturb: impl FnOnce(&mut TestVolume, &Rotating) -> Result<()> + Send,
) -> Result<()> {
    let disk = Rotating::serve_as(volume, uri, "", &[&HOLD, extra].concat())?;
    let (mut load, mut client) = rotated_slowly(&disk)?;
    // What is given up may be a flush, and those are never held.
    load.flushes_may_fail = extra.contains(&"--io-timeout");
    std::thread::scope(|scope| {
        let (disk, volume) = (&disk, &mut *volume);
        let disturbing = scope.spawn(move || disturb(volume, disk));
        let worked = load.run(&mut client, |_| Ok(disturbing.is_finished()));
        disturbing.join().ok().context("it panicked")??;
        worked.with_context(|| format!("{:?}\n{}", disk.status(), disk.daemon.log().text()))
    })?;
    end_and_compare(disk, volume, load, client)
}

/// A guest that is to be told of errors is told, and the operator sees why the rotation waits.
fn a_guest_that_is_told<O>(
    volume: &mut TestVolume,
    take_away: impl FnOnce(&mut TestVolume) -> Result<O>,
    bring_back: impl FnOnce(&mut TestVolume, O) -> Result<()>,
) -> Result<()> {
    let disk = Rotating::serve(volume, &[&["--queues", "2"], &SOON[..]].concat())?;
    let (mut load, mut client) = rotated_slowly(&disk)?;
    let goal = load.done + 256;
    load.run(&mut client, |done| Ok(done > goal))?;
    load.check_all(&mut client)?;
    let outage = take_away(volume)?;
    wait_until_stuck(&disk)?;
    ensure!(client.read(0, 4096).is_err(), "a read went through without storage");
    bring_back(volume, outage)?;
    further(&disk, MIB)?;
    end_and_compare(disk, volume, load, client)
}

mod rest_on_ceph {
    use super::*;

    fn with_outages(
        extra: &[&str],
        disturb: impl FnOnce(&Ceph, &Rotating) -> Result<()> + Send,
    ) -> Result<()> {
        let mut volume = formatted(Kind::Rbd)?;
        let uri = volume.uri();
        a_guest_that_holds(&mut volume, &uri, extra, |volume, disk| {
            disturb(image(volume)?.ceph(), disk)
        })
    }

    #[test]
    fn the_osd_is_killed_twice() -> Result<()> {
        with_outages(&[], |ceph, disk| {
            for _ in 0..2 {
                ceph.osd_kill()?.end()?;
                further(disk, MIB)?;
            }
            Ok(())
        })
    }

    #[test]
    fn the_osd_stays_away_until_its_io_is_given_up() -> Result<()> {
        with_outages(&SOON, |ceph, disk| {
            let outage = ceph.osd_kill()?;
            wait_until_held(disk)?;
            outage.end()?;
            further(disk, MIB)
        })
    }

    #[test]
    fn the_monitor_is_killed_and_missed_by_nobody() -> Result<()> {
        with_outages(&[], |ceph, disk| {
            let outage = ceph.mon_kill()?;
            further(disk, 2 * MIB)?;
            outage.end()?;
            further(disk, MIB)
        })
    }

    #[test]
    fn a_guest_that_is_told_of_the_osds_death_goes_on_afterwards() -> Result<()> {
        let mut volume = formatted(Kind::Rbd)?;
        let kill = |volume: &mut TestVolume| image(volume)?.ceph().osd_kill();
        a_guest_that_is_told(&mut volume, kill, |_, outage: Outage| outage.end())
    }

    /// As after an evacuation: the new host breaks the lock of one that it takes for dead.
    #[test]
    fn a_host_that_breaks_the_lock_takes_the_rotation_too() -> Result<()> {
        let volume = formatted(Kind::Rbd)?;
        let mut old = Rotating::serve(&volume, &HOLD)?;
        let (mut load, mut client) = rotated_slowly(&old)?;
        load.run(&mut client, |_| Ok(old.done_bytes()? >= DISK / 3))?;
        load.check_all(&mut client)?;
        image(&volume)?.break_lock()?;
        let taken = volume.bytes()?;
        let status = old.wait_for_state("failed")?;
        progress(&status["trouble"]);
        let trouble = status["trouble"].as_str().context("failed without a reason")?;
        ensure!(trouble.contains("lock was taken by another client"), "{trouble}");
        ensure!(client.write(0, &[3; 4096]).is_err(), "it wrote to another's volume");
        ensure!(client.flush().is_err(), "it flushed another's volume");
        ensure!(volume.bytes()? == taken, "something was written after the lock was broken");

        let new = Rotating::serve_as(&volume, &volume.uri(), "other", &HOLD)?;
        ensure!(new.state()? != "none", "the rotation is forgotten");
        let mut second = load.connect(new.daemon.socket())?;
        load.check_all(&mut second)?;
        old.daemon.must_run()?;
        ensure!(client.write(0, &[3; 4096]).is_err(), "it wrote to another's volume");
        drop(client);
        end_and_compare(new, &volume, load, second)?;
        old.daemon.must_run()
    }

    /// The dead daemon's lock stands until its watch on the image has run out; meanwhile its successor,
    /// who has none of its notes, is refused and started again, as by systemd.
    #[test]
    fn another_host_ends_the_rotation_of_one_that_died() -> Result<()> {
        let volume = formatted(Kind::Rbd)?;
        let mut old = Rotating::serve(&volume, &HOLD)?;
        let (mut load, mut client) = rotated_slowly(&old)?;
        load.run(&mut client, |_| Ok(old.done_bytes()? >= DISK / 3))?;
        old.daemon.kill()?;
        drop(client);
        let new = until("the end of a dead client's watch", LIMIT, || {
            match Rotating::serve_as(&volume, &volume.uri(), "other", &HOLD) {
                Ok(new) => Ok(Some(new)),
                Err(error) if format!("{error:#}").contains("in use by another client") => {
                    progress("its lock still stands");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        })?;
        ensure!(new.state()? != "none", "the rotation is forgotten");
        let mut client = load.connect(new.daemon.socket())?;
        load.after_a_crash(&mut client)?;
        load.check_all(&mut client)?;
        end_and_compare(new, &volume, load, client)
    }
}

mod rest_on_iscsi {
    use super::*;

    #[test]
    fn the_target_is_killed_twice() -> Result<()> {
        let mut volume = formatted(Kind::Iscsi)?;
        let uri = volume.uri();
        a_guest_that_holds(&mut volume, &uri, &[], |volume, disk| {
            for _ in 0..2 {
                target(volume)?.kill()?;
                target(volume)?.start()?;
                further(disk, MIB)?;
            }
            Ok(())
        })
    }

    #[test]
    fn the_target_stays_away_until_its_io_is_given_up() -> Result<()> {
        let mut volume = formatted(Kind::Iscsi)?;
        let uri = volume.uri();
        a_guest_that_holds(&mut volume, &uri, &SOON, |volume, disk| {
            target(volume)?.kill()?;
            wait_until_held(disk)?;
            target(volume)?.start()?;
            further(disk, MIB)
        })
    }

    #[test]
    fn a_guest_that_is_told_of_the_targets_death_goes_on_afterwards() -> Result<()> {
        let mut volume = formatted(Kind::Iscsi)?;
        a_guest_that_is_told(
            &mut volume,
            |volume| target(volume)?.kill(),
            |volume, ()| target(volume)?.start(),
        )
    }

    /// Ended between two bytes of a request, refused for a while, and silent until it is given up.
    #[test]
    fn the_connection_is_lost_in_every_way() -> Result<()> {
        let mut volume = formatted(Kind::Iscsi)?;
        let proxy = Proxy::to(target(&mut volume)?.address())?;
        let uri = target(&mut volume)?.url_at(proxy.address());
        let lost = |bytes_until_then: Option<u64>| -> Result<()> {
            let before = proxy.counts();
            match bytes_until_then {
                Some(bytes) => proxy.drop_after(bytes)?,
                None => proxy.cut()?,
            }
            until("a new connection", LIMIT, || {
                let now = proxy.counts();
                Ok((now.cut > before.cut && now.accepted > before.accepted).then_some(()))
            })
        };
        a_guest_that_holds(&mut volume, &uri, &SOON, |_, disk| {
            for bytes in [None, Some(100_000), Some(300_001)] {
                progress(format_args!("cut after {bytes:?} bytes"));
                lost(bytes)?;
                further(disk, MIB / 2)?;
            }
            progress("nobody listens");
            proxy.refuse(true)?;
            proxy.cut()?;
            wait_until_held(disk)?;
            proxy.refuse(false)?;
            further(disk, MIB / 2)?;
            progress("silence");
            proxy.stall(true)?;
            wait_until_held(disk)?;
            proxy.stall(false)?;
            further(disk, MIB / 2)
        })
    }
}
