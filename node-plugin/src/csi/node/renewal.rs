//! Newer credentials for the mounts of a node: out of the calls that carry secrets, and out of the Secret
//! that a volume names, read again from time to time and when a call is refused.
//!
//! Each mount has a task. What it is given it tries before anything else is signed with it, with the
//! questions that a mount is asked at first; what the service does not accept is told and changes nothing.
//! (What the client does with several credentials: `blob_client::auth`.)

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use blob_client::Container;
use blob_client::auth::handle::Renewal;
use blob_client::auth::{Credentials, End, Ending};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::NodeService;
use crate::cluster::{Link, VolumeAt};
use crate::csi::account::Account;
use crate::csi::connect::{self, CredentialKind, Rights};
use crate::csi::named_secret::{self, Whose};
use crate::csi::volume_context::{Attributes, Secrets};
use crate::error::{Change, Error, Reason, Result};
use crate::mounts::mount::{Offer, Renewing};

/// How often a Secret is read again. A thousand volumes do not do it at the same time.
const PERIOD: std::ops::Range<f64> = 480.0..720.0;
/// After one that the driver may not read, or that is not there.
const IN_VAIN: Duration = Duration::from_secs(3600);
/// How soon it is read again while calls are refused; doubled each time.
const SOON: Duration = Duration::from_secs(2);
/// The longest of these pauses.
const LATE: Duration = Duration::from_secs(60);
/// What was refused is not tried for so long: kubelet brings it every minute.
const REFUSED_FOR: Duration = Duration::from_secs(120);
/// How long before its end a credential is told of, longest first.
const TOLD_BEFORE: [Duration; 3] = [
    Duration::from_secs(24 * 3600),
    Duration::from_secs(3600),
    Duration::ZERO,
];
/// The longest time between two looks at the end.
const LOOK: Duration = Duration::from_secs(600);

/// A mount's container as its first credential has reached it.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) account: Account,
    pub(super) container: Container,
    pub(super) prefix: String,
    pub(super) read_only: bool,
    pub(super) kind: CredentialKind,
    pub(super) rights: Rights,
}

/// Where a mount's credentials have come from, and come from again.
#[derive(Debug)]
pub(super) enum Source {
    /// The calls alone.
    Calls,
    /// The Secret that the volume names.
    Named(Whose),
    /// The Secret that its PersistentVolume names (`nodeStageSecretRef`), where the driver may read it.
    StageSecret(VolumeAt),
}

impl Source {
    /// That of a volume. `brought`: the call carried its secrets.
    pub(super) fn of(attributes: &Attributes, brought: bool, whose: Whose) -> Self {
        match (brought, whose) {
            (false, whose) if named_secret::is_wanted(attributes) => Self::Named(whose),
            (true, Whose::Staged(at)) => Self::StageSecret(at),
            (_, _) => Self::Calls,
        }
    }
}

impl NodeService {
    /// Keeps the credentials of a mount alive for as long as what is returned is there; `None` where there is
    /// nothing to renew.
    pub(super) fn renew(
        &self,
        at: VolumeAt,
        attributes: &Attributes,
        source: Source,
        reached: Reached,
    ) -> Option<Renewing> {
        if reached.kind == CredentialKind::None {
            return None;
        }
        let renewal = Arc::new(reached.container.renewal());
        let (sender, offers) = mpsc::channel(4);
        let keeper = Keeper {
            node: self.clone(),
            at,
            attributes: attributes.clone(),
            source,
            reached,
            renewal: Arc::clone(&renewal),
            refused: None,
            told: None,
        };
        tokio::spawn(keeper.keep(offers));
        Some(Renewing::new(sender, renewal))
    }

    /// Gives the mount at a path what a call has brought. What cannot be one is told: the mount goes on with
    /// what it has.
    pub(super) fn offer(&self, at: VolumeAt, attributes: &Attributes, secrets: &HashMap<String, String>) {
        let Some(renewing) = self.mounts.renewing(&at.path) else {
            return;
        };
        match Secrets::parse(secrets).and_then(|secrets| self.offered(attributes, &secrets)) {
            Ok(Some(offer)) => renewing.offer(offer),
            Ok(None) => {}
            Err(error) => tell_refused(self.link.as_ref(), at, &error),
        }
    }

