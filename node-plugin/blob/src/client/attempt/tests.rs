//! Answers that do not come from the service are no verdicts, and do not say that nothing was done.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::auth::Credentials;
use crate::client::tests::{container, container_with};
use crate::client::{Container, apart};
use crate::error::Error;
use crate::transport::FailureKind;
use crate::transport::fake::{
    Fake, Step, VERSION, answer, answer_as_said, failure, refusal, stranger, written,
};
use crate::types::{BlockId, Condition, ETag, PutOptions};

fn head() -> Step {
    answer(200, &[VERSION[0], VERSION[1], ("content-length", "3")], b"")
}

async fn get(c: &Container, condition: &Condition) -> crate::Result<Vec<u8>> {
    let dest = c.account.arena.alloc(10).unwrap();
    c.get("b", 0..10, condition, dest)
        .await
        .map(|got| got.buffer.to_vec())
}

/// A proxy's 404 is no ENOENT, and after a lost deletion no success.
#[tokio::test(start_paused = true)]
async fn what_a_proxy_says_of_a_blob_is_not_believed() {
    for status in [404, 409, 412] {
        let fake = Fake::default();
        let c = container(&fake);
        fake.will(stranger(status)).will(answer(
            200,
            &[VERSION[0], VERSION[1], ("content-length", "3")],
            b"",
        ));
        c.head("b", &Condition::none()).await.unwrap();
        // For ever: neither absent nor changed.
        fake.always(match status {
            404 => || stranger(404),
            409 => || stranger(409),
            _ => || stranger(412),
        });
        let error = c.delete("b", &Condition::none()).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    }
}

/// A gateway's 503 came after the service had done it: the retry's refusal is of our own making.
#[tokio::test(start_paused = true)]
async fn a_busy_gateway_does_not_say_that_nothing_was_done() {
    let etag = ETag("\"0x0\"".into());
    let options = PutOptions {
        condition: Condition::matches(&etag),
        ..PutOptions::default()
    };
    for status in [408, 429, 503] {
        let fake = Fake::default();
        let c = container(&fake);
        let head = [VERSION[0], VERSION[1], ("content-length", "0")];
        let busy = match status {
            408 => stranger(408),
            429 => stranger(429),
            _ => stranger(503),
        };
        fake.will(busy)
            .will(refusal(412, "ConditionNotMet"))
            .will(answer(200, &head, b""));
        let put = c.put("b", Default::default(), &options).await;
        assert_eq!(put.unwrap().etag.0, VERSION[0].1, "{status}");
        // The service's own says so.
        fake.will(refusal(503, "ServerBusy"))
            .will(refusal(412, "ConditionNotMet"));
        let put = c.put("b", Default::default(), &options).await;
        assert!(matches!(put, Err(Error::ConditionNotMet { .. })), "{status}");
        fake.will(written());
        c.put("b", Default::default(), &options).await.unwrap();
    }
}

/// Redirects of a portal, refusals of a gateway, the end of a file that a cache has shorter: none is the
/// service's.
#[tokio::test(start_paused = true)]
async fn no_status_of_a_proxy_is_believed() {
    let etag = ETag("\"0x0\"".into());
    let unless = Condition {
        if_none_match: Some(etag),
        ..Condition::default()
    };
    for status in [
        301, 302, 304, 307, 401, 403, 404, 405, 407, 409, 410, 412, 416, 451,
    ] {
        let fake = Fake::default();
        let c = container(&fake);
        fake.will(stranger(status)).will(head());
        c.head("b", &unless).await.unwrap();
        fake.will(stranger(status)).will(answer(200, &VERSION, b"abc"));
        assert_eq!(get(&c, &unless).await.unwrap(), b"abc", "{status}");
    }
    let fake = Fake::default();
    fake.always(|| stranger(403));
    let verdict = container(&fake).for_a_verdict(Duration::from_secs(20));
    let error = verdict
        .head("b", &Condition::none())
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("403") && error.contains("proxy"), "{error}");
}

/// Neither is one that a program would take for the last word: a size that is too large for good, a request
/// that is none.
#[tokio::test(start_paused = true)]
async fn no_status_of_a_proxy_is_final() {
    for status in [
        400, 401, 403, 405, 407, 408, 411, 413, 414, 417, 429, 431, 502, 505,
    ] {
        let fake = Fake::default();
        let c = container(&fake);
        let body = || Bytes::from_static(b"abc").into();
        fake.will(stranger(status)).will(written());
        c.put("b", body(), &PutOptions::default()).await.unwrap();
        assert!(fake.nothing_left(), "{status}");
    }
}

