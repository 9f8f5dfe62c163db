//! One mount: all that is known of a path at which this driver mounts a file system.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use blob_client::auth::entra::GivenToken;
use blob_client::auth::handle::Renewal;
use blob_client::auth::{self, End};
use tokio::sync::mpsc;
use url::Url;

use super::drain::Drain;
use super::holdings::Counter;
use super::manager::Mounts;
use super::mounter::Serving;
use super::record::Stored;
#[cfg(test)]
use super::steps::{Mutant, lacks};
use crate::error::{Error, Reason, Result};

/// Where a mount is in its life.
#[derive(Debug)]
pub(super) enum State {
    /// Nothing of it has been served yet: a call is at work on it, or has failed.
    Starting,
    /// This process serves it.
    Serving(Session),
    /// Nobody serves it any more: the process that did has ended.
    Dead,
    /// It is not served any more, and what was accepted is being committed.
    Ending(Drain),
}

/// A file system being served.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) serving: Box<dyn Serving>,
    pub(super) counter: Arc<Counter>,
}

/// What a mount proves its rights with, as far as that can be replaced while it serves.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The token of the pod's service account.
    token: Option<GivenToken>,
    /// Takes what calls bring.
    renewing: Option<Renewing>,
}

/// What a call has brought for a mount.
#[derive(Debug)]
pub struct Offer {
    /// The account that it is for.
    pub endpoint: Url,
    /// What may be newer than what the mount has.
    pub credentials: auth::Credentials,
}

/// Keeps the credentials of a mount alive, as long as there is one.
#[derive(Debug, Clone)]
pub struct Renewing {
    offers: mpsc::Sender<Result<Offer>>,
    renewal: Arc<Renewal>,
}

impl Renewing {
    /// One whose other end takes offers.
    pub fn new(offers: mpsc::Sender<Result<Offer>>, renewal: Arc<Renewal>) -> Self {
        Self { offers, renewal }
    }

    /// Hands over what a call has brought, or why that cannot be a credential of the mount.
    pub fn offer(&self, brought: Result<Offer>) {
        if self.offers.try_send(brought).is_err() {
            // Kubelet calls again in a minute.
            tracing::debug!("credentials of a mount are being tried still; these are not");
        }
    }
}

impl Credentials {
    /// Those of a pod that gave a token, or of a volume whose credentials stay as they are.
    pub fn of_pod(token: Option<GivenToken>) -> Self {
        Self {
            token,
            renewing: None,
        }
    }

    /// The same, kept alive.
    pub fn renewed(self, renewing: Option<Renewing>) -> Self {
        Self { renewing, ..self }
    }

    /// Takes newer ones over; those that cannot be replaced stay.
    pub fn replace(&self, newer: &Self) {
        if let (Some(token), Some(newer)) = (&self.token, &newer.token) {
            token.replace(newer.get());
        }
    }
}

/// Why a volume could not be staged or published at a path.
#[derive(Debug)]
struct Failure {
    volume: String,
    error: Error,
    /// Counts all failures, so that the oldest is known.
    number: u64,
}

/// What is at work on a mount.
#[derive(Debug)]
struct AtWork {
    volume: String,
    /// It makes a dead volume anew: calls wait for it.
    heals: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Mount {
    pub(super) state: State,
    /// What is remembered of it across restarts.
    pub(super) record: Option<Stored>,
    pub(super) credentials: Credentials,
    /// A stat of this connection has not returned in time; gone with the thread that waits for it.
    pub(super) probing: Option<(u32, Weak<()>)>,
    in_flight: Option<AtWork>,
    /// A thread that the call before left behind in the kernel is to end before the next call.
    late: Weak<()>,
    failure: Option<Failure>,
}

impl Mount {
    /// A mount of which nothing is known.
    pub(super) fn new() -> Self {
        Self {
            state: State::Starting,
            record: None,
            credentials: Credentials::default(),
            probing: None,
            in_flight: None,
            late: Weak::new(),
            failure: None,
        }
    }

    /// What a former process has mounted.
    pub(super) fn of_record(stored: Stored) -> Self {
        Self {
            state: State::Dead,
            record: Some(stored),
            ..Self::new()
        }
    }

    /// The file system of this process.
    pub(super) fn session(&self) -> Option<&Session> {
        match &self.state {
            State::Serving(session) => Some(session),
            State::Starting | State::Dead | State::Ending(_) => None,
        }
    }

    /// Whether it has something to commit.
    pub(super) fn is_at_work(&self) -> bool {
        matches!(self.state, State::Serving(_) | State::Ending(_))
    }

