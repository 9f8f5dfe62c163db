//! Embedded blob store: the Blob REST calls the client uses, in memory with an optional folder behind it.
//!
//! [`BlobStore::execute`] is the service itself; [`BlobStore::serve`] puts HTTP/1.1 in front of it. What
//! differs from the service is listed here: metadata names come back in lower case (HTTP libraries fold
//! header names); the MD5 of a body that came without one is computed for small bodies only (256 KiB), so
//! that a benchmark does not measure MD5; page and append blobs exist so that tests can make foreign blobs;
//! snapshots, versions and what was deleted live in memory only, and all entries of one name stand on one
//! page of a listing; encryption scopes and customer keys are kept by name and encrypt nothing; stored access
//! policies and user delegation keys do not exist and are answered with 501 or an authentication error; the
//! name of a deleted container is free at once unless [`AccountSettings`] say otherwise; a hierarchical
//! namespace is a word of the account, folders are not made real; blob names are taken as they come, where
//! the service turns `\` into `/` and drops a `.` at the end of a segment.

mod address;
mod aids;
mod attributes;
mod auth;
mod blob_store;
mod block_file;
mod condition;
mod content;
mod encoding;
mod error;
mod folder;
mod handlers;
mod headers;
mod job;
mod lease;
mod operation;
mod pipeline;
mod reply;
mod server;
mod settings;
mod signing;
mod state;
mod tags;
#[cfg(test)]
mod tests;
mod version;
mod xml;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;

pub use self::aids::{Counters, Fault, FaultRule, RequestRecord};
pub use self::auth::WhichKey;
pub use self::blob_store::{BlobStore, DEV_ACCOUNT, DEV_KEY, StoreConfig};
pub use self::operation::Operation;
pub use self::server::Server;
pub use self::settings::{AccountSettings, Immutability};
pub use self::signing::{AccountKey, SasOptions};

use self::job::Ending;
use crate::listener::Tls;

impl BlobStore {
    /// Executes one request (absolute or origin-form URI, path-style `/account/container/blob`); never fails,
    /// errors are answers. The body of a GET is a list of shared pieces, not a copy.
    ///
    /// Blocks for injected latency and for reading the folder. A [`Fault`] that concerns the connection is
    /// added to the answer's extensions for a caller that can act on it.
    pub fn execute(&self, request: http::Request<Bytes>) -> http::Response<Vec<Bytes>> {
        let (parts, body) = request.into_parts();
        let job = self.plan(&parts);
        if !job.wait.is_zero() {
            std::thread::sleep(job.wait);
        }
        self.execute_job(job, &parts, body).0
    }

    /// As [`BlobStore::execute`], for callers that serve many requests on few threads: injected latency
    /// blocks none, and faults of the connection are an error (an answer that breaks off, or none) or a
    /// future that never ends.
    pub async fn execute_async(
        &self,
        request: http::Request<Bytes>,
    ) -> std::io::Result<http::Response<Vec<Bytes>>> {
        let (parts, body) = request.into_parts();
        let job = self.plan(&parts);
        if !job.wait.is_zero() {
            tokio::time::sleep(job.wait).await;
        }
        let (response, ending) = self.execute_job(job, &parts, body);
        match ending {
            Ending::Whole => Ok(response),
            Ending::Hang => std::future::pending().await,
            Ending::Cut(_) | Ending::NoAnswer => Err(std::io::Error::new(
                std::io::ErrorKind::ConnectionReset,
                "closed by a fault rule",
            )),
        }
    }

    /// Serves HTTP/1.1 on `addr` (port 0 = any) until the server is dropped. It runs on threads of its own: a
    /// caller that blocks its runtime does not block the store.
    pub async fn serve(self: &Arc<Self>, addr: SocketAddr) -> std::io::Result<Server> {
        Server::start(self.clone(), addr, None)
    }

    /// The same over TLS.
    pub async fn serve_tls(self: &Arc<Self>, addr: SocketAddr, tls: Tls) -> std::io::Result<Server> {
        Server::start(self.clone(), addr, Some(tls))
    }

