//! mount_setattr(2), for which no crate in use has a safe interface.
#![expect(unsafe_code, reason = "the system call takes its argument by address")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// `MOUNT_ATTR_RDONLY`
const READ_ONLY: u64 = 1;

/// Takes a mount that is attached nowhere yet out of the peer group of the one it is a copy of, so that
/// nothing that is mounted on one of them appears on the other; and makes it read-only if asked to, so that
/// nobody ever writes through it.
pub(super) fn set_apart(tree: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    set(
        tree.as_raw_fd(),
        Attributes {
            set: if read_only { READ_ONLY } else { 0 },
            clear: 0,
            propagation: libc::MS_PRIVATE,
            user_namespace: 0,
        },
    )
}

/// Whether the kernel can do that, which all that binds volumes needs.
///
/// # Errors
/// What is missing.
pub fn check_kernel() -> Result<(), String> {
    let nothing = Attributes {
        set: 0,
        clear: 0,
        propagation: 0,
        user_namespace: 0,
    };
    // Of no mount: a kernel that knows the call says that.
    match set(-1, nothing) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Err(
            "the kernel does not know mount_setattr(2): volumes are mounted with Linux 5.12 or later"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn set(tree: RawFd, attributes: Attributes) -> io::Result<()> {
    // SAFETY: the path is a string with its end, and the structure is as long as is said; the kernel only
    // reads both.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_can_do_it() {
        super::check_kernel().unwrap();
    }
}