    /// The volume for which a call is at work there.
    fn volume_at_work(&self) -> Option<&str> {
        self.in_flight.as_ref().map(|at_work| at_work.volume.as_str())
    }

    /// Whether a call is at work there.
    pub(super) fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a stat of a connection hangs.
    pub(super) fn is_probing(&self, connection: u32) -> bool {
        let hangs = |(probed, asking): &(u32, Weak<()>)| *probed == connection && asking.strong_count() > 0;
        self.probing.as_ref().is_some_and(hangs)
    }

    /// Whether a thread that an earlier call left behind is at work there still.
    fn is_late(&self) -> bool {
        self.late.strong_count() > 0
    }

    /// Whether there is anything to be known of it.
    fn is_known(&self) -> bool {
        self.record.is_some()
            || self.in_flight.is_some()
            || self.is_late()
            || self.failure.is_some()
            || matches!(self.state, State::Serving(_) | State::Ending(_))
            || self
                .probing
                .as_ref()
                .is_some_and(|(_, asking)| asking.strong_count() > 0)
    }
}

/// Failures that are remembered, at most: volumes come and go.
const FAILURES: usize = 256;

/// Forgets paths of which nothing is known any more.
pub(super) fn prune(all: &mut BTreeMap<PathBuf, Mount>) {
    all.retain(|_, mount| mount.is_known());
}

/// Held while a call works on a volume: the lock of a mount.
#[derive(Debug)]
pub struct InFlight<'a> {
    mounts: &'a Mounts,
    path: PathBuf,
}

impl InFlight<'_> {
    /// The call makes a dead volume anew, which others wait for, and for the rest of it: that may take as
    /// long as a service that hangs, and again and again.
    pub fn heals(&self) {
        if let Some(mount) = self.mounts.lock().get_mut(&self.path)
            && let Some(at_work) = &mut mount.in_flight
        {
            at_work.heals = true;
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut all = self.mounts.lock();
        if let Some(mount) = all.get_mut(&self.path) {
            mount.in_flight = None;
        }
        prune(&mut all);
        drop(all);
        self.mounts.left.notify_waiters();
    }
}

