//! Dead mounts are made anew by the driver itself: those that a former process of this node has served, whose
//! pods get ENOTCONN. Kubelet stages a volume again only when no pod of the node wants it any more.
//!
//! A container that runs keeps the mount that it was started with. One that is started binds what is at the
//! pod's target in that moment, which serves again from then on.

use std::collections::HashMap;
use std::path::Path;

use blob_fs::VolumeConfig;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;

use super::NodeService;
use super::renewal::{Reached, Source};
use crate::cluster::VolumeAt;
use crate::csi::account::Account;
use crate::csi::named_secret::{self, Whose};
use crate::csi::volume_context::{Attributes, AuthType, MountOptions, Scope, Secrets};
use crate::error::{Error, Reason, Result};
use crate::mounts::Condition;
use crate::mounts::heal::{FIRST_PAUSE, LONGEST_PAUSE, Rebound};
use crate::mounts::mount::Credentials;
use crate::mounts::record::Record;
#[cfg(test)]
use crate::mounts::steps::{Mutant, lacks};

impl NodeService {
    /// Makes all staged volumes anew whose mounts are dead, and goes on trying until `stop`. Those that a
    /// former process has unmounted wait for a pod: kubelet may want them no more.
    pub async fn heal_all(&self, stop: CancellationToken) {
        let records = self.mounts.records().into_iter();
        let staged = records.filter(|record| !record.inline && record.set_aside.is_none());
        let all = join_all(staged.map(|record| self.heal_in_the_end(record)));
        let _ = stop.run_until_cancelled(all).await;
    }