    /// Account name.
    pub fn account(&self) -> &str {
        &self.account.name
    }

    /// Makes a container as its owner, without a request; false when it was there already.
    pub fn create_container(&self, name: &str) -> std::io::Result<bool> {
        handlers::container::create(self, name, Default::default(), Default::default())
            .map(|_| true)
            .or_else(|error| match &*error.code {
                "ContainerAlreadyExists" => Ok(false),
                _ => Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidInput,
                    format!("container {name:?}: {}", error.message),
                )),
            })
    }

    /// Accepts this bearer token from now on, with all rights.
    pub fn accept_token(&self, token: &str) {
        self.tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(token.to_owned());
    }

    /// Accepts a bearer token no longer (it "expired").
    pub fn revoke_token(&self, token: &str) {
        self.tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(token);
    }

    /// Accepts none of the bearer tokens of before (the key that they are signed with was replaced).
    pub fn revoke_tokens(&self) {
        self.tokens
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Replaces one of the account's keys: what was signed with the former one is not accepted any more.
    pub fn renew_key(&self, which: WhichKey, key: &str) -> std::io::Result<()> {
        self.account.renew_key(which, key)
    }

    /// Changes settings of the account.
    pub fn configure(&self, change: impl FnOnce(&mut AccountSettings)) {
        change(&mut self.settings.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sets or removes the immutability policy of a container, which must exist.
    pub fn set_immutability(&self, container: &str, policy: Option<Immutability>) -> std::io::Result<()> {
        let container = self
            .container(container)
            .map_err(|error| std::io::Error::new(std::io::ErrorKind::NotFound, error.message.into_owned()))?;
        container.lock().immutability = policy;
        Ok(())
    }

    /// Ends the copies that [`Fault::PendingCopy`] has left pending, well or not; how many there were.
    pub fn end_copies(&self, success: bool) -> usize {
        handlers::copy::end(self, success)
    }

    /// Puts the store's clock forward: leases end, staged blocks grow old, deletions and rehydrations get
    /// done, and what is written from now on is newer. Signatures are still checked against the machine's
    /// clock.
    pub fn advance_clock(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Requests that [`Fault::Late`] and [`Fault::Doubled`] have kept.
    pub fn late_requests(&self) -> usize {
        self.belated.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Executes them, in the order in which they came; the statuses that nobody is told.
    pub fn execute_late(&self) -> Vec<u16> {
        let belated = std::mem::take(&mut *self.belated.lock().unwrap_or_else(PoisonError::into_inner));
        let execute = |late: job::Belated| {
            self.run(late.job, &late.parts, late.body, late.peer)
                .0
                .status()
                .as_u16()
        };
        belated.into_iter().map(execute).collect()
    }

    /// Counters of one operation.
    pub fn counters(&self, operation: Operation) -> Counters {
        self.aids.counters(operation)
    }

    /// Counters of all operations together.
    pub fn totals(&self) -> Counters {
        let mut out = Counters::default();
        for operation in Operation::ALL {
            out += self.aids.counters(*operation);
        }
        out
    }

    /// Sets all counters to zero and empties the request log.
    pub fn reset_counters(&self) {
        self.aids.reset();
    }

    /// Turns the request log on or off; it grows until [`BlobStore::reset_counters`].
    pub fn record_requests(&self, on: bool) {
        self.aids.record(on);
    }

    /// The requests since the log was turned on, in the order of their answers.
    pub fn requests(&self) -> Vec<RequestRecord> {
        self.aids.log()
    }

    /// Adds a fault rule.
    pub fn inject(&self, rule: FaultRule) {
        self.aids.inject(rule);
    }

    /// Delays every request of an operation (`None`: of all); zero removes the delay.
    pub fn set_latency(&self, operation: Option<Operation>, latency: Duration) {
        self.aids.set_latency(operation, latency);
    }

    /// Removes all fault rules and delays.
    pub fn clear_faults(&self) {
        self.aids.clear();
    }
}
