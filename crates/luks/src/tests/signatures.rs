//! What else may lie on a volume.

use std::fs::File;

use super::*;
use crate::signatures::SIGNATURES;
use crate::{Found, probe};

const MIB: usize = 1 << 20;

/// Counted from the start, or from the end when negative.
fn planted(volume_bytes: usize, at: i64, bytes: &[u8]) -> Vec<u8> {
    let mut image = vec![0; volume_bytes];
    let at = if at < 0 { volume_bytes - at.unsigned_abs() as usize } else { at as usize };
    image[at..at + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn signatures_are_told_apart() {
    let cases: &[(i64, &[u8], &str)] = &[
        (1024 + 0x38, b"\x53\xef", "ext2"),
        (0, b"XFSB", "xfs"),
        (65536 + 64, b"_BHRfS_M", "btrfs"),
        (4086, b"SWAPSPACE2", "Linux swap"),
        (65526, b"SWAPSPACE2", "Linux swap"),
        (512, b"LABELONE................LVM2 001", "an LVM2 physical volume"),
        (1536, b"LABELONE................LVM2 001", "an LVM2 physical volume"),
        (0, b"\xfc\x4e\x2b\xa9\x01\0\0\0", "Linux RAID (1.1)"),
        (4096, b"\xfc\x4e\x2b\xa9\x01\0\0\0", "Linux RAID (1.2)"),
        (-8192, b"\xfc\x4e\x2b\xa9\x01\0\0\0", "Linux RAID (1.0)"),
        (-65536, b"\xfc\x4e\x2b\xa9\0\0\0\0", "Linux RAID (0.90)"),
        (4096, b"................\x08\0\0\0\0\0\0\0\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache"),
        (4096, b"................\x08\0\0\0\0\0\0\0\xc6\x85\x73\xf6\x66\xce\x90\xa9", "bcachefs"),
        (131_072, b"\x0c\xb1\xba\0\0\0\0\0\x88\x13", "ZFS"),
        (131_072 + 4096 * 31, b"\x0c\xb1\xba\0\0\0\0\0\x88\x13", "ZFS"),
        (-131_072, b"\0\0\0\0\0\xba\xb1\x0c", "ZFS"),
        (-393_216, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS"),
        (0, b"integrt\0\x05", "dm-integrity"),
        (0, b"verity\0\0\x01", "dm-verity"),
        (0, b"bluestore block device\n", "Ceph BlueStore"),
        (-4096 + 60, b"\x83\x74\x02\x6d", "DRBD"),
        (65536 + 52, b"ReIsEr2Fs", "reiserfs"),
        (32768, b"JFS1", "jfs"),
        (1024, b"\x02\0\0\0\0\0\x34\x34", "nilfs2"),
        (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
        (1024, b"\x10\x20\xf5\xf2", "f2fs"),
        (0, b"hsqs", "squashfs"),
        (2048, b"OCFSV2", "ocfs2"),
        (65536, b"\x01\x16\x19\x70", "gfs2"),
        (32769, b"CD001", "ISO 9660"),
        (32769, b"BEA01", "UDF"),
        (3, b"NTFS    ", "NTFS"),
        (3, b"EXFAT   ", "exFAT"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (-512, b"EFI PART", "a GPT partition table (its backup, at the end)"),
        (-4096, b"EFI PART", "a GPT partition table (its backup, at the end)"),
        (510, b"\x55\xaa", "a boot sector or MBR partition table"),
        (0, b"QFI\xfb", "qcow2"),
        (0, b"QED\0", "QED"),
        (0, b"KDMV", "VMDK"),
        (0, b"vhdxfile", "VHDX"),
        (-512, b"conectix", "VHD"),
        (0, b"LUKS\xba\xbe\0\x09", "a LUKS header of an unknown version"),
    ];
    for (at, bytes, name) in cases {
        let image = planted(4 * MIB, *at, bytes);
        assert_eq!(probe(&mut image.as_slice()).unwrap(), Found::Other(name), "at {at}");
    }
    for bytes in [4 * MIB, MIB + 512, 65536, 4096, 512, 1, 0] {
        assert_eq!(probe(&mut vec![0; bytes].as_slice()).unwrap(), Found::Nothing);
    }
    for (name, found) in
        [("l1-qemu-aes256.img.xz", Found::Luks1), ("l2-512-k512.img.xz", Found::Luks2)]
    {
        assert_eq!(probe(&mut kat(name).as_slice()).unwrap(), found);
    }
}

/// Superblocks at the end lie before the last whole unit of their own.
#[test]
fn signatures_at_the_end_are_found_on_volumes_of_odd_sizes() {
    let odd = 4 * MIB + 5 * 512;
    for (before_whole, bytes, name) in [
        (65536, b"\xfc\x4e\x2b\xa9".as_slice(), "Linux RAID (0.90)"),
        (8192, b"\xfc\x4e\x2b\xa9", "Linux RAID (1.0)"),
        (4096, b"EFI PART", "a GPT partition table (its backup, at the end)"),
        (131_072, b"\x0c\xb1\xba\0\0\0\0\0", "ZFS"),
    ] {
        let image = planted(odd, (4 * MIB - before_whole) as i64, bytes);
        assert_eq!(probe(&mut image.as_slice()).unwrap(), Found::Other(name));
    }
}

/// None lies outside of what is read, or is shadowed by one before it.
#[test]
fn each_signature_is_found_at_each_of_its_places() {
    for volume_bytes in [MIB, 2 * MIB + 512] {
        for signature in SIGNATURES {
            for offset in signature.offsets(volume_bytes as u64) {
                let image = planted(volume_bytes, offset as i64, signature.magic);
                let found = probe(&mut image.as_slice()).unwrap();
                assert_eq!(found, Found::Other(signature.name), "at {offset}");
            }
        }
    }
}

#[test]
fn what_the_real_tools_make_is_recognised() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("volume");
    let cases: &[(&[&str], &str)] = &[
        (&["/usr/sbin/mkfs.ext4", "-q", "-F"], "ext4"),
        (&["/usr/sbin/mkfs.ext4", "-q", "-F", "-t", "ext3"], "ext3"),
        (&["/usr/sbin/mkfs.ext4", "-q", "-F", "-t", "ext2"], "ext2"),
        (&["/usr/sbin/mkswap"], "Linux swap"),
        (&["/usr/sbin/mkswap", "-p", "65536"], "Linux swap"),
        (&["/usr/sbin/mkfs.fat", "-F", "12"], "FAT"),
        (&["/usr/sbin/mkfs.fat", "-F", "16"], "FAT"),
        (&["/usr/sbin/mkfs.fat", "-F", "32"], "FAT"),
    ];
    for (command, name) in cases {
        File::create(&path).unwrap().set_len(40 << 20).unwrap();
        let output = Command::new(command[0]).args(&command[1..]).arg(&path).output();
        let output = output.expect("Debian packages e2fsprogs, util-linux, dosfstools are needed");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {stderr}");
        let image = std::fs::read(&path).unwrap();
        assert_eq!(probe(&mut image.as_slice()).unwrap(), Found::Other(name), "{command:?}");
    }
}