impl Mounts {
    /// Begins a call for a volume at a path.
    ///
    /// # Errors
    /// `OperationPending` while another one is at work for the volume, wherever, or at the path; and when the
    /// process ends.
    pub fn enter(&self, volume: &str, path: &Path) -> Result<InFlight<'_>> {
        self.enter_as(volume, path, false)
    }

    /// The same for what this process does by itself.
    pub fn enter_to_heal(&self, volume: &str, path: &Path) -> Result<InFlight<'_>> {
        self.enter_as(volume, path, true)
    }

    /// Begins a call, after what this process does by itself for the volume or at the path: kubelet would
    /// come again only later.
    pub async fn enter_in_turn(&self, volume: &str, path: &Path) -> Result<InFlight<'_>> {
        loop {
            // Before the look: an attempt that ends in between is not missed.
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            let in_the_way = |(at, mount): (&PathBuf, &Mount)| {
                let at_work = mount.in_flight.as_ref().filter(|at_work| at_work.heals);
                at_work.is_some_and(|at_work| at == path || at_work.volume == volume)
            };
            if !self.lock().iter().any(in_the_way) {
                return self.enter(volume, path);
            }
            self.unless_ending(async {
                left.await;
                Ok(())
            })
            .await?;
        }
    }

    /// Does what need not be done to its end when the process is about to: it is dropped then, and must leave
    /// nothing behind.
    ///
    /// # Errors
    /// `OperationPending` when the process ends; those of the work.
    pub async fn unless_ending<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut end_by = self.end_by.subscribe();
        let ends = async {
            // The sender is our own.
            let _ = end_by.wait_for(Option::is_some).await;
        };
        tokio::select! {
            biased;
            () = ends => Err(Error::new(Reason::OperationPending, "the process ends")),
            done = work => done,
        }
    }

    fn enter_as(&self, volume: &str, path: &Path, heals: bool) -> Result<InFlight<'_>> {
        let mut all = self.lock();
        let of_volume = |mount: &Mount| mount.volume_at_work() == Some(volume);
        let at_path = |mount: &Mount| mount.in_flight.is_some();
        let pending = |why: &str| {
            let text = format!("volume {volume:?}: {why}");
            Err(Error::new(Reason::OperationPending, text))
        };
        if self.closed.load(Ordering::SeqCst) {
            return pending("the process ends");
        }
        #[cfg(test)]
        let (of_volume, at_path) = (
            |mount: &Mount| !lacks(Mutant::NoLock) && of_volume(mount),
            |mount: &Mount| !lacks(Mutant::NoLock) && at_path(mount),
        );
        if all.values().any(of_volume) || all.get(path).is_some_and(at_path) {
            return pending("another call is at work");
        }
        if all.get(path).is_some_and(Mount::is_late) {
            return pending("an earlier call is still at work in the kernel");
        }
        let mount = all.entry(path.to_owned()).or_insert_with(Mount::new);
        mount.in_flight = Some(AtWork {
            volume: volume.to_owned(),
            heals,
        });
        Ok(InFlight {
            mounts: self,
            path: path.to_owned(),
        })
    }

    /// After a system call at a path that did not return in time, no other call is at work there before its
    /// thread has ended: what comes late must not be taken for what that call has mounted.
    pub(super) fn keep_while_late(&self, path: &Path, error: &io::Error, late: Weak<()>) {
        if error.kind() == io::ErrorKind::TimedOut {
            let mut all = self.lock();
            all.entry(path.to_owned()).or_insert_with(Mount::new).late = late;
            prune(&mut all);
        }
    }

    /// Refuses to mount where such a thread is at work: a call works also at other paths than the one that it
    /// is at work for - a publish at the staging path, what makes a volume anew at its targets.
    pub(super) fn check_late(&self, path: &Path) -> Result<()> {
        match self.lock().get(path).is_some_and(Mount::is_late) {
            true => Err(Error::new(
                Reason::OperationPending,
                format!(
                    "{}: an earlier call is still at work in the kernel",
                    path.display()
                ),
            )),
            false => Ok(()),
        }
    }

    /// Waits for the calls at work for the volume at a path, and at the path. None begins any more.
    pub(super) async fn until_idle(&self, path: &Path) {
        loop {
            // Before the look: a call that ends in between is not missed.
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.is_idle(path) {
                return;
            }
            left.await;
        }
    }

    fn is_idle(&self, path: &Path) -> bool {
        let all = self.lock();
        let Some(mount) = all.get(path) else { return true };
        let volume = mount
            .record
            .as_ref()
            .map(|stored| stored.record.volume_id.as_str());
        let of_volume = |other: &Mount| other.in_flight.is_some() && other.volume_at_work() == volume;
        mount.in_flight.is_none() && !all.values().any(of_volume)
    }

    /// Remembers how a call for a volume at a path ended: NodeGetVolumeHealth is asked about volumes that
    /// could not be mounted, too.
    pub fn note(&self, volume: &str, path: &Path, failure: Option<&Error>) {
        // "Another call is at work" says nothing about the volume.
        if volume.is_empty() || failure.is_some_and(|f| f.reason == Reason::OperationPending) {
            return;
        }
        let mut all = self.lock();
        let Some(error) = failure.cloned() else {
            if let Some(mount) = all.get_mut(path) {
                mount.failure.take_if(|failure| failure.volume == volume);
            }
            prune(&mut all);
            return;
        };
        let numbers = || {
            all.values()
                .filter_map(|mount| Some(mount.failure.as_ref()?.number))
        };
        let number = numbers().max().map_or(0, |last| last + 1);
        if numbers().count() >= FAILURES
            && let Some(oldest) = numbers().min()
        {
            for mount in all.values_mut() {
                mount.failure.take_if(|failure| failure.number == oldest);
            }
        }
        let mount = all.entry(path.to_owned()).or_insert_with(Mount::new);
        mount.failure = Some(Failure {
            volume: volume.to_owned(),
            error,
            number,
        });
        prune(&mut all);
    }

    /// The latest failure of a volume, at whichever path.
    pub fn failure(&self, volume: &str) -> Option<Error> {
        let all = self.lock();
        let failures = all.values().filter_map(|mount| mount.failure.as_ref());
        let of_volume = failures.filter(|failure| failure.volume == volume);
        let latest = of_volume.max_by_key(|failure| failure.number);
        latest.map(|failure| failure.error.clone())
    }

    /// Forgets all failures of a volume.
    pub fn forget_failures(&self, volume: &str) {
        let mut all = self.lock();
        for mount in all.values_mut() {
            mount.failure.take_if(|failure| failure.volume == volume);
        }
        prune(&mut all);
    }

    /// Who takes newer credentials of the mount at a path.
    pub fn renewing(&self, path: &Path) -> Option<Renewing> {
        self.lock().get(path)?.credentials.renewing.clone()
    }

    /// When the credentials of all mounts end, as far as that is known.
    pub fn credential_ends(&self) -> Vec<End> {
        let all = self.lock();
        let renewing = all
            .values()
            .filter_map(|mount| mount.credentials.renewing.as_ref());
        renewing.filter_map(|renewing| renewing.renewal.ends()).collect()
    }

    /// Gives the mount at a path newer credentials.
    pub fn replace_credentials(&self, path: &Path, newer: &Credentials) {
        let held = self.lock().get(path).map(|mount| mount.credentials.clone());
        if let Some(held) = held {
            held.replace(newer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::manager::tests::House;

    #[tokio::test]
    async fn the_second_call_is_aborted_until_the_first_is_done() {
        let house = House::new();
        let (here, there) = (house.path("1"), house.path("2"));
        let first = house.mounts.enter("v", &here).unwrap();
        for (volume, path) in [("v", &here), ("v", &there), ("w", &here)] {
            let error = house.mounts.enter(volume, path).unwrap_err();
            assert_eq!(
                error.reason.code(),
                tonic::Code::Aborted,
                "{volume} at {}",
                path.display()
            );
        }
        let other = house.mounts.enter("w", &there).unwrap();
        drop((first, other));
        assert!(
            house.mounts.lock().is_empty(),
            "nothing is known of them any more"
        );
        let _again = house.mounts.enter("v", &there).unwrap();
    }

    #[tokio::test]
    async fn a_call_waits_for_what_the_process_does_by_itself_and_not_the_other_way_round() {
        let house = House::new();
        let (staging, target) = (house.path("1"), house.path("2"));
        let heals = house.mounts.enter_to_heal("v", &staging).unwrap();
        let mut call = std::pin::pin!(house.mounts.enter_in_turn("v", &target));
        assert!(futures::poll!(&mut call).is_pending());
        let _another = house.mounts.enter_in_turn("w", &house.path("3")).await.unwrap();
        drop(heals);
        let _call = call.await.unwrap();
        let pending = house.mounts.enter_to_heal("v", &staging).unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending);
        let pending = house.mounts.enter_in_turn("v", &staging).await.unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending);
    }

    /// The server ends only when its calls have, and then the time of the last commits has run already.
    #[tokio::test]
    async fn a_call_does_not_wait_for_what_the_process_does_by_itself_when_it_ends() {
        let house = House::new();
        let staging = house.path("1");
        let _heals = house.mounts.enter_to_heal("v", &staging).unwrap();
        let mut call = std::pin::pin!(house.mounts.enter_in_turn("v", &staging));
        assert!(futures::poll!(&mut call).is_pending());
        house.mounts.end_soon();
        let pending = call.await.unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
        let work = house.mounts.unless_ending(std::future::pending::<Result<()>>());
        assert_eq!(work.await.unwrap_err().reason, Reason::OperationPending);
    }

    #[tokio::test]
    async fn calls_wait_for_a_call_while_it_heals() {
        let house = House::new();
        let (staging, target) = (house.path("1"), house.path("2"));
        let publish = house.mounts.enter("v", &target).unwrap();
        let pending = house.mounts.enter_in_turn("v", &staging).await.unwrap_err();
        assert_eq!(pending.reason, Reason::OperationPending, "{pending}");
        publish.heals();
        let mut call = std::pin::pin!(house.mounts.enter_in_turn("v", &staging));
        assert!(futures::poll!(&mut call).is_pending());
        drop(publish);
        call.await.unwrap();
    }

    #[tokio::test]
    async fn failures_are_kept_by_volume_and_path_and_within_bounds() {
        let house = House::new();
        let error = |n: usize| Error::new(Reason::MountFailed, n.to_string());
        let (here, there) = (house.path("1"), house.path("2"));
        house.mounts.note("v", &here, Some(&error(1)));
        house.mounts.note("v", &there, Some(&error(2)));
        let pending = Error::new(Reason::OperationPending, "x");
        house.mounts.note("v", &there, Some(&pending));
        assert_eq!(house.mounts.failure("v"), Some(error(2)), "the latest");
        house.mounts.note("v", &there, None);
        assert_eq!(
            house.mounts.failure("v"),
            Some(error(1)),
            "that of the other path stays"
        );
        for n in 0..FAILURES {
            house
                .mounts
                .note("w", &house.path(&format!("w{n}")), Some(&error(n)));
        }
        assert_eq!(house.mounts.failure("v"), None, "the oldest went");
        assert_eq!(house.mounts.lock().len(), FAILURES);
        house.mounts.forget_failures("w");
        assert!(house.mounts.lock().is_empty());
    }
}
