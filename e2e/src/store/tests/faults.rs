//! Faults that execute what they say failed, or execute it later, or page by page.

use super::*;

fn inject(c: &Caller, operation: Operation, fault: Fault) {
    c.store.inject(FaultRule::next(operation, fault));
}

#[test]
fn an_error_can_come_after_the_execution() {
    let c = Caller::new().with_container();
    inject(
        &c,
        Operation::PutBlob,
        Fault::AnswerAfter {
            status: 503,
            code: "ServerBusy".into(),
        },
    );
    let put = c.put("a", b"1");
    assert_eq!((put.status, put.code()), (503, "ServerBusy"));
    assert_eq!(c.call("GET", "/box/a", &[], b"").body, b"1");
    assert_eq!(c.store.counters(Operation::PutBlob).errors, 1);
}

#[test]
fn a_late_request_is_executed_when_it_is_wanted() {
    let c = Caller::new().with_container();
    c.put("a", b"old");
    inject(&c, Operation::DeleteBlob, Fault::Late);
    c.call("DELETE", "/box/a", &[], b"");
    assert_eq!(
        (c.store.late_requests(), c.call("GET", "/box/a", &[], b"").status),
        (1, 200)
    );
    c.put("a", b"new");
    assert_eq!(c.store.execute_late(), [202]);
    assert_eq!(
        (c.store.late_requests(), c.call("GET", "/box/a", &[], b"").status),
        (0, 404)
    );
    // A condition that held then does not hold now.
    let etag = c.put("a", b"old").header("etag").to_owned();
    inject(&c, Operation::DeleteBlob, Fault::Late);
    c.call("DELETE", "/box/a", &[("if-match", &etag)], b"");
    c.put("a", b"new");
    assert_eq!(c.store.execute_late(), [412]);
    assert_eq!(c.call("GET", "/box/a", &[], b"").body, b"new");
}

#[test]
fn a_doubled_request_is_answered_and_executed_again() {
    let c = Caller::new().with_container();
    inject(&c, Operation::PutBlob, Fault::Doubled);
    assert_eq!(c.put("a", b"1").status, 201);
    c.put("a", b"2");
    assert_eq!(c.store.execute_late(), [201]);
    assert_eq!(c.call("GET", "/box/a", &[], b"").body, b"1");
}

/// A front end may refuse a request by its head alone, and close what it will not read.
#[test]
fn an_answer_can_come_before_the_body() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let c = Caller::new().with_container();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let server = c.store.serve(([127, 0, 0, 1], 0).into()).await.unwrap();
        inject(
            &c,
            Operation::PutBlob,
            Fault::EarlyAnswer {
                status: 413,
                code: "RequestBodyTooLarge".into(),
            },
        );
        let mut connection = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
        let head = format!(
            "PUT /{DEV_ACCOUNT}/box/a HTTP/1.1\r\nhost: x\r\nx-ms-blob-type: BlockBlob\r\n\
             content-length: 1000000\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        // Not a byte of the body is sent: the answer and the end come all the same.
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert!(
            answer.contains("x-ms-error-code: RequestBodyTooLarge"),
            "{answer}"
        );
    });
    assert_eq!(c.call("GET", "/box/a", &[], b"").status, 404);
}

#[test]
fn pages_may_be_short_or_empty_and_go_on() {
    let c = Caller::new().with_container();
    for name in ["a", "b", "c"] {
        c.put(name, b"");
    }
    let list = |marker: &str| {
        let text = c
            .call(
                "GET",
                &format!("/box?restype=container&comp=list&marker={marker}"),
                &[],
                b"",
            )
            .text();
        let between = |open: &str, close: &str| {
            text.split_once(open)
                .and_then(|(_, rest)| rest.split_once(close))
                .map(|(inner, _)| inner.to_owned())
        };
        (
            text.matches("<Blob>").count(),
            between("<NextMarker>", "</NextMarker>").unwrap_or_default(),
        )
    };
    inject(&c, Operation::ListBlobs, Fault::ShortPage { entries: 0 });
    let (entries, marker) = list("");
    assert_eq!((entries, marker.is_empty()), (0, false));
    inject(&c, Operation::ListBlobs, Fault::ShortPage { entries: 1 });
    let (entries, marker) = list(&marker.replace('=', "%3D"));
    assert_eq!((entries, marker.is_empty()), (1, false));
    assert_eq!(list(&marker.replace('=', "%3D")), (2, String::new()));
}

/// REST: "Copy Blob", "Abort Copy Blob".
#[test]
fn a_copy_may_be_pending_and_end_well_or_not() {
    let c = Caller::new().with_container();
    c.put("from", b"content");
    let source = format!("http://127.0.0.1/{DEV_ACCOUNT}/box/from");
    let start = |c: &Caller| {
        inject(c, Operation::CopyBlob, Fault::PendingCopy);
        c.call("PUT", "/box/to", &[("x-ms-copy-source", &source)], b"")
    };
    let head = || c.call("HEAD", "/box/to", &[], b"");
    let copied = start(&c);
    assert_eq!(
        (copied.status, copied.header("x-ms-copy-status")),
        (202, "pending")
    );
    assert_eq!(
        (head().header("x-ms-copy-status"), head().header("content-length")),
        ("pending", "0")
    );
    assert_eq!(head().header("x-ms-copy-progress"), "0/7");
    let put = c.put("to", b"x");
    assert_eq!((put.status, put.code()), (409, "PendingCopyOperation"));
    assert_eq!(c.store.end_copies(true), 1);
    assert_eq!(
        (head().header("x-ms-copy-status"), head().header("content-length")),
        ("success", "7")
    );
    assert_ne!(
        head().header("etag"),
        copied.header("etag"),
        "the end of a copy is a new version"
    );
    start(&c);
    assert_eq!(c.store.end_copies(false), 1);
    assert_eq!(
        (head().header("x-ms-copy-status"), head().header("content-length")),
        ("failed", "0")
    );
    let id = start(&c).header("x-ms-copy-id").to_owned();
    let abort = |id: &str| {
        let headers = [("x-ms-copy-action", "abort")];
        c.call("PUT", &format!("/box/to?comp=copy&copyid={id}"), &headers, b"")
            .status
    };
    assert_eq!((abort("another"), abort(&id), abort(&id)), (409, 204, 409));
    assert_eq!(head().header("x-ms-copy-status"), "aborted");
    assert_eq!(c.store.end_copies(true), 0);
    assert_eq!(c.put("to", b"x").status, 201);
}

/// REST: "Copy Blob": the target must be of the source's type.
#[test]
fn a_copy_does_not_change_the_type_of_its_target() {
    let c = Caller::new().with_container();
    c.put("from", b"1");
    c.call("PUT", "/box/to", &[("x-ms-blob-type", "AppendBlob")], b"");
    let source = format!("http://127.0.0.1/{DEV_ACCOUNT}/box/from");
    let copied = c.call("PUT", "/box/to", &[("x-ms-copy-source", &source)], b"");
    assert_eq!((copied.status, copied.code()), (409, "InvalidBlobType"));
    // Put Blob does.
    assert_eq!(c.put("to", b"1").status, 201);
}
