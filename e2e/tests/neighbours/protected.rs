//! What a lease, a policy, a hold, the archive or a key of somebody else forbids: told by open(2) and by the
//! log, and not by a close(2) that nobody looks at.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use e2e::harness::mount::{Mount, MountOptions};
use e2e::harness::setup::Setup;
use e2e::harness::wait_for;
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};
use http::Method;
use nix::errno::Errno;

use crate::foreign::Foreign;
use crate::{outcome, setup, sh};

fn append(path: &Path) -> Option<i32> {
    let opened = OpenOptions::new().append(true).open(path);
    opened.err().and_then(|error| error.raw_os_error())
}

#[test]
fn what_protects_a_blob_is_told_by_open_and_named_in_the_log() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "protected")?;
    let until = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600));
    let lease = [("x-ms-lease-action", "acquire"), ("x-ms-lease-duration", "-1")];
    let policy = [
        ("x-ms-immutability-policy-until-date", &*until),
        ("x-ms-immutability-policy-mode", "unlocked"),
    ];
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(&str, &str, Headers<'_>, i32, &str); 4] = [
        ("leased", "lease", &lease, libc::EBUSY, "LeaseIdMissing"),
        (
            "held",
            "legalhold",
            &[("x-ms-legal-hold", "true")],
            libc::EPERM,
            "BlobImmutableDueToLegalHold",
        ),
        (
            "kept",
            "immutabilityPolicies",
            &policy,
            libc::EPERM,
            "BlobImmutableDueToPolicy",
        ),
        (
            "archived",
            "tier",
            &[("x-ms-access-tier", "Archive")],
            libc::EPERM,
            "BlobArchived",
        ),
    ];
    for (name, component, headers, ..) in cases {
        foreign.put(name, &[], b"1\n")?;
        let answer = foreign.call(&Method::PUT, &format!("/{name}?comp={component}"), headers, b"")?;
        ensure!(answer.status < 300, "{name}: {answer:?}");
    }
    let a = setup.mount("protected", "a")?;
    for (name, _, _, errno, code) in cases {
        let path = a.path().join(name);
        ensure!(append(&path) == Some(errno), "{name}: {:?}", append(&path));
        let read = File::open(&path).err().and_then(|error| error.raw_os_error());
        let readable = name != "archived";
        ensure!(read == (!readable).then_some(libc::EPERM), "{name}: {read:?}");
        ensure!(fs::metadata(&path)?.len() == 2);
        wait_for("the line of the log", Duration::from_secs(10), || {
            let output = a.process().output();
            Ok(output
                .lines()
                .any(|line| line.contains(code) && line.contains(name))
                .then_some(()))
        })
        .with_context(|| format!("{name}: {}", a.process().output()))?;
    }
    // Many tries are not as many lines.
    for _ in 0..50 {
        ensure!(append(&a.path().join("leased")) == Some(libc::EBUSY));
    }
    let output = a.process().output();
    let lines = output
        .lines()
        .filter(|line| line.contains("LeaseIdMissing"))
        .count();
    ensure!(lines <= 5, "{output}");
    a.unmount()?;
    Ok(())
}

#[test]
fn a_blob_with_snapshots_stays_what_and_where_it_is() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "snapshots")?;
    for name in ["f", "g"] {
        foreign.put(name, &[], name.as_bytes())?;
    }
    foreign.make("AppendBlob", "log", &[])?;
    foreign.append("log", b"log")?;
    for name in ["f", "log"] {
        let made = foreign.call(&Method::PUT, &format!("/{name}?comp=snapshot"), &[], b"")?;
        ensure!(made.status == 201, "{name}: {made:?}");
    }
    let a = setup.mount("snapshots", "a")?;
    let at = |name: &str| a.path().join(name);
    let ended = outcome(fs::remove_file(at("f")));
    ensure!(ended == Err(Errno::EPERM), "unlink: {ended:?}");
    let ended = outcome(fs::rename(at("f"), at("h")));
    ensure!(ended == Err(Errno::EPERM), "rename: {ended:?}");
    ensure!(!foreign.exists("h")?, "the copy stays");
    // One of another type would have to be deleted first.
    let ended = outcome(fs::rename(at("g"), at("log")));
    ensure!(ended == Err(Errno::EPERM), "over a log: {ended:?}");
    ensure!(fs::read(at("log"))? == b"log" && foreign.read("log")? == b"log");
    for name in ["f", "g"] {
        ensure!(fs::read(at(name))? == name.as_bytes(), "{name}");
        ensure!(foreign.read(name)? == name.as_bytes(), "{name}");
    }
    ensure!(sh(a.path(), "ls")? == "f\ng\nlog\n");
    wait_for("the line of the log", Duration::from_secs(10), || {
        let output = a.process().output();
        let told = |line: &str| line.contains("has snapshots") && line.contains("delete those first");
        Ok(output.lines().any(told).then_some(()))
    })
    .with_context(|| a.process().output())?;
    // Its own snapshots do not keep a blob from being replaced: they stay with the name.
    fs::rename(at("g"), at("f"))?;
    ensure!(foreign.read("f")? == b"g" && !foreign.exists("g")?);
    // Once they are gone it moves.
    let only = [("x-ms-delete-snapshots", "only")];
    ensure!(foreign.call(&Method::DELETE, "/f", &only, b"")?.status == 202);
    fs::rename(at("f"), at("h"))?;
    ensure!(foreign.read("h")? == b"g" && !foreign.exists("f")?);
    a.unmount()?;
    Ok(())
}

