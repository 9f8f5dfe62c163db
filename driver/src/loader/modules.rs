//! The rungs that load a module: the kernel's own, a prebuilt one, one built on the node.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::manifest::{Manifest, digest};
use super::report::{ModuleStep, NodeStep, Step};
use super::restriction;
use super::state::{State, boot_id};
use super::system::System;
use super::{IN_BOX, Loader, LoaderError, OURS, driver_of, inside};

/// How often the node is looked for.
const POLL: Duration = Duration::from_millis(20);
/// Lines of a failed program that are kept for the report.
const TAIL: usize = 5;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rung {
    InBox,
    Prebuilt,
    Build,
}

impl Rung {
    /// Its place in the report.
    pub(super) fn step(self, outcome: ModuleStep) -> Step {
        match self {
            Self::InBox => Step::InBox(outcome),
            Self::Prebuilt => Step::Prebuilt(outcome),
            Self::Build => Step::Build(outcome),
        }
    }
}

impl<S: System> Loader<S> {
    /// Tries one rung. `device` is the offered device's folder in sysfs.
    pub(super) fn climb(&self, rung: Rung, kernel: &str, device: &Path) -> Result<ModuleStep, LoaderError> {
        let name = if rung == Rung::InBox { IN_BOX } else { OURS };
        // A module of ours beside a driver that has the device would find nothing to serve.
        if let Some(driver) = driver_of(device)
            && driver != name
        {
            return Ok(ModuleStep::Taken { driver });
        }
        // Loaded before, by whomever: there is nothing to load, and no new state to remember.
        if self.loaded(name).is_some() {
            return Ok(self.await_node(name));
        }
        let loaded = match rung {
            Rung::InBox => self.load_in_box(kernel),
            Rung::Prebuilt => self.load_prebuilt(kernel),
            Rung::Build => self.load_built(kernel),
        };
        let digest = match loaded {
            Ok(digest) => digest,
            Err(step) => return Ok(step),
        };
        // Before the node is waited for: what was loaded must be known also if we end here.
        State {
            boot_id: boot_id(&self.config),
            release: kernel.to_owned(),
            module: name.to_owned(),
            digest,
        }
        .write(&self.config)?;
        Ok(self.await_node(name))
    }

    /// The node, which a driver makes a moment after its module was loaded.
    fn await_node(&self, module: &str) -> ModuleStep {
        let began = Instant::now();
        let module = module.to_owned();
        loop {
            match self.node() {
                NodeStep::Present { abi } => return ModuleStep::Loaded { module, abi },
                NodeStep::Closed => return ModuleStep::Closed { module },
                NodeStep::Absent if began.elapsed() >= self.config.node_wait => {
                    return ModuleStep::NoNode { module };
                }
                NodeStep::Unusable { reason } if began.elapsed() >= self.config.node_wait => {
                    return ModuleStep::Unusable { module, reason };
                }
                // Also when it cannot be used yet: devtmpfs makes it before udev has set it right.
                NodeStep::Absent | NodeStep::Unusable { .. } => std::thread::sleep(POLL),
            }
        }
    }

    /// The first restriction that stops a module, signed or not.
    fn forbidden(&self, signed: bool) -> Result<(), ModuleStep> {
        match restriction::all(&self.config.root)
            .into_iter()
            .find(|restriction| !signed || restriction.stops_signed())
        {
            Some(by) => Err(ModuleStep::Forbidden { by }),
            None => Ok(()),
        }
    }

    fn load_in_box(&self, kernel: &str) -> Result<Option<String>, ModuleStep> {
        // Asked before modprobe is: its messages are for people.
        if !ships_in_box(&self.config.host_root, kernel) {
            return Err(ModuleStep::None);
        }
        // The distribution has signed it.
        self.forbidden(true)?;
        // It has no alias that udev could load it by, so it must be named.
        match self.system.run(&self.config.host_root, "modprobe", &[IN_BOX]) {
            Ok(ran) if ran.success => Ok(None),
            Ok(ran) => Err(ModuleStep::Refused {
                reason: tail(&ran.output),
            }),
            // An image without programs, with the machine's modules mounted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.insert_in_box(kernel),
            Err(error) => Err(ModuleStep::Refused {
                reason: format!("modprobe: {error}"),
            }),
        }
    }

