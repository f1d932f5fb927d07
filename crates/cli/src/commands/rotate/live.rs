//! Rotations of volumes that a daemon serves: orders to it, and what it tells.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sealblk_api::{Rotation, RotationOrder, STATUS_PATH, Status, VolumeStatus, rotation_path};
use sealblk_keys::KeySource;

use super::KEPT_LUKS2;
use super::watch::{Source, watch};
use crate::args::{RotateHow, RotateStart, RotateStatus, RotateThrottle, Served};
use crate::console::Console;
use crate::failure::Failure;
use crate::http::{self, AskError};
use crate::progress;

/// In place of a file: the daemon makes no backup.
const NO_BACKUP: &str = "none";

pub(super) fn start(args: &RotateStart, console: &mut Console<'_>) -> Result<(), Failure> {
    let how = &args.how;
    let status: Status = http::get(&args.served.control, STATUS_PATH)?;
    let volume = find(&status, &args.served.volume)?;
    if let Some(question) = question(volume, how) {
        console.confirm(&question, how.yes)?;
    }
    order(&args.served, &start_order(how)?, console)?;
    let (control, name) = (args.served.control.display(), &args.served.volume);
    console.note(&format!(
        "to follow it: sealblk rotate status --control {control} --volume {name} --watch"
    ))
}

pub(super) fn pause(served: &Served, console: &mut Console<'_>) -> Result<(), Failure> {
    order(served, &RotationOrder::Pause, console)
}

pub(super) fn resume(served: &Served, console: &mut Console<'_>) -> Result<(), Failure> {
    order(served, &RotationOrder::Resume, console)
}

pub(super) fn throttle(args: &RotateThrottle, console: &mut Console<'_>) -> Result<(), Failure> {
    order(&args.served, &RotationOrder::Throttle { rate_bytes: args.rate.0 }, console)
}

pub(super) fn status(args: &RotateStatus, console: &mut Console<'_>) -> Result<(), Failure> {
    let Some(name) = &args.volume else {
        return status_of_all(args, console);
    };
    if args.watch {
        let mut daemon = Daemon { control: &args.control, path: rotation_path(name) };
        return watch(name, &mut daemon, args.json, console);
    }
    let path = rotation_path(name);
    if args.json {
        // What the daemon said, with what this command doesn't know.
        let rotation: serde_json::Value = http::get(&args.control, &path)?;
        writeln!(console.out, "{rotation:#}")?;
    } else {
        let rotation: Rotation = http::get(&args.control, &path)?;
        console.out.write_all(progress::block(name, &rotation).as_bytes())?;
    }
    Ok(())
}

fn status_of_all(args: &RotateStatus, console: &mut Console<'_>) -> Result<(), Failure> {
    let status: Status = http::get(&args.control, STATUS_PATH)?;
    if args.json {
        let each = status.volumes.into_iter().map(|volume| (volume.name, volume.rotation));
        let all = each
            .map(|(name, rotation)| Ok((name, serde_json::to_value(rotation)?)))
            .collect::<Result<serde_json::Map<_, _>, serde_json::Error>>()?;
        writeln!(console.out, "{:#}", serde_json::Value::Object(all))?;
        return Ok(());
    }
    for volume in &status.volumes {
        let text = match &volume.rotation {
            Some(rotation) => progress::block(&volume.name, rotation),
            None => format!("{}: can't be rotated\n", volume.name),
        };
        console.out.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Orders, and shows what the rotation is like then.
fn order(served: &Served, order: &RotationOrder, console: &mut Console<'_>) -> Result<(), Failure> {
    let rotation: Rotation = http::post(&served.control, &rotation_path(&served.volume), order)?;
    console.out.write_all(progress::block(&served.volume, &rotation).as_bytes())?;
    Ok(())
}

/// The daemon has a working directory of its own: paths are made absolute.
fn start_order(how: &RotateHow) -> Result<RotationOrder, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path).with_context(|| format!("{}: what path is it", path.display()))
    };
    let new_key = match &how.new_key {
        Some(KeySource::File(path)) => Some(KeySource::File(absolute(path)?).to_string()),
        Some(KeySource::Fd(_)) => {
            return Err(anyhow!(
                "--new-key fd: names a descriptor of this command, not the daemon's"
            )
            .into());
        }
        Some(source) => Some(source.to_string()),
        None => None,
    };
    let header_backup = match &how.header_backup {
        // No file of that name, but none at all.
        Some(path) if path.as_os_str() == NO_BACKUP => Some(NO_BACKUP.to_owned()),
        Some(path) => Some(text(&absolute(path)?)?),
        None => None,
    };
    Ok(RotationOrder::Start {
        new_key,
        rate_bytes: how.rate,
        hotzone_bytes: how.hotzone,
        header_backup,
        keep_luks2: how.keep_luks2,
    })
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| anyhow!("{}: the daemon takes paths in UTF-8 only", path.display()))
}

