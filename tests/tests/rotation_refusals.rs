//! A rotation that can't or must not be is refused with the reason, and nothing is written; one that
//! is due begins by itself, within its window.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, Daemon, Kind, Pattern, Rotating, TestVolume, oracle, progress, scenarios, sealblk,
    until,
};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const DISK: u64 = 8 * MIB;

/// A volume in the middle of a rotation, that nobody serves.
fn in_the_middle(kind: Kind) -> Result<TestVolume> {
    let volume = TestVolume::formatted_on(kind, DISK, &["--sector-size", "512"])?;
    let mut disk = Rotating::serve(&volume, &[])?;
    let mut client = Client::simple(disk.daemon.socket())?;
    client.write(0, &Pattern(51).bytes(0, usize::try_from(DISK)?))?;
    drop(client);
    disk.order("start", &["--rate", "4M", "--hotzone", "256K"])?;
    disk.wait_for_bytes(2 * MIB)?;
    disk.order("pause", &[])?;
    disk.wait_for_state("paused")?;
    disk.daemon.stop()?;
    Ok(volume)
}

fn text_of<'a>(json: &'a Value, at: &str) -> Result<&'a str> {
    json.pointer(at).and_then(Value::as_str).with_context(|| format!("no {at} in {json}"))
}

/// The digest that binds keyslot `reencrypt` to what the metadata say.
fn break_the_digest(json: &mut Value) -> Result<()> {
    let slots = json["keyslots"].as_object().context("no keyslots")?;
    let (slot, _) = slots.iter().find(|(_, slot)| slot["type"] == "reencrypt").context("none")?;
    let slot = Value::from(slot.as_str());
    let digests = json["digests"].as_object_mut().context("no digests")?;
    let owns = |digest: &Value| digest["keyslots"].as_array().is_some_and(|k| k.contains(&slot));
    let digest = digests.values_mut().find(|digest| owns(digest)).context("no digest")?;
    let old = digest["digest"].as_str().context("no digest")?;
    let first = if old.starts_with('A') { 'B' } else { 'A' };
    digest["digest"] = format!("{first}{}", &old[1..]).into();
    Ok(())
}

/// Old and new ciphertext overlap.
fn overlap(json: &mut Value) -> Result<()> {
    let done: u64 = text_of(json, "/segments/0/size")?.parse()?;
    json["segments"]["0"]["size"] = (done + 65536).to_string().into();
    Ok(())
}

/// The data end up elsewhere.
fn move_the_final_segment(json: &mut Value) -> Result<()> {
    let segments = json["segments"].as_object_mut().context("no segments")?;
    let last = segments.values_mut().find(|segment| {
        segment["flags"].as_array().is_some_and(|flags| flags.contains(&"backup-final".into()))
    });
    let last = last.context("no final segment")?;
    let offset: u64 = text_of(last, "/offset")?.parse()?;
    last["offset"] = (offset + 65536).to_string().into();
    Ok(())
}

/// Another way of protection than what the digest knows.
fn change_the_protection(json: &mut Value) -> Result<()> {
    let slots = json["keyslots"].as_object_mut().context("no keyslots")?;
    let slot = slots.values_mut().find(|slot| slot["type"] == "reencrypt").context("none")?;
    slot["area"]["type"] = "datashift".into();
    Ok(())
}

/// What protects the range in work would be written to the data.
fn move_the_area(json: &mut Value) -> Result<()> {
    let slots = json["keyslots"].as_object_mut().context("no keyslots")?;
    let slot = slots.values_mut().find(|slot| slot["type"] == "reencrypt").context("none")?;
    slot["area"]["offset"] = (16 * MIB + 65536).to_string().into();
    Ok(())
}

