//! The calls a file system needs, over any transport.
//!
//! # Words
//!
//! - *Lost* answer: the request may have been executed, and nobody heard. The attempt is *unanswered*;
//!   whether what is stored now is by its hand is *decided* by reading the blob back (`lost`).
//! - *Late* request: one that was given up and may be executed yet (`late`); the next change
//!   that it could harm waits.
//! - *Settled*: the first try of the device is over, and one path is used (`transport::Paths::settled`).
//! - *REST*: the service's protocol.

mod attempt;
mod batch;
mod call;
mod containers;
mod copies;
mod headers;
mod keeping;
mod late;
mod leases;
mod listing;
mod lost;
mod outcome;
mod pages;
mod reads;
mod refusal;
mod retry;
mod retry_after;
mod sign;
mod writes;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use vsc_driver::buffer::Arena;
use vsc_driver::channel::Ledger;

use self::late::Late;
use self::pages::Pages;
use crate::auth::Credentials;
use crate::auth::handle::{Candidate, Handle, Held, Renewal};
use crate::error::{Error, Result};
use crate::names;
use crate::observer::Observer;
use crate::pace::{Accounts, Share};
use crate::patience::Patience;
use crate::progress::Progress;
use crate::stored::ContentTypes;
use crate::transport::Transport;

/// Version of the REST interface that every request asks for: the first that marks names XML cannot hold
/// (2021-02-12) and takes a token for the source of a copy (2020-10-02) is older; Azurite 3.35 serves it.
const API_VERSION: &str = "2021-12-02";

/// How to reach one storage account.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Blob endpoint: `https://account.blob.core.windows.net`, or `http://127.0.0.1:10000/devstoreaccount1`
    /// for emulators.
    pub endpoint: url::Url,
    /// Credentials.
    pub credentials: Credentials,
    /// How long a call may go without progress, retries included: [`Patience::call`]. (Bytes that move for
    /// the first time are progress.)
    pub deadline: Duration,
    /// One attempt without progress: [`Patience::attempt`].
    pub attempt_timeout: Duration,
    /// What the content type of a new blob is taken from.
    pub content_types: ContentTypes,
    /// What becomes of index tags that this identity may not read, when a blob is written again.
    pub unreadable_tags: UnreadableTags,
    /// Where clients of the same account meet: they share how much it is asked at a time.
    pub accounts: Accounts,
}

/// What becomes of index tags that may not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum UnreadableTags {
    /// The write is refused ([`Error::TagsUnreadable`]).
    #[default]
    Refuse,
    /// The write loses them.
    Drop,
}

impl ClientConfig {
    /// The default times for an account.
    pub fn new(endpoint: url::Url, credentials: Credentials) -> Self {
        let patience = Patience::default();
        Self {
            endpoint,
            credentials,
            deadline: patience.call(),
            attempt_timeout: patience.attempt(),
            content_types: ContentTypes::default(),
            unreadable_tags: UnreadableTags::default(),
            accounts: Accounts::default(),
        }
    }

    /// The times that follow from a volume's patience.
    pub fn within(self, patience: Patience) -> Self {
        Self {
            deadline: patience.call(),
            attempt_timeout: patience.attempt(),
            ..self
        }
    }
}

/// A storage account over a transport; clones share everything.
#[derive(Debug, Clone)]
pub struct Client {
    account: Arc<Account>,
}

/// What every call of a client shares.
#[derive(Debug)]
struct Account {
    credentials: Arc<Handle>,
    /// `scheme://host[:port]`.
    origin: String,
    /// Path of the endpoint without a `/` at its end: empty, or `/account` for emulators.
    base_path: String,
    deadline: Duration,
    attempt_timeout: Duration,
    transport: Arc<dyn Transport>,
    arena: Arc<Arena>,
    content_types: ContentTypes,
    unreadable_tags: UnreadableTags,
    /// That tags are lost, or would be, is told once.
    warned_tags: AtomicBool,
    /// Tags were read when they were asked for last.
    tags_readable: AtomicBool,
    late: Late,
    share: Share,
    /// When anything that was asked got on last.
    progress: Progress,
    /// Default encryption scope of a container, as far as asked for; `None`: it may not be asked for.
    scopes: Mutex<HashMap<Arc<str>, Option<String>>>,
    /// Service's clock minus ours in milliseconds, from the latest answer; `i64::MIN` before the first.
    clock_offset: AtomicI64,
    /// That this machine's clock is wrong is told once.
    warned_clock: AtomicBool,
    /// Is told of throttling and repetitions.
    observer: OnceLock<Arc<dyn Observer>>,
}

