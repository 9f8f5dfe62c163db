//! The rules, each over the files it concerns.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::graph::Graph;
use crate::modules;

/// The crates whose files import one way.
pub(crate) const CRATES: [&str; 4] = [
    "node-plugin/fs/src",
    "node-plugin/blob/src",
    "driver/src",
    "e2e/src",
];

/// The crate whose folders do.
pub(crate) const NODE_PLUGIN: &str = "node-plugin/src";

/// Columns of a line, of code or of a comment: rustfmt's `max_width`, which leaves comments and strings
/// alone.
const COLUMNS: usize = 110;
/// Lines of a file that is not a test.
const LINES: usize = 600;

pub(crate) fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The files of the repository that `wanted` wants, with what they hold.
fn files_that(wanted: impl Fn(&Path) -> bool) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![repository().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if path.is_dir() {
                // Build output, and what is not of the repository (.git, editors).
                let built = ["target", "node_modules"].contains(&&*name);
                if !built && (!name.starts_with('.') || name == ".ci") {
                    folders.push(path);
                }
            } else if path.is_file() && wanted(&path) {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(repository()).unwrap().to_path_buf(), text));
            }
        }
    }
    found.sort();
    found
}

/// Each `.rs` file.
fn files() -> Vec<(PathBuf, String)> {
    let found = files_that(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(found.len() > 300, "only {} files were found", found.len());
    found
}

/// Each script: a module of Python's, or a file whose first line names its interpreter.
fn scripts() -> Vec<(PathBuf, String)> {
    let found = files_that(|path| {
        if path.extension().is_some_and(|extension| extension == "py") {
            return true;
        }
        let mut first = Vec::new();
        // What has no lines is not read whole.
        let mut start = BufReader::new(File::open(path).unwrap()).take(200);
        start.read_until(b'\n', &mut first).unwrap();
        is_script(&String::from_utf8_lossy(&first))
    });
    assert!(found.len() > 10, "only {} scripts were found", found.len());
    found
}

/// Each file that configures something: YAML, TOML, templates and recipes of images.
fn settings() -> Vec<(PathBuf, String)> {
    let found = files_that(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["yaml", "yml", "toml", "tpl"]
            .iter()
            .any(|kind| name.ends_with(&format!(".{kind}")))
            || ["Dockerfile", "Containerfile"].contains(&&*name)
    });
    assert!(found.len() > 50, "only {} settings were found", found.len());
    found
}

/// A script of a shell or of Python, by its first line.
fn is_script(first: &str) -> bool {
    first.strip_prefix("#!").is_some_and(|interpreter| {
        interpreter
            .split(|mark: char| mark == '/' || mark.is_whitespace())
            .any(|word| ["bash", "sh", "python", "python3"].contains(&word))
    })
}

/// A file of test code: by the name of its folder or its own.
fn is_test(file: &Path) -> bool {
    let own = file
        .file_stem()
        .is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
    own || file.iter().any(|part| part == "tests" || part == "test")
}

/// Fails with one line for each offence.
fn none(offences: &[String]) {
    assert!(offences.is_empty(), "\n{}", offences.join("\n"));
}

fn without_comment(file: &Path, text: &str) -> Option<String> {
    let says = text.lines().next().is_some_and(|line| {
        ["//! ", "// "].iter().any(|mark| {
            line.strip_prefix(mark)
                .is_some_and(|said| !said.trim().is_empty())
        })
    });
    (!says).then(|| format!("{}: the first line does not say what the file is", file.display()))
}

fn too_long(file: &Path, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (!is_test(file) && lines > LINES).then(|| format!("{}: {lines} lines", file.display()))
}

fn too_wide(file: &Path, text: &str) -> Vec<String> {
    let wide = |(number, line): (usize, &str)| {
        let columns = line.chars().count();
        (columns > COLUMNS).then(|| format!("{}:{}: {columns} columns", file.display(), number + 1))
    };
    text.lines().enumerate().filter_map(wide).collect()
}

/// Lines that are nothing but a comment and too wide. A value or an action of a template is one line, however
/// long it is.
fn comments_too_wide(file: &Path, text: &str) -> Vec<String> {
    let comments: Vec<&str> = text
        .lines()
        .map(|line| {
            if line.trim_start().starts_with('#') {
                line
            } else {
                ""
            }
        })
        .collect();
    too_wide(file, &comments.join("\n"))
}

/// Names of tests in a page: words in code style of four parts or more. Metrics are no tests, and what is
/// made out of the code names things of its own.
fn tests_named(page: &str) -> Vec<&str> {
    let mut made = false;
    page.lines()
        .filter(|line| {
            made = match line.strip_prefix("<!-- ") {
                Some(mark) => !mark.contains("end"),
                None => made,
            };
            !made
        })
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter_map(|word| word.split("::").last())
        .filter(|word| {
            word.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && word.matches('_').count() >= 3
                && !word.starts_with("vsc_")
        })
        .collect()
}

/// Names of the functions in a source.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).filter_map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .next()
            .filter(|name| !name.is_empty())
    })
}

