//! Tags that may not be read, keys of customers, metadata that is not ASCII, types after a rename, snapshots.

use http::Method;

use super::*;
use crate::client::tests::container;
use crate::stored::StoredHeaders;
use crate::transport::FailureKind;
use crate::transport::fake::{Fake, VERSION, answer, failure, refusal, written};
use crate::types::{BlockId, StageOptions};

fn head(more: &[(&'static str, &str)]) -> crate::transport::fake::Step {
    answer(
        200,
        &[&VERSION[..], &[("content-length", "3")], more].concat(),
        b"",
    )
}

async fn looked_at(c: &Container, fake: &Fake, more: &[(&'static str, &str)]) -> PutOptions {
    fake.will(head(more));
    let properties = c.head("b", &Condition::none()).await.unwrap();
    PutOptions {
        metadata: properties.metadata.clone(),
        stored: Some(properties.stored.clone()),
        condition: Condition::matches(&properties.etag),
        ..PutOptions::default()
    }
}

#[tokio::test]
async fn tags_that_may_not_be_read_are_not_lost_without_leave() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[("x-ms-tag-count", "2")]).await;
    let denied = || refusal(403, "AuthorizationPermissionMismatch");
    fake.will(denied());
    let error = c.put("b", Default::default(), &options).await.unwrap_err();
    assert!(matches!(error, Error::TagsUnreadable { name } if name == "b"));
    fake.will(denied());
    assert!(matches!(
        c.commit("b", &[], &options).await.unwrap_err(),
        Error::TagsUnreadable { .. }
    ));
    fake.will(denied());
    let (stored, any) = (options.stored.as_ref(), Condition::none());
    assert!(matches!(
        c.copy("b", None, stored, "t", None, &any).await.unwrap_err(),
        Error::TagsUnreadable { .. }
    ));
    assert!(fake.sent().iter().all(|s| s.method != Method::PUT));

    // With leave they are dropped, and the write is the same otherwise.
    let mut account = std::sync::Arc::into_inner(container(&fake).account).unwrap();
    account.unreadable_tags = UnreadableTags::Drop;
    let c = Container {
        account: account.into(),
        ..c
    };
    fake.will(denied()).will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    assert_eq!(fake.sent().last().unwrap().header("x-ms-tags"), "");
    // A service in trouble is no leave.
    fake.will(refusal(400, "InvalidQueryParameterValue"));
    assert!(c.put("b", Default::default(), &options).await.is_err());
}

/// Before anybody writes, and not again once they could be read.
#[tokio::test]
async fn whether_tags_can_be_read_is_asked_before_the_write() {
    let fake = Fake::default();
    let c = container(&fake);
    let plain = looked_at(&c, &fake, &[]).await.stored.unwrap();
    let tagged = looked_at(&c, &fake, &[("x-ms-tag-count", "2")]).await;
    let stored = tagged.stored.clone().unwrap();
    c.check_keeping("b", &plain).await.unwrap();
    let denied = || refusal(403, "AuthorizationPermissionMismatch");
    let tags = || answer(200, &[], b"<Tags><TagSet/></Tags>");
    // Asked again each time: the right may have been given.
    for _ in 0..2 {
        fake.will(denied());
        let error = c.check_keeping("b", &stored).await.unwrap_err();
        assert!(matches!(error, Error::TagsUnreadable { name } if name == "b"));
    }
    fake.will(tags());
    for _ in 0..2 {
        c.check_keeping("b", &stored).await.unwrap();
    }
    // A write that is refused makes it a question again.
    fake.will(denied());
    c.put("b", Default::default(), &tagged).await.unwrap_err();
    fake.will(denied());
    c.check_keeping("b", &stored).await.unwrap_err();
    // One that is gone says so itself.
    fake.will(refusal(404, "BlobNotFound"));
    c.check_keeping("b", &stored).await.unwrap();
    assert!(fake.nothing_left());
    // To be dropped, they need not be read.
    let mut account = std::sync::Arc::into_inner(container(&fake).account).unwrap();
    account.unreadable_tags = UnreadableTags::Drop;
    let c = Container {
        account: account.into(),
        ..c
    };
    c.check_keeping("b", &stored).await.unwrap();
}

#[tokio::test]
async fn tags_are_looked_at_only_where_there_are_some() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[]).await;
    fake.will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    // Removed meanwhile.
    let options = looked_at(&c, &fake, &[("x-ms-tag-count", "1")]).await;
    fake.will(answer(200, &[], b"<Tags><TagSet/></Tags>"))
        .will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    assert!(!fake.sent().last().unwrap().headers.contains_key("x-ms-tags"));
    assert!(fake.nothing_left());
}

