//! What goes over the wire below the client's calls: headers, statuses, codes, XML.

use anyhow::{Context as _, Result, ensure};

use crate::context::{Answer, Context};
use crate::same;

const BLOCK: (&str, &str) = ("x-ms-blob-type", "BlockBlob");

pub(crate) async fn put(c: &Context, name: &str, extra: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let mut headers = vec![BLOCK];
    headers.extend_from_slice(extra);
    c.raw("PUT", &format!("/{{box}}/{name}"), &headers, body).await
}

/// Expects an outcome and notes it.
pub(crate) fn wants(c: &Context, what: &str, answer: &Answer, wanted: &str) -> Result<()> {
    c.wants(what, answer.outcome(), wanted)
        .with_context(|| answer.text())
}

/// Notes which of these headers are there, and the values of those that are the same everywhere.
pub(crate) fn note_headers(c: &Context, what: &str, answer: &Answer, fixed: &[&str], present: &[&str]) {
    for name in fixed {
        c.note(&format!("{what} {name}"), answer.header(name));
    }
    for name in present {
        c.note(&format!("{what} has {name}"), !answer.header(name).is_empty());
    }
}

pub(crate) async fn versions_and_ids(c: &Context) -> Result<()> {
    let mine = ("x-ms-client-request-id", "mine-1");
    for (name, extra) in [
        ("old", ("x-ms-version", "2019-12-12")),
        ("new", ("x-ms-version", "2021-12-02")),
    ] {
        let answer = put(c, name, &[extra, mine], b"x").await?;
        wants(c, name, &answer, "201")?;
        same!(answer.header("x-ms-client-request-id"), "mine-1");
        if !c.differs("Azurite answers with its own newest version whatever was asked for") {
            same!(answer.header("x-ms-version"), extra.1);
        }
        note_headers(
            c,
            name,
            &answer,
            &["x-ms-request-server-encrypted", "content-length"],
            &[
                "x-ms-request-id",
                "x-ms-version",
                "date",
                "etag",
                "last-modified",
                "content-md5",
            ],
        );
        let etag = answer.header("etag");
        ensure!(
            etag.starts_with("\"0x") && etag.ends_with('"') && etag.len() > 10,
            "{etag}"
        );
        ensure!(
            etag[3..etag.len() - 1]
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')),
            "{etag}"
        );
    }
    Ok(())
}

pub(crate) async fn error_body(c: &Context) -> Result<()> {
    let get = c.raw("GET", "/{box}/none", &[], b"").await?;
    wants(c, "get", &get, "404 BlobNotFound")?;
    ensure!(get.text().contains("<Code>BlobNotFound</Code>"), "{}", get.text());
    ensure!(
        get.text().contains(get.header("x-ms-request-id")),
        "{}",
        get.text()
    );
    note_headers(c, "get", &get, &["content-type"], &[]);
    let head = c.raw("HEAD", "/{box}/none", &[], b"").await?;
    wants(c, "head", &head, "404 BlobNotFound")?;
    same!(head.body.len(), 0);
    Ok(())
}

