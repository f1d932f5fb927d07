//! Signatures of what else may lie on a volume: file systems, partition tables, RAID, images.
//!
//! Those that `libblkid` knows and cloud volumes meet, with the offsets of the formats' own
//! headers. Deliberately without the further checks that tell a signature from chance: a volume
//! that is wrongly thought to hold something costs a flag on a command line.

/// Bytes at the start of the volume in which signatures lie: up to ZFS's first ring of uberblocks.
pub(crate) const HEAD_BYTES: u64 = 256 << 10;

/// Bytes at the end of the volume in which signatures lie: the two last labels of ZFS, the last of
/// which ends at a multiple of its size.
pub(crate) const TAIL_BYTES: u64 = 768 << 10;

/// A byte string at one place, or at several at equal distances.
pub(crate) struct Signature {
    base: Base,
    first: u64,
    step: u64,
    count: u64,
    pub(crate) magic: &'static [u8],
    pub(crate) name: &'static str,
}

/// What offsets count from, all in bytes.
enum Base {
    Start,
    /// `back` before the last multiple of `align` on the volume.
    End {
        align: u64,
        back: u64,
    },
}

impl Signature {
    /// Offsets at which it may lie on a volume of `volume_bytes`.
    pub(crate) fn offsets(&self, volume_bytes: u64) -> impl Iterator<Item = u64> + '_ {
        let base = match self.base {
            Base::Start => Some(0),
            Base::End { align, back } => (volume_bytes / align * align).checked_sub(back),
        };
        let places = move |base| (0..self.count).map(move |n| base + self.first + n * self.step);
        base.into_iter().flat_map(places)
    }
}

const fn at(first: u64, magic: &'static [u8], name: &'static str) -> Signature {
    Signature { base: Base::Start, first, step: 0, count: 1, magic, name }
}

const fn every(
    step: u64,
    count: u64,
    first: u64,
    magic: &'static [u8],
    name: &'static str,
) -> Signature {
    Signature { base: Base::Start, first, step, count, magic, name }
}

const fn before_end(
    align: u64,
    back: u64,
    first: u64,
    magic: &'static [u8],
    name: &'static str,
) -> Signature {
    Signature { base: Base::End { align, back }, first, step: 0, count: 1, magic, name }
}

/// A ZFS label is 256 KiB; its second half is a ring of uberblocks, 1 KiB each or larger.
const fn zfs(base: Base, magic: &'static [u8]) -> Signature {
    Signature { base, first: 128 << 10, step: 1024, count: 128, magic, name: "ZFS" }
}

/// The labels at the end. (The second one, at 256 KiB, comes and goes with the first.)
const ZFS_2: Base = Base::End { align: 256 << 10, back: 512 << 10 };
const ZFS_3: Base = Base::End { align: 256 << 10, back: 256 << 10 };
const UBERBLOCK: &[u8] = b"\x0c\xb1\xba\0\0\0\0\0";
const UBERBLOCK_BIG_ENDIAN: &[u8] = b"\0\0\0\0\0\xba\xb1\x0c";

