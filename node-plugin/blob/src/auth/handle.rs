//! The credentials of one client, replaced while calls are under way.
//!
//! # Rule
//! A credential is put to use only after whoever brings it has asked the service with it
//! ([`Candidate::adopt`]): until then no call is signed with it, even when nothing else is accepted, because
//! it may do less. The one before is kept as a spare: nothing that works is ever dropped for something that
//! does not. So a wrong key in a Secret changes nothing, and the two keys of an account take over from each
//! other in whichever order they are renewed. A call that is refused for its credential tries the others that
//! are known; when none is accepted, and somebody promises to bring newer ones ([`Renewal`]), it waits for
//! them, and is refused only when none has come within the client's time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Credentials, End, Signer};
use crate::error::{Error, Result};

/// Credentials kept beside the one in use: the former one, and newer ones that are not accepted yet.
const SPARES: usize = 3;
/// A key is not new everywhere at the same moment: for so long a refusal may be of a server that does not
/// know it yet, although another one does.
const SPREADS: Duration = Duration::from_secs(5);
/// Once nobody waits for newer ones any more, one that was refused is not tried again for so long beside the
/// one in use: each call would cost the service a refusal for each that is known.
const AGAIN: Duration = Duration::from_secs(10);
/// Where nobody promises a newer credential, a token is waited for: a token source does not throw a new one
/// away at once, although its service may have changed what it signs with a moment ago.
const NEW_TOKEN: Duration = Duration::from_secs(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct Handle {
    began: Instant,
    /// How long calls wait for newer credentials, from the first refusal on.
    patience: Duration,
    state: RwLock<State>,
    /// Counts what becomes known: a credential more, or another one in use.
    version: watch::Sender<u64>,
    /// Told when a call was refused with everything that is known.
    wanted: Notify,
    /// Those who keep the credentials alive.
    keepers: AtomicU64,
    /// Those of them who promise to bring newer ones.
    renewals: AtomicU64,
    /// Since when nothing that is known is accepted.
    unaccepted: Mutex<Option<Instant>>,
    /// Whether there is such a time: asked at each success.
    is_unaccepted: AtomicBool,
    /// What is sent can be read on the way: no place for tokens.
    in_the_clear: bool,
}

#[derive(Debug)]
struct State {
    current: Arc<Held>,
    /// Newest first.
    spares: Vec<Arc<Held>>,
    next_id: u64,
}

/// One credential, in the form that signs.
#[derive(Debug)]
pub(crate) struct Held {
    id: u64,
    pub(crate) signer: Signer,
    credentials: Credentials,
    /// Whoever brought it has found that it may do what is needed.
    vetted: AtomicBool,
    /// When it was refused last, in milliseconds since the handle began, and one; 0 = it has been accepted
    /// since, or was never refused.
    refused: AtomicU64,
    /// When it was accepted last, in milliseconds since the handle began, and one; 0 = never.
    accepted: AtomicU64,
}

impl Held {
    fn new(id: u64, credentials: &Credentials, in_the_clear: bool) -> Result<Self> {
        let signer = Signer::new(credentials)?;
        if in_the_clear && signer.uses_tokens() {
            return Err(Error::Argument {
                field: "server",
                message: "is http:// and would send an access token in the clear; use https://".into(),
            });
        }
        Ok(Self {
            id,
            signer,
            credentials: credentials.clone(),
            vetted: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            accepted: AtomicU64::new(0),
        })
    }

    fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed) != 0
    }

    fn is_vetted(&self) -> bool {
        self.vetted.load(Ordering::Acquire)
    }

    fn is_untried(&self) -> bool {
        self.accepted.load(Ordering::Relaxed) == 0
    }
}

/// What a call has been refused with.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    tried: Vec<u64>,
    first: Option<Instant>,
}

/// What a call does that was refused for its credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another one is known, which it has not tried.
    AtOnce,
    /// It waits for something newer than this version.
    After(u64),
    /// It is refused.
    Never,
}

impl Handle {
    /// For a client at this endpoint.
    pub(crate) fn new(credentials: &Credentials, endpoint: &url::Url, patience: Duration) -> Result<Self> {
        let in_the_clear = super::is_in_the_clear(endpoint);
        let first = Held::new(0, credentials, in_the_clear)?;
        first.vetted.store(true, Ordering::Release);
        Ok(Self {
            began: Instant::now(),
            patience,
            state: RwLock::new(State {
                current: Arc::new(first),
                spares: Vec::new(),
                next_id: 1,
            }),
            version: watch::channel(0).0,
            wanted: Notify::new(),
            keepers: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
            unaccepted: Mutex::new(None),
            is_unaccepted: AtomicBool::new(false),
            in_the_clear,
        })
    }

    /// The one in use.
    pub(crate) fn current(&self) -> Arc<Held> {
        Arc::clone(&self.read().current)
    }

