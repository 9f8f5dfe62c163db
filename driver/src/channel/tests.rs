//! What can be shown without a device that answers; the rest stands in e2e/tests/channel/, over the mock VSP.

use super::*;
use crate::buffer::{Arena, MAX_BUFFER, PAGE};

fn config(device: &str) -> ChannelConfig {
    ChannelConfig {
        device: device.into(),
        ..ChannelConfig::default()
    }
}

#[test]
fn a_missing_device_is_named_and_not_called_gone() {
    let error = Channel::open(config("/nonexistent/azure_blob")).unwrap_err();
    assert!(matches!(&error, ChannelError::Missing { device } if device == "/nonexistent/azure_blob"));
    assert_eq!(
        error.to_string(),
        "there is no channel device /nonexistent/azure_blob"
    );
}

#[test]
fn a_device_that_knows_neither_number_is_refused() {
    let error = Channel::open(config("/dev/null")).unwrap_err();
    assert!(matches!(error, ChannelError::UnknownAbi { .. }), "{error}");
    // A regular file has no ioctl at all.
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Channel::open(ChannelConfig {
        device: file.path().into(),
        ..ChannelConfig::default()
    })
    .unwrap_err();
    assert!(matches!(error, ChannelError::UnknownAbi { .. }), "{error}");
}

#[test]
fn a_directory_is_an_error_of_open() {
    let error = Channel::open(config("/tmp")).unwrap_err();
    assert!(matches!(error, ChannelError::Io { call: "open", .. }), "{error}");
}

#[test]
fn the_page_sum_is_checked_with_partly_used_pages() {
    let arena = Arena::new(4 * MAX_BUFFER).unwrap();
    let exchange = |data: Data| Exchange {
        id: [0; 16],
        timeout: Duration::from_secs(1),
        request: arena.alloc(100).unwrap(),
        response: arena.alloc(PAGE + 1).unwrap(),
        data,
    };
    let most = MAX_BUFFER - 3 * PAGE;
    exchange(Data::In(arena.alloc(most).unwrap())).check().unwrap();
    let large = arena.alloc(MAX_BUFFER).unwrap().freeze();
    exchange(Data::Out(large.slice(0..most))).check().unwrap();
    let error = exchange(Data::Out(large.slice(1..most + 1))).check().unwrap_err();
    assert!(matches!(error, ChannelError::TooLarge { pages: 8193 }), "{error}");
    let mut empty = exchange(Data::None);
    empty.request.set_len(0);
    assert!(matches!(empty.check(), Err(ChannelError::Io { .. })));
}
