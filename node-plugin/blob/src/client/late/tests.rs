//! A request that is executed late harms nothing that was done since.

use super::*;
use crate::client::tests::container;
use crate::transport::FailureKind;
use crate::transport::fake::{Fake, VERSION, answer, failure, refusal, written};
use crate::types::{Condition, ETag, PutOptions};

fn lost() -> crate::transport::fake::Step {
    failure(FailureKind::TimedOut, true, true)
}

fn create() -> PutOptions {
    PutOptions {
        condition: Condition::absent(),
        ..PutOptions::default()
    }
}

/// The host has `Put Blob If-None-Match: *` still when the file is deleted: it must not come back.
#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_a_creation_that_was_lost() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost()).will(written()).will(answer(202, &[], b""));
    c.put("b", Default::default(), &create()).await.unwrap();
    let lost_at = fake.sent()[0].at;
    let version = Condition::matches(&ETag("\"0x1\"".into()));
    c.delete("b", &version).await.unwrap();
    let deleted_at = fake.sent()[2].at;
    assert!(deleted_at - lost_at >= LATEST, "{:?}", deleted_at - lost_at);
    // That is over: the next one does not wait.
    fake.will(written()).will(answer(202, &[], b""));
    c.put("b", Default::default(), &create()).await.unwrap();
    c.delete("b", &version).await.unwrap();
    let sent = fake.sent();
    assert_eq!(sent[4].at, sent[3].at);
}

/// A creation whose answer was lost, and that is seen to have been executed, is executed no second time.
#[tokio::test(start_paused = true)]
async fn a_creation_that_was_executed_is_not_waited_for() {
    let head = || answer(200, &[VERSION[0], VERSION[1], ("content-length", "0")], b"");
    let version = Condition::matches(&ETag(VERSION[0].1.into()));
    for attempts in [1, 2] {
        let fake = Fake::default();
        let c = container(&fake);
        for _ in 0..attempts {
            fake.will(lost());
        }
        fake.will(refusal(409, "BlobAlreadyExists"))
            .will(head())
            .will(answer(202, &[], b""));
        c.put("b", Default::default(), &create()).await.unwrap();
        let began = Instant::now();
        c.delete("b", &version).await.unwrap();
        // Of two, only one was.
        assert_eq!(began.elapsed().is_zero(), attempts == 1, "{:?}", began.elapsed());
    }
}

/// Who holds nothing yet waits for what he will delete, and for nothing else.
#[tokio::test(start_paused = true)]
async fn what_was_lost_of_a_name_can_be_waited_for_beforehand() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost()).will(written());
    c.put("d/b", Default::default(), &create()).await.unwrap();
    let began = Instant::now();
    for other in ["d/b2", "d/c", "dd"] {
        c.wait_for_lost(other).await.unwrap();
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    c.wait_for_lost("d").await.unwrap();
    assert!(
        began.elapsed() >= LATEST - Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let began = Instant::now();
    fake.will(answer(202, &[], b""));
    c.wait_for_lost("d/b").await.unwrap();
    c.delete("d/b", &Condition::none()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_harmed_does_not_wait() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost()).will(written());
    c.put("b", Default::default(), &create()).await.unwrap();
    let began = Instant::now();
    // The blob is there, so the lost creation fails whatever becomes of this version; and other names.
    let version = Condition::matches(&ETag("\"0x1\"".into()));
    let next = PutOptions {
        condition: version.clone(),
        ..PutOptions::default()
    };
    fake.will(written())
        .will(answer(202, &[], b""))
        .will(lost())
        .will(answer(202, &[], b""));
    c.put("b", Default::default(), &next).await.unwrap();
    c.delete("other", &version).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    // A lost deletion of a version deletes nothing else.
    c.delete("third", &version).await.unwrap();
    fake.will(written());
    let began = Instant::now();
    c.put("third", Default::default(), &create()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn everything_waits_for_one_without_a_condition() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost())
        .will(refusal(404, "BlobNotFound"))
        .will(written());
    c.delete("b", &Condition::none()).await.unwrap();
    c.put("b", Default::default(), &create()).await.unwrap();
    let sent = fake.sent();
    assert!(sent[2].at - sent[0].at >= LATEST);
}

/// A host that does not give a request back may execute it at any time.
#[tokio::test(start_paused = true)]
async fn what_the_host_still_has_is_waited_for() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost()).will(written());
    c.put("b", Default::default(), &create()).await.unwrap();
    fake.keep(0);
    let error = c.delete("b", &Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::EarlierRequest { .. }), "{error}");
    fake.give_back();
    fake.will(answer(202, &[], b""));
    c.delete("b", &Condition::none()).await.unwrap();
}

/// Nor holds it anybody else up, however long it has it.
#[tokio::test(start_paused = true)]
async fn what_the_host_still_has_holds_up_its_own_blob_only() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(lost()).will(written());
    c.put("a", Default::default(), &create()).await.unwrap();
    fake.keep(0);
    fake.will(lost()).will(written());
    c.put("b", Default::default(), &create()).await.unwrap();
    tokio::time::sleep(LATEST).await;
    let began = Instant::now();
    fake.will(answer(202, &[], b""));
    c.delete("b", &Condition::none()).await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
    // Nor is it forgotten because others have lost requests since.
    fake.will(lost()).will(written());
    c.put("c", Default::default(), &create()).await.unwrap();
    let error = c.delete("a", &Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::EarlierRequest { .. }), "{error}");
}