fn imports_one_way(name: &str) {
    let sources = modules::read(&repository().join(name)).unwrap();
    let graph = Graph::of(&sources).unwrap();
    none(
        &graph
            .cycles()
            .iter()
            .map(|cycle| graph.describe(cycle, &sources))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn the_file_system_imports_one_way() {
    imports_one_way("node-plugin/fs/src");
}

#[test]
fn the_client_imports_one_way() {
    imports_one_way("node-plugin/blob/src");
}

#[test]
fn the_driver_imports_one_way() {
    imports_one_way("driver/src");
}

#[test]
fn the_store_the_mock_and_the_harness_import_one_way() {
    imports_one_way("e2e/src");
}

/// Its services are modules of many files that know each other; what lies in different folders does not.
#[test]
fn the_folders_of_the_node_plugin_import_one_way() {
    let sources = modules::read(&repository().join(NODE_PLUGIN)).unwrap();
    none(&Graph::of(&sources).unwrap().folder_cycles(&sources));
}

#[test]
fn each_file_begins_with_what_it_is() {
    none(
        &files()
            .iter()
            .filter_map(|(file, text)| without_comment(file, text))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn no_file_is_two_files() {
    none(
        &[files(), scripts()]
            .iter()
            .flatten()
            .filter_map(|(file, text)| too_long(file, text))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn no_line_is_too_wide() {
    none(
        &[files(), scripts()]
            .iter()
            .flatten()
            .flat_map(|(file, text)| too_wide(file, text))
            .collect::<Vec<_>>(),
    );
    none(
        &settings()
            .iter()
            .flat_map(|(file, text)| comments_too_wide(file, text))
            .collect::<Vec<_>>(),
    );
}

#[test]
fn each_test_that_the_docs_name_is_there() {
    let sources = files();
    let there: BTreeSet<&str> = sources.iter().flat_map(|(_, text)| functions(text)).collect();
    let mut missing = Vec::new();
    for name in ["docs/findings.md", "docs/semantics.md"] {
        let page = fs::read_to_string(repository().join(name)).unwrap();
        let named = tests_named(&page);
        assert!(named.len() > 50, "{name} names {} tests", named.len());
        let gone = named.into_iter().filter(|test| !there.contains(test));
        missing.extend(gone.map(|test| format!("{name}: there is no test {test}")));
    }
    none(&missing);
}

/// Patches that take a protection away are run by hand; that they fit is looked at each time.
#[test]
fn each_mutant_fits_the_sources() {
    let mut offences = Vec::new();
    for (patches, sources) in [
        ("node-plugin/fs/tests/mutants", ""),
        ("driver/kmod/test/mutants", "driver/kmod"),
    ] {
        let mut found = 0;
        for entry in fs::read_dir(repository().join(patches)).unwrap() {
            let patch = entry.unwrap().path();
            if patch.extension().is_none_or(|extension| extension != "patch") {
                continue;
            }
            found += 1;
            let check = Command::new("git")
                .args(["apply", "--check", &format!("--directory={sources}")])
                .arg(&patch)
                .current_dir(repository())
                .output()
                .unwrap();
            if !check.status.success() {
                let says = String::from_utf8_lossy(&check.stderr);
                offences.push(format!("{}: {}", patch.display(), says.trim_end()));
            }
        }
        assert!(found > 5, "{patches}: {found} patches");
    }
    none(&offences);
}

#[test]
fn the_rules_can_fail() {
    let file = Path::new("node-plugin/src/x.rs");
    let lines = |count: usize| "//! What it is.\n".repeat(count);
    assert_eq!(without_comment(file, "//! What it is.\n"), None);
    assert!(without_comment(file, "use x;\n").is_some());
    assert!(without_comment(file, "//!\n//! Late.\n").is_some());
    assert!(without_comment(file, "").is_some());
    assert_eq!(too_long(file, &lines(LINES)), None);
    assert!(too_long(file, &lines(LINES + 1)).is_some());
    assert_eq!(
        too_long(Path::new("node-plugin/src/x/tests.rs"), &lines(LINES + 1)),
        None
    );
    assert_eq!(
        too_wide(file, &format!("//! ü{}\n", "x".repeat(COLUMNS - 5))),
        [""; 0]
    );
    assert_eq!(
        too_wide(file, &format!("\n//! {}", "x".repeat(COLUMNS))),
        ["node-plugin/src/x.rs:2: 114 columns"]
    );
    let wide = "x".repeat(COLUMNS);
    assert_eq!(
        comments_too_wide(file, &format!("a: {wide}\n  # {wide}\nb: {wide} # c\n")),
        ["node-plugin/src/x.rs:2: 114 columns"]
    );
    for first in [
        "#!/bin/sh\n",
        "#!/bin/bash -e",
        "#!/usr/bin/env bash\n",
        "#!/usr/bin/env python3",
    ] {
        assert!(is_script(first), "{first}");
    }
    assert_eq!(
        tests_named("`suite::what_is_a_test`, `vsc_blob_a_b`, `a_b`\n<!-- x -->\n`a_b_c_d`\n<!-- end -->"),
        ["what_is_a_test"]
    );
    assert_eq!(
        functions("fn a_b() {}\nasync fn c() {} // fn\n").collect::<Vec<_>>(),
        ["a_b", "c"]
    );
    for first in [
        "",
        "#!",
        "# bash",
        "#![allow(x)]",
        "#!/usr/bin/env fish",
        " #!/bin/sh",
    ] {
        assert!(!is_script(first), "{first}");
    }
    let found = scripts();
    for script in [
        ".ci/run",
        "e2e/test",
        "e2e/runner/tools.sh",
        "driver/kmod/manifest",
        "e2e/python/sdk_check.py",
    ] {
        assert!(
            found.iter().any(|(file, _)| file == Path::new(script)),
            "{script}"
        );
    }
}
