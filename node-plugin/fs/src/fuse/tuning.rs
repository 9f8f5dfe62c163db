//! What INIT cannot negotiate and is set through /sys after the mount.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Sets the kernel's read-ahead of a file system, in KiB.
pub(crate) fn set_read_ahead(device: &str, kib: u32) -> io::Result<()> {
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), kib.to_string())
}

/// The device number of a mount, as `major:minor`.
///
/// It comes from mountinfo: asking the mount itself (stat) would wait for a server that may not answer yet.
pub(crate) fn device_at(mountpoint: &Path) -> io::Result<String> {
    let mountinfo = std::fs::read("/proc/self/mountinfo")?;
    let mountpoint = resolved(mountpoint)?;
    device_of(&mountinfo, &mountpoint).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "the mount is not in /proc/self/mountinfo",
        )
    })
}

/// The path without symbolic links, without touching its last component.
fn resolved(mountpoint: &Path) -> io::Result<PathBuf> {
    match (mountpoint.parent(), mountpoint.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() {
                Path::new(".")
            } else {
                parent
            };
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
        _ => Ok(mountpoint.to_owned()),
    }
}

/// `major:minor` of the uppermost mount at a path.
fn device_of(mountinfo: &[u8], mountpoint: &Path) -> Option<String> {
    let line = mountinfo.split(|b| *b == b'\n').rev().find(|line| {
        let target = line.split(|b| *b == b' ').nth(4).map(unescape);
        target.as_deref() == Some(mountpoint.as_os_str())
    })?;
    let device = line.split(|b| *b == b' ').nth(2)?;
    String::from_utf8(device.to_vec()).ok()
}

/// Undoes mountinfo's escapes: `\` and three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| tail.first_chunk::<3>())
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::ffi::OsStr::from_bytes(digits).to_str()?, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_uppermost_mount_with_its_escapes() {
        let info = b"1 0 8:1 / / rw - ext4 x rw\n\
            2 1 0:50 / /a\\040b rw - fuse a rw\n\
            3 1 0:51 / /a\\040b rw - fuse b rw\n";
        assert_eq!(device_of(info, Path::new("/a b")).as_deref(), Some("0:51"));
        assert_eq!(device_of(info, Path::new("/")).as_deref(), Some("8:1"));
        assert_eq!(device_of(info, Path::new("/c")), None);
        assert_eq!(unescape(b"a\\134b\\"), OsString::from("a\\b\\"));
    }

    #[test]
    fn the_mount_point_itself_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/nowhere", &link).unwrap();
        assert_eq!(
            resolved(&link).unwrap(),
            std::fs::canonicalize(dir.path()).unwrap().join("link")
        );
    }
}
