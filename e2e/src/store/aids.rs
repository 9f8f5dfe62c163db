//! Test aids: what was asked of the store, and faults and delays on command. All off by default.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::operation::Operation;

/// Counters of one operation, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests answered.
    pub requests: u64,
    /// Of these, answered with a status of 400 or more.
    pub errors: u64,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
    }
}

/// One request, as the log keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Operation.
    pub operation: Operation,
    /// Container, when the URL named one.
    pub container: Option<String>,
    /// Blob, decoded.
    pub blob: Option<String>,
    /// `Range` or `x-ms-range`, as sent.
    pub range: Option<String>,
    /// Status answered.
    pub status: u16,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
}

/// What happens to a request that a rule picks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Not executed: answered with this status and code.
    Answer {
        /// HTTP status.
        status: u16,
        /// `x-ms-error-code`.
        code: String,
        /// `Retry-After` in seconds.
        retry_after: Option<u64>,
    },
    /// Not executed: the connection is closed without an answer.
    Disconnect,
    /// Executed, then the connection is closed without an answer.
    LoseAnswer,
    /// Executed; the connection is closed after this many bytes of the body.
    CutBody {
        /// Bytes sent before.
        after: u64,
    },
    /// Executed, and answered with this status and code all the same (a front end that lost the answer of its
    /// back end says 500, one that is overloaded 503).
    AnswerAfter {
        /// HTTP status.
        status: u16,
        /// `x-ms-error-code`.
        code: String,
    },
    /// Not executed: answered with this status and code before the body has been read, then the connection is
    /// closed. Without a connection it is a [`Fault::Answer`].
    EarlyAnswer {
        /// HTTP status.
        status: u16,
        /// `x-ms-error-code`.
        code: String,
    },
    /// Not executed yet, and the connection is closed without an answer, as for a caller that gave up. It is
    /// still on its way: [`BlobStore::execute_late`](super::BlobStore::execute_late) executes it.
    Late,
    /// Executed and answered, and a second copy of it is on its way (a proxy that repeated it):
    /// [`BlobStore::execute_late`](super::BlobStore::execute_late) executes that one.
    Doubled,
    /// A listing answers at most this many entries (zero: none at all) and a marker, as the service does when
    /// it crosses a boundary of its partitions.
    ShortPage {
        /// Entries of the page.
        entries: usize,
    },
    /// A Copy Blob is accepted and stays pending until
    /// [`BlobStore::end_copies`](super::BlobStore::end_copies).
    PendingCopy,
    /// Executed after this long.
    Delay(Duration),
    /// Never executed, never answered, the connection stays open.
    Hang,
}

/// Picks requests for a [`Fault`].
#[derive(Debug, Clone)]
pub struct FaultRule {
    /// Only this operation; `None` for all.
    pub operation: Option<Operation>,
    /// Only requests whose blob name contains this; `None` for all.
    pub blob_contains: Option<String>,
    /// Matching requests let through first.
    pub skip: u64,
    /// Matching requests hit after that; `u64::MAX` for all.
    pub times: u64,
    /// What happens to them.
    pub fault: Fault,
}

impl FaultRule {
    /// The next request of an operation.
    pub fn next(operation: Operation, fault: Fault) -> Self {
        Self {
            operation: Some(operation),
            blob_contains: None,
            skip: 0,
            times: 1,
            fault,
        }
    }
    /// The n-th request of an operation from now, the first being 1.
    pub fn nth(operation: Operation, n: u64, fault: Fault) -> Self {
        Self {
            skip: n.saturating_sub(1),
            ..Self::next(operation, fault)
        }
    }
    /// Every request of an operation.
    pub fn every(operation: Operation, fault: Fault) -> Self {
        Self {
            times: u64::MAX,
            ..Self::next(operation, fault)
        }
    }
}

