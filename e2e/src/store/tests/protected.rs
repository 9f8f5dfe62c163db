//! What stands in the way of a write: the archive, policies, holds, snapshots, keys, a deletion under way.

use std::time::Duration;

use super::*;

/// Status and code.
fn outcome(answer: Answer) -> String {
    format!("{} {}", answer.status, answer.code())
        .trim_end()
        .to_owned()
}

/// REST: "Set Blob Tier", "Blob Storage error codes" (BlobArchived, BlobBeingRehydrated).
#[test]
fn an_archived_blob_is_out_of_reach_until_it_is_rehydrated() {
    let c = Caller::new().with_container();
    c.put("a", b"x");
    let tier = |tier: &str| outcome(c.call("PUT", "/box/a?comp=tier", &[("x-ms-access-tier", tier)], b""));
    let head = || c.call("HEAD", "/box/a", &[], b"");
    assert_eq!(head().header("x-ms-access-tier-inferred"), "true");
    let etag = head().header("etag").to_owned();
    assert_eq!(tier("Archive"), "200");
    let archived = || {
        [
            outcome(c.call("GET", "/box/a", &[], b"")),
            outcome(c.put("a", b"y")),
            outcome(c.stage("a", b"1", b"y")),
            outcome(c.call("PUT", "/box/a?comp=metadata", &[], b"")),
            outcome(copy(&c, "a", "b", &[])),
        ]
    };
    let refused = archived();
    assert!(
        refused.iter().all(|outcome| outcome == "409 BlobArchived"),
        "{refused:?}"
    );
    let told = head();
    assert_eq!((told.status, told.header("x-ms-access-tier")), (200, "Archive"));
    assert_eq!(
        (told.header("x-ms-access-tier-inferred"), told.header("etag")),
        ("", &*etag)
    );
    assert_eq!(tier("Cool"), "202");
    assert_eq!(head().header("x-ms-archive-status"), "rehydrate-pending-to-cool");
    assert_eq!(
        outcome(c.call("GET", "/box/a", &[], b"")),
        "409 BlobBeingRehydrated"
    );
    assert_eq!(tier("Hot"), "409 BlobBeingRehydrated");
    c.store.advance_clock(Duration::from_secs(15 * 3600));
    assert_eq!(c.call("GET", "/box/a", &[], b"").body, b"x");
    assert_eq!(
        (
            head().header("x-ms-access-tier"),
            head().header("x-ms-archive-status")
        ),
        ("Cool", "")
    );
    // It can be deleted from the archive all the same.
    assert_eq!(tier("Archive"), "200");
    assert_eq!(outcome(c.call("DELETE", "/box/a", &[], b"")), "202");
}

fn copy(c: &Caller, from: &str, to: &str, more: &[(&str, &str)]) -> Answer {
    let source = format!("http://127.0.0.1/{DEV_ACCOUNT}/box/{from}");
    let headers: Vec<_> = [("x-ms-copy-source", &*source)]
        .into_iter()
        .chain(more.iter().copied())
        .collect();
    c.call("PUT", &format!("/box/{to}"), &headers, b"")
}

/// "Time-based retention policies for immutable blob data": a blob is written once, and then neither changed
/// nor deleted. REST: "Blob Storage error codes" (BlobImmutableDueToPolicy, BlobImmutableDueToLegalHold).
#[test]
fn a_container_with_a_policy_takes_each_blob_once() {
    let c = Caller::new().with_container();
    c.put("old", b"1");
    for (hold, code) in [
        (false, "409 BlobImmutableDueToPolicy"),
        (true, "409 BlobImmutableDueToLegalHold"),
    ] {
        let policy = Immutability {
            legal_hold: hold,
            appends: false,
        };
        c.store.set_immutability("box", Some(policy)).unwrap();
        let name = format!("new{hold}");
        assert_eq!(outcome(c.put(&name, b"1")), "201");
        for outcome in [
            outcome(c.put("old", b"2")),
            outcome(c.stage("old", b"1", b"2")),
            outcome(c.call("PUT", "/box/old?comp=blocklist", &[], b"<BlockList></BlockList>")),
            outcome(c.call("PUT", "/box/old?comp=metadata", &[("x-ms-meta-a", "b")], b"")),
            outcome(c.call("PUT", "/box/old?comp=properties", &[], b"")),
            outcome(c.call("DELETE", "/box/old", &[], b"")),
            outcome(copy(&c, &name, "old", &[])),
        ] {
            assert_eq!(outcome, code);
        }
        // Blocks that are staged before their first list are no change of a blob.
        assert_eq!(outcome(c.stage(&format!("large{hold}"), b"1", b"2")), "201");
        let list = b"<BlockList><Latest>MQ==</Latest></BlockList>";
        let commit = c.call("PUT", &format!("/box/large{hold}?comp=blocklist"), &[], list);
        assert_eq!(outcome(commit), "201");
        let told = c.call("HEAD", "/box?restype=container", &[], b"");
        assert_eq!(told.header("x-ms-has-legal-hold"), hold.to_string());
        assert_eq!(told.header("x-ms-has-immutability-policy"), (!hold).to_string());
    }
    c.store.set_immutability("box", None).unwrap();
    assert_eq!(outcome(c.put("old", b"2")), "201");
    assert!(c.store.set_immutability("none", None).is_err());
}

