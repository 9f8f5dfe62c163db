//! Links of the pages lead somewhere: to files that are there, and to headings that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README, CONTRIBUTING, the chart's README and all of docs.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<_> = [
        "README.md",
        "CONTRIBUTING.md",
        "charts/vsc-blob-csi-driver/README.md",
    ]
    .map(|name| repository().join(name))
    .into();
    for entry in std::fs::read_dir(repository().join("docs")).unwrap() {
        pages.push(entry.unwrap().path());
    }
    pages.retain(|page| page.extension().is_some_and(|kind| kind == "md"));
    pages.sort();
    pages
}

/// The lines that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !fence && !code
    })
}

/// A heading's anchor, as GitHub makes it: lower case, without punctuation, hyphens for spaces.
fn anchor(heading: &str) -> String {
    let heading = heading.trim().to_lowercase();
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let anchor = anchor(line.trim_start_matches('#'));
            let time = times.entry(anchor.clone()).or_default();
            *time += 1;
            match *time {
                1 => anchor,
                time => format!("{anchor}-{}", time - 1),
            }
        })
        .collect()
}

/// What `[text](target)` names in a line, outside of code.
fn targets(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find("](") {
        let ticks = line[..line.len() - rest.len() + at].matches('`').count();
        rest = &rest[at + 2..];
        if let Some(end) = rest.find(')').filter(|_| ticks.is_multiple_of(2)) {
            found.push(&rest[..end]);
        }
    }
    found
}

#[test]
fn each_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in prose(&text).flat_map(targets) {
            if target.contains("://") {
                continue;
            }
            seen += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let to = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let known = match heading {
                "" => to.exists(),
                heading => std::fs::read_to_string(&to).is_ok_and(|text| anchors(&text).contains(heading)),
            };
            if !known {
                wrong.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(seen > 100, "{seen}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Pages that are named without a link: in the program's messages, in manifests, in what helm prints.
#[test]
fn each_page_that_is_named_is_there() {
    let mut files = pages();
    for folder in [
        "node-plugin",
        "driver",
        "e2e",
        "deploy",
        "charts/vsc-blob-csi-driver",
    ] {
        let walk = files_below(&repository().join(folder));
        files.extend(walk.into_iter().filter(|file| {
            let kind = file
                .extension()
                .and_then(|kind| kind.to_str())
                .unwrap_or_default();
            ["rs", "yaml", "txt", "json", "md", "tpl"].contains(&kind)
        }));
    }
    let mut seen = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("docs/") {
            let rest = &text[at..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "/_-.".contains(c)));
            let named = rest[..end.unwrap_or(rest.len())].trim_end_matches('.');
            if named.ends_with(".md") {
                assert!(repository().join(named).exists(), "{}: {named}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 30, "{seen}");
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found
}

#[test]
fn anchors_are_those_of_github() {
    let text = "# A title\n\n## What a *node* does, and why\n```\n# no heading\n```\n### On the node\n\
        ## On the node\n";
    let wanted = [
        "a-title",
        "what-a-node-does-and-why",
        "on-the-node",
        "on-the-node-1",
    ];
    assert_eq!(anchors(text), wanted.map(str::to_owned).into());
    assert_eq!(targets("[a](b#c), `[x](y)` and [d](e)"), ["b#c", "e"]);
}