#[test]
fn a_blob_under_its_owners_key_is_shown_and_left_alone() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "keys")?;
    let key = [
        (
            "x-ms-encryption-key",
            "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
        ),
        (
            "x-ms-encryption-key-sha256",
            "hhAJ7E1Zn6sfQKvHbm+JiAz/WDPHnFSMmfkEXxkc2Qs=",
        ),
        ("x-ms-encryption-algorithm", "AES256"),
    ];
    foreign.put("secret", &key, b"1\n")?;
    let a = setup.mount("keys", "a")?;
    let path = a.path().join("secret");
    ensure!(sh(a.path(), "ls")?.trim() == "secret");
    for _ in 0..2 {
        ensure!(fs::metadata(&path)?.len() == 2);
        ensure!(append(&path) == Some(libc::EPERM), "{:?}", append(&path));
        let read = File::open(&path).err().and_then(|error| error.raw_os_error());
        ensure!(read == Some(libc::EPERM), "{read:?}");
        // Past the time for which attributes are believed: asked for again.
        std::thread::sleep(Duration::from_millis(1100));
    }
    let output = a.process().output();
    ensure!(
        output.contains("customer-provided key") && output.contains("secret"),
        "{output}"
    );
    a.unmount()?;
    Ok(())
}

#[test]
fn encoded_content_is_told_once() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "encoded")?;
    let gzip = [("x-ms-blob-content-encoding", "gzip")];
    for name in ["a.log", "b.log"] {
        foreign.put(name, &gzip, b"1\n")?;
    }
    let a = setup.mount("encoded", "a")?;
    for name in ["a.log", "b.log", "a.log"] {
        sh(a.path(), &format!("echo 2 >> {name}"))?;
    }
    ensure!(foreign.head("a.log")?.header("content-encoding") == "gzip");
    let output = a.process().output();
    let lines = output.lines().filter(|line| line.contains("gzip")).count();
    ensure!(lines == 1, "{output}");
    a.unmount()?;
    Ok(())
}

/// Mounts a container with a SAS of it, as pods mostly have one.
fn with_sas(setup: &Setup, container: &str, rights: &str) -> Result<Mount> {
    let signer = AccountKey::new(DEV_ACCOUNT, DEV_KEY)?;
    let sas = signer.container_sas(container, &SasOptions::new(rights, Duration::from_secs(3600)));
    let options = MountOptions {
        sas: Some(sas),
        ..setup.options()
    };
    setup.mount_with(container, "sas", &options)
}

#[test]
fn tags_that_may_not_be_read_are_told_by_open_and_once_in_the_log() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "tagged")?;
    for name in ["f", "g"] {
        foreign.put(name, &[("x-ms-tags", "project=one")], b"1\n")?;
    }
    foreign.put("plain", &[], b"1\n")?;
    let a = with_sas(&setup, "tagged", "racwdl")?;
    for name in ["f", "g", "f"] {
        let path = a.path().join(name);
        ensure!(append(&path) == Some(libc::EACCES), "{:?}", append(&path));
        ensure!(fs::read(&path)? == b"1\n");
    }
    ensure!(sh(a.path(), "echo 2 >>f").is_err());
    sh(a.path(), "echo 2 >>plain")?;
    ensure!(foreign.read("plain")? == b"1\n2\n" && foreign.read("f")? == b"1\n");
    let told = |output: &str| output.matches("may not read the tags").count();
    wait_for("the line", Duration::from_secs(30), || {
        Ok((told(&a.process().output()) >= 1).then_some(()))
    })?;
    let output = a.process().output();
    ensure!(told(&output) == 1, "{output}");
    a.unmount()?;
    // With the right they stay.
    let a = with_sas(&setup, "tagged", "racwdlt")?;
    sh(a.path(), "echo 2 >>f")?;
    ensure!(foreign.read("f")? == b"1\n2\n");
    ensure!(foreign.head("f")?.header("x-ms-tag-count") == "1");
    a.unmount()?;
    Ok(())
}

/// A copy by the service is encrypted with the container's default scope, whoever asks for it. Who has a SAS
/// cannot ask which one that is.
#[test]
fn a_rename_leaves_no_encryption_scope_without_a_word() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "scoped")?;
    foreign.put("f", &[("x-ms-encryption-scope", "mine")], b"f")?;
    foreign.put("d/f", &[("x-ms-encryption-scope", "mine")], b"f")?;
    foreign.put("g", &[], b"g")?;
    for a in [
        setup.mount("scoped", "key")?,
        with_sas(&setup, "scoped", "racwdl")?,
    ] {
        for (from, to) in [("f", "h"), ("f", "g"), ("d/f", "d/g"), ("d", "e")] {
            let ended = outcome(fs::rename(a.path().join(from), a.path().join(to)));
            ensure!(ended == Err(Errno::EPERM), "{from} to {to}: {ended:?}");
        }
        ensure!(setup.backend().container("scoped")?.blobs()?.len() == 3);
        ensure!(foreign.read("g")? == b"g");
        for name in ["f", "d/f"] {
            ensure!(foreign.head(name)?.header("x-ms-encryption-scope") == "mine");
        }
        // What is in none moves.
        fs::rename(a.path().join("g"), a.path().join("h"))?;
        fs::rename(a.path().join("h"), a.path().join("g"))?;
        a.unmount()?;
    }
    Ok(())
}
