//! What the loader found and did, in words.

use std::fmt;

use super::orphan::Orphan;
use super::report::{ModuleStep, NodeStep, Outcome, Outdated, Report, Status, Step, Unloaded, Unloading};
use super::sysfs::IN_BOX;

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} was loaded from another file than the prebuilt one that is here now (sha256 {}, now {}); \
             to change to it, end the node plugin, then `driver unload` and `driver load`, or restart the \
             machine",
            self.module, self.loaded, self.prebuilt
        )
    }
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
                "not offered: the host does not give this virtual machine the Azure Blob device, so \
                 volumes use HTTPS"
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
                    "no module: the host offers the device, but nothing could put it into service, so \
                     volumes use HTTPS"
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
                "locked: another loader has held {path} for more than {seconds} s, so nothing was done; if \
                 no channel comes up, volumes use HTTPS"
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
                "refused: the kernel takes only modules that are signed with a key it knows, as under \
                 Secure Boot ({reason})"
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

impl Status {
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
