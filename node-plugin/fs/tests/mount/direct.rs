//! Direct I/O beside the kernel's pages.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};

use super::store;
use crate::common::Mount;

/// Memory aligned as direct I/O wants it.
struct Aligned(*mut u8, usize);

impl Aligned {
    fn new(len: usize, byte: u8) -> Self {
        let layout = std::alloc::Layout::from_size_align(len, 4096).unwrap();
        // SAFETY: the layout is not empty; the memory is filled before it is read.
        unsafe {
            let memory = std::alloc::alloc(layout);
            assert!(!memory.is_null());
            memory.write_bytes(byte, len);
            Self(memory, len)
        }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(self.1, 4096).unwrap();
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.0, layout) }
    }
}

/// `struct iocb` and `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// One asynchronous write, and its end.
fn write_async(context: u64, fd: i32, memory: &Aligned) {
    const IOCB_CMD_PWRITE: u16 = 1;
    let mut iocb = Iocb {
        opcode: IOCB_CMD_PWRITE,
        fd: fd as u32,
        buf: memory.0 as u64,
        nbytes: memory.1 as u64,
        ..Iocb::default()
    };
    let mut list = [&raw mut iocb];
    let mut event = Event::default();
    // SAFETY: the control block and the memory live until the event has come.
    unsafe {
        let submitted = libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr());
        assert_eq!(submitted, 1, "{}", std::io::Error::last_os_error());
        let null = std::ptr::null_mut::<libc::timespec>();
        let came = libc::syscall(libc::SYS_io_getevents, context, 1, 1, &raw mut event, null);
        assert_eq!(came, 1, "{}", std::io::Error::last_os_error());
    }
    assert_eq!(event.res, memory.1 as i64);
}

/// fstests' generic/451: what an asynchronous direct write has written is what a buffered read gets, however
/// many others read meanwhile.
#[test]
fn a_buffered_read_sees_what_an_asynchronous_direct_write_wrote() {
    const SIZE: usize = 655_360;
    let store = store();
    let m = Mount::new(&store);
    let path = m.path("f");
    std::fs::write(&path, vec![0; SIZE]).unwrap();
    let mut context = 0u64;
    // SAFETY: the context is written by the call, and destroyed below.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
    assert_eq!(made, 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut seen = vec![0; SIZE];
                while !over.load(Ordering::Relaxed) {
                    let file = OpenOptions::new().read(true).open(&path).unwrap();
                    file.read_exact_at(&mut seen, 0).unwrap();
                }
            });
        }
        let mut stale = Vec::new();
        for round in 1..=150u8 {
            let memory = Aligned::new(SIZE, round);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(&path)
                .unwrap();
            write_async(context, file.as_raw_fd(), &memory);
            drop(file);
            let mut seen = vec![0; SIZE];
            let file = OpenOptions::new().read(true).open(&path).unwrap();
            file.read_exact_at(&mut seen, 0).unwrap();
            if seen.iter().any(|byte| *byte != round) {
                stale.push(round);
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(stale.is_empty(), "stale data in rounds {stale:?}");
    });
    // SAFETY: made above.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
}
