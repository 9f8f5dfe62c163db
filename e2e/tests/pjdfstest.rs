//! pjdfstest, the POSIX conformance tests, against a mount: every case must do what
//! e2e/pjdfstest-expected.txt says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed unwrap is a failed test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::harness::backend::Kind;
use e2e::harness::process::Running;
use e2e::harness::setup::{Setup, Way};
use e2e::harness::tools::{Tool, report};

/// Far above what the suite takes.
const LIMIT: Duration = Duration::from_secs(900);

/// All opt-in cases that Linux has system calls for. `naptime` is above the resolution of the clock that
/// stamps files.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["tests", "tests"], ["pjdfstest", "pjdfstest"]]
"#;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

/// Cases that are not to pass, out of the checked-in list.
fn expectations(text: &str) -> Result<BTreeMap<String, Outcome>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, reason) = line
                .split_once('\t')
                .with_context(|| format!("no reason: {line}"))?;
            ensure!(!reason.trim().is_empty(), "no reason: {line}");
            let (name, outcome) = match name.strip_prefix("skip ") {
                Some(name) => (name, Outcome::Skipped),
                None => (name, Outcome::Failed),
            };
            Ok((name.trim().to_owned(), outcome))
        })
        .collect()
}

/// Cases and outcomes out of what pjdfstest prints: one line a case, details of failures indented below it.
fn outcomes(output: &str) -> Result<BTreeMap<String, Outcome>> {
    let mut cases = BTreeMap::new();
    for line in output.lines() {
        let Some((name, outcome)) = line.split_once(char::is_whitespace) else {
            continue;
        };
        let outcome = match outcome.trim() {
            "ok" => Outcome::Passed,
            "FAILED" => Outcome::Failed,
            "skipped" => Outcome::Skipped,
            _ => continue,
        };
        ensure!(name.contains("::"), "not a case: {line}");
        cases.insert(name.to_owned(), outcome);
    }
    Ok(cases)
}

/// Differences between what happened and what is written down, one line each.
fn differences(cases: &BTreeMap<String, Outcome>, expected: &BTreeMap<String, Outcome>) -> Vec<String> {
    let mut differences = Vec::new();
    for (case, outcome) in cases {
        let wanted = expected.get(case).unwrap_or(&Outcome::Passed);
        if outcome != wanted {
            differences.push(format!("{case}: {outcome:?}, expected {wanted:?}"));
        }
    }
    for case in expected.keys().filter(|case| !cases.contains_key(*case)) {
        differences.push(format!("{case}: listed, but there is no such case"));
    }
    differences
}

#[test]
fn every_case_does_what_is_expected() -> Result<()> {
    let setup = Setup::new(Kind::Embedded, Way::Https)?;
    let configuration = setup.scratch().join("pjdfstest.toml");
    fs::write(&configuration, CONFIGURATION)?;
    // The cases switch users, who must be able to reach the mount through the scratch folder.
    for folder in [setup.scratch().to_owned(), setup.folder("other file system")?] {
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let mount = setup.mount("pjdfstest", "mnt")?;
    let mut running = Running::start(
        "pjdfstest",
        Command::new(Tool::Pjdfstest.path()?)
            .arg("-c")
            .arg(&configuration)
            .arg("-s")
            .arg(setup.folder("other file system")?)
            .arg("-p")
            .arg(mount.path()),
    )?;
    running.wait(LIMIT)?;
    let output = running.output();
    let cases = outcomes(&output)?;
    // Its summary says how many there are: no case may get lost in our reading of the output.
    let total: usize = output
        .lines()
        .find(|line| line.starts_with("Summary:"))
        .and_then(|line| line.split(", ").last()?.strip_suffix(" total")?.parse().ok())
        .with_context(|| format!("pjdfstest ended without a summary:\n{output}"))?;
    ensure!(
        cases.len() == total,
        "{} cases read, {total} in the summary",
        cases.len()
    );
    ensure!(total > 300, "only {total} cases");
    mount.unmount()?;

    let expected = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/pjdfstest-expected.txt"))?;
    let differences = differences(&cases, &expectations(&expected)?);
    let passed = cases
        .values()
        .filter(|outcome| **outcome == Outcome::Passed)
        .count();
    // Expected failures count as skipped: they are no success, and each has its reason in the file.
    report(
        "pjdfstest",
        passed,
        differences.len(),
        total.saturating_sub(passed + differences.len()),
    )?;
    if !differences.is_empty() {
        bail!(
            "{} differences from e2e/pjdfstest-expected.txt:\n{}",
            differences.len(),
            differences.join("\n")
        );
    }
    Ok(())
}

/// The comparison itself: unexpected passes, unlisted failures and vanished cases are told apart.
#[test]
fn unexpected_outcomes_are_noticed() -> Result<()> {
    let cases = outcomes(
        "open::good        ok\nopen::listed      FAILED\n\tassertion failed\n\
         open::unlisted    FAILED\nlink::a   FAILED\nlink::b    ok\nopen::left_out   skipped\n",
    )?;
    let expectations = expectations(
        "# comment\nopen::listed\treason\nlink::a\treason\nlink::b\treason\n\
         skip open::left_out\treason\nopen::gone\treason\n",
    )?;
    assert_eq!(
        differences(&cases, &expectations),
        [
            "link::b: Passed, expected Failed",
            "open::unlisted: Failed, expected Passed",
            "open::gone: listed, but there is no such case",
        ]
    );
    assert!(
        self::expectations("open::x\n").is_err(),
        "a line without a reason"
    );
    Ok(())
}