    /// What secrets say; `None` where they say nothing.
    fn offered(&self, attributes: &Attributes, secrets: &Secrets) -> Result<Option<Offer>> {
        if secrets.is_empty() || attributes.identity.with_pod_token {
            return Ok(None);
        }
        let account = Account::resolve(attributes, secrets)?;
        let credentials = self.connector.credentials(&account, attributes, secrets, None)?;
        Ok(Some(Offer {
            endpoint: account.endpoint,
            credentials,
        }))
    }
}

/// The task of one mount.
struct Keeper {
    node: NodeService,
    at: VolumeAt,
    attributes: Attributes,
    source: Source,
    reached: Reached,
    renewal: Arc<Renewal>,
    /// What was refused last, and when.
    refused: Option<(Credentials, Instant)>,
    /// What was told last: of which end, and how many times.
    told: Option<(End, usize)>,
}

impl Keeper {
    /// Until nobody can offer anything any more: the mount has ended.
    async fn keep(mut self, mut offers: mpsc::Receiver<Offer>) {
        let reads = !matches!(self.source, Source::Calls);
        let mut next_read = Instant::now() + period();
        let mut pause = SOON;
        let mut read_last: Option<Instant> = None;
        loop {
            let look = self.tell_end();
            tokio::select! {
                offer = offers.recv() => match offer {
                    Some(offer) => self.consider(offer).await,
                    None => return,
                },
                () = self.renewal.wanted(), if reads => {
                    let soonest = read_last.map(|last| last + pause);
                    let soon = soonest.map_or_else(Instant::now, |soonest| soonest.max(Instant::now()));
                    next_read = next_read.min(soon);
                }
                () = tokio::time::sleep_until(next_read), if reads => {
                    let found = self.read_again().await;
                    read_last = Some(Instant::now());
                    pause = if self.renewal.is_unaccepted() { (pause * 2).min(LATE) } else { SOON };
                    next_read = Instant::now() + if found { period() } else { IN_VAIN };
                }
                () = tokio::time::sleep(look) => {}
            }
        }
    }

    /// Reads the Secret and tries what it holds; false when it cannot be read, now or later.
    async fn read_again(&mut self) -> bool {
        let link = self.node.link.as_ref();
        let secrets = match &self.source {
            Source::Calls => return false,
            Source::Named(whose) => named_secret::again(link, &self.attributes, whose).await,
            Source::StageSecret(at) => named_secret::of_volume(link, at).await,
        };
        let offered = secrets.and_then(|secrets| self.node.offered(&self.attributes, &secrets));
        match offered {
            Ok(Some(offer)) => self.consider(offer).await,
            Ok(None) => return false,
            Err(error) => {
                let denied = matches!(error.reason, Reason::SecretAccessDenied | Reason::SecretNotFound);
                tracing::warn!(
                    volume_id = self.at.handle, %error,
                    "the volume's Secret could not be read again; its mount goes on with what it has"
                );
                return !denied;
            }
        }
        true
    }

    /// Puts a credential to use if the service accepts it and it may do what the one in use may.
    async fn consider(&mut self, offer: Offer) {
        if offer.endpoint != self.reached.account.endpoint {
            let message = "azurestorageaccountname: the Secret is of another account than the mount";
            let error = Error::new(Reason::ConflictingFields, message);
            return tell_refused(self.node.link.as_ref(), self.at.clone(), &error);
        }
        let lately = |(credentials, at): &(Credentials, Instant)| {
            *credentials == offer.credentials && at.elapsed() < REFUSED_FOR
        };
        if self.refused.as_ref().is_some_and(lately) {
            return;
        }
        match self.tried(&offer.credentials).await {
            Ok(false) => self.refused = None,
            Ok(true) => {
                self.refused = None;
                tracing::info!(volume_id = self.at.handle, "the volume has newer credentials");
                self.tell(Change::CredentialReplaced, Change::CredentialReplaced.message());
            }
            Err(error) if is_verdict(&error) => {
                self.refused = Some((offer.credentials, Instant::now()));
                tell_refused(self.node.link.as_ref(), self.at.clone(), &error);
            }
            // Calls that are refused try it; and it comes again.
            Err(error) => tracing::warn!(
                volume_id = self.at.handle, %error,
                "the volume's newer credentials could not be tried"
            ),
        }
    }

