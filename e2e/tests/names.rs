//! Names: blobs of others are shown under their names or hidden by the rule of docs/semantics.md, and never
//! break a listing; files get the blob names one expects.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use blob_client::Metadata;
use e2e::harness::backend::Kind;
use e2e::harness::setup::{Setup, Way};

/// Names that stand for themselves, as files and as blobs.
const ORDINARY: [&str; 14] = [
    "with space",
    " leading and trailing ",
    "100%",
    "%2F",
    "a+b",
    "q?m&x=1#f",
    "'\"<>&",
    "Übergröße",
    "名前",
    "😀",
    ".hidden",
    "a.b",
    "~",
    "-rf",
];

fn listing(folder: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?
            .file_name()
            .into_string()
            .expect("a name that is not UTF-8");
        // Whatever is listed must be there to stat.
        fs::symlink_metadata(folder.join(&name))?;
        ensure!(names.insert(name.clone()), "{name} is listed twice");
    }
    Ok(names)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn foreign_blobs(kind: Kind) -> Result<()> {
    let setup = Setup::new(kind, Way::Https)?;
    let container = setup.backend().create_container("foreign")?;
    let none = Metadata::new();
    for name in ORDINARY {
        container.write(name, name.to_owned(), &none)?;
        container.write(&format!("folder/{name}"), name.to_owned(), &none)?;
    }
    // No paths: each hidden, and each in a folder of its own beside a file that must still be seen.
    for (folder, hidden) in [("empty", "empty//x"), ("dots", "dots/../x"), ("dot", "dot/./x")] {
        container.write(hidden, "hidden", &none)?;
        container.write(&format!("{folder}/seen"), "seen", &none)?;
    }
    // A name with a trailing slash marks its folder.
    container.write("marked/", "", &none)?;
    // A blob and a folder of one name: the folder is shown.
    container.write("both", "the file", &none)?;
    container.write("both/below", "below", &none)?;
    // Markers and links as blobfuse2 writes them.
    let fact = |key: &str| Metadata::from([(key.to_owned(), "true".to_owned())]);
    container.write("made by blobfuse2", "", &fact("hdi_isfolder"))?;
    container.write("link by blobfuse2", "folder/a+b", &fact("is_symlink"))?;

    let mount = setup.mount("foreign", "mnt")?;
    let mut expected = set(&ORDINARY);
    expected.extend(set(&[
        "folder",
        "empty",
        "dots",
        "dot",
        "marked",
        "both",
        "made by blobfuse2",
        "link by blobfuse2",
    ]));
    let names = listing(mount.path())?;
    ensure!(names == expected, "\n     got {names:?}\nexpected {expected:?}");
    ensure!(listing(&mount.path().join("folder"))? == set(&ORDINARY));
    for name in ORDINARY {
        ensure!(fs::read_to_string(mount.path().join(name))? == name);
        ensure!(fs::read_to_string(mount.path().join("folder").join(name))? == name);
    }
    for folder in ["empty", "dots", "dot"] {
        let names = listing(&mount.path().join(folder))?;
        ensure!(names == set(&["seen"]), "{folder}: {names:?}");
        // What nobody can see is not deleted with the folder.
        fs::remove_file(mount.path().join(folder).join("seen"))?;
        let error = fs::remove_dir(mount.path().join(folder)).expect_err("removed with hidden contents");
        ensure!(error.raw_os_error() == Some(libc::ENOTEMPTY), "{folder}: {error}");
    }
    ensure!(mount.path().join("marked").is_dir() && listing(&mount.path().join("marked"))?.is_empty());
    ensure!(listing(&mount.path().join("both"))? == set(&["below"]));
    ensure!(mount.path().join("made by blobfuse2").is_dir());
    ensure!(fs::read_link(mount.path().join("link by blobfuse2"))? == Path::new("folder/a+b"));
    ensure!(fs::read_to_string(mount.path().join("link by blobfuse2"))? == "a+b");
    mount.unmount()?;
    Ok(())
}

#[test]
fn blobs_of_others_on_the_embedded_store() -> Result<()> {
    foreign_blobs(Kind::Embedded)
}

#[test]
fn blobs_of_others_on_azurite() -> Result<()> {
    foreign_blobs(Kind::Azurite)
}

/// Files made on the mount: the blob has the file's name, or the written stand-in where a blob cannot have
/// it.
fn own_files(kind: Kind, way: Way) -> Result<()> {
    let setup = Setup::new(kind, way)?;
    let mount = setup.mount("own", "mnt")?;
    let mut blobs = BTreeSet::new();
    for name in ORDINARY {
        fs::write(mount.path().join(name), name)?;
        blobs.insert(name.to_owned());
    }
    for (name, blob) in [
        ("ends with a dot.", "ends with a dot\u{FF0E}"),
        ("back\\slash", "back\u{FF3C}slash"),
        ("line\nfeed", "line\u{240A}feed"),
    ] {
        fs::write(mount.path().join(name), name)?;
        blobs.insert(blob.to_owned());
    }
    // A rename moves between two awkward names.
    fs::rename(mount.path().join("100%"), mount.path().join("50% + 50%"))?;
    blobs.remove("100%");
    blobs.insert("50% + 50%".to_owned());
    let before = listing(mount.path())?;
    mount.unmount()?;

    let stored: BTreeSet<String> = setup.backend().container("own")?.blobs()?.into_keys().collect();
    ensure!(stored == blobs, "\n     got {stored:?}\nexpected {blobs:?}");
    let mount = setup.mount("own", "mnt")?;
    let after = listing(mount.path())?;
    ensure!(after == before, "\nbefore {before:?}\n after {after:?}");
    for name in &after {
        let text = fs::read_to_string(mount.path().join(name))?;
        ensure!(
            text == *name || (name == "50% + 50%" && text == "100%"),
            "{name}: {text}"
        );
    }
    for name in &after {
        fs::remove_file(mount.path().join(name))?;
    }
    mount.unmount()?;
    ensure!(setup.backend().container("own")?.blobs()?.is_empty());
    Ok(())
}

#[test]
fn own_files_over_https() -> Result<()> {
    own_files(Kind::Embedded, Way::Https)
}

#[test]
fn own_files_over_the_channel() -> Result<()> {
    own_files(Kind::Embedded, Way::Channel)
}

#[test]
fn own_files_on_azurite() -> Result<()> {
    own_files(Kind::Azurite, Way::Https)
}
