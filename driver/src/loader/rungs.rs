//! The rungs that load a module: the kernel's own, a prebuilt one, one built on the node.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tracing::warn;

use super::Loader;
use super::config::Rung;
use super::index::{in_box, in_box_entry, module_name, switched_off};
use super::manifest::{Manifest, digest};
use super::report::{ModuleStep, NodeStep, Step};
use super::restriction;
use super::state::{self, LoadedModule};
use super::sysfs::{IN_BOX, OURS, driver_of, inside};
use super::system::{Insert, System, within};

/// How often the node is looked for.
const POLL: Duration = Duration::from_millis(20);
/// How our own module, and the one that the kernel ships, are inserted.
const ASYNCHRONOUS: Insert = Insert {
    compressed: false,
    asynchronous: true,
};
/// Lines of a failed program that are kept for the report.
const TAIL: usize = 5;

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

/// What a rung has brought into the kernel.
struct Brought {
    /// It was not there before.
    new: bool,
    /// SHA-256 of its file; `None` for the kernel's own.
    digest: Option<String>,
}

impl<S: System> Loader<S> {
    /// Tries one rung. `device` is the offered device's folder in sysfs.
    pub(super) fn climb(&self, rung: Rung, kernel: &str, device: &Path) -> ModuleStep {
        let name = if rung == Rung::InBox { IN_BOX } else { OURS };
        // A module of ours beside a driver that has the device would find nothing to serve.
        if let Some(driver) = driver_of(device)
            && driver != name
        {
            return ModuleStep::Taken { driver };
        }
        if self.config.skip.contains(&rung) {
            return ModuleStep::Off;
        }
        // Loaded before, by whomever: there is nothing to load, and no new state to remember.
        if self.loaded(name).is_some() {
            return self.await_node(name);
        }
        let loaded = match rung {
            Rung::InBox => self.load_in_box(kernel),
            Rung::Prebuilt => self.load_prebuilt(kernel),
            Rung::Build => self.load_built(kernel),
        };
        let brought = match loaded {
            Ok(brought) => brought,
            Err(step) => {
                // It may come yet, and is ours then.
                if matches!(step, ModuleStep::TimedOut { .. }) {
                    self.remember(name, kernel, None);
                }
                return step;
            }
        };
        // Before the node is waited for: what was loaded must be known also if we end here.
        if brought.new {
            self.remember(name, kernel, brought.digest);
        }
        self.await_node(name)
    }

    /// Notes a module as ours. That it cannot be noted keeps nobody from using it; it is then not ours to
    /// unload.
    fn remember(&self, module: &str, kernel: &str, digest: Option<String>) {
        let loaded = LoadedModule {
            module: module.to_owned(),
            release: kernel.to_owned(),
            digest,
        };
        if let Err(error) = state::add(&self.config, loaded) {
            warn!(
                module, %error,
                "the module that was loaded cannot be noted; `driver unload` will leave it alone"
            );
        }
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
            .found
            .into_iter()
            .find(|restriction| !signed || restriction.stops_signed())
        {
            Some(by) => Err(ModuleStep::Forbidden { by }),
            None => Ok(()),
        }
    }

    fn load_in_box(&self, kernel: &str) -> Result<Brought, ModuleStep> {
        // Asked before modprobe is: its messages are for people.
        match in_box(&self.config.host_root, kernel) {
            Some(true) => {}
            Some(false) => return Err(ModuleStep::None),
            None => {
                let folder = self.config.host_root.join("lib/modules").join(kernel);
                return Err(ModuleStep::Unseen {
                    folder: folder.display().to_string(),
                });
            }
        }
        if let Some(by) = switched_off(&self.config, IN_BOX) {
            return Err(ModuleStep::SwitchedOff { by });
        }
        // The distribution has signed it.
        self.forbidden(true)?;
        // It has no alias that udev could load it by, so it must be named. With -b a name counts as an alias
        // does: a machine's blacklist is obeyed.
        match self.system.run(
            &self.config.host_root,
            "modprobe",
            &["-b", IN_BOX, "async_probe"],
            self.config.load_wait,
        ) {
            Ok(ran) if ran.success => {
                // A command in place of the module, or a blacklist that we have not understood.
                if self.loaded(IN_BOX).is_none() {
                    return Err(ModuleStep::SwitchedOff {
                        by: "modprobe loads nothing: see `modprobe --showconfig`".to_owned(),
                    });
                }
                Ok(Brought {
                    new: true,
                    digest: None,
                })
            }
            Ok(ran) => Err(ModuleStep::Refused {
                reason: tail(&ran.output),
            }),
            Err(error) => match error.kind() {
                // An image without programs, with the machine's modules mounted.
                io::ErrorKind::NotFound => self.insert_in_box(kernel),
                io::ErrorKind::TimedOut => Err(timed_out(self.config.load_wait)),
                _ => Err(ModuleStep::Refused {
                    reason: format!("modprobe: {error}"),
                }),
            },
        }
    }

