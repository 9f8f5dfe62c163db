//! What the proxy is to do wrong now, whom it has seen, and what it has kept for later.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::certificate::Certificates;
use super::fault::{Fault, Rule, When};
use super::wire::Head;
use crate::listener::Tls;
use crate::vsp::Backend;

/// What a proxy has seen. A snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections that were accepted.
    pub connections: u64,
    /// Requests whose head has arrived.
    pub requests: u64,
    /// Of both, those to which something has happened.
    pub hits: u64,
}

/// Shared by the proxy and all its connections.
#[derive(Debug)]
pub(super) struct State {
    backend: Arc<dyn Backend>,
    certificates: Certificates,
    inner: Mutex<Inner>,
    /// Counts what ends the connections there are.
    cuts: watch::Sender<u64>,
    /// Counts what was set.
    changes: watch::Sender<u64>,
    listens: watch::Sender<bool>,
    connections: AtomicU64,
    requests: AtomicU64,
    hits: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    rule: Option<Rule>,
    /// When the rule was about something for the first time.
    since: Option<Instant>,
    /// Connections or requests that the rule was about.
    seen: u64,
    /// When the second began that is counted in, and how many there were in it.
    second: Option<(Instant, u64)>,
    late: Vec<JoinHandle<()>>,
}

impl Inner {
    /// One more that the rule is about, on the connection of this number: whether it is hit.
    fn hits(&mut self, when: When, connection: u64) -> bool {
        self.seen += 1;
        match when {
            When::Always => true,
            When::Each(n) => self.seen.is_multiple_of(n.max(1)),
            When::Between(from, to) => {
                let on = self.since.get_or_insert_with(Instant::now).elapsed();
                (from..to).contains(&on)
            }
            When::OnEach(n) => connection.is_multiple_of(n.max(1)),
            When::Above(most) => {
                let now = Instant::now();
                let (began, before) = self
                    .second
                    .filter(|(began, _)| now - *began < Duration::from_secs(1))
                    .unwrap_or((now, 0));
                self.second = Some((began, before + 1));
                before >= most
            }
        }
    }
}

impl State {
    pub(super) fn new(backend: Arc<dyn Backend>, certificates: &Certificates) -> Self {
        Self {
            backend,
            certificates: certificates.clone(),
            inner: Mutex::default(),
            cuts: watch::Sender::new(0),
            changes: watch::Sender::new(0),
            listens: watch::Sender::new(true),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            hits: AtomicU64::new(0),
        }
    }

    /// Takes another rule, or none.
    pub(super) fn set(&self, rule: Option<Rule>) {
        let mut inner = self.lock();
        let refuses = rule.as_ref().is_some_and(|rule| rule.fault == Fault::Refused);
        let was = std::mem::replace(&mut inner.rule, rule);
        inner.since = None;
        inner.seen = 0;
        inner.second = None;
        let ends = [was.as_ref(), inner.rule.as_ref()]
            .into_iter()
            .flatten()
            .any(|rule| rule.fault.is_of_connections() || rule.fault.hangs());
        drop(inner);
        self.listens.send_replace(!refuses);
        if ends {
            self.cut();
        }
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// Ends the connections there are.
    pub(super) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// The number of a connection that was just accepted, and what happens to it.
    pub(super) fn connection(&self) -> (u64, Option<Fault>) {
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        (number, self.hit(number, |rule| rule.fault.is_of_connections()))
    }

    /// What happens to a request on the connection of this number.
    pub(super) fn request(&self, head: &Head, connection: u64) -> Option<Fault> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.hit(connection, |rule| {
            !rule.fault.is_of_connections() && rule.only.admits(head)
        })
    }

    /// The fault of the rule, when it is about this one and hits it.
    fn hit(&self, connection: u64, is_about: impl Fn(&Rule) -> bool) -> Option<Fault> {
        let mut inner = self.lock();
        let rule = inner.rule.clone().filter(is_about)?;
        let hit = inner.hits(rule.when, connection);
        self.hits.fetch_add(u64::from(hit), Ordering::Relaxed);
        hit.then_some(rule.fault)
    }

    /// The certificate for a connection.
    pub(super) fn certificate(&self, fault: Option<&Fault>) -> &Tls {
        match fault {
            Some(Fault::WrongCertificate) => &self.certificates.untrusted,
            _ => &self.certificates.trusted,
        }
    }

    /// Has the service execute a request.
    pub(super) async fn execute(&self, request: Request<Bytes>) -> io::Result<Response<Vec<Bytes>>> {
        self.backend.execute(request).await
    }

    /// The same after this long, or when something else is set; the answer is for nobody.
    pub(super) fn execute_late(&self, request: Request<Bytes>, after: Duration) {
        let backend = Arc::clone(&self.backend);
        let mut changes = self.changes.subscribe();
        let task = tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                // An error: the proxy is gone, and the service is not yet.
                _ = changes.changed() => {}
            }
            if let Err(error) = backend.execute(request).await {
                tracing::debug!(%error, "executed late, without an answer");
            }
        });
        self.lock().late.push(task);
    }

    /// What is executed late, or has been.
    pub(super) fn late(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut self.lock().late)
    }

    /// Changes when the connections there are have to end.
    pub(super) fn cuts(&self) -> watch::Receiver<u64> {
        self.cuts.subscribe()
    }

    /// Whether somebody listens.
    pub(super) fn listens(&self) -> watch::Receiver<bool> {
        self.listens.subscribe()
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            hits: self.hits.load(Ordering::Relaxed),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