#[tokio::test]
async fn a_customers_key_is_refused_by_name() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[("x-ms-encryption-key-sha256", "abc=")]).await;
    let error = c.put("b", Default::default(), &options).await.unwrap_err();
    assert!(matches!(error, Error::CustomerKey { name } if name == "b"));
    let (stored, any) = (options.stored.as_ref(), Condition::none());
    let error = c.copy("b", None, stored, "t", None, &any).await.unwrap_err();
    assert!(matches!(error, Error::CustomerKey { .. }));
    assert_eq!(fake.sent().len(), 1, "nothing was sent");
    // A read is refused by the service.
    fake.will(refusal(409, "BlobUsesCustomerSpecifiedEncryption"));
    let error = c.head("b", &any).await.unwrap_err();
    assert!(matches!(error, Error::CustomerKey { .. }));
}

#[tokio::test]
async fn snapshots_are_not_deleted_silently() {
    let fake = Fake::default();
    let c = container(&fake);
    fake.will(refusal(409, "SnapshotsPresent"));
    let error = c.delete("b", &Condition::none()).await.unwrap_err();
    assert!(matches!(error, Error::SnapshotsPresent { name } if name == "b"));
    assert_eq!(fake.sent()[0].header("x-ms-delete-snapshots"), "");
}

/// Bytes as a script takes them.
fn raw_head() -> crate::transport::fake::Step {
    Box::new(|request| {
        let mut response = head(&[("x-ms-meta-plain", "p")])(request)?;
        for (name, value) in [
            ("x-ms-meta-latin", &b"\xdc"[..]),
            ("x-ms-meta-utf", "Ü".as_bytes()),
        ] {
            let value = http::HeaderValue::from_bytes(value).unwrap();
            response.headers.insert(name, value);
        }
        Ok(response)
    })
}

#[tokio::test]
async fn metadata_that_is_not_ascii_is_there_afterwards_byte_for_byte() {
    let fake = Fake::default();
    let c = container(&fake);
    // What a listing made of it.
    let metadata = Metadata::from([
        ("latin".to_owned(), "Ü".to_owned()),
        ("plain".to_owned(), "q".to_owned()),
        ("utf".to_owned(), "Ã\u{9c}".to_owned()),
    ]);
    let condition = Condition::matches(&ETag("\"0x1\"".into()));
    let options = PutOptions {
        metadata: metadata.clone(),
        stored: None,
        condition: condition.clone(),
        ..PutOptions::default()
    };
    fake.will(raw_head()).will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    fake.will(raw_head()).will(written());
    c.commit("b", &[], &options).await.unwrap();
    fake.will(raw_head()).will(written());
    c.set_metadata("b", &metadata, &condition).await.unwrap();
    let (any, etag) = (Condition::none(), condition.if_match.clone());
    fake.will(raw_head()).will(written());
    c.copy("b", etag.as_ref(), None, "t", Some(&metadata), &any)
        .await
        .unwrap();
    let sent = fake.sent();
    let writes: Vec<_> = sent.iter().filter(|s| s.method == Method::PUT).collect();
    assert_eq!(writes.len(), 4);
    for write in writes {
        let value = |name: &str| write.headers[name].as_bytes();
        assert_eq!(value("x-ms-meta-latin"), b"\xdc");
        assert_eq!(value("x-ms-meta-utf"), "Ü".as_bytes());
        assert_eq!(value("x-ms-meta-plain"), b"q");
    }
    for look in sent.iter().filter(|s| s.method == Method::HEAD) {
        assert_eq!(look.header("if-match"), "\"0x1\"");
    }
    // One that the blob has not cannot be sent: nobody knows its bytes.
    fake.will(head(&[]));
    let error = c.put("b", Default::default(), &options).await.unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
}