/// To the end: an unreachable service, and the error says who has answered what.
#[tokio::test(start_paused = true)]
async fn a_proxy_that_answers_for_ever_is_an_unreachable_service() {
    macro_rules! strangers {
        ($($status:literal),*) => { [$(($status, (|| stranger($status)) as fn() -> Step)),*] };
    }
    for (status, says) in strangers![
        400, 403, 404, 407, 408, 411, 412, 413, 414, 416, 417, 429, 431, 502
    ] {
        let fake = Fake::default();
        fake.always(says);
        let c = container(&fake);
        let begun = tokio::time::Instant::now();
        let (any, plain) = (Condition::none(), PutOptions::default());
        let put = c.put("b", Bytes::from_static(b"abc").into(), &plain);
        let copy = c.copy("s", None, None, "t", None, &any);
        let (put, copy, read) = tokio::join!(put, copy, get(&c, &any));
        for error in [put.unwrap_err(), copy.unwrap_err(), read.unwrap_err()] {
            assert!(matches!(error, Error::Unreachable { .. }), "{status}: {error}");
            let text = error.to_string();
            assert!(
                text.contains(&status.to_string()) && text.contains("proxy"),
                "{text}"
            );
        }
        assert!(
            begun.elapsed() > Duration::from_secs(10),
            "{status} was tried for {:?}",
            begun.elapsed()
        );
    }
}

/// Somebody's page that says it is well, instead of the service: nothing was stored.
#[tokio::test(start_paused = true)]
async fn a_success_of_a_proxy_stores_nothing() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(stranger(200)).will(answer(201, &[], b""));
    let body = || Bytes::from_static(b"abc").into();
    c.stage(
        "b",
        &BlockId(vec![1]),
        body(),
        &crate::types::StageOptions::default(),
    )
    .await
    .unwrap();
    fake.will(stranger(200)).will(answer(202, &[], b""));
    c.delete("b", &Condition::none()).await.unwrap();
    fake.will(stranger(200)).will(written());
    c.put("b", body(), &PutOptions::default()).await.unwrap();
    assert!(fake.nothing_left());
}

