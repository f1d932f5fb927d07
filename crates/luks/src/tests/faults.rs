//! Volumes of which some sectors cannot be read.

use super::*;
use crate::luks2::HEADER_SIZES;
use crate::{Found, NewKeyslot, PROBED_TAIL_BYTES, probe, repair};

/// A volume with bad sectors: reads that touch one fail.
struct Faulty<'a> {
    image: &'a [u8],
    bad: &'a [u64],
}

impl ReadAt for Faulty<'_> {
    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset_bytes + buf.len() as u64;
        if self.bad.iter().any(|bad| offset_bytes < (bad + 1) * 512 && bad * 512 < end) {
            return Err(io::Error::other("medium error"));
        }
        self.image.read_at(offset_bytes, buf)
    }

    fn size_bytes(&self) -> u64 {
        self.image.len() as u64
    }
}

fn open(io: &mut dyn ReadAt, passphrase: &str) -> Result<Unlocked, LuksError> {
    let header = Header::load(io, &Policy::default())?;
    header.unlock(io, &secret(passphrase), &KdfLimits::default())
}

fn with_second_keyslot(image: &[u8], passphrase: &str) -> Vec<u8> {
    let unlocked = unlock(image, passphrase).unwrap();
    let mut io = image;
    let plan = load(image)
        .unwrap()
        .add_keyslot(&mut io, &unlocked, &secret(NEW), &NewKeyslot::default(), &mut rng(2))
        .unwrap()
        .1;
    let mut image = image.to_vec();
    execute(&mut image, &plan);
    image
}

#[test]
fn with_one_unreadable_sector_in_the_header_area_the_other_copy_serves() {
    let image = volume();
    let elsewhere = HEADER_SIZES.into_iter().map(|offset| offset / 512);
    for bad in (0..64).chain(elsewhere.filter(|sector| *sector >= 64)) {
        let mut io = Faulty { image: &image, bad: &[bad] };
        // From sector 64 on there is the keyslot's material.
        if !(64..64 + 500).contains(&bad) {
            open(&mut io, OLD).unwrap_or_else(|error| panic!("sector {bad}: {error}"));
        }
        let header = Header::load(&mut io, &Policy::default()).unwrap();
        let damaged: Vec<_> =
            header.report().copies.into_iter().filter(|copy| copy.damage.is_some()).collect();
        let (_, plan) = repair(&mut io, false, &mut rng(1)).unwrap();
        if bad >= 64 {
            assert!(damaged.is_empty() && plan.is_empty(), "sector {bad}: {damaged:?}");
            continue;
        }
        assert_eq!(damaged.len(), 1, "sector {bad}");
        assert_eq!(damaged[0].offset_bytes, bad / 32 * 16384, "sector {bad}");
        assert!(damaged[0].damage.as_ref().unwrap().contains("medium error"), "{damaged:?}");
        let mut repaired = image.clone();
        execute(&mut repaired, &plan);
        assert!(load(&repaired).unwrap().report().copies.iter().all(|c| c.damage.is_none()));
        let steps = plan.steps();
        let expected = damaged[0].offset_bytes;
        let write = |step: &Step| matches!(step, Step::Write { offset_bytes, .. } if *offset_bytes == expected);
        assert!(steps.len() == 3 && steps[0] == Step::Flush && write(&steps[1]), "sector {bad}");
    }
}

#[test]
fn a_lost_primary_and_an_unreadable_place_of_no_copy_do_not_hide_the_secondary() {
    let image = volume();
    for offset in HEADER_SIZES.into_iter().filter(|offset| *offset != 16384) {
        let bad = [0, offset / 512];
        Header::load(&mut Faulty { image: &image, bad: &bad }, &Policy::default())
            .unwrap_or_else(|error| panic!("{offset}: {error}"));
    }
    let mut io = Faulty { image: &image, bad: &[0, 33] };
    let error = message(open(&mut io, OLD));
    assert!(error.starts_with("both LUKS2 header copies are unusable"), "{error}");
    assert_eq!(error.matches("medium error").count(), 2, "{error}");
}

#[test]
fn an_unreadable_volume_is_not_taken_for_one_without_luks() {
    let image = volume();
    let bad: Vec<u64> = (0..image.len() as u64 / 512).collect();
    for (name, bad) in [("all", bad.as_slice()), ("both magics", &[0, 32])] {
        let error = open(&mut Faulty { image: &image, bad }, OLD).unwrap_err();
        assert!(matches!(error, LuksError::Read { offset_bytes: 0, .. }), "{name}: {error}");
        assert_eq!(
            sealblk_block::in_one_line(&error),
            "cannot read 8 bytes at offset 0: medium error"
        );
    }
}

#[test]
fn an_unreadable_keyslot_is_skipped_and_another_opens() {
    let luks1 = with_second_keyslot(&kat("l1-cs-k512.img.xz"), "passphrase");
    let luks2 = with_second_keyslot(&volume(), OLD);
    for (image, old) in [(luks1, "passphrase"), (luks2, OLD)] {
        let first = load(&image).unwrap().report().keyslots[0].clone();
        let start = first.offset_bytes.unwrap() / 512;
        for bad in [start, start + 250, start + 499] {
            let mut io = Faulty { image: &image, bad: &[bad] };
            assert_eq!(open(&mut io, NEW).unwrap().slot(), 1);
            let error = message(open(&mut io, old));
            assert!(error.contains("1 tried, 1 skipped (keyslot 0: cannot read"), "{error}");
            assert!(error.contains("medium error"), "{error}");
        }
    }
}

#[test]
fn whoever_wants_to_overwrite_is_not_told_that_unreadable_sectors_hold_nothing() {
    let sectors = 16384;
    let blank = vec![0; sectors as usize * 512];
    assert_eq!(probe(&mut blank.as_slice()).unwrap(), Found::Nothing);
    let tail = sectors - PROBED_TAIL_BYTES / 512;
    for bad in [0, 1, 8, 511, 1024, 8192, tail, sectors - 8, sectors - 1] {
        let result = probe(&mut Faulty { image: &blank, bad: &[bad] });
        assert!(matches!(result, Err(LuksError::Read { .. })), "sector {bad}: {result:?}");
    }
}

#[test]
fn what_overwrote_an_unreadable_primary_is_still_recognised() {
    let mut image = volume();
    image[..16384].fill(0);
    image[65536 + 64..65536 + 72].copy_from_slice(b"_BHRfS_M");
    let mut io = Faulty { image: &image, bad: &[0] };
    let message = message(repair(&mut io, false, &mut rng(1)).map(drop));
    assert!(message.contains("btrfs lies at offset 0"), "{message}");
}