    /// Whether a credential was put to use: it is not the one in use, and does as well.
    async fn tried(&self, credentials: &Credentials) -> Result<bool> {
        let Some(candidate) = self.renewal.offer(credentials)? else {
            return Ok(false);
        };
        let reached = &self.reached;
        let kind = CredentialKind::of(credentials);
        let asked = reached.container.signed_with(&candidate);
        let rights =
            connect::check_rights(&reached.account, &asked, &reached.prefix, reached.read_only, kind).await;
        let lacks = |had: bool, has: bool| had && !has;
        match rights {
            Ok(rights)
                if lacks(reached.rights.write, rights.write)
                    || lacks(reached.rights.delete, rights.delete) =>
            {
                candidate.forget();
                return Err(Error::new(
                    Reason::AccessDenied,
                    "the newer credential lacks a right that the one in use has (write, w, or delete, d)",
                ));
            }
            Ok(_) => {}
            Err(error) => {
                if matches!(error.reason, Reason::InvalidValue | Reason::AccessDenied) {
                    candidate.forget();
                }
                return Err(error);
            }
        }
        candidate.adopt();
        Ok(true)
    }

    fn tell(&self, change: Change, message: &str) {
        if let Some(link) = &self.node.link {
            link.reporter.changed(self.at.clone(), change, message);
        }
    }

    /// Tells of an end that is near; how long until the next look.
    fn tell_end(&mut self) -> Duration {
        let Some(end) = self.renewal.ends() else {
            return LOOK;
        };
        let left = end.at.duration_since(SystemTime::now()).unwrap_or_default();
        // A token is replaced by itself, again and again: that this has failed is all there is to tell.
        let first = if end.what == Ending::Token { 2 } else { 0 };
        let due = TOLD_BEFORE.iter().filter(|before| left <= **before).count();
        let told = self.told.filter(|(of, _)| *of == end).map_or(0, |(_, told)| told);
        if due > told.max(first) {
            self.told = Some((end, due));
            let change = if left.is_zero() {
                Change::CredentialExpired
            } else {
                Change::CredentialExpiring
            };
            let message = format!("{} ({})", change.message(), spelled(end, left));
            tracing::warn!(volume_id = self.at.handle, "{message}");
            self.tell(change, &message);
        }
        let next = TOLD_BEFORE.iter().find(|before| **before < left);
        next.map_or(LOOK, |before| (left - *before).min(LOOK))
    }
}

/// Which credential ends, and when.
fn spelled(end: End, left: Duration) -> String {
    let what = match end.what {
        Ending::Sas => "the SAS",
        Ending::Token => "the access token",
    };
    match left.as_secs() {
        0 => format!("{what} has ended"),
        seconds => format!("{what} ends in {} min", seconds.div_ceil(60)),
    }
}

/// Whether an error says something of the credential, and not of the moment.
fn is_verdict(error: &Error) -> bool {
    matches!(
        error.reason,
        Reason::AuthenticationFailed
            | Reason::AccessDenied
            | Reason::TokenUnavailable
            | Reason::InvalidValue
            | Reason::MissingCredentials
    )
}

fn tell_refused(link: Option<&Link>, at: VolumeAt, error: &Error) {
    tracing::warn!(
        volume_id = at.handle, %error,
        "newer credentials of the volume are not used; its mount goes on with what it has"
    );
    if let Some(link) = link {
        let message = format!("{}: {error}", Change::CredentialRefused.message());
        link.reporter.changed(at, Change::CredentialRefused, &message);
    }
}

fn period() -> Duration {
    Duration::from_secs_f64(rand::random_range(PERIOD))
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
