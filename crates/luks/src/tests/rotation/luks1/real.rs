//! Volumes that the real qemu-img and cryptsetup make, through a rotation, and read by them again.

use std::collections::HashSet;
use std::process::Output;

use super::super::super::interop::File;
use super::super::handover::cryptsetup_ends;
use super::super::world::History;
use super::*;

fn qemu_img(directory: &std::path::Path, passphrase: &str, arguments: &[&str]) -> Output {
    std::fs::write(directory.join("secret"), passphrase).unwrap();
    Command::new("qemu-img")
        .arg(arguments[0])
        .args(["--object", "secret,id=s,file=secret"])
        .args(&arguments[1..])
        .current_dir(directory)
        .output()
        .expect("qemu-img (Debian package qemu-utils) is needed")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// What QEMU's own LUKS reads.
pub(super) fn read_by_qemu(image: &[u8], passphrase: &str) -> Result<Vec<u8>, String> {
    let directory = tempfile::TempDir::new().unwrap();
    std::fs::write(directory.path().join("volume"), image).unwrap();
    let options = "driver=luks,key-secret=s,file.filename=volume";
    let arguments = ["convert", "--image-opts", options, "-O", "raw", "plain"];
    let output = qemu_img(directory.path(), passphrase, &arguments);
    if !output.status.success() {
        return Err(text(&output));
    }
    Ok(std::fs::read(directory.path().join("plain")).unwrap())
}

fn made_by_qemu(cipher: &str, data_bytes: u64) -> Vec<u8> {
    let directory = tempfile::TempDir::new().unwrap();
    let options = format!("key-secret=s,iter-time=10,cipher-alg={cipher}");
    let size = data_bytes.to_string();
    let create = ["create", "-f", "luks", "-o", &options, "volume", &size];
    // It measures the machine by its clock of CPU time, and gives up when that stood still.
    let made = (0..5).any(|_| {
        let output = qemu_img(directory.path(), OLD, &create);
        assert!(output.status.success() || text(&output).contains("accurate CPU usage"));
        output.status.success()
    });
    assert!(made, "qemu-img create");
    let mut image = std::fs::read(directory.path().join("volume")).unwrap();
    let payload = u32::from_be_bytes(image[104..108].try_into().unwrap()) as usize * 512;
    image.resize(payload + data_bytes as usize, 0);
    image
}

fn made_by_cryptsetup(bits: &str, hash: &str, data_bytes: u64) -> Vec<u8> {
    let file = File::new(&vec![0; (4096 * 512) + data_bytes as usize]);
    file.must(
        OLD,
        &[
            "luksFormat",
            "--type",
            "luks1",
            "--cipher",
            "aes-xts-plain64",
            "--key-size",
            bits,
            "--hash",
            hash,
            "--pbkdf-force-iterations",
            "1000",
        ],
    );
    file.image()
}

#[test]
fn a_luks1_volume_is_rotated_beside_a_guest_and_is_luks1_again_with_the_new_key() {
    let data = Shape::new(512, false).data_bytes;
    for (name, payload, image, new_secret) in [
        ("qemu aes-256, same secret", 4040, made_by_qemu("aes-256", data), false),
        ("qemu aes-256, new secret", 4040, made_by_qemu("aes-256", data), true),
        ("qemu aes-128, new secret", 2056, made_by_qemu("aes-128", data), true),
        ("cryptsetup 256", 4096, made_by_cryptsetup("256", "sha256", data), false),
        ("cryptsetup 512 sha1", 4096, made_by_cryptsetup("512", "sha1", data), true),
    ] {
        let mut before = image;
        let shape = Shape { new_secret, payload: Some(payload * 512), ..Shape::new(512, false) };
        assert_eq!(before.len() as u64, shape.params().volume_bytes, "{name}");
        shape.fill(&mut before);
        let uuid = load(&before).unwrap().uuid();
        let old = unlock(&before, OLD).unwrap();
        History::default().check(&shape, &read_by_qemu(&before, OLD).unwrap()).unwrap();

        let converted = after(&before, &to_luks2(&before));
        assert_eq!(load(&converted).unwrap().version(), 2);
        assert!(File::new(&converted).opens(OLD), "{name}");
        assert!(read_by_qemu(&converted, OLD).unwrap_err().contains("version 2"), "{name}");
        let driver = rotated(shape, &converted);
        let world = &driver.world;
        let rotated = &world.image;
        let header = load(rotated).unwrap();
        assert_eq!(header.rotation_status().unwrap(), RotationStatus::ConvertBack, "{name}");
        let opens = if new_secret { NEW } else { OLD };
        let image = after(rotated, &to_luks1(rotated, opens));

        let header = load(&image).unwrap();
        assert_eq!((header.version(), header.uuid()), (1, uuid), "{name}");
        assert_eq!(header.report().keyslots.len(), 1, "{name}");
        let history = History::after(&world.log);
        let plain = read_by_qemu(&image, opens).unwrap();
        history.check(&shape, &plain).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let file = File::new(&image);
        assert!(file.opens(opens), "{name}");
        assert_eq!(file.image(), image, "{name}: cryptsetup found nothing to mend");
        let dump = file.must("", &["luksDump"]);
        assert!(dump.contains("Version:       \t1") && dump.contains(&header.uuid()), "{dump}");

        // Of the old key nothing is left: no keyslot's material, no digest, no sector of data.
        assert!(!unlock(&image, opens).unwrap().key.ct_eq(old.key.expose()), "{name}");
        if new_secret {
            assert!(read_by_qemu(&image, OLD).is_err() && unlock(&image, OLD).is_err(), "{name}");
        }
        let is_written = |sector: &&[u8]| sector.iter().any(|byte| *byte != 0);
        let then: HashSet<&[u8]> = before.chunks(512).skip(2).filter(is_written).collect();
        let kept = image.chunks(512).filter(|sector| then.contains(sector)).count();
        assert!(kept == 0 && then.len() >= 330, "{name}: {kept} of {} are there", then.len());
        let of_before = &before[112..132];
        assert!(!image.windows(20).any(|bytes| bytes == of_before), "{name}: the old digest");
        let key = old.key.expose();
        assert!(!image.windows(key.len()).any(|bytes| bytes == key), "{name}: the key itself");
        assert!(image[1024..32768].iter().all(|byte| *byte == 0), "{name}: LUKS2 is still there");

        // And once more, as it will be next year.
        if !new_secret {
            let again = rotated_again(shape, &after(&image, &to_luks2(&image)));
            assert!(read_by_qemu(&again, OLD).unwrap() == plain, "{name}");
        }
    }
}

/// Rotates a volume that has been rotated before, without a guest.
fn rotated_again(shape: Shape, luks2: &[u8]) -> Vec<u8> {
    let mut driver = Driver::over(shape, World::new(staged(&shape, luks2)));
    driver.run();
    after(&driver.world.image, &to_luks1(&driver.world.image, OLD))
}

#[test]
fn a_rotation_that_cryptsetup_ends_ends_as_luks1_too() {
    for (layout, new_secret) in [(QEMU, false), (SMALL, true)] {
        let shape = layout.shape(new_secret);
        let volume = layout.volume();
        let converted = after(&volume, &to_luks2(&volume));
        let mut driver = Driver::over(shape, World::new(staged(&shape, &converted)));
        let rotation = driver.begin();
        let crate::Progress::More(_) = driver.zone(rotation) else { panic!("it is over") };
        let mut image = cryptsetup_ends(&driver.world.image, OLD).unwrap();
        let header = load(&image).unwrap();
        assert_eq!(header.rotation_status().unwrap(), RotationStatus::WipePending);
        let opens = if new_secret { NEW } else { OLD };
        let unlocked = unlock(&image, opens).unwrap();
        let early = header.convert_to_luks1(&mut image.as_slice(), &unlocked, &mut rng(1));
        assert!(message(early).contains("a rotation is staged, under way or not cleaned up"));
        let plan = header.clean_up_rotation(&mut image.as_slice(), &mut rng(1)).unwrap();
        execute(&mut image, &plan);
        let image = after(&image, &to_luks1(&image, opens));
        let plain = read_by_qemu(&image, opens).unwrap();
        History::default().check(&shape, &plain).unwrap();
        assert!(!unlock(&image, opens).unwrap().key.ct_eq(layout.volume_key().expose()));
    }
}
