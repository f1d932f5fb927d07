//! cryptsetup and we take over each other's rotations. Without a device mapper it can repair and
//! resume on plain files, which is all that is needed.

use std::sync::{Mutex, PoisonError};

use super::super::interop::File;
use super::super::*;
use super::crash::crash_states;
use super::driver::{Broken, Driver, Recovered, keys_of, recover, unlock_rotation};
use super::world::{Dice, History, Shape, World};
use crate::{Progress, RotationStatus};

/// cryptsetup keeps two re-encryptions of one UUID apart by a lock of the whole host, and all our
/// volumes have the one of this process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const RESUME: [&str; 3] = ["reencrypt", "--resume-only", "--force-offline-reencrypt"];

/// A volume that cryptsetup is asked to make whole and to rotate to the end.
pub(super) fn cryptsetup_ends(image: &[u8], passphrase: &str) -> Result<Vec<u8>, String> {
    let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let file = File::new(image);
    for arguments in [&["repair"][..], &RESUME] {
        let status = load(&file.image()).and_then(|header| header.rotation_status());
        if matches!(status, Ok(RotationStatus::None | RotationStatus::WipePending)) {
            // Repairing the last range was the end of it.
            break;
        }
        let output = file.cryptsetup(passphrase, arguments);
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cryptsetup {arguments:?}: {} {stderr}", output.status));
        }
    }
    Ok(file.image())
}

fn plain_of(image: &[u8], passphrase: &str) -> Result<Vec<u8>, LuksError> {
    let unlocked = unlock(image, passphrase)?;
    Ok(plaintext(image, &load(image)?.segments(&unlocked, image.len() as u64)?))
}

#[test]
fn cryptsetup_ends_what_we_begin() {
    for (sector_bytes, journal, new_secret) in
        [(512, false, false), (4096, true, false), (4096, false, true)]
    {
        let shape = Shape { new_secret, ..Shape::new(sector_bytes, journal) };
        let mut driver = Driver::new(shape, 9);
        let keys = keys_of(&driver.world.image);
        let mut rotation = driver.begin();
        for zones in 0..2 {
            let image = &driver.world.image;
            let history = History::after(&driver.world.log);
            // Either secret must do (R2).
            for passphrase in if new_secret { &[OLD, NEW][..] } else { &[OLD] } {
                let mut ended = cryptsetup_ends(image, passphrase).unwrap();
                let opens = if new_secret { NEW } else { OLD };
                let plain = plain_of(&ended, opens).unwrap();
                history.check(&shape, &plain).unwrap_or_else(|e| panic!("{shape:?} {zones}: {e}"));
                let header = load(&ended).unwrap();
                // Our token is still there, and what it says is to be removed.
                assert_eq!(header.rotation_status().unwrap(), RotationStatus::WipePending);
                let plan = header.clean_up_rotation(&mut ended.as_slice(), &mut rng(1)).unwrap();
                execute(&mut ended, &plan);
                assert_eq!(json_of(&ended)["keyslots"].as_object().unwrap().len(), 1);
                let age = load(&ended).unwrap().key_age().unwrap().unwrap();
                let secret_since = if new_secret { 1_700_000_000 } else { 1_600_000_000 };
                assert_eq!(age.volume_key_since, Some(1_700_000_000), "{shape:?}");
                assert_eq!((age.secret_since, age.rotations), (Some(secret_since), 1));
                assert_eq!(unlock(&ended, OLD).is_ok(), !new_secret, "{shape:?}");
                let file = File::new(&ended);
                assert!(file.opens(opens));
                assert_eq!(file.image(), ended, "cryptsetup found nothing to mend");
            }
            // A crash state of the kind that repair is for, whole: hot, nothing written.
            let zone = rotation.zone().unwrap();
            let at = zone.volume_offset_bytes as usize;
            let old = image[at..at + zone.len_bytes as usize].to_vec();
            let mut copy = World::new(image.clone());
            let Recovered::Rotating(same) = recover(&mut copy, &shape, &keys).unwrap() else {
                panic!("it is over")
            };
            let pending = same.arm(&old).unwrap();
            let mut hot = copy.image;
            execute(&mut hot, pending.plan());
            let ended = cryptsetup_ends(&hot, OLD).unwrap();
            let opens = if new_secret { NEW } else { OLD };
            history.check(&shape, &plain_of(&ended, opens).unwrap()).unwrap();
            match driver.zone(rotation) {
                Progress::More(next) => rotation = next,
                Progress::Done(_) => break,
            }
        }
    }
}

#[test]
fn we_end_what_cryptsetup_begins() {
    for (sector_bytes, resilience) in [(512, "checksum"), (4096, "journal")] {
        let shape = Shape::new(sector_bytes, false);
        let file = File::new(&shape.volume());
        let begin = [
            "reencrypt",
            "--init-only",
            "--force-offline-reencrypt",
            "--resilience",
            resilience,
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
        ];
        {
            let _lock = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
            file.must(OLD, &begin);
        }
        let image = file.image();
        let header = load(&image).unwrap();
        assert_eq!(header.rotation_status().unwrap(), RotationStatus::Clean { done_bytes: 0 });
        let keys = keys_of(&image);
        let mut driver = Driver::over(shape, World::new(image));
        let recovered = recover(&mut driver.world, &shape, &keys).unwrap();
        let Recovered::Rotating(rotation) = recovered else { panic!("nothing to rotate") };
        let mut rotation = *rotation;
        loop {
            match driver.zone(rotation) {
                Progress::More(next) => rotation = next,
                Progress::Done(finished) => {
                    let plan = finished.wipe(&mut rng(2)).unwrap();
                    execute(&mut driver.world.image, &plan);
                    break;
                }
            }
        }
        let image = &driver.world.image;
        History::default().check(&shape, &plain_of(image, OLD).unwrap()).unwrap();
        assert!(unlock(image, OLD).unwrap().key.ct_eq(keys.new.expose()));
        let file = File::new(image);
        assert!(file.opens(OLD));
        assert_eq!(file.image(), *image, "cryptsetup found nothing to mend");
        assert_eq!(load(image).unwrap().rotation_status().unwrap(), RotationStatus::None);
    }
}

