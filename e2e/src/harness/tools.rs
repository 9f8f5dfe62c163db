//! Where the programs are: what `e2e/test` installs, and `vsc-blob-csi` as cargo builds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// A program that `e2e/test` installs into its cache folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tool {
    /// Azurite's blob service, a script for node.
    Azurite,
    /// The CSI conformance tests.
    CsiSanity,
    /// The file system exerciser.
    Fsx,
    /// Renders the chart.
    Helm,
    /// The POSIX conformance tests.
    Pjdfstest,
    /// Reads metrics and evaluates rules.
    Prometheus,
    /// Python with the packages of `e2e/python/requirements.txt`.
    Python,
}

impl Tool {
    /// The variable that names its path, and its place in the cache folder when the variable is not set.
    fn location(self) -> (&'static str, &'static str) {
        match self {
            Self::Azurite => (
                "AZURITE_MAIN",
                "azurite/node_modules/azurite/dist/src/blob/main.js",
            ),
            Self::CsiSanity => ("CSI_SANITY", "go/bin/csi-sanity"),
            Self::Fsx => ("FSX", "cargo/bin/fsx"),
            Self::Helm => ("HELM", "helm/helm"),
            Self::Pjdfstest => ("PJDFSTEST", "cargo/bin/pjdfstest"),
            Self::Prometheus => ("PROMETHEUS", "prometheus/usr/bin/prometheus"),
            Self::Python => ("E2E_PYTHON", "python/bin/python"),
        }
    }

    /// Path of the installed program. An error says how to install it.
    pub fn path(self) -> Result<PathBuf> {
        let (variable, place) = self.location();
        let path = match env::var_os(variable) {
            Some(path) => PathBuf::from(path),
            None => match cache_folder()?.join(place) {
                // The one program that many machines have already.
                path if self == Self::Helm && !path.exists() => on_path("helm").unwrap_or(path),
                path => path,
            },
        };
        if !path.exists() {
            bail!(
                "{} not found; `e2e/test tools` installs it (or set {variable})",
                path.display()
            );
        }
        Ok(path)
    }
}

fn on_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders)
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
}

/// The folder that `e2e/test` installs into.
fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = env::var_os("VSC_BLOB_E2E_CACHE") {
        return Ok(folder.into());
    }
    let home = env::var_os("HOME").context("neither VSC_BLOB_E2E_CACHE nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/vsc-blob-e2e"))
}

/// The program under test, built from this checkout with the profile of the running test.
///
/// `VSC_BLOB_CSI` names it when the caller has just built it (`e2e/test` does); otherwise cargo brings it up
/// to date once per test process, so that a suite never runs yesterday's program.
pub fn vsc_blob_csi() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BUILT
        .get_or_init(|| locate_program().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|message| anyhow!(message))
}

fn locate_program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("VSC_BLOB_CSI") {
        let path = PathBuf::from(path);
        if !path.exists() {
            bail!("VSC_BLOB_CSI names {}, which does not exist", path.display());
        }
        return Ok(path);
    }
    // target/PROFILE/deps/SUITE-HASH, or target/PROFILE/PROGRAM.
    let own = env::current_exe().context("path of the running test")?;
    let folder = own.parent().context("folder of the running test")?;
    let folder = if folder.ends_with("deps") {
        folder.parent().context("profile folder of the running test")?
    } else {
        folder
    };
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args([
            "build",
            "--quiet",
            "--package",
            "vsc-blob-csi",
            "--bin",
            "vsc-blob-csi",
        ])
        .args(["--profile", profile])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("running cargo build")?;
    if !status.success() {
        bail!("cargo build of vsc-blob-csi failed ({status})");
    }
    let program = folder.join("vsc-blob-csi");
    if !program.exists() {
        bail!("cargo built vsc-blob-csi, but {} is not there", program.display());
    }
    Ok(program)
}

/// Tells `e2e/test` how the cases of a tool went, for its summary. Does nothing when nobody asked
/// (`VSC_BLOB_E2E_REPORT`).
pub fn report(kind: &str, passed: usize, failed: usize, skipped: usize) -> Result<()> {
    if let Some(folder) = env::var_os("VSC_BLOB_E2E_REPORT") {
        let path = Path::new(&folder).join(kind);
        std::fs::write(&path, format!("{passed} {failed} {skipped}\n"))
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Runs a program to its end and gives its standard output; a failure carries what it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(stdout)
}