#[derive(Debug, Default)]
struct Cell {
    requests: AtomicU64,
    errors: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// The aids of one store.
#[derive(Debug)]
pub(super) struct Aids {
    cells: Vec<Cell>,
    recording: AtomicBool,
    log: Mutex<Vec<RequestRecord>>,
    /// Quick test: no rule and no latency is set.
    armed: AtomicBool,
    rules: Mutex<Rules>,
}

#[derive(Debug, Default)]
struct Rules {
    faults: Vec<FaultRule>,
    latency: Vec<(Option<Operation>, Duration)>,
}

impl Default for Aids {
    fn default() -> Self {
        Self {
            cells: Operation::ALL.iter().map(|_| Cell::default()).collect(),
            recording: AtomicBool::new(false),
            log: Mutex::default(),
            armed: AtomicBool::new(false),
            rules: Mutex::default(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Aids {
    /// Notes a finished request.
    pub(super) fn note(
        &self,
        record: impl FnOnce() -> RequestRecord,
        operation: Operation,
        counters: Counters,
    ) {
        let cell = &self.cells[operation as usize];
        cell.requests.fetch_add(counters.requests, Ordering::Relaxed);
        cell.errors.fetch_add(counters.errors, Ordering::Relaxed);
        cell.bytes_in.fetch_add(counters.bytes_in, Ordering::Relaxed);
        cell.bytes_out.fetch_add(counters.bytes_out, Ordering::Relaxed);
        if self.recording.load(Ordering::Relaxed) {
            lock(&self.log).push(record());
        }
    }

    /// Counters of one operation.
    pub(super) fn counters(&self, operation: Operation) -> Counters {
        let cell = &self.cells[operation as usize];
        Counters {
            requests: cell.requests.load(Ordering::Relaxed),
            errors: cell.errors.load(Ordering::Relaxed),
            bytes_in: cell.bytes_in.load(Ordering::Relaxed),
            bytes_out: cell.bytes_out.load(Ordering::Relaxed),
        }
    }

    /// Sets all counters to zero and empties the log.
    pub(super) fn reset(&self) {
        for cell in &self.cells {
            for counter in [&cell.requests, &cell.errors, &cell.bytes_in, &cell.bytes_out] {
                counter.store(0, Ordering::Relaxed);
            }
        }
        lock(&self.log).clear();
    }

    /// Turns the log on or off.
    pub(super) fn record(&self, on: bool) {
        self.recording.store(on, Ordering::Relaxed);
    }

    /// A copy of the log.
    pub(super) fn log(&self) -> Vec<RequestRecord> {
        lock(&self.log).clone()
    }

    /// Adds a rule.
    pub(super) fn inject(&self, rule: FaultRule) {
        let mut rules = lock(&self.rules);
        rules.faults.push(rule);
        self.rearm(&rules);
    }

    /// Sets (or with zero removes) the latency of an operation, or of all.
    pub(super) fn set_latency(&self, operation: Option<Operation>, latency: Duration) {
        let mut rules = lock(&self.rules);
        rules.latency.retain(|(of, _)| *of != operation);
        if !latency.is_zero() {
            rules.latency.push((operation, latency));
        }
        self.rearm(&rules);
    }

    /// Removes all rules and latencies.
    pub(super) fn clear(&self) {
        let mut rules = lock(&self.rules);
        *rules = Rules::default();
        self.rearm(&rules);
    }

    fn rearm(&self, rules: &Rules) {
        let any = !rules.faults.is_empty() || !rules.latency.is_empty();
        self.armed.store(any, Ordering::Release);
    }

    /// What is to happen to a request: how long it waits first, and its fault. The first rule that hits
    /// counts.
    pub(super) fn plan(&self, operation: Operation, blob: Option<&str>) -> (Duration, Option<Fault>) {
        if !self.armed.load(Ordering::Acquire) {
            return (Duration::ZERO, None);
        }
        let mut rules = lock(&self.rules);
        let mut wait = rules
            .latency
            .iter()
            .filter(|(of, _)| of.is_none_or(|of| of == operation))
            .map(|(_, latency)| *latency)
            .max()
            .unwrap_or_default();
        let mut hit = None;
        for rule in &mut rules.faults {
            let matches = rule.operation.is_none_or(|of| of == operation)
                && rule
                    .blob_contains
                    .as_deref()
                    .is_none_or(|part| blob.is_some_and(|blob| blob.contains(part)));
            if !matches || rule.times == 0 {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if hit.is_none() {
                if rule.times != u64::MAX {
                    rule.times -= 1;
                }
                hit = Some(rule.fault.clone());
            }
        }
        rules.faults.retain(|rule| rule.times > 0);
        self.rearm(&rules);
        if let Some(Fault::Delay(delay)) = hit {
            wait += delay;
            hit = None;
        }
        (wait, hit)
    }
}
