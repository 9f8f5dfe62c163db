//! Dead mounts are made anew by the driver itself: those that a former process of this node has served, whose
//! pods get ENOTCONN. Kubelet stages a volume again only when no pod of the node wants it any more.
//!
//! A container that runs keeps the mount that it was started with. One that is started binds what is at the
//! pod's target in that moment, which serves again from then on.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::NodeService;
use super::renewal::Source;
use crate::cluster::VolumeAt;
use crate::csi::named_secret::{self, Whose};
use crate::csi::volume_context::{Attributes, MountOptions, Scope, Secrets};
use crate::error::{Error, Reason, Result};
use crate::mounts::Condition;
use crate::mounts::mount::Credentials;
use crate::mounts::record::Record;

/// Volumes that are made anew at a time: after a restart all are dead, and share the network and the services
/// that give tokens with what else goes on.
const AT_ONCE: usize = 4;
/// Longest pause before the first attempt, so that the nodes of a cluster do not all ask at once.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause between attempts.
const LONGEST: Duration = Duration::from_secs(300);

impl NodeService {
    /// Makes all staged volumes anew whose mounts are dead, and goes on trying until `stop`.
    pub async fn heal_all(&self, stop: CancellationToken) {
        let turns = Semaphore::new(AT_ONCE);
        let staged = self.mounts.records().into_iter().filter(|record| !record.inline);
        let all = join_all(staged.map(|record| self.heal_in_the_end(record, &turns)));
        let _ = stop.run_until_cancelled(all).await;
    }

    async fn heal_in_the_end(&self, record: Record, turns: &Semaphore) {
        let (mut pause, mut share) = (FIRST, 0.0..1.0);
        loop {
            tokio::time::sleep(pause.mul_f64(rand::random_range(share))).await;
            let Ok(_turn) = turns.acquire().await else { return };
            let (node, record) = (self.clone(), record.clone());
            // To its end also when the process is to stop: what it had done by then would be a mount without
            // a record.
            let attempt = tokio::spawn(async move { node.heal_in_turn(&record).await });
            if matches!(attempt.await, Ok(Ok(()))) {
                return;
            }
            (pause, share) = ((pause * 2).min(LONGEST), 0.5..1.0);
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
        let healed = self.heal(path, Secrets::default()).await;
        let text = path.display().to_string();
        self.note(volume_id, &text, healed.as_ref().err());
        if let Err(error) = &healed {
            tracing::warn!(volume_id, path = text, %error, "the dead mount could not be made anew");
            self.report(volume_id, &text, error, |link, volume| {
                link.reporter
                    .failed(volume, &error.reason.to_string(), &error.to_string());
            });
        }
        healed
    }

    /// Makes the volume that is staged at a path anew if its mount is dead, and binds it to those of its
    /// targets whose mounts are. The caller is at work for the volume. `given`: secrets of the call.
    pub(super) async fn heal(&self, path: &Path, given: Secrets) -> Result<()> {
        let Some(record) = self.mounts.record(path).filter(|record| !record.inline) else {
            return Ok(());
        };
        let why = match self.mounts.condition(path).await? {
            Condition::Dead(why) => why,
            Condition::NotMounted if self.mounts.has_dead_targets(path).await? => {
                "it is not mounted".to_owned()
            }
            Condition::Healthy | Condition::Silent(_) => return self.mounts.rebind(path).await,
            Condition::NotMounted | Condition::Foreign(_) => return Ok(()),
        };
        tracing::info!(volume_id = record.volume_id, path = %path.display(), why, "making a dead mount anew");
        let anew = self.mount_anew(record, given).await;
        self.mounts.healing().count(&anew);
        anew.map_err(|error| {
            let text = format!(
                "staging_target_path: the mount at {} is dead ({why}) and cannot be made anew: {}",
                path.display(),
                error.message
            );
            Error::new(error.reason, text)
        })?;
        self.mounts.rebind(path).await
    }

    async fn mount_anew(&self, mut record: Record, given: Secrets) -> Result<()> {
        let context: HashMap<String, String> = record.context.clone().into_iter().collect();
        let attributes = Attributes::parse(&context, Scope::Attributes)?;
        let options = MountOptions::parse(&record.access.mount_flags)?;
        self.mounts.room()?;
        let at = VolumeAt {
            handle: record.volume_id.clone(),
            path: record.path.clone(),
        };
        let whose = Whose::Staged(at.clone());
        let (secrets, brought) = self.secrets_again(&record, &attributes, given, &whose).await?;
        let (config, reached) = self
            .configure(&attributes, &options, &record.access, &secrets, None, false)
            .await?;
        let renewing = self.renew(at, &attributes, Source::of(&attributes, brought, whose), reached);
        record.targets = self.mounts.still_mounted(record.targets).await?;
        let credentials = Credentials::default().renewed(renewing);
        self.mounts.start(record, config, credentials).await
    }

    /// The secrets of a volume that was staged by a former process: they are written down nowhere. And
    /// whether they are those that came with the stage.
    async fn secrets_again(
        &self,
        record: &Record,
        attributes: &Attributes,
        given: Secrets,
        whose: &Whose,
    ) -> Result<(Secrets, bool)> {
        if !given.is_empty() {
            return Ok((given, true));
        }
        let link = self.link.as_ref();
        if let Some(link) = link.filter(|_| record.secrets_given != Some(false)) {
            let paths = std::iter::once(&record.path).chain(record.targets.keys());
            if let Some(secrets) = named_secret::of_stage(link, &record.volume_id, paths).await? {
                return Ok((secrets, true));
            }
        }
        if record.secrets_given == Some(true) {
            let why = match link {
                None => "the driver does not speak to Kubernetes here",
                Some(_) => "no PersistentVolume of this handle with a nodeStageSecretRef is bound to a claim",
            };
            return Err(Error::new(
                Reason::MountDead,
                format!("its secrets came with the stage, and cannot be had again: {why}"),
            ));
        }
        let secrets = named_secret::on_node(link, attributes, given, whose.owner()).await?;
        Ok((secrets, false))
    }
}
