//! What the loader found and did, typed: for `--json`, and as short codes for labels and metrics. In words:
//! `prose`.

use serde::Serialize;

use super::orphan::Orphan;
use super::restriction::{Restriction, Unread};
use super::state::LoadedModule;
use crate::channel::Abi;

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

    /// Whether the device is in service, or there is none: false when the loader had something to do and
    /// could not.
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
    /// There is a prebuilt module for this kernel; `None` when the folder of prebuilt modules cannot be seen
    /// from here.
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
