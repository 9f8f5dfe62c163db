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
use blob_fs::Rights;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::NodeService;
use crate::cluster::VolumeAt;
use crate::csi::account::Account;
use crate::csi::connect::{self, CredentialKind};
use crate::csi::named_secret::{self, Whose};
use crate::csi::volume_context::{Attributes, Secrets};
use crate::error::{Change, Error, Reason, Result};
use crate::mounts::mount::{Offer, Renewing};

/// How often a Secret is read again. A thousand volumes do not do it at the same time. It costs the API
/// server three requests for each mount, also when nothing happens; a call that is refused does not wait for
/// it.
const PERIOD: std::ops::Range<f64> = 2700.0..4500.0;
/// After one that the driver may not read, or that is not there.
const IN_VAIN: Duration = Duration::from_secs(3600);
/// How soon it is read again while calls are refused; doubled each time.
const SOON: Duration = Duration::from_secs(2);
/// The longest of these pauses.
const LATE: Duration = Duration::from_secs(60);
/// What was refused is not tried for so long: kubelet brings it every minute.
const REFUSED_FOR: Duration = Duration::from_secs(120);
/// A key is not new on all servers of an account at once, nor a client secret in all of an identity service:
/// when one that is refused is tried again. It is told from the second refusal on.
const SPREADS: [Duration; 3] = [
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(120),
];
/// How long the cluster remembers an Event: what has not changed is not told again before.
const TOLD_FOR: Duration = Duration::from_secs(3600);
/// Refusals that are remembered for that: those of two sources, each corrected once in vain.
const REMEMBERED: usize = 4;
/// How long before its end a credential is told of, longest first.
const TOLD_BEFORE: [Duration; 3] = [
    Duration::from_secs(24 * 3600),
    Duration::from_secs(3600),
    Duration::ZERO,
];
/// How long before the end of a SAS its Secret is read again, longest first: what replaces it is put there
/// shortly before as well as long before, and calls need not be refused first. Of all of that, a share that
/// differs from mount to mount.
const READ_BEFORE: [Duration; 3] = [
    Duration::from_secs(600),
    Duration::from_secs(120),
    Duration::from_secs(20),
];
/// That share.
const SHARE: std::ops::Range<f64> = 0.5..1.0;
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
    /// Nobody brings any, as far as is known: an identity without a Secret, or a call that comes once.
    Nobody,
    /// The calls that publish, which come again.
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
            (true, Whose::Pod { .. }) => Self::Calls,
            (false, Whose::Pod { .. }) if attributes.identity.with_pod_token => Self::Calls,
            (false, _) => Self::Nobody,
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
        let (sender, offers) = mpsc::channel(4);
        let keeper = Keeper::new(self.clone(), at, attributes.clone(), source, reached);
        let renewal = Arc::clone(&keeper.renewal);
        tokio::spawn(keeper.keep(offers));
        Some(Renewing::new(sender, renewal))
    }

    /// Gives the mount at a path what a call has brought. What cannot be one is told: the mount goes on with
    /// what it has.
    pub(super) fn offer(&self, at: VolumeAt, attributes: &Attributes, secrets: &HashMap<String, String>) {
        let Some(renewing) = self.mounts.renewing(&at.path) else {
            return;
        };
        let offered = Secrets::parse(secrets).and_then(|secrets| self.offered(attributes, &secrets));
        if let Some(brought) = offered.transpose() {
            renewing.offer(brought);
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
    /// What is tried once more.
    again: Option<Again>,
    /// What each source has brought last that was accepted: only what is new there is a candidate. Two
    /// Secrets that differ and both work would take the mount from each other for ever.
    settled: [Option<Credentials>; 2],
    /// The credential in use, as far as it was told.
    in_use: u64,
    /// What was told of the end: of which one, and how many times.
    told: Option<(End, usize)>,
    /// The refusals that were told last, and when.
    told_refused: Vec<(Refused, Instant)>,
    /// See [`READ_BEFORE`].
    share: f64,
}

/// What is not told again: the texts of an identity service differ each time.
#[derive(Debug, Clone, PartialEq)]
struct Refused {
    reason: Reason,
    /// What was not accepted, or what is wrong with it.
    what: Result<Credentials, String>,
}

/// Who brings a credential: an index of what is remembered of each.
#[derive(Debug, Clone, Copy)]
enum By {
    Call = 0,
    Secret = 1,
}

/// A credential that is tried once more.
struct Again {
    offer: Offer,
    by: By,
    at: Instant,
    tries: Tries,
}

/// What has come of one credential so far.
#[derive(Debug, Clone, Copy, Default)]
struct Tries {
    /// Times that the service did not know it.
    refused: usize,
    /// Times without a verdict.
    failed: u32,
}

/// What reading a Secret has come to.
enum Read {
    /// There is something, or will be soon.
    Found,
    /// Nothing is there.
    Absent,
    /// The driver may not read it.
    Denied,
}

impl Keeper {
    fn new(
        node: NodeService,
        at: VolumeAt,
        attributes: Attributes,
        source: Source,
        reached: Reached,
    ) -> Self {
        let renewal = Arc::new(reached.container.renewal());
        renewal.promise(match source {
            Source::Nobody => false,
            Source::Calls => true,
            Source::Named(_) | Source::StageSecret(_) => node.link.is_some(),
        });
        Self {
            node,
            at,
            attributes,
            source,
            reached,
            in_use: renewal.in_use(),
            renewal,
            refused: None,
            again: None,
            settled: [None, None],
            told: None,
            told_refused: Vec::new(),
            share: rand::random_range(SHARE),
        }
    }

    /// Until nobody can offer anything any more: the mount has ended.
    async fn keep(mut self, mut offers: mpsc::Receiver<Result<Offer>>) {
        let named = matches!(self.source, Source::Named(_) | Source::StageSecret(_));
        let reads = named && self.node.link.is_some();
        // They come again, whatever the Secret is.
        let mut called = matches!(self.source, Source::Calls);
        let mut denied = false;
        let mut next_read = Instant::now() + period();
        let mut pause = SOON;
        let mut read_last: Option<Instant> = None;
        loop {
            let now = SystemTime::now();
            let look = self.tell_end(now);
            let before_end = self
                .before_end(now)
                .filter(|_| !denied)
                .map(|pause| Instant::now() + pause);
            let read_at = before_end.map_or(next_read, |before_end| before_end.min(next_read));
            let again = self.again.as_ref().map(|again| again.at);
            tokio::select! {
                brought = offers.recv() => match brought {
                    Some(Ok(offer)) => {
                        called = true;
                        self.renewal.promise(true);
                        self.consider(offer, By::Call, Tries::default()).await;
                    }
                    Some(Err(error)) => self.tell_refused(&error, None),
                    None => return,
                },
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    if let Some(Again { offer, by, tries, .. }) = self.again.take() {
                        self.consider(offer, by, tries).await;
                    }
                }
                // Whether the driver may read it now is asked once an hour, however many calls are refused.
                () = self.renewal.wanted(), if reads && !denied => {
                    let soonest = read_last.map(|last| last + pause);
                    let soon = soonest.map_or_else(Instant::now, |soonest| soonest.max(Instant::now()));
                    next_read = next_read.min(soon);
                }
                () = tokio::time::sleep_until(read_at), if reads => {
                    let read = self.read_again().await;
                    read_last = Some(Instant::now());
                    pause = if self.renewal.is_unaccepted() { (pause * 2).min(LATE) } else { SOON };
                    denied = matches!(read, Read::Denied);
                    let found = matches!(read, Read::Found);
                    if found || denied {
                        self.renewal.promise(found || called);
                    }
                    next_read = Instant::now() + if found { period() } else { IN_VAIN };
                }
                () = tokio::time::sleep(look) => {}
            }
        }
    }

    /// Reads the Secret and tries what it holds.
    async fn read_again(&mut self) -> Read {
        let link = self.node.link.as_ref();
        let secrets = match &self.source {
            Source::Nobody | Source::Calls => return Read::Absent,
            Source::Named(whose) => named_secret::again(link, &self.attributes, whose).await,
            Source::StageSecret(at) => named_secret::of_volume(link, at).await,
        };
        let offered = secrets.and_then(|secrets| self.node.offered(&self.attributes, &secrets));
        match offered {
            Ok(Some(offer)) => {
                self.consider(offer, By::Secret, Tries::default()).await;
                Read::Found
            }
            Ok(None) => Read::Absent,
            Err(error) => {
                tracing::warn!(
                    volume_id = self.at.handle, %error,
                    "the volume's Secret could not be read again; its mount goes on with what it has"
                );
                match error.reason {
                    Reason::SecretAccessDenied => Read::Denied,
                    Reason::SecretNotFound => Read::Absent,
                    _ => Read::Found,
                }
            }
        }
    }

    /// Puts a credential to use if the service accepts it and it may do what the one in use may.
    async fn consider(&mut self, offer: Offer, by: By, mut tries: Tries) {
        if offer.endpoint != self.reached.account.endpoint {
            let message = "azurestorageaccountname: the Secret is of another account than the mount";
            return self.tell_refused(
                &Error::new(Reason::ConflictingFields, message),
                Some(offer.credentials),
            );
        }
        let known = self.settled[by as usize].as_ref() == Some(&offer.credentials);
        if known && self.renewal.in_use() == self.in_use && !self.renewal.is_unaccepted() {
            return;
        }
        let lately = |(credentials, at): &(Credentials, Instant)| {
            *credentials == offer.credentials && at.elapsed() < REFUSED_FOR
        };
        if tries.refused == 0 && self.refused.as_ref().is_some_and(lately) {
            return;
        }
        match self.tried(&offer.credentials).await {
            Ok(()) => {
                self.settled[by as usize] = Some(offer.credentials);
                (self.refused, self.again) = (None, None);
                self.told_refused.clear();
                // Whoever has put it to use: a call may have found a former one accepted again.
                let in_use = self.renewal.in_use();
                if std::mem::replace(&mut self.in_use, in_use) != in_use {
                    tracing::info!(volume_id = self.at.handle, "the volume has newer credentials");
                    self.tell(Change::CredentialReplaced, Change::CredentialReplaced.message());
                }
            }
            Err(error) if is_verdict(&error) => {
                self.refused = Some((offer.credentials.clone(), Instant::now()));
                self.again = None;
                // A client secret, too, and who gives the tokens may be busy.
                let spreads = matches!(
                    error.reason,
                    Reason::AuthenticationFailed | Reason::TokenUnavailable
                );
                if !spreads || tries.refused > 0 {
                    self.tell_refused(&error, Some(offer.credentials.clone()));
                }
                if let Some(pause) = SPREADS.get(tries.refused).filter(|_| spreads) {
                    tries.refused += 1;
                    self.try_again(offer, by, tries, *pause);
                }
            }
            // No call is signed with it before it is tried.
            Err(error) => {
                tracing::warn!(
                    volume_id = self.at.handle, %error,
                    "the volume's newer credentials could not be tried"
                );
                let pause = (SOON * 2_u32.pow(tries.failed.min(5))).min(LATE);
                tries.failed += 1;
                self.try_again(offer, by, tries, pause);
            }
        }
    }

    fn try_again(&mut self, offer: Offer, by: By, tries: Tries, pause: Duration) {
        self.again = Some(Again {
            offer,
            by,
            at: Instant::now() + pause,
            tries,
        });
    }

    /// Puts a credential to use when it does as well as the one in use.
    async fn tried(&self, credentials: &Credentials) -> Result<()> {
        let Some(candidate) = self.renewal.offer(credentials)? else {
            return Ok(());
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
        Ok(())
    }

    fn tell(&self, change: Change, message: &str) {
        if let Some(link) = &self.node.link {
            link.reporter.changed(self.at.clone(), change, message);
        }
    }

    /// Tells what cannot be used, once an hour at most while it stays the same: kubelet brings it each
    /// minute, and each source its own.
    fn tell_refused(&mut self, error: &Error, credentials: Option<Credentials>) {
        let refused = Refused {
            reason: error.reason,
            what: credentials.ok_or_else(|| error.to_string()),
        };
        self.told_refused.retain(|(_, at)| at.elapsed() < TOLD_FOR);
        if self.told_refused.iter().any(|(told, _)| *told == refused) {
            return;
        }
        if self.told_refused.len() == REMEMBERED {
            self.told_refused.remove(0);
        }
        tracing::warn!(
            volume_id = self.at.handle, %error,
            "newer credentials of the volume are not used; its mount goes on with what it has"
        );
        let message = format!("{}: {error}", Change::CredentialRefused.message());
        self.tell(Change::CredentialRefused, &message);
        self.told_refused.push((refused, Instant::now()));
    }

    /// How long until the Secret is read because the SAS ends.
    fn before_end(&self, now: SystemTime) -> Option<Duration> {
        let end = self.renewal.ends().filter(|end| end.what == Ending::Sas)?;
        read_before(end.at.duration_since(now).ok()?, self.share)
    }

    /// Tells of an end that is near; how long until the next look.
    fn tell_end(&mut self, now: SystemTime) -> Duration {
        let Some(end) = self.renewal.ends() else {
            return LOOK;
        };
        let left = end.at.duration_since(now).unwrap_or_default();
        if let Some(change) = self.due(end, left) {
            let message = format!("{} ({})", change.message(), spelled(end, left));
            tracing::warn!(volume_id = self.at.handle, "{message}");
            self.tell(change, &message);
        }
        let next = TOLD_BEFORE.iter().find(|before| **before < left);
        next.map_or(LOOK, |before| (left - *before).min(LOOK))
    }

    /// What is to be told of an end that is so near; it counts as told.
    fn due(&mut self, end: End, left: Duration) -> Option<Change> {
        // A token is replaced by itself, again and again: that this has failed is all there is to tell.
        let first = if end.what == Ending::Token { 2 } else { 0 };
        let due = TOLD_BEFORE.iter().filter(|before| left <= **before).count();
        let told = self.told.filter(|(of, _)| *of == end).map_or(0, |(_, told)| told);
        if due <= told.max(first) {
            return None;
        }
        self.told = Some((end, due));
        Some(if left.is_zero() {
            Change::CredentialExpired
        } else {
            Change::CredentialExpiring
        })
    }
}

/// How long until a Secret is read whose SAS has so much time left.
fn read_before(left: Duration, share: f64) -> Option<Duration> {
    let before = READ_BEFORE.iter().map(|before| before.mul_f64(share));
    let next = before.into_iter().find(|before| *before < left)?;
    // The clocks of the end and of the pause are two: one that is early reads a second later, not again and
    // again.
    Some((left - next).max(Duration::from_secs(1)))
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

fn period() -> Duration {
    Duration::from_secs_f64(rand::random_range(PERIOD))
}

#[cfg(test)]
#[path = "renewal_tests.rs"]
mod tests;
