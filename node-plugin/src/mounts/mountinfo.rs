//! What is mounted where, out of `/proc/self/mountinfo` - never out of `st_dev`, which a bind mount on the
//! same file system does not change.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// File system type of this driver's mounts, as blob-fs mounts them.
pub const FS_TYPE: &str = "fuse.vsc-blob";

/// One line of mountinfo (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Number of this mount.
    pub id: u32,
    /// That of the mount on which it is mounted.
    pub parent: u32,
    /// Device numbers of the file system; the minor of a FUSE mount is its connection's id.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Directory of the file system that is mounted; `/` unless a subdirectory was bound.
    pub root: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// Options of this mount (`ro` of a read-only bind is here).
    pub options: String,
    /// The peer group: what is mounted on one of its mounts, or unmounted, is so on all of them.
    pub group: Option<u32>,
    /// File system type.
    pub fs_type: String,
    /// Source; `//deleted` may follow a removed one.
    pub source: String,
    /// Options of the file system itself.
    pub super_options: String,
}

impl Entry {
    /// True for a mount of this driver, or a bind of one.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// True when this mount, or its file system, refuses writes.
    pub fn read_only(&self) -> bool {
        let has = |options: &str| options.split(',').any(|o| o == "ro");
        has(&self.options) || has(&self.super_options)
    }

    /// True when both are mounts of one file system.
    pub fn same_file_system(&self, other: &Self) -> bool {
        (self.major, self.minor) == (other.major, other.minor)
    }

    /// True when what is mounted on this mount appears at the other one's path as well.
    pub fn reaches(&self, other: &Self) -> bool {
        self.at != other.at && self.root == other.root && self.group.is_some() && self.group == other.group
    }
}

/// The mounts of this process's namespace, in the kernel's order.
pub fn read() -> io::Result<Vec<Entry>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses mountinfo; lines of an unknown shape are left out.
pub fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

/// The uppermost mount at a path: that on which no other one at the path is mounted. The kernel's order says
/// nothing of it: a mount may be made before one that it covers.
pub fn at<'a>(mounts: &'a [Entry], path: &Path) -> Option<&'a Entry> {
    let here: Vec<&Entry> = mounts.iter().filter(|mount| mount.at == path).collect();
    let covered = |mount: &Entry| {
        let mut others = here.iter().filter(|other| other.id != mount.id);
        others.any(|other| other.parent == mount.id)
    };
    here.iter().rev().find(|mount| !covered(mount)).copied()
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAGS...] - TYPE SOURCE SUPEROPTIONS`
fn line(line: &[u8]) -> Option<Entry> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let text = |index: usize| {
        fields
            .get(index)
            .map(|f| unescape(f).to_string_lossy().into_owned())
    };
    let number = |index: usize| text(index)?.parse().ok();
    let tags = fields.get(6..dash)?.iter();
    let mut group = tags.filter_map(|tag| {
        std::str::from_utf8(tag)
            .ok()?
            .strip_prefix("shared:")?
            .parse()
            .ok()
    });
    Some(Entry {
        id: number(0)?,
        parent: number(1)?,
        group: group.next_back(),
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root: unescape(fields.get(3)?).into(),
        at: unescape(fields.get(4)?).into(),
        options: text(5)?,
        fs_type: text(dash + 1)?,
        source: text(dash + 2).unwrap_or_default(),
        super_options: text(dash + 3).unwrap_or_default(),
    })
}

/// Undoes the kernel's `\040` for space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match octal(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = &rest[4..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn octal(at: &[u8]) -> Option<u8> {
    let digits = at
        .get(1..4)
        .filter(|d| at[0] == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)))?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
40 28 0:57 / /var/lib/kubelet/a\\040b\\134c rw,relatime shared:1 master:2 - fuse.vsc-blob acct/photos \
rw,user_id=0
41 28 0:57 /sub /pods/1 ro,relatime - fuse.vsc-blob acct/photos rw,user_id=0
42 28 0:58 / /pods/1 rw - tmpfs tmpfs ro
nonsense
";

    #[test]
    fn lines_are_read_with_their_escapes() {
        let mounts = parse(TABLE);
        assert_eq!(mounts.len(), 4);
        let ours = &mounts[1];
        assert_eq!(ours.at, Path::new("/var/lib/kubelet/a b\\c"));
        assert_eq!((ours.major, ours.minor), (0, 57));
        assert!(ours.is_ours() && !ours.read_only());
        assert_eq!((ours.id, ours.parent, ours.group), (40, 28, Some(1)));
        assert_eq!(ours.source, "acct/photos");
        assert!(mounts[2].read_only() && mounts[2].same_file_system(ours));
        assert_eq!(mounts[2].root, Path::new("/sub"));
    }

    #[test]
    fn the_uppermost_mount_at_a_path_counts() {
        let mounts = parse(TABLE);
        let top = at(&mounts, Path::new("/pods/1")).unwrap();
        assert_eq!(top.fs_type, "tmpfs");
        assert!(top.read_only(), "read-only by its file system");
        assert_eq!(at(&mounts, Path::new("/pods")), None);
        // As kernels from 6.8 on list them: the uppermost one was made first.
        let mut mounts = parse(
            b"50 30 0:60 / /pods/2 rw - fuse.vsc-blob lower rw\n49 50 0:59 / /pods/2 rw - tmpfs upper rw\n",
        );
        for _ in 0..2 {
            assert_eq!(at(&mounts, Path::new("/pods/2")).unwrap().source, "upper");
            mounts.reverse();
        }
        // The root of all is mounted on itself.
        let root = parse(b"1 1 0:1 / / rw - rootfs rootfs rw\n");
        assert_eq!(at(&root, Path::new("/")), root.first());
    }

    #[test]
    fn peers_are_those_of_a_group_that_show_the_same() {
        let mounts = parse(
            b"50 30 0:60 / /staging rw shared:7 - fuse.vsc-blob v rw\n\
              51 30 0:60 / /pods/1 rw shared:7 master:2 - fuse.vsc-blob v rw\n\
              52 30 0:60 /sub /pods/1/sub rw shared:7 - fuse.vsc-blob v rw\n\
              53 30 0:60 / /pods/2 rw shared:8 - fuse.vsc-blob v rw\n\
              54 30 0:60 / /pods/3 rw - fuse.vsc-blob v rw\n",
        );
        let reached = |from: &Entry| mounts.iter().filter(|to| from.reaches(to)).count();
        let counts: Vec<usize> = mounts.iter().map(reached).collect();
        assert_eq!(counts, [1, 1, 0, 0, 0]);
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(unescape(b"a\\9b\\04"), OsString::from("a\\9b\\04"));
        assert_eq!(unescape(b"\\303\\244"), OsString::from("\u{e4}"));
    }

    #[test]
    fn this_machine_has_a_root() {
        let mounts = read().unwrap();
        assert!(at(&mounts, Path::new("/")).is_some());
    }
}