#[tokio::test]
async fn what_is_renamed_onto_a_name_with_an_extension_gets_its_type() {
    let fake = Fake::default();
    let c = container(&fake);
    let md5 = ("content-md5", "1B2M2Y8AsgTpgAmY7PhCfg==");
    let options = looked_at(&c, &fake, &[md5, ("cache-control", "no-store")]).await;
    let (stored, any) = (options.stored.as_ref(), Condition::none());
    let typed = || answer(200, &[("etag", "\"0x2\""), VERSION[1]], b"");
    fake.will(written()).will(typed());
    let copied = c
        .copy("sedAbC", None, stored, "index.html", None, &any)
        .await
        .unwrap();
    assert_eq!(copied.etag.0, "\"0x2\"");
    let sent = fake.sent().pop().unwrap();
    assert!(sent.url.query().unwrap().starts_with("comp=properties"));
    for (name, value) in [
        ("x-ms-blob-content-type", "text/html"),
        ("x-ms-blob-cache-control", "no-store"),
        ("x-ms-blob-content-md5", md5.1),
        ("if-match", "\"0x1\""),
    ] {
        assert_eq!(sent.header(name), value, "{name}");
    }
    // Where that is refused the copy is as good without.
    fake.will(written()).will(refusal(412, "ConditionNotMet"));
    let copied = c
        .copy("sedAbC", None, stored, "index.html", None, &any)
        .await
        .unwrap();
    assert_eq!(copied.etag.0, "\"0x1\"");
    // Said by somebody, or the same before and after, or not a type at all: left alone.
    let said = StoredHeaders::of_type("text/plain").unwrap();
    for (from, kept, to) in [
        ("a", Some(&said), "a.html"),
        ("a.html", stored, "b.html"),
        ("a.html", stored, "b"),
    ] {
        fake.will(written());
        c.copy(from, None, kept, to, None, &any).await.unwrap();
    }
    assert!(fake.nothing_left());
}

/// The version that is there after it is the one to go on from, however it came to be known.
#[tokio::test(start_paused = true)]
async fn the_version_of_a_copy_that_was_typed_is_known_although_the_answer_was_lost() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[("cache-control", "no-store")]).await;
    let (stored, any) = (options.stored.as_ref(), Condition::none());
    let now = |kind: &str| {
        answer(
            200,
            &[
                ("etag", "\"0x2\""),
                VERSION[1],
                ("x-ms-request-id", "id"),
                ("x-ms-blob-type", "BlockBlob"),
                ("content-length", "0"),
                ("content-type", kind),
                ("cache-control", "no-store"),
            ],
            b"",
        )
    };
    let lost = || failure(FailureKind::TimedOut, true, true);
    // Its own repetition is refused; or nobody answers it before the deadline, but the question afterwards.
    fake.will(written())
        .will(lost())
        .will(refusal(412, "ConditionNotMet"))
        .will(now("text/html"));
    let copied = c
        .copy("sedAbC", None, stored, "index.html", None, &any)
        .await
        .unwrap();
    assert_eq!(copied.etag.0, "\"0x2\"");
    // Somebody else's version is not this copy.
    fake.will(written())
        .will(lost())
        .will(refusal(412, "ConditionNotMet"))
        .will(now("image/png"));
    let copied = c
        .copy("sedAbC", None, stored, "index.html", None, &any)
        .await
        .unwrap();
    assert_eq!(copied.etag.0, "\"0x1\"");
    assert!(fake.nothing_left());
}

