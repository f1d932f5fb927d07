//! Starting, stopping, refusing: what an operator and a service manager see of the daemon.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealblk_tests::{
    Client, ClientOptions, Daemon, Exit, Pattern, TestVolume, oracle, sealblk, sealblk_command,
    until,
};
use serde_json::{Value, json};

const DISK: u64 = 8 << 20;

fn refused(volume: &TestVolume, extra: &[&str]) -> Result<Exit> {
    let mut arguments = volume.volume_args();
    arguments.extend(["--socket".into(), volume.scratch.file("refused.sock").into()]);
    arguments.extend(extra.iter().map(std::ffi::OsString::from));
    let exit = Daemon::run_to_end(&arguments)?;
    ensure!(!exit.status.success(), "it was not refused:\n{}", exit.log);
    ensure!(!volume.scratch.file("refused.sock").exists(), "a socket is left behind");
    Ok(exit)
}

#[test]
fn sigterm_flushes_and_leaves_no_socket() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let control = volume.scratch.file("control.sock");
    let control_text = control.to_str().context("path")?;
    let mut daemon = Daemon::serve(&volume, &["--control", control_text])?;
    ensure!(control.exists(), "no control socket");
    let mut client = Client::simple(daemon.socket())?;
    let data = Pattern(5).bytes(0, 1 << 20);
    client.write(0, &data)?;
    // The client stays connected: the daemon must end all the same.
    daemon.stop()?;
    ensure!(!daemon.socket().exists(), "the vhost-user socket is left behind");
    ensure!(!control.exists(), "the control socket is left behind");
    drop(client);
    assert!(oracle::cryptsetup_decrypts(&volume)?.starts_with(&data));
    Ok(())
}

#[test]
fn the_service_manager_hears_of_start_and_stop() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let socket = volume.scratch.file("vu.sock");
    let daemon = Daemon::serve(&volume, &[])?;
    // Daemon::serve has waited for READY=1; the socket must be usable from then on.
    ensure!(socket.exists());
    ensure!(daemon.notifications().iter().any(|message| message.contains("READY=1")));
    Client::simple(&socket)?.read(0, 4096)?;
    Ok(())
}

#[test]
fn a_socket_left_by_a_crash_is_replaced() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let mut daemon = Daemon::serve(&volume, &[])?;
    daemon.kill()?;
    ensure!(daemon.socket().exists(), "a killed daemon cannot clean up");
    daemon.start()?;
    Client::simple(daemon.socket())?.read(0, 4096)?;
    Ok(())
}

#[test]
fn clients_come_and_go() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let mut daemon = Daemon::serve(&volume, &["--queues", "4"])?;
    for round in 0..20_u16 {
        let queues = round % 4 + 1;
        let options = ClientOptions { queues, ..ClientOptions::default() };
        let mut client = Client::connect(daemon.socket(), options)?;
        let data = Pattern(round.into()).bytes(0, 8192);
        client.write(u64::from(round) * 8192, &data)?;
        ensure!(client.read(u64::from(round) * 8192, 8192)? == data);
    }
    daemon.stop()?;
    Ok(())
}

#[test]
fn a_volume_is_served_once() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let daemon = Daemon::serve(&volume, &[])?;
    let exit = refused(&volume, &[])?;
    ensure!(exit.log.contains("volume.img"), "the volume is not named: {}", exit.log);
    // Not even for reading its header's keys may somebody change it meanwhile.
    let new_key = volume.scratch.file("new");
    std::fs::write(&new_key, "new")?;
    Client::simple(daemon.socket())?.read(0, 4096)?;
    Ok(())
}

#[test]
fn a_wrong_key_is_called_that() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    // A newline at the end is part of the passphrase, as it is for cryptsetup --key-file.
    let mut passphrase = std::fs::read(&volume.key)?;
    passphrase.push(b'\n');
    std::fs::write(&volume.key, &passphrase)?;
    let exit = refused(&volume, &[])?;
    assert_eq!(exit.status.code(), Some(1));
    let log = exit.log.to_lowercase();
    ensure!(log.contains("passphrase") || log.contains("key"), "{log}");
    ensure!(log.contains("keyslot"), "which keyslots were tried is not said: {log}");
    ensure!(!log.contains(&String::from_utf8_lossy(&passphrase[..64]).into_owned()), "leaked");
    Ok(())
}

#[test]
fn what_is_no_volume_is_called_what_it_is() -> Result<()> {
    let volume = TestVolume::blank(DISK)?;
    let exit = refused(&volume, &[])?;
    ensure!(exit.log.contains("LUKS"), "{}", exit.log);
    sealblk_tests::run("mkfs.ext4", ["-q".as_ref(), volume.image.as_os_str()])?;
    let exit = refused(&volume, &[])?;
    ensure!(exit.log.contains("ext4"), "{}", exit.log);
    std::fs::remove_file(&volume.image)?;
    let exit = refused(&volume, &[])?;
    ensure!(exit.log.contains("volume.img"), "{}", exit.log);
    Ok(())
}

