//! Access tokens for the embedded store, given as Entra ID and a machine's metadata service give them, to
//! identities that are named.
//!
//! [`TokenServer`] answers the two requests that clients without a key begin with: `POST
//! /TENANT/oauth2/v2.0/token` (grant client_credentials, with a secret or with a federated token) and `GET
//! /metadata/identity/oauth2/token`. Each token it gives is one that the store accepts. What differs from the
//! services: tokens are random words and not signed documents; the signature of a federated token is not
//! checked (that would need its issuer), its subject, audience and times are; the answer to a wrong request
//! has the service's code and a short text.

mod answer;
mod principal;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

pub use self::principal::Identity;

use self::answer::{Answer, answer};
use crate::listener::{Listener, Settings, Tls};
use crate::store::BlobStore;

/// Largest body of a token request: a federated token has a few KiB.
const LARGEST: usize = 256 << 10;

/// Gives tokens until it is dropped.
#[derive(Debug)]
pub struct TokenServer {
    listener: Listener,
    identities: Arc<RwLock<Vec<Identity>>>,
}

impl TokenServer {
    /// Listens on `addr` (port 0 = any) and gives tokens that `store` accepts.
    pub fn start(
        store: Arc<BlobStore>,
        identities: Vec<Identity>,
        addr: SocketAddr,
        tls: Option<Tls>,
    ) -> io::Result<Self> {
        let settings = Settings {
            name: "token-server",
            addr,
            tls,
            threads: 1,
            connection: hyper::server::conn::http1::Builder::new(),
        };
        let identities = Arc::new(RwLock::new(identities));
        let shared = Arc::clone(&identities);
        let listener = Listener::start(settings, move |_, request| {
            let (store, identities) = (store.clone(), shared.clone());
            async move { handle(&store, &identities, request).await }
        })?;
        Ok(Self { listener, identities })
    }

    /// Changes who may have tokens; those that were given stay good.
    pub fn change(&self, change: impl FnOnce(&mut Vec<Identity>)) {
        change(&mut self.identities.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// What stands for `https://login.microsoftonline.com`: `http://127.0.0.1:PORT`.
    pub fn authority(&self) -> String {
        self.listener.origin()
    }

    /// What stands for the metadata service: a whole URL without a query.
    pub fn metadata(&self) -> String {
        format!("{}{}", self.listener.origin(), answer::METADATA)
    }
}

async fn handle(
    store: &BlobStore,
    identities: &RwLock<Vec<Identity>>,
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let answer = match Limited::new(body, LARGEST).collect().await {
        Ok(body) => {
            let identities = identities.read().unwrap_or_else(PoisonError::into_inner);
            answer(&identities, &parts, &body.to_bytes(), store)
        }
        Err(error) => Answer::refusal(400, "invalid_request", &format!("the body: {error}")),
    };
    if let Some(why) = answer.refused() {
        tracing::info!(path = parts.uri.path(), why, "no token");
    }
    Ok(answer.into_response())
}
