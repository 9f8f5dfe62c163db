//! Where a new mount appears: at a directory, or in the place of a dead mount, without a moment in between in
//! which the directory below is to be seen.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::mountinfo::{self, Entry};

/// A place for a mount.
#[derive(Debug, Clone)]
pub struct Place {
    /// The directory.
    pub at: PathBuf,
    /// The mount that is there, which the new one replaces.
    pub over: Option<Entry>,
    /// Pods see it: at no moment may it be without a mount once it had one.
    pub seen: bool,
}

/// Puts a mount that no path leads to at its place.
///
/// What is mounted *on* a mount appears on all its peers - that of the same volume at other paths, when an
/// earlier release bound it - and in the containers that follow it, where it would be writable whatever they
/// are. What is mounted beneath it appears at this one path only, so that is what is done where the kernel
/// can.
pub(super) fn put(to: &Place, mount: impl AsFd) -> io::Result<()> {
    put_by(to, mount, MoveMountFlags::MOVE_MOUNT_BENEATH)
}

/// The same by a flag that the kernel may not know.
fn put_by(to: &Place, mount: impl AsFd, beneath: MoveMountFlags) -> io::Result<()> {
    let table = mountinfo::read()?;
    let there = mountinfo::at(&table, &to.at);
    if there.map(|there| there.id) != to.over.as_ref().map(|over| over.id) {
        return Err(changed());
    }
    let to_path = || {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(move_mount(&mount, "", CWD, &to.at, flags)?)
    };
    let Some(over) = there else {
        return to_path();
    };
    let old = open_tree(CWD, &to.at, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    if statx(&old, "", asked, StatxFlags::MNT_ID)?.stx_mnt_id != u64::from(over.id) {
        return Err(changed());
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    match move_mount(&mount, "", &old, "", flags | beneath) {
        Ok(()) => return take_away(&old),
        // What a kernel says that does not know it, and one that does for more than one reason.
        Err(rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    if table.iter().all(|other| !over.reaches(other)) {
        return Ok(move_mount(&mount, "", &old, "", flags)?);
    }
    if to.seen {
        return Err(match knows(beneath) {
            true => io::Error::other("the kernel does not put the new mount beneath the dead one for now"),
            false => for_good(),
        });
    }
    take_away(&old)?;
    to_path()
}

/// Whether the kernel knows a flag of move_mount(2): it looks at the flags before the paths, which lead
/// nowhere.
fn knows(flag: MoveMountFlags) -> bool {
    const NOWHERE: &str = "/proc/self/nowhere";
    let moved = move_mount(CWD, NOWHERE, CWD, NOWHERE, flag);
    moved != Err(rustix::io::Errno::INVAL)
}

/// Takes exactly this mount out of the tree, whoever uses it.
fn take_away(mount: &OwnedFd) -> io::Result<()> {
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match umount2(path.as_str(), MntFlags::MNT_DETACH) {
        // Somebody else has.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Why a mount that pods see cannot be replaced: no further attempt can, with this kernel.
#[derive(Debug)]
struct ForGood;

impl std::fmt::Display for ForGood {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(
            "a dead mount of an earlier release is there, which Linux 6.5 or later can replace; with this \
             kernel the pod has to be deleted",
        )
    }
}

impl std::error::Error for ForGood {}

/// See [`ForGood`].
pub(super) fn for_good() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, ForGood)
}

/// Whether no further attempt can help. A system call that is "not supported" once may be the next time:
/// another mount may be there.
pub(super) fn is_for_good(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<ForGood>())
}

fn changed() -> io::Error {
    io::Error::other("another mount has come or gone there meanwhile")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use crate::mounts::setattr::set_apart;

    /// Mounts below a folder that is shared as kubelet's is.
    struct Tree {
        folder: tempfile::TempDir,
    }

    impl Tree {
        /// `None` where nothing can be mounted.
        fn new() -> Option<Self> {
            let folder = tempfile::tempdir().unwrap();
            let at = folder.path().display();
            let mounted = run(&format!(
                "mount -t tmpfs p {at} && mount --make-private {at} && mount --make-shared {at}"
            ));
            if !mounted {
                eprintln!("no mounts here: nothing is looked at");
            }
            mounted.then_some(Self { folder })
        }

        fn path(&self, name: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path
        }

        fn mount(&self, source: &str, name: &str) -> PathBuf {
            let at = self.path(name);
            assert!(run(&format!("mount -t tmpfs {source} {}", at.display())));
            at
        }

        /// As an earlier release did it.
        fn peer(&self, from: &Path, name: &str) -> PathBuf {
            let at = self.path(name);
            assert!(run(&format!("mount --bind {} {}", from.display(), at.display())));
            at
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            run(&format!("umount -R {}", self.folder.path().display()));
        }
    }

    fn run(script: &str) -> bool {
        Command::new("sh")
            .args(["-c", script])
            .status()
            .unwrap()
            .success()
    }

    fn top(at: &Path) -> Option<Entry> {
        mountinfo::at(&mountinfo::read().unwrap(), at).cloned()
    }

    fn source(at: &Path) -> String {
        top(at).unwrap().source
    }

    fn mounted(at: &Path) -> usize {
        mountinfo::read()
            .unwrap()
            .iter()
            .filter(|mount| mount.at == at)
            .count()
    }

    fn place(at: &Path, seen: bool) -> Place {
        Place {
            at: at.to_owned(),
            over: top(at),
            seen,
        }
    }

    const BENEATH: MoveMountFlags = MoveMountFlags::MOVE_MOUNT_BENEATH;
    /// A flag that no kernel knows, as one before 6.5 does not know the other.
    const UNKNOWN: MoveMountFlags = MoveMountFlags::from_bits_retain(1 << 30);

    /// As the kernel of the node does it.
    fn bind(from: &Path, to: &Place, by: MoveMountFlags) -> io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = open_tree(CWD, from, flags)?;
        set_apart(clone.as_fd(), false)?;
        put_by(to, &clone, by)
    }

    #[test]
    fn a_bind_has_a_peer_group_of_its_own() {
        let Some(tree) = Tree::new() else { return };
        let (staging, one, two) = (tree.mount("dead", "S"), tree.path("1"), tree.path("2"));
        for target in [&one, &two] {
            bind(&staging, &place(target, true), BENEATH).unwrap();
        }
        let groups = [&staging, &one, &two].map(|at| top(at).unwrap().group.unwrap());
        assert!(
            groups[0] != groups[1] && groups[1] != groups[2] && groups[0] != groups[2],
            "{groups:?}"
        );
        // What comes in the place of one leaves the others alone, whichever way it comes.
        for by in [BENEATH, UNKNOWN] {
            let new = tree.mount("new", &format!("by-{}", by.bits()));
            bind(&new, &place(&one, true), by).unwrap();
            assert_eq!(
                (source(&one), source(&two), source(&staging)),
                ("new".into(), "dead".into(), "dead".into())
            );
        }
        assert_eq!((mounted(&one), mounted(&two)), (2, 1), "one was covered");
    }

    /// An earlier release made all binds of a volume peers of one another.
    #[test]
    fn peers_of_an_earlier_release_are_replaced_one_by_one() {
        let Some(tree) = Tree::new() else { return };
        let staging = tree.mount("dead", "S");
        let (one, two) = (tree.peer(&staging, "1"), tree.peer(&staging, "2"));
        let new = tree.mount("new", "new");
        bind(&new, &place(&staging, false), BENEATH).unwrap();
        assert_eq!(
            (source(&staging), source(&one), source(&two)),
            ("new".into(), "dead".into(), "dead".into())
        );
        bind(&new, &place(&one, true), BENEATH).unwrap();
        assert_eq!(
            (source(&staging), source(&one), source(&two)),
            ("new".into(), "new".into(), "dead".into())
        );
        assert_eq!([&staging, &one, &two].map(|at| mounted(at)), [1, 1, 1]);
        // Nothing of that goes with one of them.
        assert!(run(&format!("umount {}", one.display())));
        assert_eq!((source(&staging), source(&two)), ("new".into(), "dead".into()));
    }

    #[test]
    fn an_older_kernel_leaves_such_a_target_and_makes_the_staging_mount_anew() {
        let Some(tree) = Tree::new() else { return };
        let staging = tree.mount("dead", "S");
        let target = tree.peer(&staging, "1");
        let new = tree.mount("new", "new");
        let refused = bind(&new, &place(&target, true), UNKNOWN).unwrap_err();
        assert!(refused.to_string().contains("6.5"), "{refused}");
        assert!(is_for_good(&refused));
        assert_eq!(source(&target), "dead");
        bind(&new, &place(&staging, false), UNKNOWN).unwrap();
        assert_eq!((source(&staging), source(&target)), ("new".into(), "dead".into()));
        assert_eq!([&staging, &target].map(|at| mounted(at)), [1, 1]);
    }

    #[test]
    fn another_mount_that_has_come_meanwhile_stays_where_it_is() {
        let Some(tree) = Tree::new() else { return };
        let new = tree.mount("new", "new");
        let at = tree.path("1");
        let before = place(&at, true);
        tree.mount("foreign", "1");
        bind(&new, &before, BENEATH).unwrap_err();
        let before = place(&at, true);
        tree.mount("another", "1");
        bind(&new, &before, BENEATH).unwrap_err();
        assert_eq!((source(&at), mounted(&at)), ("another".into(), 2));
    }

    /// A kernel that knows how, and refuses for once: the next attempt may do it.
    #[test]
    fn what_the_kernel_refuses_once_is_not_for_good() {
        let Some(tree) = Tree::new() else { return };
        let staging = tree.mount("dead", "S");
        let target = tree.peer(&staging, "1");
        let new = tree.mount("new", "new");
        // Refused with EINVAL for what is mounted there, by each kernel that can serve this driver.
        let refusing = MoveMountFlags::MOVE_MOUNT_SET_GROUP;
        assert!(knows(refusing) && !knows(UNKNOWN));
        let refused = bind(&new, &place(&target, true), refusing).unwrap_err();
        assert!(!is_for_good(&refused), "{refused}");
        assert!(!is_for_good(&io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        assert_eq!((source(&target), mounted(&target)), ("dead".into(), 1));
    }
}