fn write_config(volume: &TestVolume, text: &str) -> Result<std::path::PathBuf> {
    let path = volume.scratch.file("sealblkd.toml");
    std::fs::write(&path, text)?;
    Ok(path)
}

#[test]
fn a_bad_configuration_names_its_line() -> Result<()> {
    let volume = TestVolume::blank(1 << 20)?;
    let good =
        "[[volume]]\nname = \"a\"\nuri = \"file:/nowhere\"\nkey = \"file:/k\"\nsocket = \"/s\"\n";
    for (line, text) in [
        (6, format!("{good}colour = \"blue\"\n")),
        (1, format!("flavour = 1\n{good}")),
        (6, format!("{good}queues = \"many\"\n")),
        (6, format!("{good}queues = \n")),
        (1, good.replace("uri", "url")),
    ] {
        let path = write_config(&volume, &text)?;
        let exit = Daemon::run_to_end(&["--config".as_ref(), path.as_os_str()])?;
        ensure!(exit.status.code() == Some(2), "{}: {}", exit.status, exit.log);
        ensure!(exit.log.contains("sealblkd.toml"), "no file name: {}", exit.log);
        let named = (1..=7).any(|n| {
            let near = line == 1 || n == line;
            near && (exit.log.contains(&format!("line {n}"))
                || exit.log.contains(&format!(".toml:{n}")))
        });
        ensure!(named, "line {line} is not named:\n{}\nfor\n{text}", exit.log);
    }
    Ok(())
}

#[test]
fn a_configuration_serves_several_volumes() -> Result<()> {
    let first = TestVolume::formatted(DISK, 512)?;
    let second = TestVolume::formatted(DISK, 4096)?;
    let control = first.scratch.file("control.sock");
    let (one, two) = (first.scratch.file("one.sock"), first.scratch.file("two.sock"));
    let section = |name: &str, volume: &TestVolume, socket: &Path, queues: u16| {
        format!(
            "[[volume]]\nname = {name:?}\nuri = {:?}\nkey = {:?}\nsocket = {socket:?}\nqueues = {queues}\n",
            volume.uri(),
            volume.key_uri()
        )
    };
    let text = format!(
        "[daemon]\ncontrol = {control:?}\n\n{}\n{}",
        section("first", &first, &one, 1),
        section("second", &second, &two, 4)
    );
    let path = write_config(&first, &text)?;
    let mut daemon = Daemon::exactly(&one, vec!["--config".into(), path.into()])?;
    for (number, socket) in [(1, &one), (2, &two)] {
        let mut client = Client::simple(socket)?;
        let data = Pattern(number).bytes(0, 1 << 20);
        client.write(0, &data)?;
        ensure!(client.read(0, 1 << 20)? == data);
    }
    let status = status(&control)?;
    let names: Vec<_> = status["volumes"].as_array().context("no volumes")?.iter().collect();
    assert_eq!(names.len(), 2);
    assert_eq!(names[0]["name"], "first");
    assert_eq!(names[1]["encryption"]["sector_bytes"], 4096);
    daemon.stop()?;
    ensure!(!one.exists() && !two.exists(), "sockets are left behind");
    Ok(())
}

fn status(control: &Path) -> Result<Value> {
    let arguments =
        ["status".as_ref(), "--json".as_ref(), "--control".as_ref(), control.as_os_str()];
    Ok(serde_json::from_slice(&sealblk(arguments)?.stdout)?)
}

#[test]
fn status_counts_what_was_done() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let control = volume.scratch.file("control.sock");
    let daemon = Daemon::serve(&volume, &["--control", control.to_str().context("path")?])?;
    let before = status(&control)?;
    assert_eq!(before["pid"], daemon.pid()?);
    assert_eq!(before["volumes"][0]["state"], "waiting");
    let mut client = Client::simple(daemon.socket())?;
    for n in 0..10 {
        client.write(n * 4096, &[1; 4096])?;
    }
    client.read(0, 8192)?;
    client.flush()?;
    let after = status(&control)?;
    let volume_status = &after["volumes"][0];
    assert_eq!(volume_status["state"], "connected");
    assert_eq!(volume_status["capacity_bytes"], DISK);
    assert_eq!(volume_status["encryption"]["luks_version"], 2);
    let queue = &volume_status["queues"][0];
    assert_eq!(queue["requests"]["write"], 10, "{after}");
    assert_eq!(queue["written_bytes"], 40960);
    assert_eq!(queue["read_bytes"], 8192);
    assert_eq!(queue["requests"]["flush"], 1);
    // The same for a person.
    let output = sealblk_command()?.arg("status").arg("--control").arg(&control).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("connected"), "{text}");
    Ok(())
}

