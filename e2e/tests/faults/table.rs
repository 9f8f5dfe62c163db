//! The table of faults: all its cells are run, side by side, and the page that shows it says what they ask
//! for.
//!
//! `VSC_BLOB_FAULT_CELLS="foreign_404 busy"` runs these only, `VSC_BLOB_FAULT_SEED=7` another sequence of
//! steps; `UPDATE_DOCS=1` writes the table into docs/semantics.md.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::harness::process::Running;
use e2e::harness::tools;

use crate::cell;
use crate::kinds::{self, After, Kind, Operation, Waits};

/// Names the cell of a process that has one.
const CELL: &str = "VSC_BLOB_FAULT_CELL";
/// A cell that hangs is ended.
const LIMIT: Duration = Duration::from_secs(300);
/// Cells that run at the same time. Most of what they do is to wait.
const SIDE_BY_SIDE: usize = 8;
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/semantics.md");
const BEGIN: &str =
    "<!-- The table of faults: UPDATE_DOCS=1 cargo test -p e2e --test faults page writes it. -->\n";
const END: &str = "<!-- end of the table -->\n";

fn seed() -> u64 {
    let set = std::env::var("VSC_BLOB_FAULT_SEED").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(1)
}

fn chosen(kinds: Vec<Kind>) -> Vec<Kind> {
    match std::env::var("VSC_BLOB_FAULT_CELLS") {
        Ok(names) => {
            let names: Vec<&str> = names.split_whitespace().collect();
            kinds
                .into_iter()
                .filter(|kind| names.contains(&kind.name))
                .collect()
        }
        Err(_) => kinds,
    }
}

/// A cell in a process of its own.
fn run(kind: &Kind) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "table::one_cell", "--nocapture"])
        .env(CELL, kind.name)
        .env("VSC_BLOB_CSI", tools::vsc_blob_csi()?);
    let mut process = Running::start(kind.name, &mut command)?;
    let status = process.wait(LIMIT);
    // Not as lines of libtest's own, which are counted.
    let output = process.output().replace('\n', "\n    ");
    let status = status.with_context(|| output.clone())?;
    ensure!(status.success(), "{status}\n    {output}");
    Ok(())
}

/// Runs all cells, and fails with those that did.
fn run_all(kinds: Vec<Kind>) -> Result<()> {
    // Built once, and not by each of them.
    tools::vsc_blob_csi()?;
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE.min(kinds.len()) {
            scope.spawn(|| {
                while let Some(kind) = kinds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let began = Instant::now();
                    let result = run(kind);
                    let took = began.elapsed().as_secs_f64();
                    match result {
                        Ok(()) => println!("cell {}: ok, {took:.1} s", kind.name),
                        Err(error) => {
                            println!("cell {}: FAILED, {took:.1} s: {error:#}\n", kind.name);
                            failed
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(kind.name);
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        failed.is_empty(),
        "cells that failed (seed {}): {failed:?}",
        seed()
    );
    Ok(())
}

#[test]
fn each_fault_over_https_ends_as_the_table_says() -> Result<()> {
    run_all(chosen(kinds::over_https()))
}

#[test]
fn each_fault_of_the_channel_ends_as_the_table_says() -> Result<()> {
    run_all(chosen(kinds::of_the_channel()))
}

/// Not a test of its own: a process of those above, which name the cell. Without a name there is none.
#[test]
fn one_cell() -> Result<()> {
    let Ok(name) = std::env::var(CELL) else {
        return Ok(());
    };
    let mut kinds = kinds::over_https().into_iter().chain(kinds::of_the_channel());
    let kind = kinds
        .find(|kind| kind.name == name)
        .context("a cell of that name")?;
    cell::run(&kind, seed())
}

/// What an operation answers, in words.
fn answers(kind: &Kind, operation: Operation) -> String {
    let errnos: Vec<String> = kind
        .outcome
        .of(operation)
        .iter()
        .map(|errno| format!("`{errno:?}`"))
        .collect();
    if errnos.is_empty() {
        "works".to_owned()
    } else {
        errnos.join(", ")
    }
}

fn waits(waits: Waits) -> &'static str {
    match waits {
        Waits::Repetition => "a repetition",
        Waits::Asked => "as long as the service asks for",
        Waits::Timeout => "`timeout`",
        Waits::Nobody => "nobody",
    }
}

fn after(after: After) -> &'static str {
    match after {
        After::Done => "what was done",
        After::Written => "what was written",
    }
}

fn rendered() -> String {
    let mut text = String::new();
    for (title, kinds) in [
        ("over HTTPS", kinds::over_https()),
        ("over the channel", kinds::of_the_channel()),
    ] {
        let _ = writeln!(
            text,
            "| {title} | `open`, `stat`, `readdir` | `read` | `write` | `fsync`, `close` | \
             names, sizes, modes | waits | there afterwards |\n|---|---|---|---|---|---|---|---|"
        );
        for kind in &kinds {
            let _ = writeln!(
                text,
                "| {} (`{}`) | {} | {} | {} | {} | {} | {} | {} |",
                kind.what,
                kind.name,
                answers(kind, Operation::Look),
                answers(kind, Operation::Read),
                answers(kind, Operation::Write),
                answers(kind, Operation::Store),
                answers(kind, Operation::Change),
                waits(kind.outcome.waits),
                after(kind.outcome.after),
            );
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_page_shows_the_table() -> Result<()> {
    let page = std::fs::read_to_string(PAGE)?;
    let parts = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (table, after) = rest.split_once(END)?;
        Some((before, table, after))
    });
    let Some((before, table, after)) = parts else {
        anyhow::bail!("docs/semantics.md has no place for the table: {BEGIN}...{END}")
    };
    let wanted = format!("\n{}", rendered());
    if table != wanted && std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, format!("{before}{BEGIN}{wanted}{END}{after}"))?;
        return Ok(());
    }
    ensure!(
        table == wanted,
        "docs/semantics.md shows another table than e2e/tests/faults/kinds.rs has: UPDATE_DOCS=1 writes it"
    );
    Ok(())
}
