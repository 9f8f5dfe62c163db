//! Retries, lost answers and errors over a scripted transport, in virtual time.

use std::sync::atomic::AtomicU32;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::auth::TokenSource;
use crate::secret::Secret;
use crate::stored::StoredHeaders;
use crate::transport::FailureKind;
use crate::transport::fake::{Fake, VERSION, answer, failure, failure_of, refusal, written};
use crate::transport::path::Path;
use crate::types::*;

pub(crate) fn container_with(credentials: Credentials, fake: &Fake) -> Container {
    let endpoint = "https://acct.blob.core.windows.net".parse().unwrap();
    Client::new(
        ClientConfig::new(endpoint, credentials),
        Arc::new(fake.clone()),
        Arena::new(64 << 20).unwrap(),
    )
    .unwrap()
    .container("data")
    .unwrap()
}

pub(crate) fn container(fake: &Fake) -> Container {
    container_with(Credentials::Sas("sv=1&sig=topsecret".to_owned().into()), fake)
}

fn head(extra: &[(&'static str, &str)]) -> crate::transport::fake::Step {
    let headers = [&VERSION[..], &[("content-length", "3")], extra].concat();
    answer(200, &headers, b"")
}

async fn put(c: &Container, condition: Condition) -> Result<Written> {
    let options = PutOptions {
        condition,
        ..PutOptions::default()
    };
    c.put("b", Bytes::from_static(b"abc").into(), &options).await
}

async fn get(c: &Container, range: std::ops::Range<u64>) -> Result<Got> {
    let dest = c.account.arena.alloc(100).unwrap();
    c.get("b", range, &Condition::none(), dest).await
}

#[tokio::test(start_paused = true)]
async fn the_first_retry_comes_within_200_ms() {
    for _ in 0..50 {
        let fake = Fake::default();
        fake.will(refusal(503, "ServerBusy")).will(written());
        put(&container(&fake), Condition::none()).await.unwrap();
        let sent = fake.sent();
        let pause = sent[1].at - sent[0].at;
        assert!(pause <= Duration::from_millis(201), "{pause:?}");
        assert!(pause >= Duration::from_millis(100), "{pause:?}");
        assert!(
            sent[1].avoid != Some(Path::Channel),
            "a busy service is busy on every path"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_end_at_the_deadline() {
    let fake = Fake::default();
    fake.always(|| refusal(503, "ServerBusy"));
    let began = Instant::now();
    let error = put(&container(&fake), Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::Service { status: 503, .. }), "{error}");
    assert!(began.elapsed() <= Duration::from_secs(60));
    let sent = fake.sent();
    assert!((8..30).contains(&sent.len()), "{}", sent.len());
    // No attempt is given more time than the call has left.
    for s in &sent {
        assert!(s.at + s.timeout <= began + Duration::from_secs(60));
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honored_in_every_spelling() {
    // The service's clock is an hour behind ours.
    let theirs = SystemTime::now() - Duration::from_secs(3600);
    let date = httpdate::fmt_http_date(theirs);
    let in_8_s = httpdate::fmt_http_date(theirs + Duration::from_secs(8));
    for (header, value, least, most) in [
        ("retry-after", "3", 3000, 3001),
        ("retry-after-ms", "1500", 1500, 1501),
        ("x-ms-retry-after-ms", "700", 700, 701),
        ("retry-after", in_8_s.as_str(), 8000, 8001),
        // No time at all is no leave to hammer.
        ("retry-after", "0", 100, 201),
        ("retry-after", date.as_str(), 100, 201),
        ("retry-after-ms", "0", 100, 201),
    ] {
        let fake = Fake::default();
        fake.will(answer(503, &[(header, value), ("date", &date)], b""))
            .will(written());
        put(&container(&fake), Condition::none()).await.unwrap();
        let sent = fake.sent();
        let pause = (sent[1].at - sent[0].at).as_millis();
        assert!((least..=most).contains(&pause), "{header}: {value}: {pause}");
    }
    // Longer than the call has: answered at once.
    for seconds in ["300", "18446744073709551615"] {
        let fake = Fake::default();
        fake.will(answer(429, &[("retry-after", seconds)], b""));
        let began = Instant::now();
        assert!(put(&container(&fake), Condition::none()).await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn the_other_path_is_next_after_a_failure_of_one() {
    let over = |path| failure_of(path, FailureKind::Unreachable, false, true);
    let fake = Fake::default();
    fake.will(over(Path::Channel))
        .will(over(Path::Https))
        // Over the channel again.
        .will(over(Path::Channel))
        .will(refusal(503, "ServerBusy"))
        .will(refusal(500, "InternalError"))
        .will(refusal(500, "InternalError"))
        .will(written());
    put(&container(&fake), Condition::none()).await.unwrap();
    let avoided: Vec<bool> = fake
        .sent()
        .iter()
        .map(|s| s.avoid == Some(Path::Channel))
        .collect();
    assert_eq!(avoided, [false, true, false, true, true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn what_a_retry_cannot_help_is_answered_at_once() {
    let fake = Fake::default();
    fake.will(failure(FailureKind::Unsuitable, false, false));
    let error = put(&container(&fake), Condition::none()).await.unwrap_err();
    let Error::Unreachable { endpoint, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(endpoint, "https://acct.blob.core.windows.net");
    assert!(!error.to_string().contains("topsecret"));
    for (status, code) in [
        (400, "InvalidHeaderValue"),
        (501, "NotImplemented"),
        (403, "AuthenticationFailed"),
    ] {
        fake.will(refusal(status, code));
        assert!(put(&container(&fake), Condition::none()).await.is_err());
    }
    assert_eq!(fake.sent().len(), 4);
}

/// Who asks whether the volume works need not ask the service: the latest call that could tell has.
#[tokio::test(start_paused = true)]
async fn what_keeps_a_volume_from_being_served_is_known_from_its_calls() {
    let fake = Fake::default();
    let container = container(&fake);
    let trouble = || container.account.progress.trouble();
    assert_eq!(trouble(), None, "nobody has asked");
    let read = || async { get(&container, 0..10).await.unwrap_err() };
    for (status, code, whole) in [
        (403, "AuthorizationFailure", true),
        (404, "BlobNotFound", false),
        (404, "ContainerNotFound", true),
        (412, "ConditionNotMet", false),
        (501, "NotImplemented", true),
        (409, "BlobArchived", false),
    ] {
        fake.will(refusal(status, code));
        let error = read().await;
        assert_eq!(trouble(), whole.then(|| error.to_string()), "{code}");
    }
    fake.always(|| failure(FailureKind::TimedOut, true, true));
    let error = read().await;
    assert_eq!(trouble(), Some(error.to_string()));
    // What never reached the service says nothing of it.
    container
        .head(&"x".repeat(2000), &Condition::none())
        .await
        .unwrap_err();
    assert_eq!(trouble(), Some(error.to_string()));
    // Who may not write may still read.
    fake.always(|| refusal(403, "AuthorizationPermissionMismatch"));
    put(&container, Condition::none()).await.unwrap_err();
    assert_eq!(trouble(), None);
    fake.always(|| refusal(503, "ServerBusy"));
    put(&container, Condition::none()).await.unwrap_err();
    assert!(trouble().is_some_and(|text| text.contains("503")));
    fake.always(written);
    put(&container, Condition::none()).await.unwrap();
    assert_eq!(trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn nobody_there_until_the_deadline() {
    let fake = Fake::default();
    fake.always(|| failure(FailureKind::Unreachable, false, true));
    assert!(matches!(
        put(&container(&fake), Condition::none()).await,
        Err(Error::Unreachable { .. })
    ));
    let fake = Fake::default();
    fake.always(|| failure(FailureKind::TimedOut, true, true));
    let Err(Error::DeadlineExceeded { waited }) = get(&container(&fake), 0..10).await else {
        panic!()
    };
    assert!(waited > Duration::from_secs(40), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_verdict_comes_soon_when_nobody_is_there() {
    let fake = Fake::default();
    fake.always(|| failure(FailureKind::Nobody, false, true));
    let patient = container(&fake);
    let impatient = patient.for_a_verdict(Duration::from_secs(20));
    let began = tokio::time::Instant::now();
    let error = put(&impatient, Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(fake.sent().len() > 2, "tried again for a moment");

    // A file system goes on asking: the service may be restarted under it.
    let began = tokio::time::Instant::now();
    put(&patient, Condition::none()).await.unwrap_err();
    assert!(began.elapsed() > Duration::from_secs(40), "{:?}", began.elapsed());

    // A network that loses packets is worth waiting for.
    fake.always(|| failure(FailureKind::Unreachable, false, true));
    let began = tokio::time::Instant::now();
    put(&impatient, Condition::none()).await.unwrap_err();
    let took = began.elapsed();
    assert!(
        took > Duration::from_secs(10) && took < Duration::from_secs(21),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_gets_a_new_destination_when_the_old_one_was_lost() {
    let fake = Fake::default();
    let ok = [&VERSION[..], &[("content-range", "bytes 5-7/8")]].concat();
    fake.will(failure(FailureKind::TimedOut, true, true))
        .will(refusal(503, "ServerBusy"))
        .will(answer(206, &ok, b"xyz"));
    let got = get(&container(&fake), 5..20).await.unwrap();
    assert_eq!(&got.buffer[..], b"xyz");
    assert_eq!(got.properties.content_length, 8);
    let sent = fake.sent();
    assert_eq!(sent[0].header("x-ms-range"), "bytes=5-19");
    assert_eq!((sent[0].avoid, sent[1].avoid), (None, Some(Path::Channel)));
}

#[tokio::test(start_paused = true)]
async fn bytes_that_were_not_asked_for_are_not_taken() {
    for (range, body) in [
        ("bytes 0-2/8", &b"xyz"[..]),
        ("bytes 5-9/20", b"xyz"),
        ("bytes 5-6/8", b"xy"),
        ("bytes 7-5/8", b"xyz"),
    ] {
        let fake = Fake::default();
        let wrong = [&VERSION[..], &[("content-range", range)]].concat();
        let right = [&VERSION[..], &[("content-range", "bytes 5-7/8")]].concat();
        fake.will(answer(206, &wrong, body))
            .will(answer(206, &right, b"xyz"));
        let got = get(&container(&fake), 5..20).await.unwrap();
        assert_eq!(&got.buffer[..], b"xyz", "{range}");
        assert!(fake.nothing_left());
    }
    // A whole blob instead of a range, as a proxy without ranges answers.
    let fake = Fake::default();
    fake.always(|| answer(200, &VERSION, b"01234567"));
    assert!(matches!(
        get(&container(&fake), 5..20).await,
        Err(Error::Malformed { .. })
    ));
    assert_eq!(
        &get(&container(&fake), 0..20).await.unwrap().buffer[..],
        b"01234567"
    );
}

#[tokio::test(start_paused = true)]
async fn past_the_end_is_empty() {
    let fake = Fake::default();
    fake.will(refusal(416, "InvalidRange")).will(head(&[]));
    let got = get(&container(&fake), 3..20).await.unwrap();
    assert_eq!((got.buffer.len(), got.properties.content_length), (0, 3));
    assert!(matches!(
        get(&container(&fake), 0..101).await,
        Err(Error::Argument { field: "range", .. })
    ));
}

/// Refused after a lost attempt, then the read-back.
#[tokio::test(start_paused = true)]
async fn a_lost_conditional_put_is_looked_up() {
    let condition = || Condition::matches(&ETag("\"0x0\"".into()));
    let lost = |fake: &Fake| {
        fake.will(failure(FailureKind::TimedOut, true, true))
            .will(refusal(412, "ConditionNotMet"));
    };
    let stored = [("content-type", "application/octet-stream")];
    let content = [&VERSION[..], &[("content-range", "bytes 0-2/3")]].concat();

    let ours = Fake::default();
    lost(&ours);
    ours.will(head(&stored)).will(answer(206, &content, b"abc"));
    let got = put(&container(&ours), condition()).await.unwrap();
    assert_eq!(got.etag, ETag("\"0x1\"".into()));
    assert_eq!(ours.sent()[3].header("if-match"), "\"0x1\"");

    let other_bytes = Fake::default();
    lost(&other_bytes);
    other_bytes
        .will(head(&stored))
        .will(answer(206, &content, b"abd"));
    assert!(matches!(
        put(&container(&other_bytes), condition()).await,
        Err(Error::ConditionNotMet { .. })
    ));

    let other_metadata = Fake::default();
    lost(&other_metadata);
    other_metadata.will(head(&[("x-ms-meta-k", "v")]));
    assert!(matches!(
        put(&container(&other_metadata), condition()).await,
        Err(Error::ConditionNotMet { .. })
    ));

    let gone = Fake::default();
    lost(&gone);
    gone.will(refusal(404, "BlobNotFound"));
    assert!(matches!(
        put(&container(&gone), condition()).await,
        Err(Error::ConditionNotMet { .. })
    ));

    // Nothing can be known: not a lost race, an outage.
    let unknown = Fake::default();
    lost(&unknown);
    unknown.always(|| failure(FailureKind::Unreachable, false, true));
    assert!(matches!(
        put(&container(&unknown), condition()).await,
        Err(Error::Unreachable { .. })
    ));

    // An attempt that was certainly not executed leaves no doubt, so nothing is read back.
    let clear = Fake::default();
    clear
        .will(failure(FailureKind::Unreachable, false, true))
        .will(refusal(412, "ConditionNotMet"));
    assert!(matches!(
        put(&container(&clear), condition()).await,
        Err(Error::ConditionNotMet { .. })
    ));
    assert!(clear.nothing_left() && clear.sent().len() == 2);
}

/// The answer is lost, and somebody makes the name anew before the deletion is asked for once more.
#[tokio::test(start_paused = true)]
async fn a_lost_deletion_does_not_ask_for_what_was_made_since() {
    let clock = "Sat, 21 Nov 2026 12:00:00 GMT";
    let told = [&VERSION[..], &[("content-length", "0"), ("date", clock)]].concat();
    let known = Condition::matches(&ETag("\"0x0\"".into()));
    for (created, theirs) in [
        ("Sat, 21 Nov 2026 12:00:01 GMT", true),
        ("Sat, 21 Nov 2026 11:59:59 GMT", true),
        ("Sat, 21 Nov 2026 11:00:00 GMT", false),
    ] {
        let fake = Fake::default();
        fake.will(answer(200, &told, b""));
        let c = container(&fake);
        c.head("x", &Condition::none()).await.unwrap();
        fake.will(failure(FailureKind::TimedOut, true, true))
            .will(refusal(412, "ConditionNotMet"))
            .will(head(&[("x-ms-creation-time", created)]));
        let deleted = c.delete("b", &known).await;
        match theirs {
            true => deleted.unwrap(),
            // Merely another version: whoever asked has to look at it.
            false => assert!(matches!(deleted, Err(Error::ConditionNotMet { .. }))),
        }
        assert!(fake.nothing_left());
    }
    // Gone again.
    let fake = Fake::default();
    fake.will(failure(FailureKind::TimedOut, true, true))
        .will(refusal(412, "ConditionNotMet"))
        .will(refusal(404, "BlobNotFound"));
    container(&fake).delete("b", &known).await.unwrap();
    // Where no attempt was lost, nobody asks.
    let fake = Fake::default();
    fake.will(refusal(412, "ConditionNotMet"));
    let refused = container(&fake).delete("b", &known).await;
    assert!(matches!(refused, Err(Error::ConditionNotMet { .. })));
}

#[tokio::test(start_paused = true)]
async fn an_equal_blob_from_before_the_call_is_not_ours() {
    let fake = Fake::default();
    // The first call tells the service's clock: long after the stored version.
    fake.will(answer(
        200,
        &[
            &VERSION[..],
            &[("content-length", "0"), ("date", "Sat, 21 Nov 2026 12:00:00 GMT")],
        ]
        .concat(),
        b"",
    ));
    let c = container(&fake);
    c.head("x", &Condition::none()).await.unwrap();
    fake.will(failure(FailureKind::Unreachable, true, true))
        .will(refusal(409, "BlobAlreadyExists"))
        .will(head(&[]));
    assert!(matches!(
        put(&c, Condition::absent()).await,
        Err(Error::AlreadyExists { .. })
    ));
    assert!(fake.nothing_left());
}

#[derive(Debug, Default)]
struct Tokens {
    rejected: AtomicU32,
    /// Times that no token can be had: at once, or never.
    out: AtomicU32,
    silent: bool,
    refusing: bool,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self) -> Result<Secret<String>> {
        if self.silent {
            std::future::pending::<()>().await;
        }
        let out = self.out.load(Ordering::Relaxed);
        if out > 0 {
            self.out.store(out - 1, Ordering::Relaxed);
            return Err(Error::Token {
                message: "scripted".into(),
                retryable: !self.refusing,
            });
        }
        Ok(format!("t{}", self.rejected.load(Ordering::Relaxed)).into())
    }
    fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_is_replaced_once() {
    let fake = Fake::default();
    let tokens = Arc::new(Tokens::default());
    let c = container_with(Credentials::Token(tokens.clone()), &fake);
    fake.will(refusal(401, "InvalidAuthenticationInfo"))
        .will(written());
    put(&c, Condition::none()).await.unwrap();
    let sent = fake.sent();
    assert_eq!(sent[0].header("authorization"), "Bearer t0");
    assert_eq!(sent[1].header("authorization"), "Bearer t1");
    fake.always(|| refusal(401, "InvalidAuthenticationInfo"));
    assert!(matches!(
        put(&c, Condition::none()).await,
        Err(Error::Denied { .. })
    ));
    assert_eq!(tokens.rejected.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_waited_for_as_long_as_the_call_may_take() {
    let with = |tokens: Tokens| {
        let fake = Fake::default();
        (container_with(Credentials::Token(Arc::new(tokens)), &fake), fake)
    };
    let (c, fake) = with(Tokens {
        out: 3.into(),
        ..Tokens::default()
    });
    fake.will(written());
    put(&c, Condition::none()).await.unwrap();

    let (c, fake) = with(Tokens {
        out: 3.into(),
        ..Tokens::default()
    });
    fake.will(answer(201, &[], b""));
    c.stage_from(
        "b",
        &BlockId(vec![1]),
        "source",
        0..1,
        None,
        &StageOptions::default(),
    )
    .await
    .unwrap();

    let (c, fake) = with(Tokens {
        silent: true,
        ..Tokens::default()
    });
    let began = Instant::now();
    let error = put(&c, Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::Token { retryable: true, .. }), "{error}");
    assert_eq!(began.elapsed().as_secs(), Patience::default().call().as_secs());
    let error = c
        .stage_from(
            "b",
            &BlockId(vec![1]),
            "source",
            0..1,
            None,
            &StageOptions::default(),
        )
        .await;
    assert!(matches!(error, Err(Error::Token { .. })), "{error:?}");
    // Somebody who waits for a verdict hears of an outage soon, and everybody of a refusal at once.
    let out = || Tokens {
        out: u32::MAX.into(),
        ..Tokens::default()
    };
    let began = Instant::now();
    let verdict = with(out()).0.for_a_verdict(Duration::from_secs(20));
    put(&verdict, Condition::none()).await.unwrap_err();
    assert!(began.elapsed() <= Duration::from_secs(2), "{:?}", began.elapsed());
    let began = Instant::now();
    let refusing = with(Tokens {
        refusing: true,
        ..out()
    });
    put(&refusing.0, Condition::none()).await.unwrap_err();
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(fake.sent().is_empty());
}

#[tokio::test]
async fn a_sas_for_the_source_of_a_copy_is_not_shown() {
    let fake = Fake::default();
    let c = container(&fake);
    let hides = || -> crate::transport::fake::Step {
        Box::new(|request| {
            let source = &request.headers["x-ms-copy-source"];
            assert!(source.to_str().unwrap().contains("sig=topsecret"));
            let shown = format!("{:?}", request.headers);
            assert!(!shown.contains("topsecret"), "{shown}");
            written()(request)
        })
    };
    fake.will(hides()).will(hides());
    c.copy("s", None, None, "t", None, &Condition::none())
        .await
        .unwrap();
    c.stage_from("t", &BlockId(vec![1]), "s", 0..1, None, &StageOptions::default())
        .await
        .unwrap();
    assert!(fake.nothing_left());
    let access = c
        .account
        .credentials
        .current()
        .signer
        .source_access("data", "s", SystemTime::now())
        .await
        .unwrap();
    assert!(!format!("{access:?}").contains("topsecret"));
}

#[tokio::test]
async fn requests_carry_what_the_service_needs_and_show_no_secret() {
    let fake = Fake::default();
    fake.will(written());
    let c = container(&fake);
    let options = PutOptions {
        metadata: Metadata::from([("mode".to_owned(), "0644".to_owned())]),
        stored: Some(StoredHeaders::of_type("text/plain").unwrap()),
        condition: Condition {
            lease: Some("lease-1".into()),
            ..Condition::absent()
        },
        content_md5: Some("kAFQmDzST7DWlj99KOF/cg==".into()),
    };
    c.put("d/a b/..", Bytes::from_static(b"abc").into(), &options)
        .await
        .unwrap();
    let sent = &fake.sent()[0];
    assert_eq!(sent.method, http::Method::PUT);
    assert_eq!(
        sent.url.to_string(),
        "https://acct.blob.core.windows.net/data/d/a%20b/%2E%2E?sv=1&sig=topsecret"
    );
    assert_eq!((sent.body_len, sent.idempotent), (3, false));
    for (name, value) in [
        ("content-length", "3"),
        ("x-ms-version", API_VERSION),
        ("x-ms-blob-type", "BlockBlob"),
        ("x-ms-blob-content-type", "text/plain"),
        ("x-ms-blob-content-md5", "kAFQmDzST7DWlj99KOF/cg=="),
        ("x-ms-meta-mode", "0644"),
        ("x-ms-lease-id", "lease-1"),
        ("if-none-match", "*"),
    ] {
        assert_eq!(sent.header(name), value, "{name}");
    }
    fake.will(Box::new(|request| {
        let shown = format!("{request:?}");
        assert!(!shown.contains("topsecret"), "{shown}");
        assert!(shown.contains("/data/b"), "{shown}");
        Err(crate::transport::TransportError {
            path: Path::Https,
            kind: FailureKind::Unsuitable,
            message: String::new(),
            maybe_executed: false,
            retryable: false,
        })
    }));
    let _ = put(&c, Condition::none()).await;
    assert!(!format!("{c:?}").contains("topsecret"));
}

#[tokio::test(start_paused = true)]
async fn refusals_become_the_right_errors() {
    let fake = Fake::default();
    let c = container(&fake);
    let refused = async |status: u16, code: &str| {
        fake.will(refusal(status, code));
        put(&c, Condition::none()).await.unwrap_err()
    };
    assert!(matches!(refused(404, "BlobNotFound").await, Error::BlobNotFound { name } if name == "b"));
    assert!(matches!(refused(404, "").await, Error::BlobNotFound { .. }));
    assert!(
        matches!(refused(404, "ContainerNotFound").await, Error::ContainerNotFound { name } if name == "data")
    );
    assert!(matches!(
        refused(409, "ContainerBeingDeleted").await,
        Error::ContainerNotFound { .. }
    ));
    assert!(matches!(
        refused(409, "BlobAlreadyExists").await,
        Error::AlreadyExists { .. }
    ));
    assert!(matches!(
        refused(412, "ConditionNotMet").await,
        Error::ConditionNotMet { .. }
    ));
    let leased = refused(412, "LeaseIdMissing").await;
    assert!(matches!(leased, Error::LeaseConflict { code, .. } if code == "LeaseIdMissing"));
    assert!(matches!(refused(304, "").await, Error::NotModified { .. }));
    assert!(matches!(refused(403, "").await, Error::Denied { code, .. } if code == "403"));
    fake.will(answer(
        400,
        &[("x-ms-request-id", "r-1")],
        b"<Error><Code>OutOfRangeInput</Code><Message>Too long.\nmore</Message></Error>",
    ));
    let error = put(&c, Condition::none()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "service answered 400 OutOfRangeInput: Too long. (request r-1)"
    );
}

#[tokio::test(start_paused = true)]
async fn a_pending_copy_is_waited_for() {
    let fake = Fake::default();
    let c = container(&fake);
    let state = |state: &'static str, progress: &'static str| {
        head(&[
            ("x-ms-copy-id", "c-1"),
            ("x-ms-copy-status", state),
            ("x-ms-copy-progress", progress),
        ])
    };
    fake.will(state("pending", "0/9"))
        .will(state("pending", "4/9"))
        .will(state("success", "9/9"));
    let copied = c
        .copy("s", None, None, "t", None, &Condition::none())
        .await
        .unwrap();
    assert_eq!(copied.etag, ETag("\"0x1\"".into()));
    let sent = fake.sent();
    assert_eq!(
        sent[0].header("x-ms-copy-source"),
        "https://acct.blob.core.windows.net/data/s?sv=1&sig=topsecret"
    );

    fake.will(state("pending", "0/9"))
        .will(state("failed", "0/9"))
        .will(head(&[]));
    let error = c
        .copy("s", None, None, "t", None, &Condition::none())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Service { code, .. } if code == "Copy-failed"),
        "{error}"
    );
    // What is left at the target is no file.
    let last = fake.sent().pop().unwrap();
    assert_eq!(
        (last.method.as_str(), last.header("if-match")),
        ("DELETE", "\"0x1\"")
    );

    // No progress: given up and aborted.
    let stuck = Fake::default();
    stuck.always(|| {
        head(&[
            ("x-ms-copy-id", "c-1"),
            ("x-ms-copy-status", "pending"),
            ("x-ms-copy-progress", "1/9"),
        ])
    });
    let error = container(&stuck)
        .copy("s", None, None, "t", None, &Condition::none())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    let last = stuck.sent().pop().unwrap();
    assert_eq!(last.header("x-ms-copy-action"), "abort");
    assert!(last.url.query().unwrap().contains("copyid=c-1"));
}

#[test]
fn endpoints_and_names_are_checked() {
    let client = |endpoint: &str, credentials: Credentials| {
        Client::new(
            ClientConfig::new(endpoint.parse().unwrap(), credentials),
            Arc::new(Fake::default()),
            Arena::new(1 << 20).unwrap(),
        )
    };
    for bad in [
        "ftp://host/",
        "https://host/?sv=1&sig=2",
        "https://user:pw@host/",
        "https://host/#x",
    ] {
        let error = client(bad, Credentials::Anonymous).unwrap_err().to_string();
        assert!(error.starts_with("server:"), "{error}");
        assert!(!error.contains("sig=2"));
    }
    let tokens = || Credentials::Token(Arc::new(Tokens::default()));
    assert!(client("http://example.com", tokens()).is_err());
    assert!(client("http://127.0.0.1:10000/devstoreaccount1", tokens()).is_ok());
    let c = client("https://host", Credentials::Anonymous).unwrap();
    assert!(c.container("Bad_Name").is_err());
}

/// Who waits for room waits while what is written is stored; an answer that stores none of that is no reason.
#[tokio::test(start_paused = true)]
async fn only_what_is_stored_is_progress_of_storing() {
    let fake = Fake::default();
    let c = container(&fake);
    let second = std::time::Duration::from_secs(1);
    let stored = c.progress().latest_stored();
    for (status, code) in [
        (403, "AuthorizationFailure"),
        (409, "BlobImmutableDueToPolicy"),
        (412, "LeaseIdMissing"),
        (507, "AccountLimit"),
    ] {
        tokio::time::advance(second).await;
        fake.will(refusal(status, code));
        put(&c, Condition::none()).await.unwrap_err();
        assert_eq!(c.progress().latest_stored(), stored, "{status}");
        assert!(c.progress().latest() > Instant::now() - second, "{status}");
    }
    tokio::time::advance(second).await;
    fake.will(written());
    c.set_metadata("b", &Metadata::new(), &Condition::none())
        .await
        .unwrap();
    fake.will(answer(202, &[], b""));
    c.delete("b", &Condition::none()).await.unwrap();
    fake.will(answer(200, &VERSION, b""));
    c.renew_lease("b", "lease").await.unwrap();
    // An empty file.
    fake.will(written());
    c.put("b", Default::default(), &PutOptions::default())
        .await
        .unwrap();
    assert_eq!(c.progress().latest_stored(), stored);
    fake.will(written());
    put(&c, Condition::none()).await.unwrap();
    assert!(c.progress().latest_stored() > stored);
}

/// However long a request waits for its turn, its signature is of the time when it goes out.
#[tokio::test(start_paused = true)]
async fn a_request_is_signed_when_its_turn_comes() {
    let fake = Fake::default();
    fake.will(written());
    let c = container_with(
        Credentials::SharedKey {
            account: "acct".into(),
            key: Secret::new("a2V5".to_owned()),
        },
        &fake,
    );
    let share = &c.account.share;
    let minute = std::time::Duration::from_secs(60);
    let mut turns = Vec::new();
    while let Some(turn) = share.turn(Instant::now() + minute / 60).await {
        turns.push(turn);
    }
    let in_line = put(&c, Condition::none());
    let later = SystemTime::now() + 16 * minute;
    let others = async {
        for _ in 0..32 {
            tokio::time::sleep(minute / 2).await;
            c.progress().note();
        }
        // The machine's clock does not stand still either.
        c.account
            .note_clock(later, SystemTime::now(), std::time::Duration::ZERO);
        drop(turns);
    };
    let (answer, ()) = tokio::join!(in_line, others);
    answer.unwrap();
    let date = httpdate::parse_http_date(fake.sent()[0].header("x-ms-date")).unwrap();
    assert!(date + minute > later, "signed for {date:?}, sent at {later:?}");
}
