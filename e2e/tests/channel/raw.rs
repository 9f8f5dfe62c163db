//! The ioctl itself, without the driver crate's care: what the posted driver refuses, the mock refuses alike.
#![expect(unsafe_code, reason = "calls the ioctl with addresses of its own making")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use vsc_driver::buffer::PAGE;
use vsc_driver::uapi::{CMD_LIST, CMD_UBUNTU, RequestSync, STATUS_POISON};

use crate::fixture::Fixture;

fn open(fixture: &Fixture) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(fixture.mock.device())
        .unwrap()
}

fn call(device: &File, command: u32, request: &mut RequestSync) -> Result<(), Errno> {
    // SAFETY: the struct is live; the buffers it names are the caller's of this test, or nowhere.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), command.into(), &raw mut *request) }).map(drop)
}

#[test]
fn malformed_requests_are_refused_before_anything_is_sent() {
    let fixture = Fixture::new();
    let device = open(&fixture);
    let mut memory = fixture.arena.alloc(16 << 20).unwrap();
    let address = memory.as_mut_ptr().expose_provenance() as u64;
    let good = RequestSync {
        timeout_ms: 1000,
        request_len: 100,
        response_len: 100,
        data_len: 100,
        request_buffer: address,
        response_buffer: address + PAGE as u64,
        data_buffer: address + 2 * PAGE as u64,
        status: STATUS_POISON,
        ..RequestSync::default()
    };
    let page = PAGE as u32;
    let unmapped = 16;
    let invalid = [
        RequestSync {
            request_len: 0,
            ..good
        },
        RequestSync {
            response_len: 0,
            ..good
        },
        RequestSync {
            data_valid: 101,
            ..good
        },
        RequestSync {
            data_len: 0,
            data_valid: 1,
            ..good
        },
        RequestSync {
            request_len: u32::MAX,
            ..good
        },
        // 8193 pages: the data buffer is one page too long, or starts one byte too late.
        RequestSync {
            data_len: 8191 * page,
            ..good
        },
        RequestSync {
            data_len: 8190 * page,
            data_buffer: good.data_buffer + 1,
            ..good
        },
        // Lengths are checked before addresses.
        RequestSync {
            request_len: 0,
            request_buffer: unmapped,
            ..good
        },
    ];
    for request in invalid {
        assert_eq!(
            call(&device, CMD_LIST, &mut request.clone()),
            Err(Errno::EINVAL),
            "{request:?}"
        );
    }
    let faulty = [
        RequestSync {
            request_buffer: unmapped,
            ..good
        },
        RequestSync {
            response_buffer: unmapped,
            ..good
        },
        RequestSync {
            data_buffer: unmapped,
            ..good
        },
        // A wrapped address must not pass for a short one.
        RequestSync {
            data_buffer: u64::MAX,
            ..good
        },
    ];
    for request in faulty {
        assert_eq!(
            call(&device, CMD_LIST, &mut request.clone()),
            Err(Errno::EFAULT),
            "{request:?}"
        );
    }
    let counters = fixture.mock.counters();
    assert_eq!((counters.requests, counters.refused), (0, 12));
    assert_eq!(fixture.mock.last_request(), None);

    // Without a data length its address is not looked at. The frame is noise: taken, and answered by a host
    // status.
    for command in [CMD_LIST, CMD_UBUNTU] {
        let mut request = RequestSync {
            data_len: 0,
            data_buffer: unmapped,
            ..good
        };
        call(&device, command, &mut request).unwrap();
        assert_ne!(request.status, STATUS_POISON);
        assert_eq!(
            RequestSync {
                status: STATUS_POISON,
                answer_len: 0,
                ..request
            },
            RequestSync {
                data_len: 0,
                data_buffer: unmapped,
                ..good
            }
        );
    }
    assert_eq!(
        call(&device, CMD_LIST + 1, &mut good.clone()),
        Err(Errno::EINVAL),
        "an unknown number"
    );
}

#[test]
fn a_descriptor_of_the_device_that_was_removed_stays_dead() {
    let fixture = Fixture::new();
    let before = open(&fixture);
    let faults = fixture.mock.faults();
    faults.update(|f| f.gone = true);
    assert_eq!(
        call(&before, CMD_LIST, &mut RequestSync::default()),
        Err(Errno::ENODEV)
    );
    let error = OpenOptions::new()
        .read(true)
        .open(fixture.mock.device())
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    faults.reset();
    let after = open(&fixture);
    assert_eq!(
        call(&after, CMD_LIST, &mut RequestSync::default()),
        Err(Errno::EINVAL),
        "there, and refusing length 0"
    );
    assert_eq!(
        call(&before, CMD_LIST, &mut RequestSync::default()),
        Err(Errno::ENODEV)
    );
}
