//! What the owner of a blob stored stays, whatever is done to it through a mount.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Result, ensure};
use e2e::harness::tools::run;

use crate::foreign::Foreign;
use crate::{bytes, setup, sh};

const HEADERS: [(&str, &str); 7] = [
    ("x-ms-blob-content-type", "text/html"),
    ("x-ms-blob-content-encoding", "gzip"),
    ("x-ms-blob-content-language", "de"),
    ("x-ms-blob-content-disposition", "inline"),
    ("x-ms-blob-cache-control", "max-age=60"),
    ("x-ms-access-tier", "Cool"),
    ("x-ms-tags", "t=x"),
];

#[test]
fn an_edit_keeps_headers_tier_and_tags() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    foreign.put("i", &HEADERS, b"1\n")?;
    let (before, tags) = (foreign.owned("i")?, foreign.tags("i")?);
    let a = setup.mount("owners", "a")?;
    sh(a.path(), "echo 2 >> i")?;
    ensure!(foreign.read("i")? == b"1\n2\n");
    ensure!(
        foreign.owned("i")? == before,
        "{:?} was {before:?}",
        foreign.owned("i")?
    );
    ensure!(foreign.tags("i")? == tags, "{}", foreign.tags("i")?);
    // Replaced from the beginning, it is the same file of the same owner.
    sh(a.path(), "echo 3 > i")?;
    ensure!(foreign.read("i")? == b"3\n");
    ensure!(
        foreign.owned("i")? == before,
        "{:?} was {before:?}",
        foreign.owned("i")?
    );
    a.unmount()?;
    Ok(())
}

#[test]
fn a_change_in_place_of_a_large_blob_keeps_them() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    let mut content = bytes(20 << 20);
    foreign.put_blocks("large", &HEADERS, &content, 4 << 20)?;
    let (before, tags) = (foreign.owned("large")?, foreign.tags("large")?);
    let a = setup.mount("owners", "a")?;
    let file = OpenOptions::new().write(true).open(a.path().join("large"))?;
    file.write_all_at(b"!", 17 << 20)?;
    file.sync_all()?;
    drop(file);
    content[17 << 20] = b'!';
    ensure!(foreign.read("large")? == content);
    ensure!(
        foreign.owned("large")? == before,
        "{:?} was {before:?}",
        foreign.owned("large")?
    );
    ensure!(foreign.tags("large")? == tags, "{}", foreign.tags("large")?);
    a.unmount()?;
    Ok(())
}

#[test]
fn a_rename_takes_them_along() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    foreign.put("d/i", &HEADERS, b"1\n")?;
    let (before, tags) = (foreign.owned("d/i")?, foreign.tags("d/i")?);
    let a = setup.mount("owners", "a")?;
    fs::rename(a.path().join("d/i"), a.path().join("d/j"))?;
    ensure!(
        foreign.owned("d/j")? == before,
        "{:?} was {before:?}",
        foreign.owned("d/j")?
    );
    ensure!(foreign.tags("d/j")? == tags, "{}", foreign.tags("d/j")?);
    fs::rename(a.path().join("d"), a.path().join("e"))?;
    ensure!(
        foreign.owned("e/j")? == before,
        "{:?} was {before:?}",
        foreign.owned("e/j")?
    );
    ensure!(foreign.tags("e/j")? == tags, "{}", foreign.tags("e/j")?);
    a.unmount()?;
    Ok(())
}

