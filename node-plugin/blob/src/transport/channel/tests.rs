//! What the host claims is checked; exchanges themselves are tested over the mock host (e2e).

use super::failure::channel_error;
use super::*;

fn host(bytes_read: Option<u64>, headers: &[(&str, &str)]) -> HostResponse {
    HostResponse {
        status: STORE_SUCCESS,
        http_status: 200,
        bytes_read,
        headers: Some(
            headers
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        ),
        ..HostResponse::default()
    }
}

#[test]
fn payloads_are_what_they_claim_or_nothing() {
    assert_eq!(payload_len(&host(Some(10), &[]), 10).unwrap(), 10);
    assert_eq!(payload_len(&host(None, &[]), 10).unwrap(), 0);
    assert_eq!(
        payload_len(&host(Some(3), &[("Content-Length", "3")]), 10).unwrap(),
        3
    );
    for (claimed, headers) in [
        (11, &[][..]),
        (u64::MAX, &[]),
        (3, &[("content-length", "4")]),
        (0, &[("content-length", "4")]),
    ] {
        let error = payload_len(&host(Some(claimed), headers), 10).unwrap_err();
        assert_eq!(error.kind, FailureKind::Malformed, "{claimed}");
        assert!(error.retryable && error.maybe_executed);
    }
}

#[test]
fn answers_that_are_none() {
    let good = answer(
        host(None, &[("ETag", "\"1\""), ("x-ms-meta-a", "b")]),
        Bytes::new(),
        None,
    )
    .unwrap();
    assert_eq!(good.headers["etag"], "\"1\"");
    for bad in [
        host(None, &[("bad name", "x")]),
        host(None, &[("a", "line\nbreak")]),
        HostResponse {
            http_status: 7,
            ..host(None, &[])
        },
    ] {
        assert_eq!(
            answer(bad, Bytes::new(), None).unwrap_err().kind,
            FailureKind::Malformed
        );
    }
}

#[test]
fn what_a_channel_error_means_for_the_request() {
    let lost = |error: ChannelError| {
        let e = channel_error(error);
        (e.kind, e.maybe_executed)
    };
    let device = || "d".to_owned();
    let gone = |sent| ChannelError::Gone {
        device: device(),
        sent,
    };
    let cases = [
        (gone(true), FailureKind::PathDown, true),
        (gone(false), FailureKind::PathDown, false),
        (
            ChannelError::UnknownAbi { device: device() },
            FailureKind::PathDown,
            false,
        ),
        (ChannelError::Busy, FailureKind::TimedOut, false),
        (
            ChannelError::Refused {
                source: std::io::ErrorKind::PermissionDenied.into(),
            },
            FailureKind::Unreachable,
            false,
        ),
        (
            ChannelError::TimedOut {
                waited: PROBE_TIMEOUT,
            },
            FailureKind::PathDown,
            true,
        ),
        (
            ChannelError::Stuck {
                written_off: 4,
                bytes: 0,
            },
            FailureKind::PathDown,
            false,
        ),
        (
            ChannelError::TooLarge { pages: 9000 },
            FailureKind::Unsuitable,
            false,
        ),
    ];
    for (error, kind, maybe_executed) in cases {
        assert_eq!(lost(error), (kind, maybe_executed));
    }
}
