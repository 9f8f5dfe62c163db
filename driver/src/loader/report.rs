//! What the loader found and did, typed: for messages, for `--json`, and as short codes for labels and metrics.

use std::fmt;

use serde::{Serialize, Serializer};

use super::restriction::{Restriction, Unread};
use super::state::LoadedModule;
use super::{IN_BOX, Orphan};
use crate::channel::Abi;

impl Serialize for Abi {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What one run of the loader did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `uname -r`.
    pub kernel: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The rungs that were tried, in order.
    pub steps: Vec<Step>,
    /// The virtual PCI device that comes with the device and has nothing behind it.
    pub orphan: Orphan,
    /// A module that the loader has loaded before, and for which there is another file now.
    pub outdated: Option<Outdated>,
    /// What could not be found out of what keeps the kernel from taking modules.
    pub unread: Vec<Unread>,
}

impl Report {
    pub(super) fn new(kernel: String) -> Self {
        Self {
            kernel,
            outcome: Outcome::Https,
            steps: Vec::new(),
            orphan: Orphan::Absent,
            outdated: None,
            unread: Vec::new(),
        }
    }

    /// Whether the device is in service, or there is none: false when the loader had something to do and could not.
    pub fn is_good(&self) -> bool {
        match self.outcome {
            Outcome::NotOffered { .. } | Outcome::Ready { .. } | Outcome::Closed => true,
            Outcome::Https | Outcome::Locked { .. } => false,
        }
    }

    /// A short code of the outcome, stable, for a label or a metric.
    pub fn code(&self) -> &'static str {
        match self.outcome {
            Outcome::NotOffered { .. } => "NotOffered",
            Outcome::Ready { .. } | Outcome::Closed => match self.steps.last() {
                Some(Step::InBox(_)) => "InBox",
                Some(Step::Prebuilt(_)) => "Prebuilt",
                Some(Step::Build(_)) => "Built",
                Some(Step::Node(_)) | None => "NodePresent",
            },
            Outcome::Https => match self.steps.last() {
                Some(
                    Step::InBox(ModuleStep::TimedOut { .. })
                    | Step::Prebuilt(ModuleStep::TimedOut { .. })
                    | Step::Build(ModuleStep::TimedOut { .. }),
                ) => "TimedOut",
                _ => "NoModule",
            },
            Outcome::Locked { .. } => "Locked",
        }
    }
}

/// A module in the kernel that is older than the file for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outdated {
    /// Its name.
    pub module: String,
    /// SHA-256 of the file that was loaded.
    pub loaded: String,
    /// SHA-256 of the prebuilt file for this kernel.
    pub prebuilt: String,
}

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} was loaded from another file than the prebuilt one that is here now (sha256 {}, now {}); to change to it, end the \
             node plugin, then `driver unload` and `driver load`, or restart the machine",
            self.module, self.loaded, self.prebuilt
        )
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Outcome {
    /// The host does not offer the device; nothing was loaded.
    NotOffered {
        /// There is a VMBus, so this is a virtual machine on Hyper-V.
        vmbus: bool,
    },
    /// The node answers.
    Ready {
        /// How it is spoken to.
        abi: Abi,
    },
    /// There is a node, which this process may not open: the node plugin finds out whether it answers.
    Closed,
    /// The device is offered, but no rung led to a node: HTTPS.
    Https,
    /// Another loader is at work, or hangs: nothing was done.
    Locked {
        /// The lock file.
        path: String,
        /// Seconds waited for it.
        seconds: u64,
    },
}

/// One rung.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "rung", rename_all = "camelCase")]
pub enum Step {
    /// The node as it was found.
    Node(NodeStep),
    /// The module that the node's kernel ships.
    InBox(ModuleStep),
    /// A prebuilt module of ours.
    Prebuilt(ModuleStep),
    /// A module built on the node.
    Build(ModuleStep),
}

/// Of the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum NodeStep {
    /// It answers.
    Present {
        /// How it is spoken to.
        abi: Abi,
    },
    /// There is none.
    Absent,
    /// There is one that this process may not open.
    Closed,
    /// There is one that cannot be used.
    Unusable {
        /// Why.
        reason: String,
    },
}