fn metadata_that_somebody_changed_in_the_middle_are_refused(kind: Kind) -> Result<()> {
    let volume = in_the_middle(kind)?;
    let good = volume.bytes()?;
    let uri = volume.uri();
    // Without the options and the kind.
    let name = uri.split('?').next().and_then(|uri| uri.rsplit(':').next()).context("no name")?;
    let file = volume.scratch.file("changed");
    type Change = fn(&mut Value) -> Result<()>;
    // (Where the border of old and new data is, nothing protects: it moves all the time.)
    let changes: [(&str, Change); 5] = [
        ("the digest", break_the_digest),
        ("an overlap", overlap),
        ("the final segment", move_the_final_segment),
        ("the protection", change_the_protection),
        ("the place of progress", move_the_area),
    ];
    let (_, state_dir) = Rotating::places(&volume);
    let mut arguments = volume.volume_args();
    arguments.extend(["--socket".into(), volume.scratch.file("vu.sock").into()]);
    arguments.extend(["--state-dir".into(), state_dir.into()]);
    for (what, change) in changes {
        let mut bad = good.clone();
        oracle::change_json(&mut bad, &change).with_context(|| what.to_owned())?;
        ensure!(bad != good, "{what}: nothing was changed");
        std::fs::write(&file, &bad)?;
        volume.write_raw(&file)?;
        let exit = Daemon::run_to_end(&arguments)?;
        ensure!(exit.status.code() == Some(1), "{what}: {}\n{}", exit.status, exit.log);
        let named = exit.log.lines().find(|line| line.contains(name));
        progress(format_args!("{what}: {}", named.unwrap_or("(no line with the volume)")));
        ensure!(named.is_some(), "{what}: the volume is not named:\n{}", exit.log);
        ensure!(volume.bytes()? == bad, "{what}: refusing it changed it");
    }
    // Control: it was the change that it was refused for.
    std::fs::write(&file, &good)?;
    volume.write_raw(&file)?;
    let mut disk = Rotating::serve(&volume, &[])?;
    disk.wait_for_state("paused")?;
    disk.order("resume", &[])?;
    disk.order("throttle", &["--rate", "none"])?;
    disk.wait_for_end()?;
    let mut client = Client::simple(disk.daemon.socket())?;
    let found = client.read(0, usize::try_from(DISK)?)?;
    ensure!(Pattern(51).first_difference(0, &found).is_none(), "data are wrong");
    drop(client);
    disk.daemon.stop()?;
    Ok(())
}

fn orders_that_make_no_sense_are_refused_with_the_reason(kind: Kind) -> Result<()> {
    let volume = TestVolume::formatted_on(kind, DISK, &["--sector-size", "512"])?;
    let before = volume.bytes()?;
    let mut disk = Rotating::serve(&volume, &[])?;
    let refused = |what: &str, name: &str, extra: &[&str], reason: &str| -> Result<()> {
        let said = disk.refused(what, name, extra)?;
        progress(format_args!("{what} {}: {}", extra.join(" "), said.trim_end()));
        ensure!(said.contains(reason), "{what}: no {reason:?} in {said}");
        ensure!(said.trim_end().lines().count() == 1, "not one line: {said}");
        Ok(())
    };
    let missing = format!("file:{}", volume.scratch.file("missing").display());
    refused("start", "other", &[], "other")?;
    refused("start", "vu", &["--new-key", &missing, "--yes"], "missing")?;
    let empty = volume.scratch.file("empty");
    std::fs::write(&empty, "")?;
    let empty = format!("file:{}", empty.display());
    refused("start", "vu", &["--new-key", &empty, "--yes"], "empty")?;
    refused("start", "vu", &["--hotzone", "1K"], "64 KiB")?;
    let taken = volume.scratch.file("taken");
    std::fs::write(&taken, "somebody's")?;
    let taken_path = taken.display().to_string();
    refused("start", "vu", &["--header-backup", &taken_path], "taken")?;
    ensure!(std::fs::read(&taken)? == b"somebody's");
    for what in ["pause", "resume"] {
        refused(what, "vu", &[], "no rotation is under way")?;
    }
    ensure!(disk.state()? == "none");
    disk.daemon.stop()?;
    ensure!(volume.bytes()? == before, "a refused order changed the volume");
    let left: Vec<_> = match std::fs::read_dir(disk.state_dir()) {
        // A claim on an image stays, and is nobody's.
        Ok(entries) => entries
            .flatten()
            .filter(|entry| entry.path().extension().is_none_or(|kind| kind != "claim"))
            .collect(),
        Err(_) => Vec::new(),
    };
    ensure!(left.is_empty(), "left in the state directory: {left:?}");

    disk.daemon.start()?;
    disk.order("start", &["--rate", "1M", "--hotzone", "64K"])?;
    // At once: whoever asks right after the order is told of it.
    ensure!(disk.state()? != "none");
    let said = disk.refused("start", "vu", &["--rate", "7M"])?;
    ensure!(said.contains("under way already"), "{said}");
    let told = disk.status()?;
    ensure!(told["limit_bytes"] == 1 << 20, "a refused order changed a limit: {told}");
    disk.order("throttle", &["--rate", "none"])?;
    disk.wait_for_end()?;
    disk.daemon.stop()?;
    Ok(())
}

fn a_key_file_that_no_longer_opens_the_volume_begins_nothing(kind: Kind) -> Result<()> {
    let volume = TestVolume::formatted_on(kind, DISK, &["--sector-size", "512"])?;
    let before = volume.bytes()?;
    let mut disk = Rotating::serve(&volume, &[])?;
    std::fs::write(&volume.key, "wrong")?;
    let said = disk.refused("start", "vu", &[])?;
    progress(said.trim_end());
    ensure!(disk.state()? == "none");
    disk.daemon.stop()?;
    ensure!(volume.bytes()? == before, "a refused order changed the volume");
    Ok(())
}

