//! The account and its containers over the wire, below the client's calls: names, leases, listings.

use anyhow::{Result, ensure};

use crate::context::Context;
use crate::same;
use crate::wire::{note_headers, put, wants};

pub(crate) async fn container_names(c: &Context) -> Result<()> {
    for (name, wanted) in [
        ("Upper", "400 InvalidResourceName"),
        ("under_score", "400 InvalidResourceName"),
        ("double--dash", "400 InvalidResourceName"),
        ("-dash", "400 InvalidResourceName"),
        ("dash-", "400 InvalidResourceName"),
        ("ab", "400 OutOfRangeInput"),
    ] {
        let answer = c
            .raw("PUT", &format!("/{name}?restype=container"), &[], b"")
            .await?;
        wants(c, name, &answer, wanted)?;
    }
    let long = "a".repeat(64);
    let answer = c
        .raw("PUT", &format!("/{long}?restype=container"), &[], b"")
        .await?;
    wants(c, "64 letters", &answer, "400 OutOfRangeInput")
}

pub(crate) async fn container_lease(c: &Context) -> Result<()> {
    let path = "/{box}?restype=container&comp=lease";
    let acquire = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "15")];
    let answer = c.raw("PUT", path, &acquire, b"").await?;
    wants(c, "acquire", &answer, "201")?;
    let id = answer.header("x-ms-lease-id").to_owned();
    wants(
        c,
        "again",
        &c.raw("PUT", path, &acquire, b"").await?,
        "409 LeaseAlreadyPresent",
    )?;
    let head = c.raw("HEAD", "/{box}?restype=container", &[], b"").await?;
    note_headers(
        c,
        "properties",
        &head,
        &["x-ms-lease-state", "x-ms-lease-status", "x-ms-lease-duration"],
        &[],
    );
    same!(head.header("x-ms-lease-state"), "leased");
    let delete = c.raw("DELETE", "/{box}?restype=container", &[], b"").await?;
    wants(c, "delete", &delete, "412 LeaseIdMissing")?;
    let release = [("x-ms-lease-action", "release"), ("x-ms-lease-id", id.as_str())];
    wants(c, "release", &c.raw("PUT", path, &release, b"").await?, "200")
}

pub(crate) async fn lease_headers(c: &Context) -> Result<()> {
    put(c, "b", &[], b"x").await?;
    let path = "/{box}/b?comp=lease";
    for seconds in ["14", "61", "x"] {
        let acquire = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", seconds)];
        let answer = c.raw("PUT", path, &acquire, b"").await?;
        same!(answer.status.as_u16(), 400);
    }
    let id = "0a0a0a0a-0a0a-0a0a-0a0a-0a0a0a0a0a0a";
    let acquire = [
        ("x-ms-lease-action", "acquire"),
        ("x-ms-lease-duration", "-1"),
        ("x-ms-proposed-lease-id", id),
    ];
    let answer = c.raw("PUT", path, &acquire, b"").await?;
    wants(c, "acquire", &answer, "201")?;
    same!(answer.header("x-ms-lease-id"), id);
    let head = c.raw("HEAD", "/{box}/b", &[], b"").await?;
    note_headers(
        c,
        "head",
        &head,
        &["x-ms-lease-state", "x-ms-lease-status", "x-ms-lease-duration"],
        &[],
    );
    same!(head.header("x-ms-lease-duration"), "infinite");
    let broken = [("x-ms-lease-action", "break"), ("x-ms-lease-break-period", "0")];
    let answer = c.raw("PUT", path, &broken, b"").await?;
    wants(c, "break", &answer, "202")?;
    same!(answer.header("x-ms-lease-time"), "0");
    let head = c.raw("HEAD", "/{box}/b", &[], b"").await?;
    same!(head.header("x-ms-lease-state"), "broken");
    Ok(())
}

pub(crate) async fn list_containers(c: &Context) -> Result<()> {
    let name = c.box_name();
    let answer = c
        .raw(
            "GET",
            &format!("/?comp=list&prefix={name}&include=metadata"),
            &[],
            b"",
        )
        .await?;
    wants(c, "list", &answer, "200")?;
    ensure!(
        answer.text().contains(&format!("<Name>{name}</Name>")),
        "{}",
        answer.text()
    );
    let page = c.raw("GET", "/?comp=list&maxresults=1", &[], b"").await?;
    same!(page.text().matches("<Container>").count(), 1);
    Ok(())
}

pub(crate) async fn list_shape(c: &Context) -> Result<()> {
    put(c, "dir/b", &[("x-ms-meta-k", "v")], b"xyz").await?;
    put(c, "top", &[("x-ms-meta-k", "v")], b"xyz").await?;
    let answer = c
        .raw(
            "GET",
            "/{box}?restype=container&comp=list&delimiter=%2F&include=metadata",
            &[],
            b"",
        )
        .await?;
    wants(c, "list", &answer, "200")?;
    let text = answer.text();
    for part in [
        "<BlobPrefix><Name>dir/</Name></BlobPrefix>",
        "<Name>top</Name>",
        "<Content-Length>3</Content-Length>",
        "<BlobType>BlockBlob</BlobType>",
        "<LeaseStatus>unlocked</LeaseStatus>",
        "<LeaseState>available</LeaseState>",
        "<Metadata><k>v</k></Metadata>",
        "<NextMarker",
    ] {
        ensure!(text.contains(part), "{part} is missing in {text}");
    }
    note_headers(c, "list", &answer, &["content-type"], &[]);
    Ok(())
}

pub(crate) async fn account_information(c: &Context) -> Result<()> {
    for path in [
        "/?restype=account&comp=properties",
        "/{box}?restype=account&comp=properties",
    ] {
        let answer = c.raw("GET", path, &[], b"").await?;
        wants(c, path, &answer, "200")?;
        note_headers(c, path, &answer, &["x-ms-account-kind"], &["x-ms-sku-name"]);
    }
    Ok(())
}