impl Client {
    /// A client; nothing is sent yet. The arena serves request and response buffers of retries.
    pub fn new(config: ClientConfig, transport: Arc<dyn Transport>, arena: Arc<Arena>) -> Result<Self> {
        let endpoint = &config.endpoint;
        let wrong = |message: String| Error::Argument {
            field: "server",
            message,
        };
        if !matches!(endpoint.scheme(), "http" | "https") {
            return Err(wrong(format!(
                "scheme {:?}: use https:// (or http:// for emulators)",
                endpoint.scheme()
            )));
        }
        let Some(host) = endpoint.host_str() else {
            return Err(wrong("has no host name".into()));
        };
        if endpoint.query().is_some() || endpoint.fragment().is_some() {
            return Err(wrong(
                "has a query; give the endpoint alone and a SAS in the volume's secret".into(),
            ));
        }
        if !endpoint.username().is_empty() || endpoint.password().is_some() {
            return Err(wrong(
                "has a user name; give credentials in the volume's secret".into(),
            ));
        }
        let credentials = Handle::new(&config.credentials, endpoint, config.deadline)?;
        let port = endpoint.port().map(|p| format!(":{p}")).unwrap_or_default();
        Ok(Self {
            account: Arc::new(Account {
                credentials: Arc::new(credentials),
                origin: format!("{}://{host}{port}", endpoint.scheme()),
                base_path: endpoint.path().trim_end_matches('/').to_owned(),
                deadline: config.deadline,
                attempt_timeout: config.attempt_timeout,
                transport,
                arena,
                content_types: config.content_types,
                unreadable_tags: config.unreadable_tags,
                warned_tags: AtomicBool::new(false),
                tags_readable: AtomicBool::new(false),
                late: Late::default(),
                progress: Progress::default(),
                share: config.accounts.volume(endpoint.as_str()),
                scopes: Mutex::default(),
                clock_offset: AtomicI64::new(i64::MIN),
                warned_clock: AtomicBool::new(false),
                observer: OnceLock::new(),
            }),
        })
    }

    /// A container of the account; checks the name's syntax (REST: "Naming and referencing containers").
    pub fn container(&self, name: &str) -> Result<Container> {
        names::check_container(name)?;
        Ok(Container {
            account: Arc::clone(&self.account),
            name: Arc::from(name),
            pages: Arc::default(),
            deadline: self.account.deadline,
            nobody_after: None,
            signed_with: None,
        })
    }

    /// The transport, for its counters.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.account.transport
    }
}

/// How far from the service's clock a signature may be before the service's is taken: it accepts 15 minutes.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5 * 60);
/// Answers that take longer say little of the service's clock.
const SHORT_ANSWER: Duration = Duration::from_secs(2);

fn apart(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|before| before.duration())
}

impl Account {
    /// The endpoint without anything secret, for messages.
    fn endpoint(&self) -> String {
        format!("{}{}", self.origin, self.base_path)
    }

    /// Percent-encoded path of a container or blob, as sent and as signed.
    fn path(&self, container: &str, blob: Option<&str>) -> String {
        match blob {
            Some(blob) => format!("{}/{container}/{}", self.base_path, names::encode_blob(blob)),
            None => format!("{}/{container}", self.base_path),
        }
    }

    /// Remembers the service's clock from the `Date` of an answer that is complete now, `took` after it was
    /// asked for.
    fn note_clock(&self, server: SystemTime, now: SystemTime, took: Duration) {
        // The date is of its beginning: a long answer would set the clock back.
        if took > SHORT_ANSWER && self.clock_offset.load(Ordering::Relaxed) != i64::MIN {
            return;
        }
        let millis = |d: Duration| i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
        let offset = match server.duration_since(now) {
            Ok(ahead) => millis(ahead),
            Err(behind) => -millis(behind.duration()),
        };
        self.clock_offset.store(offset, Ordering::Relaxed);
    }