/// The specific before the vague: a boot sector (`0x55aa`) may precede nearly anything.
pub(crate) const SIGNATURES: &[Signature] = &[
    // Disk images.
    at(0, b"QFI\xfb", "qcow2"),
    at(0, b"QED\0", "QED"),
    at(0, b"KDMV", "VMDK"),
    at(0, b"COWD", "VMDK"),
    at(0, b"# Disk DescriptorFile", "VMDK"),
    at(0, b"vhdxfile", "VHDX"),
    at(0, b"conectix", "VHD"),
    at(0, b"WithoutFreeSpace", "a Parallels image"),
    at(0, b"WithouFreSpacExt", "a Parallels image"),
    at(64, b"\x7f\x10\xda\xbe", "VDI"),
    // Layers below file systems.
    every(512, 4, 24, b"LVM2 001", "an LVM2 physical volume"),
    at(0, b"HM\x01\0", "an LVM1 physical volume"),
    at(0, b"HM\x02\0", "an LVM1 physical volume"),
    at(0, b"SnAp", "a device-mapper snapshot"),
    at(0, b"integrt\0", "dm-integrity"),
    at(0, b"verity\0\0", "dm-verity"),
    at(0, b"dmvdo001", "VDO"),
    at(512 + 4, b"!Stra0tis", "Stratis"),
    at(4608 + 4, b"!Stra0tis", "Stratis"),
    at(0, b"\xfc\x4e\x2b\xa9", "Linux RAID (1.1)"),
    at(4096, b"\xfc\x4e\x2b\xa9", "Linux RAID (1.2)"),
    at(4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", "bcache"),
    at(4096 + 24, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9", "bcachefs"),
    at(0, b"bluestore block device", "Ceph BlueStore"),
    at(3, b"-FVE-FS-", "BitLocker"),
    // File systems.
    at(0, b"XFSB", "xfs"),
    at(0, b"\xfe\xed\xba\xbe", "an xfs log"),
    at(65536 + 64, b"_BHRfS_M", "btrfs"),
    zfs(Base::Start, UBERBLOCK),
    zfs(Base::Start, UBERBLOCK_BIG_ENDIAN),
    at(1024, b"\x10\x20\xf5\xf2", "f2fs"),
    at(1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    at(0, b"hsqs", "squashfs"),
    at(0, b"sqsh", "squashfs"),
    at(0, b"\x45\x3d\xcd\x28", "cramfs"),
    at(0, b"-rom1fs-", "romfs"),
    at(8192 + 20, b"ReIsErFs", "reiserfs"),
    at(8192 + 52, b"ReIsErFs", "reiserfs"),
    at(65536 + 52, b"ReIsEr", "reiserfs"),
    at(65536, b"ReIsEr4", "reiser4"),
    at(32768, b"JFS1", "jfs"),
    // Revision 2.0, then the magic.
    at(1024, b"\x02\0\0\0\0\0\x34\x34", "nilfs2"),
    at(1024, b"OCFSV2", "ocfs2"),
    at(2048, b"OCFSV2", "ocfs2"),
    at(4096, b"OCFSV2", "ocfs2"),
    at(8192, b"OCFSV2", "ocfs2"),
    at(8, b"OracleCFS", "ocfs"),
    at(65536, b"\x01\x16\x19\x70", "gfs2"),
    at(32, b"NXSB", "apfs"),
    at(1024, b"H+\0\x04", "hfsplus"),
    at(1024, b"HX\0\x05", "hfsplus"),
    at(8192 + 1372, b"\x54\x19\x01\0", "ufs"),
    at(8192 + 1372, b"\x19\x01\x54\x19", "ufs"),
    at(65536 + 1372, b"\x19\x01\x54\x19", "ufs"),
    every(2048, 8, 32768 + 1, b"BEA01", "UDF"),
    every(2048, 8, 32768 + 1, b"NSR0", "UDF"),
    at(32768 + 1, b"CD001", "ISO 9660"),
    at(3, b"NTFS    ", "NTFS"),
    at(3, b"EXFAT   ", "exFAT"),
    at(54, b"FAT1", "FAT"),
    at(82, b"FAT32", "FAT"),
    // In the last ten bytes of the first page, whose size differs between machines.
    at(4096 - 10, b"SWAPSPACE2", "Linux swap"),
    at(8192 - 10, b"SWAPSPACE2", "Linux swap"),
    at(16384 - 10, b"SWAPSPACE2", "Linux swap"),
    at(32768 - 10, b"SWAPSPACE2", "Linux swap"),
    at(65536 - 10, b"SWAPSPACE2", "Linux swap"),
    at(4096 - 10, b"SWAP-SPACE", "Linux swap"),
    at(4096 - 10, b"S1SUSPEND", "a suspended system's memory"),
    at(4096 - 10, b"S2SUSPEND", "a suspended system's memory"),
    at(4096 - 10, b"LINHIB0001", "a suspended system's memory"),
    // At the end. RAID 0.90 is in the machine's byte order.
    zfs(ZFS_2, UBERBLOCK),
    zfs(ZFS_2, UBERBLOCK_BIG_ENDIAN),
    zfs(ZFS_3, UBERBLOCK),
    zfs(ZFS_3, UBERBLOCK_BIG_ENDIAN),
    before_end(65536, 65536, 0, b"\xfc\x4e\x2b\xa9", "Linux RAID (0.90)"),
    before_end(65536, 65536, 0, b"\xa9\x2b\x4e\xfc", "Linux RAID (0.90)"),
    before_end(4096, 8192, 0, b"\xfc\x4e\x2b\xa9", "Linux RAID (1.0)"),
    // `struct meta_data_on_disk`; the last byte of the magic tells versions 8.3 to 9.
    before_end(4096, 4096, 60, b"\x83\x74\x02", "DRBD"),
    before_end(512, 1024, 0, b"Intel Raid ISM Cfg Sig. ", "Intel firmware RAID"),
    before_end(512, 512, 0, b"\xde\x11\xde\x11", "DDF firmware RAID"),
    before_end(512, 512, 0, b"conectix", "VHD"),
    before_end(512, 512, 0, b"koly", "a DMG image"),
    // Partition tables, for blocks of 512 and of 4096 bytes.
    at(512, b"EFI PART", "a GPT partition table"),
    at(4096, b"EFI PART", "a GPT partition table"),
    before_end(512, 512, 0, b"EFI PART", GPT_BACKUP),
    before_end(4096, 4096, 0, b"EFI PART", GPT_BACKUP),
    at(512, b"\x57\x45\x56\x82", "a BSD disklabel"),
    at(510, b"\x55\xaa", "a boot sector or MBR partition table"),
];

const GPT_BACKUP: &str = "a GPT partition table (its backup, at the end)";