/// Only the codes that mean it say that nothing was done.
#[tokio::test(start_paused = true)]
async fn a_service_that_failed_does_not_say_that_nothing_was_done() {
    let etag = ETag("\"0x0\"".into());
    let options = PutOptions {
        condition: Condition::matches(&etag),
        ..PutOptions::default()
    };
    for (status, code) in [
        (500, "InternalError"),
        (500, "OperationTimedOut"),
        (503, ""),
        (503, "SomethingNew"),
        (408, "RequestTimeout"),
    ] {
        let fake = Fake::default();
        let c = container(&fake);
        fake.will(refusal(status, code))
            .will(refusal(412, "ConditionNotMet"))
            .will(answer(
                200,
                &[VERSION[0], VERSION[1], ("content-length", "0")],
                b"",
            ));
        let put = c.put("b", Default::default(), &options).await;
        assert_eq!(put.unwrap().etag.0, VERSION[0].1, "{status} {code}");
    }
    for (status, code) in [(503, "ServerBusy"), (429, "TooManyRequests")] {
        let fake = Fake::default();
        fake.will(refusal(status, code))
            .will(refusal(412, "ConditionNotMet"));
        let put = container(&fake).put("b", Default::default(), &options).await;
        assert!(
            matches!(put, Err(Error::ConditionNotMet { .. })),
            "{status} {code}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn conflicts_that_are_soon_over_are_waited_for() {
    for code in [
        "BlobModifiedWhileReading",
        "PendingCopyOperation",
        "SnapshotOperationRateExceeded",
        "SystemInUse",
    ] {
        let fake = Fake::default();
        let c = container(&fake);
        fake.will(refusal(409, code))
            .will(refusal(409, code))
            .will(answer(200, &VERSION, b"abc"));
        assert_eq!(get(&c, &Condition::none()).await.unwrap(), b"abc", "{code}");
        // One that does not end is what it is.
        fake.always(match code {
            "BlobModifiedWhileReading" => || refusal(409, "BlobModifiedWhileReading"),
            "PendingCopyOperation" => || refusal(409, "PendingCopyOperation"),
            "SnapshotOperationRateExceeded" => || refusal(409, "SnapshotOperationRateExceeded"),
            _ => || refusal(409, "SystemInUse"),
        });
        let error = c.delete("b", &Condition::none()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Service { status: 409, code: said, .. } if said == code),
            "{error}"
        );
    }
}

/// The copy that is pending was begun by the attempt whose answer was lost.
#[tokio::test(start_paused = true)]
async fn a_copy_of_ones_own_is_not_waited_for_as_anothers() {
    let fake = Fake::default();
    let source = "https://acct.blob.core.windows.net/data/s";
    let copied = |state: &'static str| {
        let copy = [
            ("content-length", "3"),
            ("x-ms-copy-source", source),
            ("x-ms-copy-id", "1"),
            ("x-ms-copy-status", state),
        ];
        answer(200, &[&VERSION[..], &copy].concat(), b"")
    };
    fake.will(failure(FailureKind::TimedOut, true, true))
        .will(refusal(409, "PendingCopyOperation"))
        .will(copied("pending"))
        .will(copied("success"));
    container(&fake)
        .copy("s", None, None, "t", None, &Condition::none())
        .await
        .unwrap();
    assert!(fake.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn the_archive_is_called_by_its_name() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(refusal(409, "BlobArchived"));
    let error = get(&c, &Condition::none()).await.unwrap_err().to_string();
    assert!(
        error.contains("archive tier") && error.contains("set-tier"),
        "{error}"
    );
    fake.will(refusal(409, "BlobBeingRehydrated"));
    let error = get(&c, &Condition::none()).await.unwrap_err().to_string();
    assert!(
        error.contains("archive tier") && error.contains("15 hours"),
        "{error}"
    );
    assert_eq!(fake.sent().len(), 2);
}

fn shared_key(fake: &Fake) -> Container {
    let credentials = Credentials::SharedKey {
        account: "acct".into(),
        key: "a2V5".to_owned().into(),
    };
    container_with(credentials, fake)
}

fn at(time: SystemTime) -> String {
    httpdate::fmt_http_date(time)
}

/// Refuses signatures whose time is too far from its own.
fn strict(fake: &Fake, theirs: SystemTime) {
    fake.will(Box::new(move |request| {
        let dated = request.headers["x-ms-date"].to_str().unwrap();
        let dated = httpdate::parse_http_date(dated).unwrap();
        let apart = dated.duration_since(theirs).unwrap_or_else(|e| e.duration());
        let date = ("date", &*at(theirs));
        if apart > Duration::from_secs(900) {
            let code = ("x-ms-error-code", "AuthenticationFailed");
            return answer_as_said(403, &[("x-ms-request-id", "id"), code, date], b"")(request);
        }
        answer(200, &[VERSION[0], VERSION[1], ("content-length", "3"), date], b"")(request)
    }));
}

#[tokio::test(start_paused = true)]
async fn a_wrong_clock_is_corrected_by_the_services() {
    let hour = Duration::from_secs(3600);
    for theirs in [SystemTime::now() + hour, SystemTime::now() - hour] {
        let fake = Fake::default();
        let c = shared_key(&fake);
        for _ in 0..4 {
            strict(&fake, theirs);
        }
        c.head("b", &Condition::none()).await.unwrap();
        // Once known, it is right the first time.
        c.head("b", &Condition::none()).await.unwrap();
        c.head("b", &Condition::none()).await.unwrap();
        assert_eq!(fake.sent().len(), 4);
        let by = apart(c.now(), theirs);
        assert!(by < Duration::from_secs(60), "{by:?} from the service's");
    }
}

/// A key that is wrong is wrong by every clock, and somebody else's clock is nobody's.
#[tokio::test(start_paused = true)]
async fn a_clock_is_corrected_once_and_only_by_the_service() {
    let fake = Fake::default();
    let c = shared_key(&fake);
    let theirs = at(SystemTime::now() + Duration::from_secs(3600));
    let refused = move || {
        let code = ("x-ms-error-code", "AuthenticationFailed");
        answer_as_said(403, &[("x-ms-request-id", "id"), code, ("date", &theirs)], b"")
    };
    fake.will(refused()).will(refused());
    let error = c.head("b", &Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(fake.nothing_left());

    let fake = Fake::default();
    let c = shared_key(&fake);
    let elsewhere = at(SystemTime::now() + Duration::from_secs(7200));
    fake.will(answer_as_said(
        404,
        &[("server", "gateway"), ("date", &elsewhere)],
        b"",
    ))
    .will(head());
    c.head("b", &Condition::none()).await.unwrap();
    assert!(c.account.service_now().is_none());
}

/// Many volumes that ask an account where nobody answers ask it little more than once for each call.
#[tokio::test(start_paused = true)]
async fn an_outage_is_not_made_worse() {
    for outage in [
        || failure(FailureKind::Nobody, false, true),
        || refusal(503, "ServerBusy"),
        || stranger(502),
        || refusal(500, "InternalError"),
        || stranger(404),
    ] {
        let fake = Fake::default();
        fake.always(outage);
        let c = Arc::new(container(&fake));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..3000 {
            let c = Arc::clone(&c);
            calls.spawn(async move { c.head("b", &Condition::none()).await.map(drop) });
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        while let Some(done) = calls.join_next().await {
            done.unwrap().unwrap_err();
        }
        // Ten minutes and the last calls' minute, and what is in reserve when it begins.
        let sent = fake.sent().len();
        assert!((3000..=3300 + 660 + 30).contains(&sent), "{sent}");
        // Back: everybody is served at once.
        fake.always(head);
        c.head("b", &Condition::none()).await.unwrap();
    }
}

/// Where half of the requests are lost, what is asked is had all the same: answers pay for repetitions.
#[tokio::test(start_paused = true)]
async fn a_service_that_answers_half_of_the_time_serves_all() {
    let fake = Fake::default();
    let c = Arc::new(container(&fake));
    for number in 0..2000 {
        fake.will(match number % 2 {
            0 => failure(FailureKind::Unreachable, true, true),
            _ => head(),
        });
    }
    fake.always(head);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let c = Arc::clone(&c);
        calls.spawn(async move { c.head("b", &Condition::none()).await.map(drop) });
    }
    while let Some(done) = calls.join_next().await {
        done.unwrap().unwrap();
    }
}