    /// The time for a signature: the service's where this machine's is too far from it to be accepted.
    fn signing_time(&self) -> SystemTime {
        let ours = SystemTime::now();
        let theirs = self.service_now();
        theirs
            .filter(|t| apart(*t, ours) > CLOCK_TOLERANCE)
            .unwrap_or(ours)
    }

    /// Whether a signature of this time is refused for the clock, and another one by the service's clock is
    /// worth it.
    fn corrects_clock(&self, by: &Held, dated: SystemTime, server: Option<SystemTime>) -> bool {
        let Some(apart) = server.map(|t| apart(t, dated)).filter(|by| *by > CLOCK_TOLERANCE) else {
            return false;
        };
        let corrects = by.signer.signs_the_time();
        if corrects && !self.warned_clock.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                endpoint = %self.endpoint(), seconds = apart.as_secs(),
                "this machine's clock is wrong, and requests are signed by the service's: set the time (NTP)"
            );
        }
        corrects
    }

    /// What the service's clock shows now, as far as an answer has told (whole seconds, so up to a second
    /// early).
    fn service_now(&self) -> Option<SystemTime> {
        let offset = self.clock_offset.load(Ordering::Relaxed);
        if offset == i64::MIN {
            return None;
        }
        let by = Duration::from_millis(offset.unsigned_abs());
        let now = SystemTime::now();
        if offset < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        }
    }
}

/// Calls inside one container. Blob names are given decoded, exactly as stored; the client encodes them.
///
/// Every call retries what a retry can help, until it has made no progress for the client's deadline: with
/// growing pauses (the first at most 200 ms), or when the service asks for one, `Retry-After`. A write whose
/// answer was lost is looked up before it counts as refused: see `lost.rs` for the rule.
#[derive(Debug, Clone)]
pub struct Container {
    account: Arc<Account>,
    name: Arc<str>,
    /// How many entries of a listing are asked for at a time.
    pages: Arc<Pages>,
    /// How long a call may go without progress.
    deadline: Duration,
    /// When a call is given up that nobody is there to answer; `None` = at the deadline.
    nobody_after: Option<Duration>,
    /// What every call is signed with, instead of what is in use.
    signed_with: Option<Arc<Held>>,
}

/// How long a caller who wants a verdict waits for somebody to appear: long enough for a service that is just
/// being started again, short enough to read the reason at once.
const NOBODY_AFTER: Duration = Duration::from_secs(2);

impl Container {
    /// What the service's clock shows, as far as its answers have told; else this machine's.
    pub fn now(&self) -> SystemTime {
        self.account.service_now().unwrap_or_else(SystemTime::now)
    }

    /// Container name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names who is told of the requests of this client from now on. The first one stays.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.account.transport.observe(Arc::clone(&observer));
        // One volume has one client: a second one is nobody who could count it.
        let _ = self.account.observer.set(observer);
    }

    /// Names who is told of memory that the channel's device keeps of requests that were given up. The first
    /// one stays.
    pub fn keep_books(&self, ledger: Arc<dyn Ledger>) {
        self.account.transport.keep_books(ledger);
    }

    /// When the calls of this client got on last.
    pub fn progress(&self) -> Progress {
        self.account.progress.clone()
    }

    /// Whoever holds this brings newer credentials to the client: it is a promise, which calls wait for that
    /// are refused.
    pub fn renewal(&self) -> Renewal {
        Renewal::new(&self.account.credentials)
    }

    /// What this container is asked with, before anything is refused.
    fn held(&self) -> Arc<Held> {
        let one = self.signed_with.clone();
        one.unwrap_or_else(|| self.account.credentials.current())
    }

    /// See there.
    #[cfg(test)]
    pub(crate) fn account_credentials(&self) -> Arc<Handle> {
        Arc::clone(&self.account.credentials)
    }

    /// The same container, asked with a credential that is not in use, to find out what it may do.
    pub fn signed_with(&self, candidate: &Candidate) -> Self {
        Self {
            signed_with: Some(Arc::clone(&candidate.held)),
            ..self.clone()
        }
    }

    /// The same container for somebody who waits for a verdict: a call ends at this deadline, and within
    /// seconds when nobody is there to answer it (the port refuses, the name is not known, TLS does not come
    /// about). The error names the cause.
    pub fn for_a_verdict(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            nobody_after: Some(NOBODY_AFTER),
            ..self.clone()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