/// Of a module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum ModuleStep {
    /// It is loaded and the node answers.
    Loaded {
        /// Its name.
        module: String,
        /// How the node is spoken to.
        abi: Abi,
    },
    /// It is loaded and there is a node, which this process may not open.
    Closed {
        /// Its name.
        module: String,
    },
    /// There is none for this kernel.
    None,
    /// This rung is switched off.
    Off,
    /// The machine's own settings forbid the module; not tried.
    SwitchedOff {
        /// Where they say so.
        by: String,
    },
    /// The file cannot be seen from here, so it is not known whether there is one.
    Unseen {
        /// The folder that is not there.
        folder: String,
    },
    /// The kernel would not take it; not tried.
    Forbidden {
        /// What forbids it.
        by: Restriction,
    },
    /// Another driver has the device; not tried.
    Taken {
        /// Which.
        driver: String,
    },
    /// The file or its manifest is not what it should be; not tried.
    Unfit {
        /// What is wrong.
        problem: String,
    },
    /// Building failed.
    BuildFailed {
        /// The last lines of the build.
        output: String,
    },
    /// The kernel, or modprobe, did not take it.
    Refused {
        /// The error.
        reason: String,
    },
    /// The kernel did not take it because of its signature, or for want of one.
    Signature {
        /// The error.
        reason: String,
    },
    /// It was begun and had not ended in time; it may still end by itself. Nothing else was tried.
    TimedOut {
        /// Seconds waited.
        seconds: u64,
    },
    /// It is loaded, but no node appeared.
    NoNode {
        /// Its name.
        module: String,
    },
    /// It is loaded, but its node cannot be used.
    Unusable {
        /// Its name.
        module: String,
        /// Why.
        reason: String,
    },
}

/// A module in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// References to it: open files, and modules that use it.
    pub users: u64,
}

/// What is there now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// `uname -r`.
    pub kernel: String,
    /// There is a VMBus, so this is a virtual machine on Hyper-V.
    pub vmbus: bool,
    /// The host offers the device.
    pub offered: bool,
    /// The driver that has the device.
    pub bound_to: Option<String>,
    /// The node.
    pub node: NodeStep,
    /// Modules that can serve the device and are loaded.
    pub modules: Vec<Module>,
    /// What keeps the kernel from taking modules.
    pub restrictions: Vec<Restriction>,
    /// What of that could not be found out.
    pub unread: Vec<Unread>,
    /// The kernel ships a module for the device; `None` when its modules cannot be seen from here.
    pub in_box: Option<bool>,
    /// There is a prebuilt module for this kernel; `None` when the folder of prebuilt modules cannot be seen from here.
    pub prebuilt: Option<bool>,
    /// What the loader has loaded since the machine started.
    pub loaded_by_us: Vec<LoadedModule>,
    /// One of these for which there is another file now.
    pub outdated: Option<Outdated>,
    /// The virtual PCI device that comes with the device and has nothing behind it.
    pub orphan: Orphan,
}

impl Status {
    /// A short code of the state, stable; the same words as [`Report::code`] where they mean the same.
    pub fn code(&self) -> &'static str {
        match &self.node {
            NodeStep::Present { .. } => "NodePresent",
            NodeStep::Closed => "NodeClosed",
            NodeStep::Unusable { .. } => "NodeUnusable",
            NodeStep::Absent if !self.offered => "NotOffered",
            NodeStep::Absent if self.modules.is_empty() => "NoModule",
            NodeStep::Absent => "NoNode",
        }
    }

    /// Why there is no channel, as a part of a sentence; `None` when there is one.
    pub fn problem(&self) -> Option<String> {
        let kernel = &self.kernel;
        match &self.node {
            NodeStep::Present { .. } => None,
            NodeStep::Closed => Some("this process may not open the device node".to_owned()),
            NodeStep::Unusable { reason } => Some(format!("the device node cannot be used: {reason}")),
            NodeStep::Absent if !self.vmbus => Some("this machine is no Hyper-V guest".to_owned()),
            NodeStep::Absent if !self.offered => {
                Some("the host does not offer the device to this machine".to_owned())
            }
            NodeStep::Absent => Some(match (self.modules.first(), &self.bound_to) {
                (Some(module), _) => format!(
                    "the host offers the device and the module {} is loaded, but its node is not there",
                    module.name
                ),
                (None, Some(driver)) => {
                    format!("the host offers the device, but the driver {driver} has it and brings no node")
                }
                (None, None) => {
                    let mut text =
                        "the host offers the device, but no kernel module for it is loaded (".to_owned();
                    text.push_str(&match self.prebuilt {
                        Some(true) => format!("there is a prebuilt one for the kernel {kernel}"),
                        Some(false) => format!("there is no prebuilt one for the kernel {kernel}"),
                        None => format!("prebuilt ones, for the kernel {kernel}, cannot be seen from here"),
                    });
                    if self.in_box == Some(true) {
                        text.push_str(&format!("; the kernel ships {IN_BOX}"));
                    }
                    for restriction in &self.restrictions {
                        text.push_str(&format!("; {restriction}"));
                    }
                    text.push_str("); `vsc-blob-csi driver load` says what it tried");
                    text
                }
            }),
        }
    }
}