/// "Allow protected append blob writes".
#[test]
fn a_policy_may_let_logs_grow() {
    let c = Caller::new().with_container();
    let kind = [("x-ms-blob-type", "AppendBlob")];
    c.call("PUT", "/box/log", &kind, b"");
    let append = || outcome(c.call("PUT", "/box/log?comp=appendblock", &[], b"x"));
    c.store
        .set_immutability("box", Some(Immutability::default()))
        .unwrap();
    assert_eq!(append(), "409 BlobImmutableDueToPolicy");
    c.store
        .set_immutability(
            "box",
            Some(Immutability {
                appends: true,
                ..Immutability::default()
            }),
        )
        .unwrap();
    assert_eq!(append(), "201");
    assert_eq!(
        outcome(c.call("PUT", "/box/log", &kind, b"")),
        "409 BlobImmutableDueToPolicy"
    );
}

/// REST: "Set Blob Immutability Policy", "Set Blob Legal Hold".
#[test]
fn one_blob_can_be_protected() {
    let c = Caller::new().with_container();
    c.put("a", b"1");
    let until = |ahead: u64| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(ahead));
    let policy = |until: &str, mode: &str| {
        let headers = [
            ("x-ms-immutability-policy-until-date", until),
            ("x-ms-immutability-policy-mode", mode),
        ];
        outcome(c.call("PUT", "/box/a?comp=immutabilityPolicies", &headers, b""))
    };
    assert_eq!(policy(&until(600), "unlocked"), "200");
    assert_eq!(outcome(c.put("a", b"2")), "409 BlobImmutableDueToPolicy");
    assert_eq!(
        outcome(c.call("DELETE", "/box/a", &[], b"")),
        "409 BlobImmutableDueToPolicy"
    );
    assert_eq!(
        outcome(c.call("DELETE", "/box/a?comp=immutabilityPolicies", &[], b"")),
        "200"
    );
    assert_eq!(outcome(c.put("a", b"2")), "201");
    let hold =
        |held: &str| outcome(c.call("PUT", "/box/a?comp=legalhold", &[("x-ms-legal-hold", held)], b""));
    assert_eq!(hold("true"), "200");
    assert_eq!(outcome(c.put("a", b"3")), "409 BlobImmutableDueToLegalHold");
    assert_eq!(hold("false"), "200");
    assert_eq!(policy(&until(600), "locked"), "200");
    assert_eq!(policy(&until(60), "locked"), "409 BlobImmutableDueToPolicy");
    assert_eq!(
        outcome(c.call("DELETE", "/box/a?comp=immutabilityPolicies", &[], b"")),
        "409 BlobImmutableDueToPolicy"
    );
    c.store.advance_clock(Duration::from_secs(601));
    assert_eq!(outcome(c.call("DELETE", "/box/a", &[], b"")), "202");
}

/// REST: "Delete Blob" (SnapshotsPresent), "Snapshot Blob".
#[test]
fn snapshots_stand_in_the_way_of_a_delete() {
    let c = Caller::new().with_container();
    c.put("a", b"old");
    let snapshot = c.call("PUT", "/box/a?comp=snapshot", &[], b"");
    assert_eq!(snapshot.status, 201);
    let id = snapshot.header("x-ms-snapshot").to_owned();
    c.put("a", b"new");
    assert_eq!(
        c.call("GET", &format!("/box/a?snapshot={id}"), &[], b"").body,
        b"old"
    );
    let list = c
        .call(
            "GET",
            "/box?restype=container&comp=list&include=snapshots",
            &[],
            b"",
        )
        .text();
    assert!(list.contains(&format!("<Snapshot>{id}</Snapshot>")), "{list}");
    assert!(
        !c.call("GET", "/box?restype=container&comp=list", &[], b"")
            .text()
            .contains("<Snapshot>")
    );
    let delete = |what: &[(&str, &str)]| outcome(c.call("DELETE", "/box/a", what, b""));
    assert_eq!(delete(&[]), "409 SnapshotsPresent");
    assert_eq!(delete(&[("x-ms-delete-snapshots", "only")]), "202");
    assert_eq!(
        c.call("GET", &format!("/box/a?snapshot={id}"), &[], b"").status,
        404
    );
    assert_eq!(c.call("GET", "/box/a", &[], b"").body, b"new");
    c.call("PUT", "/box/a?comp=snapshot", &[], b"");
    assert_eq!(delete(&[("x-ms-delete-snapshots", "include")]), "202");
    assert_eq!(c.call("GET", "/box/a", &[], b"").status, 404);
}

