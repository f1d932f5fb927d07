//! Whether a file is in use as a loop device, which no lock on the file tells.

use std::fs;

use rustix::fs::Stat;

/// The loop device (`/dev/loopN`) that the file lies behind, if there is one. The kernel names
/// each device's file in sysfs (Documentation/ABI/testing/sysfs-block-loop).
pub(super) fn of_file(file: &Stat) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let path = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        let backing = rustix::fs::stat(path.trim_end_matches('\n')).ok()?;
        let same = (backing.st_dev, backing.st_ino) == (file.st_dev, file.st_ino);
        same.then(|| format!("/dev/{name}"))
    })
}