/// What [`unload`](super::Loader::unload) did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unloading {
    /// The modules that were there, one after the other.
    pub modules: Vec<Unloaded>,
}

impl Unloading {
    /// Whether no module is left.
    pub fn is_good(&self) -> bool {
        self.modules
            .iter()
            .all(|module| matches!(module, Unloaded::Done { .. }))
    }
}

impl fmt::Display for Unloading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.modules.is_empty() {
            return write!(f, "no module is loaded");
        }
        for (index, module) in self.modules.iter().enumerate() {
            let lead = if index == 0 { "" } else { "\n" };
            write!(f, "{lead}{module}")?;
        }
        Ok(())
    }
}

/// What became of one module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Unloaded {
    /// The module is gone.
    Done {
        /// Its name.
        module: String,
    },
    /// The loader has not loaded it, so it leaves it.
    NotOurs {
        /// Its name.
        module: String,
    },
    /// Somebody has the node open.
    InUse {
        /// Its name.
        module: String,
        /// References to it.
        users: u64,
    },
    /// The kernel did not let go of it.
    Refused {
        /// Its name.
        module: String,
        /// The error.
        reason: String,
    },
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.say_outcome(f)?;
        if let Some(outdated) = &self.outdated {
            write!(f, "\n  {outdated}")?;
        }
        if matches!(self.orphan, Orphan::Failed { .. }) {
            write!(f, "\n  companion PCI device: {}", self.orphan)?;
        }
        Ok(())
    }
}

impl Report {
    fn say_outcome(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::NotOffered { vmbus: false } => write!(
                f,
                "not offered: this machine has no VMBus, so the channel is not there and volumes use HTTPS"
            ),
            Outcome::NotOffered { vmbus: true } => write!(
                f,
                "not offered: the host does not give this virtual machine the Azure Blob device, so volumes use HTTPS"
            ),
            Outcome::Ready { abi } => {
                match self.steps.last() {
                    Some(Step::InBox(ModuleStep::Loaded { module, .. })) => {
                        write!(f, "ready: the kernel's own module {module} serves the device")?;
                    }
                    Some(Step::Prebuilt(ModuleStep::Loaded { module, .. })) => {
                        write!(f, "ready: the prebuilt module {module} serves the device")?;
                    }
                    Some(Step::Build(ModuleStep::Loaded { module, .. })) => {
                        write!(f, "ready: {module}, built on this machine, serves the device")?;
                    }
                    _ => write!(f, "ready: the device was in service before")?,
                }
                write!(f, " (ABI: {})", abi.name())
            }
            Outcome::Closed => {
                match self.steps.last() {
                    Some(
                        Step::InBox(ModuleStep::Closed { module })
                        | Step::Prebuilt(ModuleStep::Closed { module })
                        | Step::Build(ModuleStep::Closed { module }),
                    ) => write!(f, "in place: {module} is loaded and made the device")?,
                    _ => write!(f, "in place: the device was there before")?,
                }
                write!(
                    f,
                    "; this container may not open it, so the node plugin finds out whether it answers"
                )
            }
            Outcome::Https => {
                write!(
                    f,
                    "no module: the host offers the device, but nothing could put it into service, so volumes use HTTPS"
                )?;
                for step in &self.steps {
                    write!(f, "\n  {step}")?;
                }
                for unread in &self.unread {
                    write!(f, "\n  restrictions: {unread}")?;
                }
                Ok(())
            }
            Outcome::Locked { path, seconds } => write!(
                f,
                "locked: another loader has held {path} for more than {seconds} s, so nothing was done; if no channel comes up, volumes \
                 use HTTPS"
            ),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(step) => write!(f, "node: {step}"),
            Self::InBox(step) => write!(f, "{IN_BOX} of the kernel: {step}"),
            Self::Prebuilt(step) => write!(f, "prebuilt module: {step}"),
            Self::Build(step) => write!(f, "building the module: {step}"),
        }
    }
}