    /// The one for the next attempt of a call: what is not known to be refused, else the one in use, else
    /// what was refused the longest ago.
    pub(crate) fn pick(&self, refusals: &Refusals) -> Arc<Held> {
        let state = self.read();
        let untried = |held: &&Arc<Held>| !refusals.tried.contains(&held.id);
        let hopeful = state.usable().filter(untried).find(|held| !held.is_refused());
        let current = || Some(&state.current).filter(untried);
        let oldest = || {
            let untried = state.usable().filter(untried);
            untried.min_by_key(|held| held.refused.load(Ordering::Relaxed))
        };
        let picked = hopeful.or_else(current).or_else(oldest);
        Arc::clone(picked.unwrap_or(&state.current))
    }

    /// Milliseconds since the handle began, and one.
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    /// The service has accepted it.
    pub(crate) fn accepted(&self, held: &Arc<Held>) {
        held.accepted.store(self.now(), Ordering::Relaxed);
        if held.is_refused() {
            held.refused.store(0, Ordering::Relaxed);
        }
        // One that is being tried yet helps no call.
        if !held.is_vetted() {
            return;
        }
        self.note_accepted();
        let current = self.current();
        if current.id != held.id && current.is_refused() {
            self.put_to_use(held);
        }
    }

    /// Something that is known is accepted.
    fn note_accepted(&self) {
        if self.is_unaccepted.load(Ordering::Acquire) {
            let mut since = lock(&self.unaccepted);
            *since = None;
            self.is_unaccepted.store(false, Ordering::Release);
        }
    }

    /// Whether calls have waited as long as they may, and nothing was accepted since.
    fn is_given_up(&self) -> bool {
        self.is_unaccepted.load(Ordering::Acquire)
            && lock(&self.unaccepted).is_some_and(|since| since.elapsed() >= self.patience)
    }

    /// The service has refused it; what the call does next. `waits`: whether the call may wait for newer ones
    /// at all.
    pub(crate) fn refused(&self, held: &Held, refusals: &mut Refusals, waits: bool) -> Next {
        // Before the look: what becomes known in between is not missed.
        let version = *self.version.borrow();
        let now = self.now();
        held.refused.store(now, Ordering::Relaxed);
        let first = *refusals.first.get_or_insert_with(Instant::now);
        if !refusals.tried.contains(&held.id) {
            refusals.tried.push(held.id);
        }
        let given_up = self.is_given_up();
        let again = u64::try_from(AGAIN.as_millis()).unwrap_or(u64::MAX);
        let lately = |held: &Held| {
            let refused = held.refused.load(Ordering::Relaxed);
            refused != 0 && now.saturating_sub(refused) < again
        };
        let state = self.read();
        let worth_it = state
            .usable()
            .filter(|held| !refusals.tried.contains(&held.id))
            .any(|held| !given_up || !lately(held));
        if worth_it {
            return Next::AtOnce;
        }
        // Others are served with it all the time: it is something about this call.
        let served = first + SPREADS;
        let accepted = state.current.accepted.load(Ordering::Relaxed);
        let accepted = (accepted > 0).then(|| self.began + Duration::from_millis(accepted - 1));
        drop(state);
        let Some(patience) = self.patience_with(held).filter(|_| waits) else {
            return Next::Never;
        };
        if accepted.is_some_and(|at| at >= served) {
            return Next::Never;
        }
        self.wanted.notify_one();
        let since = {
            let mut since = lock(&self.unaccepted);
            self.is_unaccepted.store(true, Ordering::Release);
            *since.get_or_insert_with(Instant::now)
        };
        if since.elapsed() >= patience {
            return Next::Never;
        }
        // The next round begins with what is known by then.
        refusals.tried.clear();
        Next::After(version)
    }

    /// How long calls wait that were refused with everything, with this one last; `None`: there is nothing to
    /// wait for.
    fn patience_with(&self, held: &Held) -> Option<Duration> {
        if self.renewals.load(Ordering::Acquire) > 0 {
            return Some(self.patience);
        }
        let kept = self.keepers.load(Ordering::Acquire) > 0;
        (kept && held.signer.uses_tokens()).then(|| self.patience.min(NEW_TOKEN))
    }

    /// Waits until something newer than this version is known, for so long at most.
    pub(crate) async fn newer_than(&self, version: u64, longest: Duration) {
        let mut versions = self.version.subscribe();
        let newer = versions.wait_for(|now| *now != version);
        // Either is a reason to try again.
        let _ = tokio::time::timeout(longest, newer).await;
    }

    /// Makes a credential one of those that are known; `None` for the one in use.
    fn offer(&self, credentials: &Credentials) -> Result<Option<Arc<Held>>> {
        let mut state = self.write();
        if state.current.credentials == *credentials {
            return Ok(None);
        }
        if let Some(known) = state.spares.iter().find(|s| s.credentials == *credentials) {
            return Ok(Some(Arc::clone(known)));
        }
        let held = Arc::new(Held::new(state.next_id, credentials, self.in_the_clear)?);
        state.next_id += 1;
        state.spares.insert(0, Arc::clone(&held));
        state.forget_some();
        Ok(Some(held))
    }

