//! What the loader found and did, typed: for messages, for `--json`, and as short codes for labels and metrics.

use std::fmt;

use serde::{Serialize, Serializer};

use super::restriction::Restriction;
use super::state::State;
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
}

impl Report {
    pub(super) fn new(kernel: String) -> Self {
        Self {
            kernel,
            outcome: Outcome::Https,
            steps: Vec::new(),
            orphan: Orphan::Absent,
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
            Outcome::Https => "NoModule",
        }
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
    /// There is a prebuilt module for this kernel.
    pub prebuilt: bool,
    /// What the loader has loaded since the machine started.
    pub loaded_by_us: Option<State>,
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
                    let prebuilt = if self.prebuilt { "a" } else { "no" };
                    let mut text = format!(
                        "the host offers the device, but no kernel module for it is loaded (there is {prebuilt} prebuilt one for \
                         the kernel {kernel}"
                    );
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
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Unloaded {
    /// The module is gone.
    Done {
        /// Its name.
        module: String,
    },
    /// None was loaded.
    NotLoaded,
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
                Ok(())
            }
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
            Self::Forbidden { by } => write!(f, "not tried, {by}"),
            Self::Taken { driver } => write!(f, "not tried, the driver {driver} has the device"),
            Self::Unfit { problem } => write!(f, "not tried, {problem}"),
            Self::BuildFailed { output } => write!(f, "failed: {output}"),
            Self::Refused { reason } => write!(f, "refused: {reason}"),
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
        writeln!(
            f,
            "prebuilt module for this kernel: {}",
            if self.prebuilt { "yes" } else { "no" }
        )?;
        if let Some(state) = &self.loaded_by_us {
            writeln!(f, "loaded by us: {state}")?;
        }
        write!(f, "companion PCI device: {}", self.orphan)
    }
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { module } => write!(f, "{module} is unloaded"),
            Self::NotLoaded => write!(f, "no module is loaded"),
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