impl fmt::Display for NodeStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present { abi } => write!(f, "answers (ABI: {})", abi.name()),
            Self::Absent => write!(f, "absent"),
            Self::Closed => write!(f, "present; this process may not open it"),
            Self::Unusable { reason } => write!(f, "cannot be used: {reason}"),
        }
    }
}

impl fmt::Display for ModuleStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loaded { module, abi } => write!(f, "{module} is loaded (ABI: {})", abi.name()),
            Self::Closed { module } => write!(f, "{module} is loaded; this process may not open its node"),
            Self::None => write!(f, "there is none for this kernel"),
            Self::Off => write!(f, "switched off"),
            Self::SwitchedOff { by } => write!(f, "not tried, the machine forbids it ({by})"),
            Self::Unseen { folder } => write!(f, "not tried, {folder} cannot be seen from here"),
            Self::Forbidden { by } => write!(f, "not tried, {by}"),
            Self::Taken { driver } => write!(f, "not tried, the driver {driver} has the device"),
            Self::Unfit { problem } => write!(f, "not tried, {problem}"),
            Self::BuildFailed { output } => write!(f, "failed: {output}"),
            Self::Refused { reason } => write!(f, "refused: {reason}"),
            Self::Signature { reason } => write!(
                f,
                "refused: the kernel takes only modules that are signed with a key it knows, as under Secure Boot ({reason})"
            ),
            Self::TimedOut { seconds } => write!(
                f,
                "not ended after {seconds} s; it may still end by itself, so nothing else was tried"
            ),
            Self::NoNode { module } => write!(f, "{module} is loaded, but its device node did not appear"),
            Self::Unusable { module, reason } => {
                write!(f, "{module} is loaded, but its node cannot be used: {reason}")
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel: {}", self.kernel)?;
        match (&self.bound_to, self.offered) {
            (Some(driver), _) => writeln!(f, "device: offered, with the driver {driver}")?,
            (None, true) => writeln!(f, "device: offered, without a driver")?,
            (None, false) => writeln!(f, "device: not offered")?,
        }
        writeln!(f, "node: {}", self.node)?;
        for module in &self.modules {
            writeln!(f, "module: {} with {} users", module.name, module.users)?;
        }
        for restriction in &self.restrictions {
            writeln!(f, "restriction: {restriction}")?;
        }
        for unread in &self.unread {
            writeln!(f, "restriction: not known, {unread}")?;
        }
        let seen = |there| match there {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not known, its folder cannot be seen from here",
        };
        writeln!(f, "{IN_BOX} of this kernel: {}", seen(self.in_box))?;
        writeln!(f, "prebuilt module for this kernel: {}", seen(self.prebuilt))?;
        for module in &self.loaded_by_us {
            writeln!(f, "loaded by us: {module}")?;
        }
        if let Some(outdated) = &self.outdated {
            writeln!(f, "outdated: {outdated}")?;
        }
        write!(f, "companion PCI device: {}", self.orphan)
    }
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { module } => write!(f, "{module} is unloaded"),
            Self::NotOurs { module } => {
                write!(f, "{module} was not loaded by this program, so it is left alone")
            }
            Self::InUse { module, users } => write!(
                f,
                "{module} is in use ({users} users); end the node plugin first, it is never unloaded by force"
            ),
            Self::Refused { module, reason } => write!(f, "the kernel keeps {module}: {reason}"),
        }
    }
}