    async fn heal_in_the_end(&self, record: Record) {
        let (mut pause, mut share) = (FIRST_PAUSE, 0.0..1.0);
        loop {
            tokio::time::sleep(pause.mul_f64(drawn(share))).await;
            let (node, record) = (self.clone(), record.clone());
            // To its end also when the process is to stop: what it had done by then would be a mount without
            // a record.
            let attempt = async move { tokio::spawn(async move { node.heal_in_turn(&record).await }).await };
            match self.mounts.healing().in_turn(attempt).await {
                Ok(Ok(())) => return,
                // Nothing was tried: a call is at work.
                Ok(Err(error)) if error.reason == Reason::OperationPending => {}
                Ok(Err(_)) | Err(_) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
            share = 0.5..1.0;
        }
    }

    /// One attempt of this process's own, without a call of kubelet's.
    pub(super) async fn heal_in_turn(&self, record: &Record) -> Result<()> {
        let (volume_id, path) = (&record.volume_id, &record.path);
        let _in_flight = self.mounts.enter_to_heal(volume_id, path)?;
        if self
            .mounts
            .record(path)
            .is_none_or(|now| now.volume_id != *volume_id)
        {
            // Unstaged meanwhile.
            return Ok(());
        }
        let (healed, what, failure) = match self.heal(path, Secrets::default()).await {
            Err(error) => (
                Err(error.clone()),
                "the dead mount could not be made anew",
                Some(error),
            ),
            Ok(Rebound {
                failed: Some(error), ..
            }) => (
                Err(error.clone()),
                "a pod of the volume does not have it again yet",
                Some(error),
            ),
            // The volume serves, and no further attempt can help: this is told once.
            Ok(Rebound { lasting, .. }) => (Ok(()), "a pod of the volume has to be deleted", lasting),
        };
        let text = path.display().to_string();
        self.note(volume_id, &text, healed.as_ref().err());
        if let Some(error) = &failure {
            tracing::warn!(volume_id, path = text, %error, "{what}");
            self.report(volume_id, &text, error, |link, volume| {
                link.reporter
                    .failed(volume, &error.reason.to_string(), &error.to_string());
            });
        }
        healed
    }

    /// Makes the volume that is staged at a path anew if its mount is dead, and binds it to those of its
    /// targets whose mounts are. The caller is at work for the volume. `given`: secrets of the call.
    ///
    /// # Errors
    /// The volume is not there. That a target could not be bound is told apart from that.
    pub(super) async fn heal(&self, path: &Path, given: Secrets) -> Result<Rebound> {
        #[cfg(test)]
        if lacks(Mutant::WaitForTheNextStage) {
            return Ok(Rebound::default());
        }
        let Some(record) = self.mounts.record(path).filter(|record| !record.inline) else {
            return Ok(Rebound::default());
        };
        let condition = self.mounts.unless_ending(self.mounts.condition(path)).await?;
        let dead = match condition {
            Condition::Dead(why) => Some(why),
            Condition::NotMounted if self.mounts.has_dead_targets(path).await? => {
                Some("it is not mounted".to_owned())
            }
            Condition::NotMounted if record.set_aside.is_some() => {
                Some("the process that served it has ended, when no pod had it".to_owned())
            }
            // A mount of a former process, which cannot be asked for now.
            Condition::Silent(why) if !self.mounts.serves(path) => {
                let text = format!(
                    "staging_target_path: the mount at {} does not answer: {why}",
                    path.display()
                );
                return Err(Error::new(Reason::MountSilent, text));
            }
            Condition::Healthy | Condition::Silent(_) => None,
            Condition::NotMounted | Condition::Foreign(_) => return Ok(Rebound::default()),
        };
        let healing = self.mounts.healing();
        if let Some(why) = dead {
            tracing::info!(
                volume_id = record.volume_id, path = %path.display(), why,
                "making a dead mount anew"
            );
            let with_given = !given.is_empty();
            let anew = self.mount_anew(record, given).await.map_err(|error| {
                let text = format!(
                    "staging_target_path: the mount at {} is dead ({why}) and cannot be made anew: {}",
                    path.display(),
                    error.message
                );
                Error::new(error.reason, text)
            });
            match &anew {
                // Nothing was tried to its end.
                Err(error) if error.reason == Reason::OperationPending => {}
                _ => healing.note(path, with_given, &anew),
            }
            anew?;
        }
        let rebound = self.mounts.rebind(path).await;
        if rebound.failed.is_some() || rebound.lasting.is_some() {
            healing.note_failure();
        }
        Ok(rebound)
    }

    async fn mount_anew(&self, mut record: Record, given: Secrets) -> Result<()> {
        let context: HashMap<String, String> = record.context.clone().into_iter().collect();
        let attributes = Attributes::parse(&context, Scope::Attributes)?;
        self.mounts.room()?;
        let at = VolumeAt {
            handle: record.volume_id.clone(),
            path: record.path.clone(),
        };
        let whose = Whose::Staged(at.clone());
        // Can be dropped: a process that is about to end has time for its last commits only.
        let prepared = self.prepare_anew(&record, &attributes, given, &whose);
        let (config, reached, brought) = self.mounts.unless_ending(prepared).await?;
        record.endpoint = Some(reached.account.endpoint.to_string());
        let renewing = self.renew(at, &attributes, Source::of(&attributes, brought, whose), reached);
        let mounted = self.mounts.still_mounted(record.targets);
        record.targets = self.mounts.unless_ending(mounted).await?;
        let credentials = Credentials::default().renewed(renewing);
        self.mounts.start_anew(record, config, credentials).await
    }

    /// What asks others: the API server, services that give tokens, and the account.
    async fn prepare_anew(
        &self,
        record: &Record,
        attributes: &Attributes,
        given: Secrets,
        whose: &Whose,
    ) -> Result<(VolumeConfig, Reached, bool)> {
        let options = MountOptions::parse(&record.access.mount_flags)?;
        let (secrets, brought) = self.secrets_again(record, attributes, given, whose).await?;
        let account = Account::resolve(attributes, &secrets)?;
        if let Some(endpoint) = &record.endpoint
            && *endpoint != account.endpoint.as_str()
        {
            return Err(Error::new(
                Reason::ConflictingFields,
                "azurestorageaccountname: the Secret is of another account than the mount was",
            ));
        }
        let (config, reached) = self
            .configure(attributes, &options, &record.access, &secrets, None, false)
            .await?;
        Ok((config, reached, brought))
    }

    /// The secrets of a volume that was staged by a former process: they are written down nowhere. And
    /// whether they are those that came with the stage.
    pub(super) async fn secrets_again(
        &self,
        record: &Record,
        attributes: &Attributes,
        given: Secrets,
        whose: &Whose,
    ) -> Result<(Secrets, bool)> {
        let link = self.link.as_ref();
        let needs_none = needs_no_secret(attributes);
        if let Some(link) = link.filter(|_| record.secrets_given != Some(false)) {
            // First those of the stage: a call that publishes may bring others.
            let paths = std::iter::once(&record.path).chain(record.targets.keys());
            match named_secret::of_stage(link, &record.volume_id, paths).await {
                Ok(Some(secrets)) => return Ok((secrets, true)),
                Ok(None) => {}
                Err(error) if given.is_empty() && !needs_none => return Err(error),
                Err(error) => {
                    tracing::debug!(volume_id = record.volume_id, %error, "the stage's Secret is not used");
                }
            }
        }
        if !given.is_empty() && record.secrets_given != Some(false) {
            return Ok((given, true));
        }
        if record.secrets_given == Some(true) && !needs_none {
            let why = match link {
                None => "the driver does not speak to Kubernetes here",
                Some(_) => "no PersistentVolume of this handle with a nodeStageSecretRef is bound to a claim",
            };
            return Err(Error::new(
                Reason::MountDead,
                format!("its secrets came with the stage, and cannot be had again: {why}"),
            ));
        }
        let secrets = named_secret::on_node(link, attributes, Secrets::default(), whose.owner()).await?;
        Ok((secrets, false))
    }
}

/// A number out of a range.
fn drawn(range: std::ops::Range<f64>) -> f64 {
    #[cfg(test)]
    if let Some(steps) = crate::mounts::steps::here() {
        return steps.draw(range);
    }
    rand::random_range(range)
}

/// Whether the account can be reached without any Secret, whatever came with the stage: many classes name one
/// that only says the account once more.
fn needs_no_secret(attributes: &Attributes) -> bool {
    let by_identity = matches!(
        attributes.auth_type,
        Some(AuthType::Msi | AuthType::WorkloadIdentity | AuthType::Anonymous)
    );
    by_identity
        && attributes.identity.msi_endpoint.is_none()
        && (attributes.account.is_some() || attributes.server.is_some())
}