pub(crate) async fn range_headers(c: &Context) -> Result<()> {
    put(c, "b", &[], &[7; 100]).await?;
    for (header, value, wanted, range, len) in [
        ("x-ms-range", "bytes=0-9", "206", "bytes 0-9/100", 10),
        ("range", "bytes=10-19", "206", "bytes 10-19/100", 10),
        ("x-ms-range", "bytes=90-", "206", "bytes 90-99/100", 10),
        ("x-ms-range", "bytes=90-1000", "206", "bytes 90-99/100", 10),
    ] {
        let answer = c.raw("GET", "/{box}/b", &[(header, value)], b"").await?;
        wants(c, value, &answer, wanted)?;
        if len > 0 {
            same!(answer.header("content-range"), range);
            same!((answer.body.len(), answer.header("content-length")), (len, "10"));
            note_headers(
                c,
                value,
                &answer,
                &["accept-ranges", "x-ms-blob-type"],
                &["etag", "last-modified"],
            );
        }
    }
    for past in ["bytes=100-", "bytes=100-200"] {
        let answer = c.raw("GET", "/{box}/b", &[("x-ms-range", past)], b"").await?;
        c.wants_but(
            past,
            answer.outcome(),
            "416 InvalidRange",
            "206",
            "Azurite answers a range that begins exactly at the end with nothing",
        )?;
    }
    let past = c
        .raw("GET", "/{box}/b", &[("x-ms-range", "bytes=101-200")], b"")
        .await?;
    wants(c, "past the end", &past, "416 InvalidRange")?;
    let whole = c.raw("GET", "/{box}/b", &[], b"").await?;
    wants(c, "whole", &whole, "200")?;
    same!((whole.body.len(), whole.header("content-range")), (100, ""));
    let both = c
        .raw(
            "GET",
            "/{box}/b",
            &[("range", "bytes=0-0"), ("x-ms-range", "bytes=5-9")],
            b"",
        )
        .await?;
    same!(both.header("content-range"), "bytes 5-9/100");
    Ok(())
}

pub(crate) async fn checksums(c: &Context) -> Result<()> {
    let body = b"123456789";
    let right = ("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==");
    let wrong = ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
    wants(c, "right", &put(c, "b", &[right], body).await?, "201")?;
    let answer = put(c, "b", &[wrong], body).await?;
    if !c.differs("Azurite answers a wrong MD5 of Put Blob with InvalidOperation") {
        same!(answer.outcome(), "400 Md5Mismatch");
    }
    same!(answer.status.as_u16(), 400);
    let head = c.raw("HEAD", "/{box}/b", &[], b"").await?;
    same!(head.header("content-md5"), right.1);
    let block = c
        .raw("PUT", "/{box}/k?comp=block&blockid=QQ%3D%3D", &[right], body)
        .await?;
    wants(c, "block", &block, "201")?;
    let block = c
        .raw("PUT", "/{box}/k?comp=block&blockid=QQ%3D%3D", &[wrong], body)
        .await?;
    same!(block.status.as_u16(), 400);
    Ok(())
}

pub(crate) async fn content_headers(c: &Context) -> Result<()> {
    let given = [
        ("x-ms-blob-content-type", "text/plain"),
        ("x-ms-blob-content-encoding", "x-enc"),
        ("x-ms-blob-content-language", "de"),
        ("x-ms-blob-content-disposition", "inline"),
        ("x-ms-blob-cache-control", "no-store"),
    ];
    put(c, "b", &given, b"x").await?;
    let names = [
        "content-type",
        "content-encoding",
        "content-language",
        "content-disposition",
        "cache-control",
    ];
    for method in ["GET", "HEAD"] {
        let answer = c.raw(method, "/{box}/b", &[], b"").await?;
        for (name, (_, value)) in names.iter().zip(given) {
            same!(answer.header(name), value);
        }
        note_headers(
            c,
            method,
            &answer,
            &[
                "x-ms-lease-state",
                "x-ms-lease-status",
                "x-ms-server-encrypted",
                "x-ms-blob-type",
                "content-length",
            ],
            &["x-ms-creation-time", "content-md5"],
        );
    }
    let set = c
        .raw(
            "PUT",
            "/{box}/b?comp=properties",
            &[("x-ms-blob-content-type", "a/b")],
            b"",
        )
        .await?;
    wants(c, "set properties", &set, "200")?;
    let head = c.raw("HEAD", "/{box}/b", &[], b"").await?;
    same!(head.header("etag"), set.header("etag"));
    same!(
        (head.header("content-type"), head.header("content-language")),
        ("a/b", "")
    );
    Ok(())
}

pub(crate) async fn dates(c: &Context) -> Result<()> {
    let put = put(c, "b", &[], b"x").await?;
    let head = c.raw("HEAD", "/{box}/b", &[], b"").await?;
    same!(head.header("last-modified"), put.header("last-modified"));
    let date = head.header("last-modified");
    ensure!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    Ok(())
}