    /// Whoever brought it has tried it: calls that are refused may use it.
    fn vet(&self, held: &Held) {
        if !held.vetted.swap(true, Ordering::AcqRel) {
            self.version.send_modify(|version| *version += 1);
        }
    }

    /// From here on calls are signed with it. The caller has seen it accepted.
    fn put_to_use(&self, held: &Arc<Held>) {
        let mut state = self.write();
        if state.current.id == held.id {
            return;
        }
        state.spares.retain(|spare| spare.id != held.id);
        let former = std::mem::replace(&mut state.current, Arc::clone(held));
        state.spares.insert(0, former);
        state.forget_some();
        drop(state);
        self.version.send_modify(|version| *version += 1);
        tracing::info!("requests are signed with another credential from now on");
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Whole after a panic elsewhere: no change leaves a half.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Those that calls may be signed with, the one in use first.
    fn usable(&self) -> impl Iterator<Item = &Arc<Held>> {
        let spares = self.spares.iter().filter(|held| held.is_vetted());
        std::iter::once(&self.current).chain(spares)
    }

    /// Too many are known: the oldest of those that are refused goes first, then of those that nobody has
    /// tried. The newest stays.
    fn forget_some(&mut self) {
        while self.spares.len() > SPARES {
            let oldest = |of: fn(&Held) -> bool| self.spares.iter().rposition(|spare| of(spare));
            let untried = || oldest(Held::is_untried).filter(|at| *at > 0);
            let useless = oldest(Held::is_refused).or_else(untried);
            self.spares.remove(useless.unwrap_or(self.spares.len() - 1));
        }
    }
}

/// Whole after a panic elsewhere: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings newer credentials to the client of one container. As long as one of them promises to, a call whose
/// credential is refused waits for it.
#[derive(Debug)]
pub struct Renewal {
    handle: Arc<Handle>,
    promises: AtomicBool,
}

impl Renewal {
    pub(crate) fn new(handle: &Arc<Handle>) -> Self {
        handle.keepers.fetch_add(1, Ordering::AcqRel);
        let renewal = Self {
            handle: Arc::clone(handle),
            promises: AtomicBool::new(false),
        };
        renewal.promise(true);
        renewal
    }

    /// Promises to bring newer credentials, which calls wait for, or takes that back: there is nothing to
    /// wait for where nobody brings any. It begins with the promise.
    pub fn promise(&self, promises: bool) {
        match (self.promises.swap(promises, Ordering::AcqRel), promises) {
            (false, true) => self.handle.renewals.fetch_add(1, Ordering::AcqRel),
            (true, false) => self.handle.renewals.fetch_sub(1, Ordering::AcqRel),
            (false, false) | (true, true) => 0,
        };
    }

    /// Whether it does.
    pub fn promises(&self) -> bool {
        self.promises.load(Ordering::Acquire)
    }

    /// Which credential is in use: another number after each change.
    pub fn in_use(&self) -> u64 {
        self.handle.current().id
    }

    /// A credential that may be newer; `None` for the one that is in use. No call is signed with it before
    /// [`Candidate::adopt`].
    ///
    /// # Errors
    /// Credentials that cannot sign anything.
    pub fn offer(&self, credentials: &Credentials) -> Result<Option<Candidate>> {
        let held = self.handle.offer(credentials)?;
        Ok(held.map(|held| Candidate {
            held,
            handle: Arc::clone(&self.handle),
        }))
    }

    /// Waits until a call was refused with everything that is known.
    pub async fn wanted(&self) {
        self.handle.wanted.notified().await;
    }

    /// Whether calls are refused with everything that is known, at the moment.
    pub fn is_unaccepted(&self) -> bool {
        self.handle.is_unaccepted.load(Ordering::Acquire)
    }

    /// When the credential in use ends, where it says so.
    pub fn ends(&self) -> Option<End> {
        self.handle.current().signer.ends()
    }
}

impl Drop for Renewal {
    fn drop(&mut self) {
        self.promise(false);
        self.handle.keepers.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A credential that is known and not in use.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub(crate) held: Arc<Held>,
    handle: Arc<Handle>,
}

impl Candidate {
    /// Whether the service has refused it already.
    pub fn is_refused(&self) -> bool {
        self.held.is_refused()
    }

    /// Puts it to use: the caller has asked the service with it, and it may do what the volume needs.
    pub fn adopt(self) {
        self.handle.vet(&self.held);
        self.handle.put_to_use(&self.held);
        self.handle.note_accepted();
    }

    /// Forgets it: it may do less than the one in use. One that was adopted once stays: what is said of it
    /// now may be said because of a firewall, and nothing that has worked is dropped.
    pub fn forget(self) {
        if self.held.is_vetted() {
            return;
        }
        self.handle
            .write()
            .spares
            .retain(|spare| spare.id != self.held.id);
    }
}

#[cfg(test)]
mod tests;
