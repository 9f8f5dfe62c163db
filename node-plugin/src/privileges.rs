//! What `node` may do: the capabilities that it keeps, each with its reason. Everything else is given up at
//! the start.
//!
//! A container whose mounts are to be seen by kubelet has to be privileged: Kubernetes allows
//! `mountPropagation: Bidirectional` only there. Privileged means every capability, and the program needs
//! few; so it drops the others itself, for good and for all its threads, before it reads a byte from anybody.

use anyhow::{Context as _, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, setrlimit};

/// What stays, and what for. docs/security.md has the same table.
pub const KEPT: &[(Capability, &str)] = &[(
    Capability::CAP_SYS_ADMIN,
    "mount, bind and unmount file systems; mount /sys/fs/fuse/connections where it is missing, to abort a \
    stuck one",
)];

/// Keeps the secrets in this process's memory from its disk and from other processes: no core dump, whatever
/// the container's limit is, and nobody without CAP_SYS_PTRACE may look into it.
///
/// # Errors
/// The kernel does not take it.
pub fn keep_secrets() -> anyhow::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("no core dumps")?;
    nix::sys::prctl::set_dumpable(false).context("not dumpable")
}

/// What is to be told of the privileges, once there is a log: it begins after [`give_up`].
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "nobody else tells that mounts will fail"]
pub struct Findings {
    /// Capabilities that are needed and missing, with what for.
    missing: Vec<(Capability, &'static str)>,
    /// The bounding set could not be changed.
    bounding_stays: bool,
}

impl Findings {
    /// Puts them into the log.
    pub fn tell(&self) {
        if self.bounding_stays {
            tracing::debug!("CAP_SETPCAP is missing: the bounding set stays as it is");
        }
        for (capability, reason) in &self.missing {
            tracing::warn!(%capability, reason, "a capability is missing; is the container privileged?");
        }
    }
}

/// Gives up everything but [`KEPT`], and the right to get anything back by executing a program. The calling
/// thread must be the only one: threads inherit, they do not follow.
///
/// # Errors
/// The process has privileges and cannot give them up: it must not serve then.
pub fn give_up() -> anyhow::Result<Findings> {
    let kept: CapsHashSet = KEPT.iter().map(|(capability, _)| *capability).collect();
    let permitted = caps::read(None, CapSet::Permitted).context("reading the own capabilities")?;
    // The bounding set first: changing it needs a capability that goes as well.
    let bounding_stays = !permitted.contains(&Capability::CAP_SETPCAP);
    if !bounding_stays {
        for capability in caps::runtime::thread_all_supported().difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability)
                .with_context(|| format!("giving up {capability}: bounding set"))?;
        }
    }
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient).context("giving up capabilities: ambient set")?;
    }
    caps::clear(None, CapSet::Inheritable).context("giving up capabilities: inheritable set")?;
    let left: CapsHashSet = permitted.intersection(&kept).copied().collect();
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &left).with_context(|| format!("giving up capabilities: {set:?} set"))?;
    }
    nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;

    // What the kernel says counts, not what was asked for.
    let now = caps::read(None, CapSet::Permitted).context("reading the own capabilities")?;
    if now != left {
        bail!("capabilities could not be given up: {now:?} are left");
    }
    Ok(Findings {
        missing: KEPT
            .iter()
            .filter(|(capability, _)| !left.contains(capability))
            .copied()
            .collect(),
        bounding_stays,
    })
}