fn what_is_read_only_or_plain_is_not_rotated(kind: Kind) -> Result<()> {
    let volume = TestVolume::formatted_on(kind, DISK, &["--sector-size", "512"])?;
    let before = volume.bytes()?;
    let mut disk = Rotating::serve(&volume, &["--read-only"])?;
    let said = disk.refused("start", "vu", &[])?;
    ensure!(said.contains("read-only"), "{said}");
    disk.daemon.stop()?;
    ensure!(volume.bytes()? == before);

    let (control, state_dir) = Rotating::places(&volume);
    let (control, state_dir) = (control.display().to_string(), state_dir.display().to_string());
    let daemon = Daemon::serve_plain(&volume, &["--control", &control, "--state-dir", &state_dir])?;
    let disk = Rotating::with_daemon(&volume, daemon);
    let said = disk.refused("start", "plain", &[])?;
    progress(said.trim_end());
    ensure!(said.contains("plain"), "{said}");
    Ok(())
}

/// A configuration with one volume.
fn configured(volume: &TestVolume, rotation: &str) -> Result<Rotating> {
    let (control, state_dir) = Rotating::places(volume);
    let (socket, config): (PathBuf, PathBuf) =
        (volume.scratch.file("vu.sock"), volume.scratch.file("sealblkd.toml"));
    let text = format!(
        "[daemon]\ncontrol = {control:?}\nstate_dir = {state_dir:?}\n[rotation]\n{rotation}\n\
         [[volume]]\nname = \"vu\"\nuri = {:?}\nkey = {:?}\nsocket = {socket:?}\n",
        volume.uri(),
        volume.key_uri()
    );
    std::fs::write(&config, text)?;
    let daemon = Daemon::exactly(&socket, vec!["--config".into(), config.into()])?;
    Ok(Rotating::with_daemon(volume, daemon))
}

fn key_age(disk: &Rotating) -> Result<Value> {
    Ok(disk.ask("/v1/status")?["volumes"][0]["key_age"].clone())
}

fn now() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs())
}

#[test]
fn a_key_that_is_old_enough_is_replaced_by_itself() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let old_key = oracle::volume_key(&volume)?;
    let mut disk = configured(&volume, "max_key_age = \"1s\"")?;
    disk.wait_for_end()?;
    let age = key_age(&disk)?;
    ensure!(age["volume_key_since"].as_u64() >= Some(now()? - 120), "{age}");
    disk.daemon.stop()?;
    ensure!(oracle::volume_key(&volume)? != old_key);
    Ok(())
}

/// `HH:MM`, so many hours from now.
fn clock_in(hours: u64) -> Result<String> {
    let minutes = now()? / 60 + hours * 60;
    Ok(format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60))
}

#[test]
fn outside_of_its_window_a_due_key_stays_and_the_status_says_until_when() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let old_key = oracle::volume_key(&volume)?;
    let window = format!("window = \"{}-{} UTC\"", clock_in(6)?, clock_in(8)?);
    let mut disk = configured(&volume, &format!("max_key_age = \"1s\"\n{window}"))?;
    let age = until("a key that is due", Duration::from_secs(60), || {
        let age = key_age(&disk)?;
        let due = age["due_at"].as_u64().is_some_and(|due| now().is_ok_and(|now| due < now));
        Ok(due.then_some(age))
    })?;
    let next = age["next_run_at"].as_u64().context("the status doesn't say when")?;
    let hours = (next - now()?).div_ceil(3600);
    ensure!((5..=7).contains(&hours), "{age}");
    let control: &Path = disk.control();
    let told = sealblk(["status".as_ref(), "--control".as_ref(), control.as_os_str()])?;
    let told = String::from_utf8(told.stdout)?;
    ensure!(told.contains("DUE") && told.contains("next run"), "{told}");
    ensure!(disk.state()? == "none", "it began outside of its window");
    disk.daemon.stop()?;
    ensure!(oracle::volume_key(&volume)? == old_key);
    Ok(())
}

mod on_files {
    super::scenarios! {
        super::Kind::File;
        metadata_that_somebody_changed_in_the_middle_are_refused
        orders_that_make_no_sense_are_refused_with_the_reason
        a_key_file_that_no_longer_opens_the_volume_begins_nothing
        what_is_read_only_or_plain_is_not_rotated
    }
}

mod rest_on_ceph {
    super::scenarios! {
        super::Kind::Rbd;
        metadata_that_somebody_changed_in_the_middle_are_refused
        orders_that_make_no_sense_are_refused_with_the_reason
        a_key_file_that_no_longer_opens_the_volume_begins_nothing
        what_is_read_only_or_plain_is_not_rotated
    }
}

mod rest_on_iscsi {
    super::scenarios! {
        super::Kind::Iscsi;
        metadata_that_somebody_changed_in_the_middle_are_refused
        orders_that_make_no_sense_are_refused_with_the_reason
        a_key_file_that_no_longer_opens_the_volume_begins_nothing
        what_is_read_only_or_plain_is_not_rotated
    }
}
