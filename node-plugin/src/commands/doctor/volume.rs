//! `doctor URL`: what a container holds that no mount shows, or that was left half done.

use std::sync::Arc;

use anyhow::Context as _;
use blob_client::Patience;
use blob_client::transport::failover::TransportMode;
use blob_fs::mend::{Mended, mend};
use blob_fs::tree::inspect::{Finding, inspect};
use blob_fs::{Rights, Store, VolumeConfig};
use serde::Serialize;

use super::super::credentials::credentials;
use super::super::size::ByteSize;
use super::super::{BudgetArgs, DeviceArgs, first_look};
use crate::csi::account::Account;
use crate::csi::connect::{self, Connector, CredentialKind};
use crate::csi::volume_context::Keeping;

/// Memory for looking and mending: names and a few requests.
const BUDGET: ByteSize = ByteSize(64 << 20);

/// A container, or a folder of it.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct VolumeReport {
    /// account/container/prefix
    pub source: String,
    /// What was found.
    pub findings: Vec<FindingReport>,
}

/// One finding.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct FindingReport {
    /// `Unshown`, `Covered`, `HalfMoved`, `StrayNote`, `Exchanged` or `Deleted`.
    pub kind: &'static str,
    /// The blob.
    pub blob: String,
    /// What it is, in words.
    pub text: String,
    /// With `--mend`: `mended`, `left`, or why it failed.
    pub outcome: Option<String>,
}

impl VolumeReport {
    /// Whether something that could be mended was not.
    pub fn failed(&self) -> bool {
        let outcomes = self
            .findings
            .iter()
            .filter_map(|finding| finding.outcome.as_deref());
        outcomes
            .into_iter()
            .any(|outcome| !matches!(outcome, "mended" | "left"))
    }
}

/// Looks through a container, and mends what can be.
pub(super) async fn examine(url: &str, mending: bool, device: &DeviceArgs) -> anyhow::Result<VolumeReport> {
    let (account, container, prefix) = Account::split_url(url)?;
    let credentials = credentials(&account, |name| std::env::var(name).ok())?;
    let credential = CredentialKind::of(&credentials);
    let resources = BudgetArgs { budget: BUDGET }.resources()?;
    let paths = device.paths(&resources);
    first_look(&paths).await;
    let connector = Connector::new(paths, Arc::clone(&resources.arena));
    let client = connector.client(
        &account,
        credentials,
        TransportMode::default(),
        &Keeping::default(),
        Patience::default(),
    )?;
    let container = connect::container(&client, &container)?;
    connect::check(&account, &container, &prefix).await?;
    let source = match prefix.as_str() {
        "" => format!("{}/{}", account.name, container.name()),
        prefix => format!("{}/{}/{prefix}", account.name, container.name()),
    };
    // A rename that cannot be finished is not gone on with.
    let rights = match mending {
        true => connect::check_rights(&account, &container, &prefix, false, credential).await?,
        false => Rights::NONE,
    };
    let store: Arc<dyn Store> = Arc::new(container);
    let findings = inspect(&*store, &prefix)
        .await
        .with_context(|| format!("listing {source}"))?;
    let mut outcomes = Vec::new();
    if mending {
        let mut config = VolumeConfig::new(source.clone(), store);
        config.prefix = prefix;
        config.rights = rights;
        let mended = mend(config, &resources, &findings).await.context("mending")?;
        outcomes.extend(mended.into_iter().map(|mended| match mended {
            Mended::Done => "mended".to_owned(),
            Mended::Left => "left".to_owned(),
            Mended::Failed(error) => error.to_string(),
        }));
    }
    let mut outcomes = outcomes.into_iter();
    let findings = findings.iter().map(|finding| FindingReport {
        kind: kind(finding),
        blob: finding.blob().to_owned(),
        text: finding.to_string(),
        outcome: outcomes.next(),
    });
    Ok(VolumeReport {
        source,
        findings: findings.collect(),
    })
}

fn kind(finding: &Finding) -> &'static str {
    match finding {
        Finding::Unshown { .. } => "Unshown",
        Finding::Covered { .. } => "Covered",
        Finding::HalfMoved { .. } => "HalfMoved",
        Finding::StrayNote { .. } => "StrayNote",
        Finding::Exchanged { .. } => "Exchanged",
        Finding::Replaced { .. } => "Replaced",
        Finding::Deleted { .. } => "Deleted",
    }
}

/// The report in plain words, one line for each finding.
pub(super) fn sentences(report: &VolumeReport) -> Vec<String> {
    if report.findings.is_empty() {
        return vec![format!(
            "Volume {}: nothing is hidden or half done.",
            report.source
        )];
    }
    let line = |finding: &FindingReport| match &finding.outcome {
        None => format!("Volume {}: {}.", report.source, finding.text),
        Some(outcome) => format!("Volume {}: {}: {outcome}.", report.source, finding.text),
    };
    report.findings.iter().map(line).collect()
}