/// "Blob versioning", "Soft delete for blobs". REST: "Undelete Blob".
#[test]
fn versions_and_what_was_deleted_are_kept_as_the_account_wants() {
    let c = Caller::new().with_container();
    c.store.configure(|account| account.versioning = true);
    c.put("a", b"1");
    let first = c
        .call("HEAD", "/box/a", &[], b"")
        .header("x-ms-version-id")
        .to_owned();
    c.put("a", b"2");
    c.call("PUT", "/box/a?comp=metadata", &[("x-ms-meta-k", "v")], b"");
    assert_eq!(
        c.call("GET", &format!("/box/a?versionid={first}"), &[], b"").body,
        b"1"
    );
    let versions = || {
        let list = c
            .call(
                "GET",
                "/box?restype=container&comp=list&include=versions",
                &[],
                b"",
            )
            .text();
        list.matches("<VersionId>").count()
    };
    assert_eq!(versions(), 3);
    assert_eq!(outcome(c.call("DELETE", "/box/a", &[], b"")), "202");
    assert_eq!(c.call("GET", "/box/a", &[], b"").status, 404);
    assert_eq!(versions(), 3);
    c.store.configure(|account| {
        account.versioning = false;
        account.soft_delete = Some(Duration::from_secs(86_400));
    });
    c.put("b", b"1");
    assert_eq!(outcome(c.call("DELETE", "/box/b", &[], b"")), "202");
    let deleted = || {
        c.call(
            "GET",
            "/box?restype=container&comp=list&prefix=b&include=deleted",
            &[],
            b"",
        )
        .text()
    };
    assert!(deleted().contains("<Deleted>true</Deleted>"), "{}", deleted());
    assert_eq!(outcome(c.call("PUT", "/box/b?comp=undelete", &[], b"")), "200");
    assert_eq!(c.call("GET", "/box/b", &[], b"").body, b"1");
    let snapshot = c
        .call("PUT", "/box/b?comp=snapshot", &[], b"")
        .header("x-ms-snapshot")
        .to_owned();
    let with_snapshots = [("x-ms-delete-snapshots", "include")];
    assert_eq!(outcome(c.call("DELETE", "/box/b", &with_snapshots, b"")), "202");
    assert_eq!(
        c.call("GET", &format!("/box/b?snapshot={snapshot}"), &[], b"")
            .status,
        404
    );
    assert_eq!(outcome(c.call("PUT", "/box/b?comp=undelete", &[], b"")), "200");
    assert_eq!(
        c.call("GET", &format!("/box/b?snapshot={snapshot}"), &[], b"")
            .body,
        b"1"
    );
    assert_eq!(outcome(c.call("DELETE", "/box/b", &with_snapshots, b"")), "202");
    c.store.advance_clock(Duration::from_secs(86_401));
    assert_eq!(
        outcome(c.call("PUT", "/box/b?comp=undelete", &[], b"")),
        "404 BlobNotFound"
    );
}