/// copy_file_range(2) into a file: its content is another one, and all the rest is still its owner's.
#[test]
fn a_copy_into_a_file_keeps_what_its_owner_stored() -> Result<()> {
    const OTHERS: [(&str, &str); 5] = [
        ("x-ms-blob-content-type", "text/plain"),
        ("x-ms-blob-cache-control", "no-store"),
        ("x-ms-access-tier", "Hot"),
        ("x-ms-tags", "u=y"),
        ("x-ms-meta-owner", "of the source"),
    ];
    const LEN: usize = 16 << 20;
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    let source = bytes(20 << 20);
    foreign.put_blocks("source", &OTHERS, &source, 4 << 20)?;
    let target: Vec<_> = HEADERS.into_iter().chain([("x-ms-meta-owner", "me")]).collect();
    foreign.put_blocks("target", &target, &vec![b'-'; 20 << 20], 4 << 20)?;
    let (before, tags) = (foreign.owned("target")?, foreign.tags("target")?);
    let a = setup.mount("owners", "a")?;
    // By the system call itself: the standard library may fall back to reading.
    let script = "import os, sys\n\
        source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY)\n\
        done = 0\n\
        while done < int(sys.argv[3]):\n\
        \x20   more = os.copy_file_range(source, target, int(sys.argv[3]) - done, done + 4096, done)\n\
        \x20   assert more > 0\n\
        \x20   done += more\n\
        os.close(target)\n";
    run(Command::new("python3")
        .args(["-c", script])
        .args([a.path().join("source"), a.path().join("target")])
        .arg(LEN.to_string()))?;
    let now = foreign.read("target")?;
    ensure!(now.len() == 20 << 20);
    ensure!(now[..LEN] == source[4096..LEN + 4096] && now[LEN..].iter().all(|byte| *byte == b'-'));
    ensure!(
        foreign.owned("target")? == before,
        "{:?} was {before:?}",
        foreign.owned("target")?
    );
    ensure!(foreign.tags("target")? == tags, "{}", foreign.tags("target")?);
    ensure!(foreign.head("target")?.header("x-ms-meta-owner") == "me");
    a.unmount()?;
    Ok(())
}

/// A tier that nobody chose stays one that nobody chose: a later change of the account's default still
/// reaches it.
#[test]
fn an_inferred_tier_is_not_made_explicit() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    foreign.put("i", &[], b"1\n")?;
    let a = setup.mount("owners", "a")?;
    sh(a.path(), "echo 2 >> i && mv i j")?;
    let owned = foreign.owned("j")?;
    ensure!(owned["x-ms-access-tier-inferred"] == "true", "{owned:?}");
    a.unmount()?;
    Ok(())
}

#[test]
fn a_new_file_has_the_type_of_its_extension() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    let a = setup.mount("owners", "a")?;
    sh(
        a.path(),
        "echo x > a.css; echo x > a.html; echo x > a.js; echo x > none",
    )?;
    for (name, wanted) in [
        ("a.css", "text/css"),
        ("a.html", "text/html"),
        ("a.js", "text/javascript"),
    ] {
        let given = foreign.head(name)?.header("content-type");
        ensure!(given == wanted, "{name}: {given}");
    }
    ensure!(foreign.head("none")?.header("content-type") == "application/octet-stream");
    a.unmount()?;
    Ok(())
}

/// Metadata that is not ASCII, and as much of it as the service takes.
#[test]
fn metadata_of_others_neither_blocks_an_edit_nor_is_lost() -> Result<()> {
    let setup = setup()?;
    let foreign = Foreign::new(&setup, "owners")?;
    foreign.put("u", &[("x-ms-meta-t", "Ü")], b"1\n")?;
    let large = "v".repeat(8191);
    foreign.put("l", &[("x-ms-meta-m", &large)], b"1\n")?;
    let a = setup.mount("owners", "a")?;
    for (name, key, value) in [("u", "x-ms-meta-t", "Ü"), ("l", "x-ms-meta-m", &*large)] {
        let mut file = OpenOptions::new().append(true).open(a.path().join(name))?;
        file.write_all(b"2\n")?;
        file.sync_all()?;
        drop(file);
        ensure!(foreign.read(name)? == b"1\n2\n", "{name}");
        ensure!(
            foreign.head(name)?.header(key) == value,
            "{name}: {}",
            foreign.head(name)?.header(key)
        );
        let to = format!("{name}2");
        fs::rename(a.path().join(name), a.path().join(&to))?;
        ensure!(foreign.read(&to)? == b"1\n2\n", "{to}");
        ensure!(
            foreign.head(&to)?.header(key) == value,
            "{to}: {}",
            foreign.head(&to)?.header(key)
        );
    }
    a.unmount()?;
    Ok(())
}
