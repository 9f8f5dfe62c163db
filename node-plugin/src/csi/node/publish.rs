//! Publishing: a staged volume appears in a pod's directory; inline volumes are mounted there directly.

use std::path::Path;

use blob_client::auth::entra::GivenToken;
use csi_proto::csi::{NodePublishVolumeRequest, NodeUnpublishVolumeRequest};

use super::renewal::Source;
use super::stage::context_difference;
use super::{NodeService, resolved, stable_context};
use crate::access::Access;
use crate::cluster::VolumeAt;
use crate::csi::entra;
use crate::csi::lending;
use crate::csi::named_secret::{self, Whose};
use crate::csi::required;
use crate::csi::volume_context::{Attributes, MountOptions, Scope, Secrets};
use crate::error::{Error, Reason, Result};
use crate::mounts::Condition;
use crate::mounts::mount::Credentials;
use crate::mounts::record::{Record, Target};

impl NodeService {
    pub(super) async fn publish(&self, request: &NodePublishVolumeRequest) -> Result<()> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let target = resolved("target_path", &request.target_path)?;
        let access = Access::parse(request.volume_capability.as_ref(), Reason::CapabilityExceeded)?;
        let attributes = Attributes::parse(&request.volume_context, Scope::Attributes)?;
        if is_inline(request, &attributes) {
            lending::check_inline(&attributes)?;
        }
        let in_flight = self.mounts.enter_in_turn(volume_id, &target).await?;
        if attributes.ephemeral || attributes.identity.with_pod_token {
            return self.publish_inline(request, &target, access, &attributes).await;
        }
        if request.staging_target_path.is_empty() {
            return Err(Error::new(
                Reason::StagingPathMissing,
                "staging_target_path: it is not set",
            ));
        }
        let staging = resolved("staging_target_path", &request.staging_target_path)?;
        let mut staged = self.staged(volume_id, &staging)?;
        let args = Target {
            read_only: request.readonly,
            access,
        };
        if self.check_arguments(&staged, &args, request).is_ok() {
            // Before the mount is asked anything: with the old ones it may not answer.
            let (handle, path) = (volume_id.to_owned(), staging.clone());
            self.offer(VolumeAt { handle, path }, &attributes, &request.secrets);
        }
        // Kubelet repeats the call for ever, where the driver wants that: then it asks the service nothing.
        let published = staged.targets.contains_key(&target);
        let mut condition = match published {
            true => self.mounts.known_condition(&staging).await?,
            false => self.mounts.condition(&staging).await?,
        };
        let set_aside = matches!(condition, Condition::NotMounted) && staged.set_aside.is_some();
        if set_aside || matches!(condition, Condition::Dead(_)) {
            // Nothing is made anew for a call that is refused then.
            self.check_arguments(&staged, &args, request)?;
            let given = Secrets::parse(&request.secrets)?;
            let healing = self.mounts.healing();
            if published && let Some(error) = healing.too_early(&staging, !given.is_empty()) {
                return Err(error);
            }
            in_flight.heals();
            // What could not be bound for other pods is not this one's trouble, and its own follows.
            healing.in_turn(self.heal(&staging, given)).await?;
            staged = self.staged(volume_id, &staging)?;
            condition = self.mounts.condition(&staging).await?;
        }
        let silent = match condition {
            Condition::Healthy => None,
            Condition::Silent(why) => Some(why),
            Condition::Dead(why) => {
                return Err(Error::new(
                    Reason::MountDead,
                    format!(
                        "staging_target_path: the mount at {} is dead: {why}",
                        staging.display()
                    ),
                ));
            }
            Condition::NotMounted | Condition::Foreign(_) => {
                return Err(Error::new(
                    Reason::NotStaged,
                    format!(
                        "staging_target_path: the volume is not mounted at {} any more",
                        staging.display()
                    ),
                ));
            }
        };
        self.check_arguments(&staged, &args, request)?;
        if self.published_alike(&staged, &target, &args).await? {
            return Ok(());
        }
        if let Some(why) = silent {
            // A pod that has the volume keeps it; a new one waits until it can be used.
            return Err(silent_mount("staging_target_path", &staging, &why));
        }
        self.check_other_targets(&staged, &target, &args).await?;
        self.mounts.bind(&staging, &target, args).await
    }

    pub(super) async fn unpublish(&self, request: &NodeUnpublishVolumeRequest) -> Result<()> {
        let volume_id = required("volume_id", &request.volume_id)?;
        let target = resolved("target_path", &request.target_path)?;
        let _in_flight = self.mounts.enter_in_turn(volume_id, &target).await?;
        let there = self.mounts.volumes_at(&target).await?;
        let own = there.iter().find(|record| record.volume_id == volume_id);
        let staged_there = own.is_some_and(|record| record.path == target && !record.inline);
        if staged_there || (own.is_none() && !there.is_empty()) {
            // Idempotent: this volume is not published there. Another one, or a staging path, is not this
            // call's to take away.
            return Ok(());
        }
        if own.is_some_and(|record| record.inline) || self.mounts.serves(&target) {
            self.mounts.stop(&target).await?;
            return self.mounts.remove_target(&target).await;
        }
        self.mounts.unbind(&target).await
    }

    /// An inline volume, or one with the pod's own token: mounted at the target, there is no stage. Kubelet
    /// calls again with a newer token before the old one ends.
    async fn publish_inline(
        &self,
        request: &NodePublishVolumeRequest,
        target: &Path,
        access: Access,
        attributes: &Attributes,
    ) -> Result<()> {
        let options = MountOptions::parse(&access.mount_flags)?;
        let secrets = Secrets::parse(&request.secrets)?;
        let token = entra::pod_token(&request.secrets, &request.volume_context)?;
        let mut record = Record::new(
            &request.volume_id,
            target,
            access,
            stable_context(&request.volume_context),
        );
        record.inline = true;
        let args = Target {
            read_only: request.readonly,
            access: record.access.clone(),
        };
        record.targets.insert(target.to_owned(), args);
        let token = token.map(GivenToken::new);
        let credentials = Credentials::of_pod(token.clone());
        let known = self.mounts.record(target);
        let alike = known.as_ref() == Some(&record);
        if alike {
            // Before the mount is asked anything: with the old token it may not answer.
            self.mounts.replace_credentials(target, &credentials);
            let (handle, path) = (request.volume_id.clone(), target.to_owned());
            self.offer(VolumeAt { handle, path }, attributes, &request.secrets);
        }
        let condition = match alike {
            true => self.mounts.known_condition(target).await?,
            false => self.mounts.condition(target).await?,
        };
        match condition {
            Condition::Healthy | Condition::Silent(_) if alike => return Ok(()),
            Condition::Silent(why) if known.is_none() => {
                return Err(silent_mount("target_path", target, &why));
            }
            Condition::Healthy | Condition::Silent(_) => {
                return Err(Error::new(
                    Reason::PublishedDifferently,
                    format!(
                        "target_path: {} is published already with other arguments",
                        target.display()
                    ),
                ));
            }
            // It stays until the new one covers it: a container that starts now must not find the node's
            // disk.
            Condition::Dead(_) => {}
            Condition::Foreign(fs_type) => return Err(foreign(target, &fs_type)),
            Condition::NotMounted => {}
        }
        self.mounts.room()?;
        let at = VolumeAt {
            handle: request.volume_id.clone(),
            path: target.to_owned(),
        };
        let whose = Whose::Pod {
            at: at.clone(),
            context: request.volume_context.clone(),
            inline: is_inline(request, attributes),
        };
        let source = Source::of(attributes, !secrets.is_empty(), whose.clone());
        let secrets = named_secret::on_node(self.link.as_ref(), attributes, secrets, whose.owner()).await?;
        let (config, reached) = self
            .configure(
                attributes,
                &options,
                &record.access,
                &secrets,
                token.as_ref(),
                request.readonly,
            )
            .await?;
        self.mounts.prepare_target(target).await?;
        let credentials = credentials.renewed(self.renew(at, attributes, source, reached));
        self.mounts.start(record, config, credentials).await
    }

    /// The arguments of a publish must be those of the stage, as far as the stage knew them.
    fn check_arguments(
        &self,
        staged: &Record,
        args: &Target,
        request: &NodePublishVolumeRequest,
    ) -> Result<()> {
        if let Some(field) = staged.access.difference(&args.access) {
            return Err(Error::new(
                Reason::StagedForOthers,
                format!("{field}: the volume is staged with another one on this node"),
            ));
        }
        match context_difference(&staged.context, &stable_context(&request.volume_context)) {
            Some(key) => Err(Error::new(
                Reason::StagedDifferently,
                format!("volume_context: {key} differs from what the volume was staged with"),
            )),
            None => Ok(()),
        }
    }

    /// True when the volume is at the target already, with these arguments. A dead mount there stays until
    /// the volume covers it.
    async fn published_alike(&self, staged: &Record, target: &Path, args: &Target) -> Result<bool> {
        match self.mounts.known_condition(target).await? {
            Condition::NotMounted | Condition::Dead(_) => return Ok(false),
            Condition::Foreign(fs_type) => return Err(foreign(target, &fs_type)),
            Condition::Healthy | Condition::Silent(_) => {}
        }
        let differs = |what: &str| {
            Err(Error::new(
                Reason::PublishedDifferently,
                format!(
                    "target_path: {} is published already with another {what}",
                    target.display()
                ),
            ))
        };
        let (Some(there), Some(source)) = (
            self.mounts.mount_at(target).await?,
            self.mounts.mount_at(&staged.path).await?,
        ) else {
            return Ok(false);
        };
        if !there.same_file_system(&source) {
            return differs("volume");
        }
        let read_only = args.read_only || source.read_only();
        match staged.targets.get(target) {
            Some(before) if before.read_only != args.read_only => differs("readonly"),
            Some(before) => match before.access.difference(&args.access) {
                Some(field) => differs(field),
                // What is there came by another way than a bind, and is replaced by one.
                None => Ok(there.read_only() == read_only),
            },
            // The record was lost between the bind and its writing; the mount itself knows readonly.
            None if there.read_only() != read_only => differs("readonly"),
            None => {
                self.mounts.remember_target(&staged.path, target, args.clone())?;
                Ok(true)
            }
        }
    }

    /// A volume for one writer goes to one target (CSI, NodePublishVolume, second table).
    async fn check_other_targets(&self, staged: &Record, target: &Path, args: &Target) -> Result<()> {
        if args.access.several_targets() {
            return Ok(());
        }
        for other in self.mounts.bound_at(&staged.path).await? {
            if other != target {
                return Err(Error::new(
                    Reason::PublishedElsewhere,
                    format!(
                        "target_path: access mode {} allows one target, and the volume is published at {}",
                        args.access.mode().as_str_name(),
                        other.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Whether the author of the pod has written the volume. Kubelet says so, where the CSIDriver object has
/// `podInfoOnMount`; without it the author could say what he likes, but kubelet stages no inline volume.
fn is_inline(request: &NodePublishVolumeRequest, attributes: &Attributes) -> bool {
    attributes.ephemeral || request.staging_target_path.is_empty()
}

fn silent_mount(field: &str, path: &Path, why: &str) -> Error {
    Error::new(
        Reason::MountSilent,
        format!("{field}: the mount at {} does not answer: {why}", path.display()),
    )
}

fn foreign(target: &Path, fs_type: &str) -> Error {
    Error::new(
        Reason::TargetInUse,
        format!("target_path: a {fs_type} is mounted at {}", target.display()),
    )
}