pub(crate) async fn unmodified_since(c: &Context) -> Result<()> {
    let put = put(c, "b", &[], b"x").await?;
    let at = put.header("last-modified");
    let past = "Sun, 01 Jan 2023 00:00:00 GMT";
    let future = "Fri, 01 Jan 2100 00:00:00 GMT";
    for (header, value, get, set) in [
        (
            "if-modified-since",
            at,
            "304 ConditionNotMet",
            "412 ConditionNotMet",
        ),
        ("if-modified-since", past, "200", "200"),
        (
            "if-unmodified-since",
            past,
            "412 ConditionNotMet",
            "412 ConditionNotMet",
        ),
        ("if-unmodified-since", future, "200", "200"),
    ] {
        let what = format!("{header} {}", if value == at { "then" } else { value });
        let answer = c.raw("GET", "/{box}/b", &[(header, value)], b"").await?;
        same!(answer.status.as_u16().to_string(), get[..3]);
        c.note(&what, answer.status.as_u16());
        let answer = c
            .raw("PUT", "/{box}/b?comp=properties", &[(header, value)], b"")
            .await?;
        wants(c, &what, &answer, set)?;
    }
    Ok(())
}

pub(crate) async fn foreign_types(c: &Context) -> Result<()> {
    let append = c
        .raw("PUT", "/{box}/log", &[("x-ms-blob-type", "AppendBlob")], b"")
        .await?;
    wants(c, "append blob", &append, "201")?;
    for (body, at) in [("one", "0"), ("two", "3")] {
        let answer = c
            .raw("PUT", "/{box}/log?comp=appendblock", &[], body.as_bytes())
            .await?;
        wants(c, body, &answer, "201")?;
        same!(answer.header("x-ms-blob-append-offset"), at);
    }
    let get = c.raw("GET", "/{box}/log", &[], b"").await?;
    same!(
        (get.header("x-ms-blob-type"), get.text()),
        ("AppendBlob", "onetwo".to_owned())
    );
    let block = c
        .raw("PUT", "/{box}/log?comp=block&blockid=QQ%3D%3D", &[], b"x")
        .await?;
    wants(c, "block of an append blob", &block, "409 InvalidBlobType")?;
    let list = c
        .raw("GET", "/{box}/log?comp=blocklist&blocklisttype=all", &[], b"")
        .await?;
    wants(c, "block list of an append blob", &list, "409 InvalidBlobType")?;
    let page = [
        ("x-ms-blob-type", "PageBlob"),
        ("x-ms-blob-content-length", "1024"),
    ];
    wants(
        c,
        "page blob",
        &c.raw("PUT", "/{box}/disk", &page, b"").await?,
        "201",
    )?;
    let write = [("x-ms-page-write", "update"), ("x-ms-range", "bytes=512-1023")];
    let answer = c.raw("PUT", "/{box}/disk?comp=page", &write, &[9; 512]).await?;
    wants(c, "put page", &answer, "201")?;
    let get = c.raw("GET", "/{box}/disk", &[], b"").await?;
    same!(get.header("x-ms-blob-type"), "PageBlob");
    same!(&get.body[..], &[[0u8; 512], [9; 512]].concat()[..]);
    Ok(())
}