#[tokio::test]
async fn a_copy_that_would_leave_the_scope_is_refused_by_name() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[("x-ms-encryption-scope", "mine")]).await;
    let (stored, any) = (options.stored.as_ref(), Condition::none());
    let container_of = |scope| {
        answer(
            200,
            &[VERSION[0], VERSION[1], ("x-ms-default-encryption-scope", scope)],
            b"",
        )
    };
    fake.will(container_of("$account-encryption-key"));
    // Asked once.
    for _ in 0..2 {
        let error = c.copy("b", None, stored, "t", None, &any).await.unwrap_err();
        assert!(matches!(error, Error::EncryptionScope { scope, .. } if scope == "mine"));
    }
    let c = container(&fake);
    fake.will(container_of("mine")).will(written());
    c.copy("b", None, stored, "t", None, &any).await.unwrap();
    // A SAS for the container may not ask: a new blob beside the copy shows it, also for the next ones.
    let denied = || refusal(403, "AuthorizationPermissionMismatch");
    let deleted = || answer(202, &[], b"");
    let c = container(&fake);
    fake.will(denied())
        .will(written())
        .will(head(&[]))
        .will(deleted());
    for _ in 0..2 {
        let error = c.copy("b", None, stored, "d/t", None, &any).await.unwrap_err();
        assert!(matches!(error, Error::EncryptionScope { scope, .. } if scope == "mine"));
    }
    let sent = fake.sent();
    let [.., made, seen, removed] = &sent[..] else {
        panic!("{sent:?}")
    };
    assert!(
        made.url.path().starts_with("/data/d/.vsc-blob-hidden."),
        "{}",
        made.url
    );
    assert_eq!(made.header("if-none-match"), "*");
    assert_eq!(made.header("x-ms-meta-vsc_hidden"), "true");
    assert_eq!(
        (made.url.path(), seen.url.path()),
        (seen.url.path(), removed.url.path())
    );
    assert_eq!(
        (&removed.method, removed.header("if-match")),
        (&Method::DELETE, "\"0x1\"")
    );
    let c = container(&fake);
    let in_it = [("x-ms-encryption-scope", "mine")];
    fake.will(denied())
        .will(written())
        .will(head(&in_it))
        .will(deleted())
        .will(written());
    c.copy("b", None, stored, "t", None, &any).await.unwrap();
    // Who may not make one may not copy either.
    let c = container(&fake);
    fake.will(denied()).will(denied());
    let error = c.copy("b", None, stored, "t", None, &any).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }));
    // An edit says the scope itself.
    fake.will(written());
    c.put("b", Default::default(), &options).await.unwrap();
    assert_eq!(
        fake.sent().last().unwrap().header("x-ms-encryption-scope"),
        "mine"
    );
    assert!(fake.nothing_left());
}

#[tokio::test]
async fn a_block_is_encrypted_as_its_blob_is() {
    let fake = Fake::default();
    let c = container(&fake);
    let options = looked_at(&c, &fake, &[("x-ms-encryption-scope", "mine")]).await;
    let staged = StageOptions {
        stored: options.stored.as_ref(),
        ..StageOptions::default()
    };
    let id = BlockId(vec![1]);
    fake.will(answer(201, &[], b"")).will(answer(201, &[], b""));
    c.stage("b", &id, Default::default(), &staged).await.unwrap();
    c.stage_from("b", &id, "s", 0..1, None, &staged).await.unwrap();
    for request in fake.sent().iter().rev().take(2) {
        assert_eq!(request.header("x-ms-encryption-scope"), "mine");
    }
    let options = looked_at(&c, &fake, &[("x-ms-encryption-key-sha256", "theirs")]).await;
    let staged = StageOptions {
        stored: options.stored.as_ref(),
        ..StageOptions::default()
    };
    let error = c.stage("b", &id, Default::default(), &staged).await.unwrap_err();
    assert!(matches!(error, Error::CustomerKey { .. }), "{error}");
    assert!(fake.nothing_left());
}

#[tokio::test]
async fn a_hierarchical_account_is_found_out() {
    let fake = Fake::default();
    let c = container(&fake);
    let page = b"<EnumerationResults><Blobs/><NextMarker/></EnumerationResults>";
    let azure = [("server", "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0")];
    fake.will(answer(200, &azure, page));
    assert!(c.is_hierarchical().await.unwrap());
    fake.will(answer(200, &[("server", "Azurite-Blob/3.35.0")], page));
    assert!(!c.is_hierarchical().await.unwrap());
    fake.will(refusal(400, "InvalidQueryParameterValue"));
    assert!(!c.is_hierarchical().await.unwrap());
    fake.will(refusal(403, "AuthorizationFailure"));
    assert!(matches!(c.is_hierarchical().await, Err(Error::Denied { .. })));
    assert!(
        fake.sent()[0]
            .url
            .query()
            .unwrap()
            .contains("include=permissions")
    );
}

#[tokio::test]
async fn a_container_that_keeps_its_blobs_says_so() {
    let fake = Fake::default();
    let c = container(&fake);
    let (policy, hold) = ("x-ms-has-immutability-policy", "x-ms-has-legal-hold");
    let versions = "x-ms-immutable-storage-with-versioning-enabled";
    for (said, keeps) in [
        (vec![], false),
        (vec![(policy, "false"), (hold, "false")], false),
        (vec![(policy, "true"), (hold, "false")], true),
        (vec![(policy, "false"), (hold, "true")], true),
        // Blobs are overwritten and deleted, and their versions stay.
        (vec![(policy, "true"), (versions, "true")], false),
    ] {
        fake.will(answer(200, &[&VERSION[..], &said].concat(), b""));
        assert_eq!(c.state().await.unwrap().keeps_blobs, keeps, "{said:?}");
    }
}