#[test]
fn status_tells_how_old_keys_are_and_when_they_are_rotated_next() -> Result<()> {
    // A header that notes the age, and one that has no place for it.
    let luks2 = TestVolume::formatted(DISK, 512)?;
    let luks1 = TestVolume::known_answer("l1-cs-k512.img")?;
    let uuid = sealblk(["inspect", "--json", "--volume", &luks1.uri()])?;
    let uuid = serde_json::from_slice::<Value>(&uuid.stdout)?["uuid"].clone();
    let state_dir = luks2.scratch.file("state");
    std::fs::create_dir(&state_dir)?;
    let note = state_dir.join(format!("{}.json", uuid.as_str().context("no UUID")?));
    let control = luks2.scratch.file("control.sock");
    let (one, two) = (luks2.scratch.file("one.sock"), luks2.scratch.file("two.sock"));
    let section = |name: &str, volume: &TestVolume, socket: &Path| {
        format!(
            "[[volume]]\nname = {name:?}\nuri = {:?}\nkey = {:?}\nsocket = {socket:?}\n",
            volume.uri(),
            volume.key_uri()
        )
    };
    let text = format!(
        "[daemon]\ncontrol = {control:?}\nstate_dir = {state_dir:?}\n\
         [rotation]\nmax_key_age = \"30d\"\nunknown_age = \"first-sight\"\n\
         {}{}[volume.rotation]\nmax_key_age = \"36500d\"\n",
        section("luks2", &luks2, &one),
        section("luks1", &luks1, &two)
    );
    let path = write_config(&luks2, &text)?;
    let good = json!({
        "version": 1, "uuid": uuid, "volume_key_since": 1_700_000_000,
        "secret_since": null, "rotations": 1,
    });
    for (note_text, since) in [(good.to_string(), Some(1_700_000_000)), ("{".to_owned(), None)] {
        std::fs::write(&note, note_text)?;
        let mut daemon = Daemon::exactly(&one, vec!["--config".into(), path.clone().into()])?;
        let told = status(&control)?;
        let [first, second] = [0, 1].map(|number| told["volumes"][number]["key_age"].clone());
        let born = first["volume_key_since"].as_u64().context("no age")?;
        assert_eq!(first["due_at"], born + 30 * 86400, "{told}");
        assert_eq!(first["next_run_at"], first["due_at"]);
        match since {
            Some(since) => {
                assert_eq!(second["volume_key_since"], since, "{told}");
                assert_eq!(second["due_at"], since + 36500 * 86400_u64);
            }
            // It counts from now on, and that is noted in place of the nonsense.
            None => {
                let noted = until("the first sight to be noted", Duration::from_secs(30), || {
                    let text = std::fs::read_to_string(&note)?;
                    Ok(serde_json::from_str::<Value>(&text).ok())
                })?;
                let seen = noted["volume_key_since"].as_u64().context("no first sight")?;
                assert!(seen >= born, "{noted}");
            }
        }
        let output = sealblk_command()?.arg("status").arg("--control").arg(&control).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("age         volume key since 20"), "{text}");
        daemon.stop()?;
        let log = daemon.log().text();
        assert_eq!(log.contains("of no use"), since.is_none(), "{log}");
    }
    Ok(())
}

#[test]
fn a_read_only_disk_says_so_and_stays_as_it_is() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let before = std::fs::read(&volume.image)?;
    let mut daemon = Daemon::serve(&volume, &["--read-only"])?;
    ensure!(Client::simple(daemon.socket()).is_err(), "offered for writing");
    let options = ClientOptions { read_only: true, ..ClientOptions::default() };
    Client::connect(daemon.socket(), options)?.read(0, 1 << 20)?;
    daemon.stop()?;
    ensure!(std::fs::read(&volume.image)? == before, "the volume has changed");
    Ok(())
}

#[test]
fn a_plain_disk_warns_and_encrypts_nothing() -> Result<()> {
    let volume = TestVolume::blank(DISK)?;
    let mut daemon = Daemon::serve_plain(&volume, &[])?;
    let warning = daemon.log().text();
    ensure!(warning.contains("WARN") && warning.to_lowercase().contains("encrypt"), "{warning}");
    let mut client = Client::simple(daemon.socket())?;
    assert_eq!(client.capacity_bytes()?, DISK);
    let data = Pattern(9).bytes(4096, 1 << 20);
    client.write(4096, &data)?;
    client.flush()?;
    drop(client);
    daemon.stop()?;
    assert!(std::fs::read(&volume.image)?[4096..].starts_with(&data));
    Ok(())
}

#[test]
fn an_idle_daemon_uses_no_processor() -> Result<()> {
    let volume = TestVolume::formatted(DISK, 512)?;
    let daemon = Daemon::serve(&volume, &["--queues", "2"])?;
    let mut client = Client::simple(daemon.socket())?;
    client.write(0, &[1; 4096])?;
    let ticks = || -> Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid()?))?;
        let (_, rest) = stat.rsplit_once(") ").context("stat")?;
        let fields: Vec<_> = rest.split(' ').collect();
        Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
    };
    let before = ticks()?;
    #[expect(clippy::disallowed_methods, reason = "doing nothing for a while is the test")]
    std::thread::sleep(Duration::from_secs(2));
    let used = ticks()? - before;
    ensure!(used <= 2, "{used} ticks of 200 while idle");
    Ok(())
}