    /// What modprobe does: the modules that it needs, then the module itself.
    fn insert_in_box(&self, kernel: &str) -> Result<Option<String>, ModuleStep> {
        let folder = self.config.host_root.join("lib/modules").join(kernel);
        let (file, needed) = in_box_entry(&folder).ok_or(ModuleStep::None)?;
        // The index lists what needs nothing last.
        for file in needed.iter().rev().chain([&file]) {
            let name = module_name(file);
            if self.loaded(&name).is_some() {
                continue;
            }
            let path = folder.join(file);
            let module = File::open(&path).map_err(|error| ModuleStep::Unfit {
                problem: format!("{}: {error}", path.display()),
            })?;
            let compressed = !file.ends_with(".ko");
            match self.system.load_module(&module, compressed) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(Errno::EINVAL | Errno::EOPNOTSUPP) if compressed => {
                    return Err(ModuleStep::Refused {
                        reason: format!(
                            "{name}: its file is compressed, which this kernel does not unpack, and there is no modprobe here"
                        ),
                    });
                }
                Err(errno) => {
                    return Err(ModuleStep::Refused {
                        reason: format!("{name}: {}", errno.desc()),
                    });
                }
            }
        }
        Ok(None)
    }

    fn load_prebuilt(&self, kernel: &str) -> Result<Option<String>, ModuleStep> {
        let manifest = match Manifest::read(&self.config.prebuilt, kernel) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Err(ModuleStep::None),
            Err(problem) => return Err(ModuleStep::Unfit { problem }),
        };
        self.forbidden(manifest.signer.is_some())?;
        let module = manifest
            .open_module(&self.config.prebuilt)
            .map_err(|problem| ModuleStep::Unfit { problem })?;
        self.insert(&module)?;
        Ok(Some(manifest.sha256))
    }

    fn load_built(&self, kernel: &str) -> Result<Option<String>, ModuleStep> {
        let Some(source) = &self.config.source else {
            return Err(ModuleStep::Off);
        };
        self.forbidden(false)?;
        let headers = PathBuf::from(format!("/lib/modules/{kernel}/build"));
        // A link to an absolute place of the node, so its target is looked up there.
        let real =
            fs::read_link(inside(&self.config.host_root, &headers)).unwrap_or_else(|_| headers.clone());
        if !inside(&self.config.host_root, &real).join("Makefile").is_file() {
            return Err(ModuleStep::None);
        }
        let unfit = |what: &'static str| {
            move |error: io::Error| ModuleStep::Unfit {
                problem: format!("{what}: {error}"),
            }
        };
        // Below the node's root, because the node's own compiler works there.
        let folder = inside(&self.config.host_root, &self.config.state).join("build");
        let _ = fs::remove_dir_all(&folder);
        copy_tree(source, &folder).map_err(unfit("copying the sources"))?;
        let seen = Path::new("/").join(&self.config.state).join("build");
        let ran = self
            .system
            .run(
                &self.config.host_root,
                "make",
                &[
                    "-s",
                    "-C",
                    &seen.display().to_string(),
                    &format!("KDIR={}", headers.display()),
                    "modules",
                ],
            )
            .map_err(unfit("make"))?;
        if !ran.success {
            return Err(ModuleStep::BuildFailed {
                output: tail(&ran.output),
            });
        }
        let path = folder.join(OURS).with_extension("ko");
        let mut module = File::open(&path).map_err(unfit("the built module"))?;
        let digest = digest(&mut module).map_err(unfit("the built module"))?;
        self.insert(&module)?;
        let _ = fs::remove_dir_all(&folder);
        Ok(Some(digest))
    }

    /// `finit_module`. Somebody who was quicker has done as well.
    fn insert(&self, module: &File) -> Result<(), ModuleStep> {
        match self.system.load_module(module, false) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(ModuleStep::Refused {
                reason: errno.desc().to_owned(),
            }),
        }
    }
}

/// Whether the node's kernel comes with the module, compressed or not.
fn ships_in_box(host_root: &Path, kernel: &str) -> bool {
    in_box_entry(&host_root.join("lib/modules").join(kernel)).is_some()
}

/// The module's file, and the files that it needs, as the index of a kernel's folder lists them.
fn in_box_entry(folder: &Path) -> Option<(String, Vec<String>)> {
    let text = fs::read_to_string(folder.join("modules.dep")).ok()?;
    text.lines().find_map(|line| {
        let (file, needed) = line.split_once(':')?;
        (module_name(file) == IN_BOX).then(|| {
            (
                file.to_owned(),
                needed.split_whitespace().map(str::to_owned).collect(),
            )
        })
    })
}

/// Name in the kernel of a module's file: without folder and endings, dashes as underscores.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    let name = name.split_once(".ko").map_or(name, |(name, _)| name);
    name.replace('-', "_")
}

/// The last lines of a program's output, in one.
fn tail(output: &str) -> String {
    let lines: Vec<&str> = output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(TAIL)..].join("; ")
}

/// Copies regular files and folders, without what an earlier build has left.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_tree(&source, &target)?;
        } else {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}
