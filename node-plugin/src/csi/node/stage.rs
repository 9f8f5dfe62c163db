//! Staging: a container becomes a file system at a path of the node.

use std::path::Path;

use blob_client::auth::entra::GivenToken;
use blob_fs::VolumeConfig;
use csi_proto::csi::{NodeStageVolumeRequest, NodeUnstageVolumeRequest};

use super::renewal::{Reached, Source};
use super::{NodeService, resolved, stable_context};
use crate::access::Access;
use crate::cluster::VolumeAt;
use crate::csi::account::Account;
use crate::csi::connect::{self, CredentialKind};
use crate::csi::named_secret::{self, Whose};
use crate::csi::required;
use crate::csi::volume_context::{Attributes, MountOptions, Scope, Secrets};
use crate::error::{Error, Reason, Result};
use crate::mounts::Condition;
use crate::mounts::mount::Credentials;
use crate::mounts::record::Record;

impl NodeService {
    pub(super) async fn stage(&self, request: &NodeStageVolumeRequest) -> Result<()> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let path = resolved("staging_target_path", &request.staging_target_path)?;
        let access = Access::parse(request.volume_capability.as_ref(), Reason::CapabilityExceeded)?;
        let attributes = Attributes::parse(&request.volume_context, Scope::Attributes)?;
        let options = MountOptions::parse(&access.mount_flags)?;
        let secrets = Secrets::parse(&request.secrets)?;
        let mut record = Record::new(volume_id, &path, access, stable_context(&request.volume_context));
        record.secrets_given = Some(!secrets.is_empty());