/// REST: "Set Blob Tags", "Put Blob" (x-ms-tags), "Specifying conditional headers" (x-ms-if-tags).
#[test]
fn tags_are_cleared_by_a_write_that_does_not_send_them() {
    let c = Caller::new().with_container();
    let tags = [("x-ms-blob-type", "BlockBlob"), ("x-ms-tags", "a=1&b=x%20y")];
    assert_eq!(outcome(c.call("PUT", "/box/t", &tags, b"1")), "201");
    let head = || c.call("HEAD", "/box/t", &[], b"");
    assert_eq!(head().header("x-ms-tag-count"), "2");
    let get = || c.call("GET", "/box/t?comp=tags", &[], b"").text();
    assert!(
        get().contains("<Tag><Key>b</Key><Value>x y</Value></Tag>"),
        "{}",
        get()
    );
    let list = c
        .call("GET", "/box?restype=container&comp=list&include=tags", &[], b"")
        .text();
    assert!(
        list.contains("<TagCount>2</TagCount>") && list.contains("<Key>a</Key>"),
        "{list}"
    );
    let etag = head().header("etag").to_owned();
    let body = b"<Tags><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tags>";
    assert_eq!(outcome(c.call("PUT", "/box/t?comp=tags", &[], body)), "204");
    assert_eq!(
        (head().header("x-ms-tag-count"), head().header("etag")),
        ("1", &*etag)
    );
    let read = |condition: &str| outcome(c.call("GET", "/box/t", &[("x-ms-if-tags", condition)], b""));
    assert_eq!(read("\"k\" = 'v'"), "200");
    assert_eq!(read("\"k\" = 'w'"), "412 ConditionNotMet");
    // A copy does not take them along, a change of metadata does not touch them, a write clears them.
    assert_eq!(copy(&c, "t", "u", &[]).status, 202);
    assert_eq!(c.call("HEAD", "/box/u", &[], b"").header("x-ms-tag-count"), "");
    c.call("PUT", "/box/t?comp=metadata", &[], b"");
    assert_eq!(head().header("x-ms-tag-count"), "1");
    c.put("t", b"2");
    assert_eq!(head().header("x-ms-tag-count"), "");
    let wrong = [("x-ms-blob-type", "BlockBlob"), ("x-ms-tags", "a=%C3%BC")];
    assert_eq!(outcome(c.call("PUT", "/box/t", &wrong, b"1")), "400 InvalidTags");
}

/// REST: "Provide an encryption key on a request to Blob Storage", "Encryption scopes for Blob Storage".
#[test]
fn a_customers_key_is_wanted_again() {
    let c = Caller::new().with_container();
    let digest = |byte: u8| base64(&[byte; 32]);
    let (key, other) = (digest(1), digest(2));
    let put = [
        ("x-ms-blob-type", "BlockBlob"),
        ("x-ms-encryption-key-sha256", &key),
    ];
    assert_eq!(outcome(c.call("PUT", "/box/k", &put, b"1")), "201");
    let get = |headers: &[(&str, &str)]| outcome(c.call("GET", "/box/k", headers, b""));
    assert_eq!(get(&[]), "409 BlobUsesCustomerSpecifiedEncryption");
    assert_eq!(
        get(&[("x-ms-encryption-key-sha256", &other)]),
        "409 BlobCustomerSpecifiedEncryptionMismatch"
    );
    assert_eq!(get(&[("x-ms-encryption-key-sha256", &key)]), "200");
    let metadata = c.call("PUT", "/box/k?comp=metadata", &[], b"");
    assert_eq!(outcome(metadata), "409 BlobUsesCustomerSpecifiedEncryption");
    let scope = [
        ("x-ms-blob-type", "BlockBlob"),
        ("x-ms-encryption-scope", "legal"),
    ];
    assert_eq!(outcome(c.call("PUT", "/box/s", &scope, b"1")), "201");
    let head = c.call("HEAD", "/box/s", &[], b"");
    assert_eq!(
        (head.status, head.header("x-ms-encryption-scope")),
        (200, "legal")
    );
}

/// REST: "Delete Container", remarks.
#[test]
fn the_name_of_a_deleted_container_is_taken_for_a_while() {
    let c = Caller::new().with_container();
    c.store
        .configure(|account| account.container_deletion = Duration::from_secs(30));
    assert_eq!(
        outcome(c.call("DELETE", "/box?restype=container", &[], b"")),
        "202"
    );
    let create = || outcome(c.call("PUT", "/box?restype=container", &[], b""));
    assert_eq!(create(), "409 ContainerBeingDeleted");
    assert_eq!(outcome(c.put("a", b"1")), "404 ContainerNotFound");
    assert!(c.store.create_container("box").is_err());
    c.store.advance_clock(Duration::from_secs(31));
    assert_eq!(create(), "201");
}

