//! docs/troubleshooting.md against the error table: an entry for each reason, in the table's order, with its
//! code or its Event.
//!
//! `UPDATE_DOCS=1 cargo test -p vsc-blob-csi --test docs` sorts the entries, corrects their codes, adds
//! headings for new reasons and drops entries of reasons that are gone. What an entry says is written by
//! hand. It writes docs/volume-reference.md anew as well, which is made of the tables of keys (`reference`).
//! `links` looks that links lead somewhere.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "docs/links.rs"]
mod links;
#[path = "docs/reference.rs"]
mod reference;

use std::collections::BTreeMap;

use vsc_blob_csi::error::{Change, Reason};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");

/// The page in parts.
struct Page {
    /// Before the first entry, sections with spaces in their headings among it.
    before: String,
    /// Hand-written text of each entry, without its code.
    entries: BTreeMap<String, String>,
    /// After the last entry.
    after: String,
}

fn is_entry(section: &str) -> bool {
    section
        .lines()
        .next()
        .is_some_and(|heading| !heading.trim().contains(' '))
}

fn parse(text: &str) -> Page {
    let mut page = Page {
        before: String::new(),
        entries: BTreeMap::new(),
        after: String::new(),
    };
    for (index, section) in text.split("\n## ").enumerate() {
        if index == 0 {
            page.before = format!("{section}\n");
        } else if is_entry(section) {
            let (name, text) = section.split_once('\n').unwrap_or((section, ""));
            let text = match text.strip_prefix("Code ").or(text.strip_prefix("Event ")) {
                Some(coded) => coded.split_once(". ").map_or("", |(_, rest)| rest),
                None => text,
            };
            let old = page
                .entries
                .insert(name.trim().to_owned(), text.trim_end().to_owned());
            assert!(old.is_none(), "docs/troubleshooting.md has {name} twice");
        } else {
            let place = if page.entries.is_empty() {
                &mut page.before
            } else {
                &mut page.after
            };
            place.push_str(&format!("## {}\n\n", section.trim_end()));
        }
    }
    page
}

/// Each row of the table, and what its entry begins with.
fn rows() -> Vec<(String, String)> {
    let failures = Reason::ALL
        .iter()
        .map(|reason| (reason.to_string(), format!("Code {:?}", reason.code())));
    let changes = Change::ALL.iter().map(|change| {
        let kind = if change.is_warning() { "Warning" } else { "Normal" };
        (change.to_string(), format!("Event of type {kind}"))
    });
    failures.chain(changes).collect()
}

/// The page as it has to be: the table's rows with the texts there are.
fn generate(page: &Page) -> String {
    let mut text = format!("{}\n", page.before.trim_end());
    for (name, what) in rows() {
        let own = page.entries.get(&name).map_or("", String::as_str);
        text.push_str(&format!("\n## {name}\n{what}. {own}\n"));
    }
    if !page.after.is_empty() {
        text.push_str(&format!("\n{}\n", page.after.trim_end()));
    }
    text
}

#[test]
fn troubleshooting_has_one_entry_for_each_reason() {
    let text = std::fs::read_to_string(PAGE).unwrap();
    let page = parse(&text);
    let wanted = generate(&page);
    if text != wanted && std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    } else {
        for name in page.entries.keys() {
            assert!(
                rows().iter().any(|(row, _)| row == name),
                "docs/troubleshooting.md documents {name}, which no row has"
            );
        }
        let differs = text.lines().zip(wanted.lines()).find(|(is, wanted)| is != wanted);
        assert!(
            text == wanted,
            "docs/troubleshooting.md differs from the table, first here (is, should be): {differs:?}; run \
            with UPDATE_DOCS=1"
        );
    }
    for (name, _) in rows() {
        let own = page.entries.get(&name);
        assert!(
            own.is_some_and(|text| text.len() > 40),
            "docs/troubleshooting.md: write under `## {name}` what happened and what to do"
        );
    }
}

#[test]
fn a_page_is_put_in_order_and_keeps_what_people_wrote() {
    let page = parse(
        "# T\n\nIntro.\n\n## Two words\nkept\n\n## UnknownKey\nCode Internal. Mine, a.b. c.\n\n## \
        MissingField\nCode X. First.\n\n## At the end\nkept too\n",
    );
    assert_eq!(page.entries["UnknownKey"], "Mine, a.b. c.");
    let text = generate(&page);
    let expected = "# T\n\nIntro.\n\n## Two words\nkept\n\n## MissingField\nCode InvalidArgument. First.\n\n\
        ## UnknownKey\nCode InvalidArgument. Mine, a.b. c.\n\n## DuplicateKey\n";
    assert!(text.starts_with(expected), "{text}");
    assert!(text.ends_with("\n## At the end\nkept too\n"), "{text}");
    assert_eq!(generate(&parse(&text)), text, "stable");
}
