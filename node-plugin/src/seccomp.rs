//! The system calls that `node` may make: what serving mounts needs, and nothing that runs programs, enters
//! namespaces, loads code into the kernel or looks into other processes.
//!
//! A privileged container has no seccomp profile of its runtime: without this the kernel would do anything
//! for whoever takes this process over.

use std::collections::BTreeMap;

use anyhow::Context as _;
use libc::{CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER};
use libc::{CLONE_NEWUTS, CLONE_THREAD, c_long};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
use seccompiler::{SeccompFilter, SeccompRule, TargetArch};

/// Files, folders and their attributes.
const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_lseek,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_sync,
    libc::SYS_syncfs,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_memfd_create,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
];

/// Mounts, in the old words and in the new ones.
const MOUNTS: &[c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
];

/// Sockets.
const SOCKETS: &[c_long] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// Memory.
const MEMORY: &[c_long] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_membarrier,
];

/// Waiting, and what wakes.
const EVENTS: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_futex,
    libc::SYS_futex_waitv,
];

/// The own process and its threads; [`CLONE`](libc::SYS_clone) has a condition of its own.
const PROCESS: &[c_long] = &[
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getpgid,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_getpriority,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_prctl,
    libc::SYS_prlimit64,
    libc::SYS_capget,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// The older names of some of them, which differ between machines.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_sync_file_range,
    libc::SYS_symlink,
    libc::SYS_link,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_time,
    libc::SYS_getrlimit,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
];
/// renameat and sync_file_range, which libc does not name for every C library.
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[38, 84];

/// What makes a namespace.
const NAMESPACES: i32 =
    CLONE_NEWCGROUP | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUSER | CLONE_NEWUTS;

/// Every other call of this thread, and of those that it starts from now on, fails with ENOSYS: as on a
/// kernel that does not have it, which libraries know how to bear.
///
/// # Errors
/// The kernel takes no filter.
pub fn confine() -> anyhow::Result<()> {
    let program = filter().context("seccomp filter")?;
    seccompiler::apply_filter(&program).context("seccomp filter")
}

fn filter() -> anyhow::Result<BpfProgram> {
    let allowed = [FILES, MOUNTS, SOCKETS, MEMORY, EVENTS, PROCESS, OLDER];
    let always = |call: &c_long| (*call, Vec::new());
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = allowed.into_iter().flatten().map(always).collect();
    // A thread, and no process: whoever starts programs begins with one.
    let thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq((CLONE_THREAD | NAMESPACES) as u32 as u64),
        CLONE_THREAD as u64,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let other = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, other, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
#[expect(unsafe_code, reason = "system calls that no library offers")]
mod tests {
    use std::process::Command;

    use super::*;

    /// Only the thread that asks for it is confined: one for each case.
    fn confined<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(|| {
            nix::sys::prctl::set_no_new_privs().unwrap();
            confine().unwrap();
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn no_program_is_started() {
        let started = confined(|| Command::new("/bin/true").status().map_err(|e| e.raw_os_error()));
        assert_eq!(started.unwrap_err(), Some(libc::ENOSYS));
    }

    #[test]
    fn what_reaches_beyond_the_process_is_refused() {
        // With arguments that do no harm where the kernel carries the call out.
        let calls = [
            ("execve", libc::SYS_execve),
            ("ptrace", libc::SYS_ptrace),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("unshare", libc::SYS_unshare),
            ("setns", libc::SYS_setns),
            ("chroot", libc::SYS_chroot),
            ("pivot_root", libc::SYS_pivot_root),
            ("init_module", libc::SYS_init_module),
            ("finit_module", libc::SYS_finit_module),
            ("delete_module", libc::SYS_delete_module),
            ("kexec_load", libc::SYS_kexec_load),
            ("bpf", libc::SYS_bpf),
            ("perf_event_open", libc::SYS_perf_event_open),
            ("keyctl", libc::SYS_keyctl),
            ("mknodat", libc::SYS_mknodat),
            ("open_by_handle_at", libc::SYS_open_by_handle_at),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("userfaultfd", libc::SYS_userfaultfd),
            ("capset", libc::SYS_capset),
            ("setuid", libc::SYS_setuid),
            ("clone3", libc::SYS_clone3),
        ];
        for (name, call) in calls {
            let answer = confined(move || {
                // SAFETY: every one of them fails for arguments of -1, if it is carried out at all.
                let answer = unsafe { libc::syscall(call, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
                (answer, std::io::Error::last_os_error().raw_os_error())
            });
            assert_eq!(answer, (-1, Some(libc::ENOSYS)), "{name}");
        }
    }

    /// Numbers of another table than the one that the filter knows.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_x32_table_is_no_way_around() {
        const X32: c_long = 0x4000_0000;
        let answer = confined(|| {
            // SAFETY: it takes no argument.
            let answer = unsafe { libc::syscall(X32 | libc::SYS_getpid) };
            (answer, std::io::Error::last_os_error().raw_os_error())
        });
        assert_eq!(answer, (-1, Some(libc::ENOSYS)));
    }

    #[test]
    fn threads_are_started_and_work() {
        let sum = confined(|| {
            let thread = std::thread::spawn(|| std::fs::read("/proc/self/status").unwrap().len());
            thread.join().unwrap()
        });
        assert!(sum > 0);
    }
}