/// "Require secure transfer". REST: "Get Account Information", "List Blobs" (include=permissions).
#[test]
fn settings_of_the_account_are_told_and_held_to() {
    let c = Caller::new().with_container();
    let permissions = || {
        let answer = c.call(
            "GET",
            "/box?restype=container&comp=list&include=permissions",
            &[],
            b"",
        );
        (answer.status, answer.code().to_owned(), answer.text())
    };
    let information = || c.call("GET", "/?restype=account&comp=properties", &[], b"");
    let flat = permissions();
    assert_eq!((flat.0, &*flat.1), (400, "InvalidQueryParameterValue"));
    assert_eq!(information().header("x-ms-is-hns-enabled"), "false");
    c.store.configure(|account| account.hierarchical = true);
    c.put("a", b"1");
    let hierarchical = permissions();
    assert!(
        hierarchical.0 == 200 && hierarchical.2.contains("<Owner>"),
        "{hierarchical:?}"
    );
    assert_eq!(information().header("x-ms-is-hns-enabled"), "true");
    c.store.configure(|account| account.https_only = true);
    assert_eq!(outcome(c.put("a", b"1")), "400 AccountRequiresHttps");
}

/// REST: "Put Block": what nobody commits within a week is gone.
#[test]
fn staged_blocks_live_for_a_week() {
    let c = Caller::new().with_container();
    let day = Duration::from_secs(24 * 3600);
    c.stage("a", b"1", b"x");
    c.store.advance_clock(day * 6);
    // The last block that was staged counts.
    c.stage("a", b"2", b"y");
    c.store.advance_clock(day * 6);
    let list = c.call("GET", "/box/a?comp=blocklist&blocklisttype=uncommitted", &[], b"");
    assert_eq!(list.text().matches("<Block>").count(), 2, "{}", list.text());
    c.store.advance_clock(day);
    let commit = b"<BlockList><Latest>MQ==</Latest></BlockList>";
    assert_eq!(
        outcome(c.call("PUT", "/box/a?comp=blocklist", &[], commit)),
        "400 InvalidBlockList"
    );
    assert_eq!(
        outcome(c.call("GET", "/box/a?comp=blocklist", &[], b"")),
        "404 BlobNotFound"
    );
}

/// What the service keeps of a blob survives the store's folder too.
#[test]
fn the_folder_keeps_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        folder: Some(dir.path().to_owned()),
        ..Default::default()
    };
    let c = Caller::over(BlobStore::new(config.clone()).unwrap()).with_container();
    let headers = [
        ("x-ms-blob-type", "BlockBlob"),
        ("x-ms-tags", "a=1"),
        ("x-ms-access-tier", "Cool"),
    ];
    assert_eq!(outcome(c.call("PUT", "/box/t", &headers, b"1")), "201");
    drop(c);
    let c = Caller::over(BlobStore::new(config).unwrap());
    let head = c.call("HEAD", "/box/t", &[], b"");
    assert_eq!(
        (head.header("x-ms-tag-count"), head.header("x-ms-access-tier")),
        ("1", "Cool")
    );
}

/// REST: "Create a service SAS", the permission `t`.
#[test]
fn tags_need_a_permission_of_their_own() {
    let c = Caller::new().with_container();
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY).unwrap();
    let sas = |permissions: &str| {
        let lifetime = Duration::from_secs(600);
        key.container_sas("box", &SasOptions::new(permissions, lifetime))
    };
    let with = |method: &str, path: &str, sas: &str, headers: &[(&str, &str)], body: &[u8]| {
        let joint = if path.contains('?') { '&' } else { '?' };
        outcome(c.plain(method, &format!("{path}{joint}{sas}"), headers, body))
    };
    let (without, tagging) = (sas("rwd"), sas("rwdt"));
    let put = [("x-ms-blob-type", "BlockBlob"), ("x-ms-tags", "a=1")];
    assert_eq!(
        with("PUT", "/box/t", &without, &put, b"1"),
        "403 AuthorizationPermissionMismatch"
    );
    assert_eq!(with("PUT", "/box/t", &tagging, &put, b"1"), "201");
    assert_eq!(
        with("GET", "/box/t?comp=tags", &without, &[], b""),
        "403 AuthorizationPermissionMismatch"
    );
    assert_eq!(with("GET", "/box/t?comp=tags", &tagging, &[], b""), "200");
    let condition = [("x-ms-if-tags", "a = '1'")];
    assert_eq!(
        with("GET", "/box/t", &without, &condition, b""),
        "403 AuthorizationPermissionMismatch"
    );
    assert_eq!(with("GET", "/box/t", &tagging, &condition, b""), "200");
    // How many there are is told to anybody who may read.
    assert_eq!(with("PUT", "/box/t", &without, &put[..1], b"2"), "201");
    assert_eq!(
        with("GET", "/box/t", &tagging, &condition, b""),
        "412 ConditionNotMet"
    );
}