pub(crate) async fn block_list_xml(c: &Context) -> Result<()> {
    let stage = c
        .raw("PUT", "/{box}/b?comp=block&blockid=QQ%3D%3D", &[], b"xyz")
        .await?;
    wants(c, "stage", &stage, "201")?;
    let list = c
        .raw("GET", "/{box}/b?comp=blocklist&blocklisttype=all", &[], b"")
        .await?;
    wants(c, "list", &list, "200")?;
    for body in ["", "<BlockList>", "no xml", "<Other></Other>"] {
        let answer = c
            .raw("PUT", "/{box}/b?comp=blocklist", &[], body.as_bytes())
            .await?;
        if c.differs("Azurite answers some malformed lists with 500 and commits an empty list for others") {
            continue;
        }
        same!(answer.outcome(), "400 InvalidXmlDocument");
    }
    if c.differs("Azurite has committed one of the malformed lists") {
        return Ok(());
    }
    let body =
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<BlockList>\n  <Latest>QQ==</Latest>\n</BlockList>";
    let commit = c
        .raw("PUT", "/{box}/b?comp=blocklist", &[], body.as_bytes())
        .await?;
    same!(commit.outcome(), "201");
    let which = |kind: &str| format!("/{{box}}/b?comp=blocklist&blocklisttype={kind}");
    let committed = c.raw("GET", &which("committed"), &[], b"").await?;
    ensure!(
        committed
            .text()
            .contains("<CommittedBlocks><Block><Name>QQ==</Name><Size>3</Size></Block></CommittedBlocks>")
    );
    ensure!(!committed.text().contains("Uncommitted"));
    let uncommitted = c.raw("GET", &which("uncommitted"), &[], b"").await?;
    ensure!(!uncommitted.text().contains("<Block>"));
    Ok(())
}

pub(crate) async fn bad_requests(c: &Context) -> Result<()> {
    let untyped = c.raw("PUT", "/{box}/b", &[], b"x").await?;
    same!(untyped.status.as_u16(), 400);
    let empty = c
        .raw("PUT", "/{box}/b?comp=block&blockid=QQ%3D%3D", &[], b"")
        .await?;
    c.wants_but(
        "an empty block",
        empty.outcome(),
        "400 InvalidHeaderValue",
        "201",
        "Azurite takes empty blocks",
    )?;
    let no_id = c.raw("PUT", "/{box}/b?comp=block", &[], b"x").await?;
    same!(no_id.status.as_u16(), 400);
    let long = c
        .raw(
            "PUT",
            &format!("/{{box}}/b?comp=block&blockid={}", "QUFB".repeat(22)),
            &[],
            b"x",
        )
        .await?;
    wants(c, "a block id of 66 bytes", &long, "400 OutOfRangeInput")?;
    let zero = c
        .raw("GET", "/{box}?restype=container&comp=list&maxresults=0", &[], b"")
        .await?;
    same!(zero.status.as_u16(), 400);
    Ok(())
}

pub(crate) async fn copy_headers(c: &Context) -> Result<()> {
    put(c, "source", &[("x-ms-meta-k", "v")], b"xyz").await?;
    let source = c.url_of("source");
    let answer = c
        .raw(
            "PUT",
            "/{box}/target",
            &[("x-ms-copy-source", source.as_str())],
            b"",
        )
        .await?;
    wants(c, "copy", &answer, "202")?;
    same!(answer.header("x-ms-copy-status"), "success");
    let head = c.raw("HEAD", "/{box}/target", &[], b"").await?;
    same!(head.header("x-ms-copy-id"), answer.header("x-ms-copy-id"));
    note_headers(
        c,
        "head",
        &head,
        &["x-ms-copy-status", "x-ms-copy-progress", "x-ms-meta-k"],
        &["x-ms-copy-source", "x-ms-copy-completion-time"],
    );
    let missing = c
        .raw(
            "PUT",
            "/{box}/target",
            &[("x-ms-copy-source", c.url_of("none").as_str())],
            b"",
        )
        .await?;
    same!(missing.status.as_u16(), 404);
    let abort = c
        .raw(
            "PUT",
            &format!(
                "/{{box}}/target?comp=copy&copyid={}",
                answer.header("x-ms-copy-id")
            ),
            &[("x-ms-copy-action", "abort")],
            b"",
        )
        .await?;
    if !c.differs("Azurite answers 204 to aborting a finished copy") {
        same!(abort.outcome(), "409 NoPendingCopyOperation");
    }
    Ok(())
}