    /// What modprobe does: the modules that it needs, then the module itself.
    fn insert_in_box(&self, kernel: &str) -> Result<Brought, ModuleStep> {
        let folder = self.config.host_root.join("lib/modules").join(kernel);
        let (file, needed) = in_box_entry(&folder).flatten().ok_or(ModuleStep::None)?;
        let mut new = true;
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
            let how = Insert {
                compressed: !file.ends_with(".ko"),
                // What others need must be ready when they come.
                asynchronous: name == IN_BOX,
            };
            new = self.insert(&name, module, how)?;
        }
        Ok(Brought { new, digest: None })
    }

    fn load_prebuilt(&self, kernel: &str) -> Result<Brought, ModuleStep> {
        if !self.config.prebuilt.is_dir() {
            return Err(ModuleStep::Unseen {
                folder: self.config.prebuilt.display().to_string(),
            });
        }
        let manifest = match Manifest::read(&self.config.prebuilt, kernel) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Err(ModuleStep::None),
            Err(problem) => return Err(ModuleStep::Unfit { problem }),
        };
        if let Some(by) = switched_off(&self.config, OURS) {
            return Err(ModuleStep::SwitchedOff { by });
        }
        self.forbidden(manifest.signer.is_some())?;
        let module = manifest
            .open_module(&self.config.prebuilt)
            .map_err(|problem| ModuleStep::Unfit { problem })?;
        Ok(Brought {
            new: self.insert(OURS, module, ASYNCHRONOUS)?,
            digest: Some(manifest.sha256),
        })
    }

    fn load_built(&self, kernel: &str) -> Result<Brought, ModuleStep> {
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
                self.config.build_wait,
            )
            .map_err(|error| match error.kind() {
                // Unlike a module that is being loaded, a build that was ended brings nothing later.
                io::ErrorKind::TimedOut => ModuleStep::BuildFailed {
                    output: format!("not ended after {} s", self.config.build_wait.as_secs()),
                },
                _ => unfit("make")(error),
            })?;
        if !ran.success {
            return Err(ModuleStep::BuildFailed {
                output: tail(&ran.output),
            });
        }
        let path = folder.join(OURS).with_extension("ko");
        let mut module = File::open(&path).map_err(unfit("the built module"))?;
        let digest = digest(&mut module).map_err(unfit("the built module"))?;
        let new = self.insert(OURS, module, ASYNCHRONOUS)?;
        let _ = fs::remove_dir_all(&folder);
        Ok(Brought {
            new,
            digest: Some(digest),
        })
    }

    /// `finit_module`. Whether the module is new: somebody who was quicker has done as well, and it is his
    /// then.
    fn insert(&self, name: &str, module: File, how: Insert) -> Result<bool, ModuleStep> {
        let system = self.system.clone();
        let Some(outcome) = within(self.config.load_wait, move || system.load_module(&module, how)) else {
            return Err(timed_out(self.config.load_wait));
        };
        let errno = match outcome {
            Ok(()) => return Ok(true),
            Err(Errno::EEXIST) => return Ok(false),
            Err(errno) => errno,
        };
        let reason = format!("{name}: {}", errno.desc());
        Err(match errno {
            Errno::EKEYREJECTED | Errno::ENOKEY | Errno::EBADMSG => ModuleStep::Signature { reason },
            Errno::EPERM if restriction::may_load(&self.config.root) == Some(false) => ModuleStep::Refused {
                reason: format!("{reason}; this process has no right to load modules (CAP_SYS_MODULE)"),
            },
            // A kernel that is locked down says no more than this. Without a sign of that it is some policy
            // of the machine.
            Errno::EPERM if restriction::may_apply(&self.config.root) => ModuleStep::Signature { reason },
            Errno::EINVAL | Errno::EOPNOTSUPP if how.compressed => ModuleStep::Refused {
                reason: format!(
                    "{name}: its file is compressed, which this kernel does not unpack, and there is no \
                     modprobe here"
                ),
            },
            _ => ModuleStep::Refused { reason },
        })
    }
}

fn timed_out(limit: Duration) -> ModuleStep {
    ModuleStep::TimedOut {
        seconds: limit.as_secs(),
    }
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