fn find<'a>(status: &'a Status, name: &str) -> anyhow::Result<&'a VolumeStatus> {
    status.volumes.iter().find(|volume| volume.name == name).ok_or_else(|| {
        let names: Vec<_> = status.volumes.iter().map(|volume| volume.name.as_str()).collect();
        anyhow!("the daemon has no volume {name:?}; it has {}", names.join(", "))
    })
}

/// What must be agreed to before: nothing where nothing but the volume key changes.
fn question(volume: &VolumeStatus, how: &RotateHow) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(new) = &how.new_key {
        parts.push(format!(
            "Until the rotation of {name} ends, the secret that opens it now and {new} both open \
             it; afterwards only {new} does. So the daemon's configuration must name {new} as the \
             volume's `key` before the daemon's next start after that: with the old one the volume \
             will not open any more.",
            name = volume.name,
        ));
    }
    let luks1 = volume.encryption.as_ref().is_some_and(|e| e.luks_version == 1);
    if how.keep_luks2 && luks1 {
        parts.push(KEPT_LUKS2.to_owned());
    }
    (!parts.is_empty()).then(|| parts.join("\n"))
}

/// A daemon's rotation, asked for again and again.
struct Daemon<'a> {
    control: &'a Path,
    path: String,
}

impl Source for Daemon<'_> {
    fn rotation(&mut self) -> Result<Rotation, AskError> {
        http::get(self.control, &self.path)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the daemon tells nothing by itself: it is asked again after a while"
    )]
    fn wait(&mut self, time: Duration) {
        thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use sealblk_api::Encryption;

    use super::*;

    fn how() -> RotateHow {
        RotateHow {
            new_key: None,
            rate: None,
            hotzone: None,
            header_backup: None,
            keep_luks2: false,
            yes: false,
        }
    }

    fn volume(luks_version: u8) -> VolumeStatus {
        VolumeStatus {
            name: "vda".into(),
            encryption: Some(Encryption { luks_version, ..Encryption::default() }),
            ..VolumeStatus::default()
        }
    }

    #[test]
    fn only_what_changes_for_the_operator_is_asked() {
        assert_eq!(question(&volume(2), &how()), None);
        let new = RotateHow { new_key: Some("file:/new".parse().unwrap()), ..how() };
        let asked = question(&volume(2), &new).unwrap();
        for part in ["both open it", "afterwards only file:/new", "before the daemon's next start"]
        {
            assert!(asked.contains(part), "{part}: {asked}");
        }
        let keep = RotateHow { keep_luks2: true, ..how() };
        let asked = question(&volume(1), &keep).unwrap();
        for part in ["QEMU", "Nova", "Cinder"] {
            assert!(asked.contains(part), "{part}: {asked}");
        }
        // Which it is anyway.
        assert_eq!(question(&volume(2), &keep), None);
    }

    #[test]
    fn the_daemon_gets_absolute_paths() {
        let relative = RotateHow {
            new_key: Some("file:new.key".parse().unwrap()),
            header_backup: Some("backup".into()),
            rate: Some(5),
            ..how()
        };
        let here = std::env::current_dir().unwrap();
        let RotationOrder::Start { new_key, header_backup, rate_bytes, .. } =
            start_order(&relative).unwrap()
        else {
            panic!("another order");
        };
        assert_eq!(new_key, Some(format!("file:{}", here.join("new.key").display())));
        assert_eq!(header_backup, Some(here.join("backup").display().to_string()));
        assert_eq!(rate_bytes, Some(5));
        let without = RotateHow { header_backup: Some("none".into()), ..how() };
        let RotationOrder::Start { header_backup, .. } = start_order(&without).unwrap() else {
            panic!("another order");
        };
        assert_eq!(header_backup.as_deref(), Some("none"));
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_right_ones() {
        let status = Status { volumes: vec![volume(2)], ..Status::default() };
        assert!(find(&status, "vda").is_ok());
        assert!(find(&status, "vdb").unwrap_err().to_string().contains("it has vda"));
    }
}