        let _in_flight = self.mounts.enter_in_turn(volume_id, &path).await?;
        if attributes.identity.with_pod_token {
            // The token comes with the publish: each pod gets a mount of its own, with its own rights.
            return Ok(());
        }
        match self.mounts.condition(&path).await? {
            Condition::Healthy | Condition::Silent(_) if self.is_forgotten(&path).await? => {
                tracing::warn!(
                    volume_id, path = %path.display(),
                    "nothing is remembered of the mount, and no pod uses it: it is made anew"
                );
                self.mounts.stop(&path).await?;
            }
            Condition::Healthy | Condition::Silent(_) => {
                self.staged_alike(&record)?;
                let handle = volume_id.to_owned();
                self.offer(VolumeAt { handle, path }, &attributes, &request.secrets);
                return Ok(());
            }
            Condition::Dead(why) => {
                tracing::info!(
                    volume_id, path = %path.display(), why,
                    "mounting over a dead mount"
                );
                let former = self.mounts.record(&path);
                if let Some(former) = former.filter(|former| former.volume_id == volume_id) {
                    // Pods of the dead mount are still asked about, and taken away.
                    record.targets = self.mounts.still_mounted(former.targets).await?;
                }
            }
            Condition::Foreign(fs_type) => {
                return Err(Error::new(
                    Reason::TargetInUse,
                    format!(
                        "staging_target_path: a {fs_type} is mounted at {}",
                        path.display()
                    ),
                ));
            }
            // Whatever becomes of this call, kubelet stages it before it publishes it.
            Condition::NotMounted => self.mounts.forget_set_aside(&path)?,
        }
        // A link would be mounted at its target, where nobody looks for it. What a dead mount covers is a
        // directory, and cannot be asked for.
        let covered = self.mounts.mount_at(&path).await?.is_some();
        if !covered && !std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
            return Err(Error::new(
                Reason::StagingPathMissing,
                format!(
                    "staging_target_path: {} is not an existing directory (nor may it be a link to one)",
                    path.display()
                ),
            ));
        }
        self.mounts.room()?;
        let at = VolumeAt {
            handle: volume_id.to_owned(),
            path,
        };
        let whose = Whose::Staged(at.clone());
        let source = Source::of(&attributes, !secrets.is_empty(), whose.clone());
        let secrets = named_secret::on_node(self.link.as_ref(), &attributes, secrets, whose.owner()).await?;
        let (config, reached) = self
            .configure(&attributes, &options, &record.access, &secrets, None, false)
            .await?;
        record.endpoint = Some(reached.account.endpoint.to_string());
        let renewing = self.renew(at, &attributes, source, reached);
        let credentials = Credentials::default().renewed(renewing);
        self.mounts.start(record, config, credentials).await
    }

    pub(super) async fn unstage(&self, request: &NodeUnstageVolumeRequest) -> Result<()> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let path = resolved("staging_target_path", &request.staging_target_path)?;
        let _in_flight = self.mounts.enter_in_turn(volume_id, &path).await?;
        if let Some(record) = self.mounts.record(&path)
            && (record.volume_id != volume_id || record.inline)
        {
            // Idempotent: this volume is not staged there, and the other one, or the pod's own mount, is not
            // ours to end.
            return Ok(());
        }
        let condition = self.mounts.condition(&path).await?;
        if matches!(condition, Condition::Foreign(_)) {
            return Ok(());
        }
        if matches!(condition, Condition::Healthy | Condition::Silent(_)) {
            let bound = self.mounts.bound_at(&path).await?;
            if let Some(target) = bound.first() {
                return Err(Error::new(
                    Reason::TargetInUse,
                    format!(
                        "staging_target_path: the volume is still published at {}",
                        target.display()
                    ),
                ));
            }
        }
        self.mounts.stop(&path).await
    }

    /// Whether nothing is remembered of the mount at a path (its record is lost) and no pod uses it: nobody
    /// can say what it was staged with, and it is in the way of every stage.
    async fn is_forgotten(&self, path: &Path) -> Result<bool> {
        Ok(self.mounts.record(path).is_none() && self.mounts.bound_at(path).await?.is_empty())
    }

    /// A second stage: fine with the same arguments.
    fn staged_alike(&self, wanted: &Record) -> Result<()> {
        let path = wanted.path.display();
        let differs = |what: &str| {
            Err(Error::new(
                Reason::StagedDifferently,
                format!("staging_target_path: {path} is staged already with another {what}"),
            ))
        };
        let Some(staged) = self.mounts.record(&wanted.path) else {
            return differs("driver instance (no record of it)");
        };
        if staged.volume_id != wanted.volume_id {
            return differs(&format!("volume_id ({:?})", staged.volume_id));
        }
        if let Some(field) = staged.access.difference(&wanted.access) {
            return differs(field);
        }
        match context_difference(&staged.context, &wanted.context) {
            Some(key) => differs(&format!("volume_context ({key})")),
            None => Ok(()),
        }
    }

    /// Everything a mount needs, after the container has answered once.
    pub(super) async fn configure(
        &self,
        attributes: &Attributes,
        options: &MountOptions,
        access: &Access,
        secrets: &Secrets,
        pod_token: Option<&GivenToken>,
        read_only: bool,
    ) -> Result<(VolumeConfig, Reached)> {
        let name = attributes.container.as_deref().ok_or_else(|| {
            Error::new(
                Reason::MissingField,
                "containerName: volumeAttributes do not name the container",
            )
        })?;
        let account = Account::resolve(attributes, secrets)?;
        let credentials = self
            .connector
            .credentials(&account, attributes, secrets, pod_token)?;
        let kind = CredentialKind::of(&credentials);
        let patience = options.timeout.unwrap_or_default();
        let client = self.connector.client(
            &account,
            credentials,
            attributes.transport,
            &attributes.keeping,
            patience,
        )?;
        let container = connect::container(&client, name)?;
        let prefix = attributes.prefix.clone().unwrap_or_default();
        let read_only = read_only || options.read_only || access.read_only() || kind == CredentialKind::None;
        let rights = connect::check_mount(&account, &container, &prefix, read_only, kind).await?;
        if !read_only && !rights.write {
            return Err(Error::new(
                Reason::AccessDenied,
                format!(
                    "container {name:?} at {}: the credential lacks the right to write (w), and the volume \
                     is not read-only; for one that is, say accessModes: [ReadOnlyMany], readOnly: true or \
                     the mount option ro",
                    account.endpoint
                ),
            ));
        }

        let source = match prefix.as_str() {
            "" => format!("{}/{name}", account.name),
            prefix => format!("{}/{name}/{prefix}", account.name),
        };
        let mut config = VolumeConfig::new(source, std::sync::Arc::new(container.clone()));
        config.prefix = prefix.clone();
        config.read_only = read_only;
        config.rights = rights;
        config.uid = options.uid.unwrap_or(config.uid);
        // The pod's fsGroup must own the volume (CSI: volume_mount_group); a gid= is the fallback.
        config.gid = access.group.or(options.gid).unwrap_or(config.gid);
        (config.file_mode, config.dir_mode) = options.modes(access.group.is_some());
        config.ownership = options.ownership(access.group);
        config.attr_timeout = options.attr_timeout.unwrap_or(config.attr_timeout);
        config.entry_timeout = options.entry_timeout.unwrap_or(config.entry_timeout);
        config.negative_timeout = options
            .negative_timeout
            .unwrap_or(attributes.profile.negative_timeout());
        config.kernel_cache = options.kernel_cache.unwrap_or(config.kernel_cache);
        config.rename_limit = options.rename_limit.unwrap_or(config.rename_limit);
        config.timeout = patience;
        config.profile = attributes.profile;
        let reached = Reached {
            account,
            container,
            prefix,
            read_only,
            kind,
            rights,
        };
        Ok((config, reached))
    }

    /// The record of the volume staged at a path, or why it cannot be published from there.
    pub(super) fn staged(&self, volume_id: &str, path: &Path) -> Result<Record> {
        match self.mounts.record(path) {
            Some(record) if record.volume_id == volume_id => Ok(record),
            Some(record) => Err(Error::new(
                Reason::NotStaged,
                format!(
                    "staging_target_path: {} holds volume {:?}",
                    path.display(),
                    record.volume_id
                ),
            )),
            None => Err(Error::new(
                Reason::NotStaged,
                format!(
                    "staging_target_path: volume {volume_id:?} is not staged at {}",
                    path.display()
                ),
            )),
        }
    }
}

/// The first key in which two contexts differ.
pub(super) fn context_difference<'a>(
    a: &'a std::collections::BTreeMap<String, String>,
    b: &'a std::collections::BTreeMap<String, String>,
) -> Option<&'a str> {
    a.keys()
        .chain(b.keys())
        .find(|key| a.get(*key) != b.get(*key))
        .map(String::as_str)
}