#[test]
fn we_end_what_cryptsetup_left_in_the_middle() {
    let image = kat("mid-checksum-clean.img.xz");
    let expected = kat("mid-checksum.plain.xz");
    for atomic_write_bytes in [0, 4096] {
        let mut image = image.clone();
        let unlocked = unlock_rotation(&image, "passphrase").unwrap();
        let params = crate::RotationParams {
            volume_bytes: image.len() as u64,
            block_bytes: 512,
            atomic_write_bytes,
            zone_bytes: 100 << 10,
        };
        let resume = load(&image)
            .unwrap()
            .resume_rotation(&mut image.as_slice(), &unlocked, params, &mut rng(1))
            .unwrap();
        let crate::Resume::Clean(pending) = resume else { panic!("{resume:?}") };
        execute(&mut image, pending.plan());
        let mut rotation = pending.carried_out();
        loop {
            let zone = rotation.zone().unwrap();
            let at = zone.volume_offset_bytes as usize
                ..(zone.volume_offset_bytes + zone.len_bytes) as usize;
            let mut data = image[at.clone()].to_vec();
            let mut recryptor = rotation.recryptor(Implementation::Auto).unwrap();
            let pending = rotation.arm(&data).unwrap();
            execute(&mut image, pending.plan());
            recryptor.recrypt(zone.start_bytes, &mut data);
            image[at].copy_from_slice(&data);
            let pending = pending.carried_out().commit().unwrap();
            execute(&mut image, pending.plan());
            match pending.carried_out() {
                Progress::More(next) => rotation = next,
                Progress::Done(finished) => {
                    execute(&mut image, &finished.wipe(&mut rng(1)).unwrap());
                    break;
                }
            }
        }
        assert!(plain_of(&image, "passphrase").unwrap() == expected, "plaintext differs");
        assert!(File::new(&image).opens("passphrase"));
    }
}

/// The states that our recovery is tried with, recovered by cryptsetup.
#[test]
fn cryptsetup_recovers_crash_states_of_our_rotations() {
    for shape in [Shape::new(512, false), Shape::new(4096, false), Shape::new(4096, true)] {
        let mut driver = Driver::new(shape, 11);
        driver.run();
        let mut dice = Dice::new(12);
        let mut sample = Dice::new(13);
        let World { base, log, .. } = &driver.world;
        let (mut tried, mut failures) = (0, Vec::new());
        let states = crash_states(base, log, &mut dice, 1, |mut state, history, name| {
            if !sample.chance(2) {
                return;
            }
            let status = load(&state).and_then(|header| header.rotation_status());
            let wanted = match status {
                Ok(RotationStatus::Crash { .. }) => true,
                Ok(RotationStatus::Clean { .. }) => sample.chance(30),
                _ => false,
            };
            if !wanted {
                return;
            }
            tried += 1;
            let checked = cryptsetup_ends(&state, OLD).and_then(|ended| {
                state = ended;
                let plain = plain_of(&state, OLD).map_err(|error| error.to_string())?;
                history.check(&shape, &plain)
            });
            if let Err(failure) = checked {
                failures.push(format!("{name}: {failure}"));
            }
        });
        println!("{shape:?}: cryptsetup recovered {tried} of {states} crash states");
        assert!(tried >= 5, "only {tried} states");
        assert!(failures.is_empty(), "{shape:?}: {failures:#?}");
    }
}

/// Control: cryptsetup's own order at the end. Its own resume destroys the data in that state and
/// says that all is well; ours ends the rotation.
#[test]
fn the_end_in_the_order_of_cryptsetup_loses_data_with_cryptsetup_and_not_with_us() {
    let shape = Shape::new(4096, false);
    let mut driver = Driver::new(shape, 14);
    driver.broken = Broken { upstream_end: true, ..Broken::default() };
    let keys = keys_of(&driver.world.image);
    driver.run();
    let mut dice = Dice::new(15);
    let World { base, log, .. } = &driver.world;
    let (mut finished, mut lost_by_cryptsetup) = (0, 0);
    crash_states(base, log, &mut dice, 0, |state, history, name| {
        let status = load(&state).and_then(|header| header.rotation_status());
        if !matches!(status, Ok(RotationStatus::Finished)) {
            return;
        }
        finished += 1;
        let mut world = World::new(state.clone());
        let recovered = recover(&mut world, &shape, &keys).unwrap();
        let plain = plaintext(&world.image, &recovered.segments());
        history.check(&shape, &plain).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        if finished <= 3 {
            let ended = cryptsetup_ends(&state, OLD).unwrap();
            let plain = plain_of(&ended, OLD).unwrap();
            lost_by_cryptsetup += usize::from(history.check(&shape, &plain).is_err());
        }
    });
    println!("{finished} states; cryptsetup lost the data of {lost_by_cryptsetup} of 3");
    assert!(finished >= 3 && lost_by_cryptsetup == 3, "{finished} {lost_by_cryptsetup}");
}
