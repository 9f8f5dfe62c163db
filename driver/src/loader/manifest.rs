//! The manifest beside a prebuilt module: for which kernel it is, and that the file is the one that was
//! built.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

#[cfg(feature = "fips")]
use aws_lc_rs::digest::{Context, SHA256};
#[cfg(not(feature = "fips"))]
use ring::digest::{Context, SHA256};
use serde::Deserialize;

use super::sysfs::OURS;

/// `RELEASE/azb_vsc.json`, written by `driver/kmod/manifest`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Kernel release, as `uname -r` says it.
    pub release: String,
    /// The module's version magic; starts with the release.
    pub vermagic: String,
    /// Of the module file, hexadecimal.
    pub sha256: String,
    /// Who signed it; `None` for an unsigned module.
    pub signer: Option<String>,
}

impl Manifest {
    /// The manifest for a kernel release. `Ok(None)` if there is no module for it; an error says what is
    /// wrong with it.
    pub(super) fn read(folder: &Path, release: &str) -> Result<Option<Self>, String> {
        // A release is one path component, or somebody plays with us.
        if release.is_empty() || release.contains('/') || release.starts_with('.') {
            return Err(format!("the kernel release {release:?} cannot name a folder"));
        }
        let path = folder.join(release).join(OURS).with_extension("json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let manifest: Self =
            serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        if manifest.release != release || manifest.vermagic.split(' ').next() != Some(release) {
            return Err(format!(
                "{} is for kernel {} ({}), this one is {release}",
                path.display(),
                manifest.release,
                manifest.vermagic
            ));
        }
        Ok(Some(manifest))
    }

    /// The module file itself, open, its digest checked. What was checked is what is loaded: the open file.
    pub(super) fn open_module(&self, folder: &Path) -> Result<File, String> {
        let path: PathBuf = folder.join(&self.release).join(OURS).with_extension("ko");
        let describe = |error: io::Error| format!("{}: {error}", path.display());
        let mut file = File::open(&path).map_err(describe)?;
        let digest = digest(&mut file).map_err(describe)?;
        if digest.eq_ignore_ascii_case(&self.sha256) {
            Ok(file)
        } else {
            Err(format!(
                "{} has the digest {digest}, its manifest says {}",
                path.display(),
                self.sha256
            ))
        }
    }
}

/// SHA-256 of a file from where it stands, hexadecimal.
pub(super) fn digest(file: &mut File) -> io::Result<String> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        context.update(&buffer[..n]);
    }
    Ok(context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
