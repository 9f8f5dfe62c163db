//! A call becomes a request: dated, signed, with the headers that all have.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderValue, Method, Uri, header};
use tokio::time::Instant;
use vsc_driver::buffer::Buffer;

use super::call::{Call, ReadBy};
use super::{API_VERSION, Container};
use crate::auth::handle::Held;
use crate::auth::{Draft, header_value, secret_header};
use crate::error::{Error, Result};
use crate::request::Request;
use crate::transport::path::Path;

const USER_AGENT: &str = concat!("vsc-blob-csi/", env!("CARGO_PKG_VERSION"));

impl Container {
    /// One attempt's request, signed with this credential and of this time.
    pub(super) async fn sign(
        &self,
        call: &Call<'_>,
        (by, dated): (&Held, SystemTime),
        dest: Option<Buffer>,
        avoid: Option<Path>,
        deadline: Instant,
    ) -> Result<Request> {
        let account = &*self.account;
        let mut headers = call.headers.clone();
        headers.insert("x-ms-version", HeaderValue::from_static(API_VERSION));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        headers.insert(
            "x-ms-client-request-id",
            header_value(&uuid::Uuid::new_v4().to_string())?,
        );
        if matches!(call.method, Method::PUT | Method::POST) {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(call.body.len()));
        }
        if let Some(source) = &call.source {
            let access = match source.read_by {
                ReadBy::Service => {
                    let access = by.signer.source_access(&self.name, source.blob, dated);
                    in_time(deadline, access).await?
                }
                ReadBy::Caller => by.signer.same_account_access(),
            };
            let url = self.source_url(source.blob, access.query.as_ref());
            headers.insert("x-ms-copy-source", secret_header(&url)?);
            if let Some(value) = access.authorization {
                headers.insert("x-ms-copy-source-authorization", value);
            }
        }
        let mut draft = Draft {
            method: call.method.clone(),
            path: account.path(&self.name, call.blob),
            query: call
                .query
                .iter()
                .map(|(k, v)| ((*k).to_owned(), v.clone()))
                .collect(),
            headers,
        };
        let query = in_time(deadline, by.signer.sign(&mut draft, dated)).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mark = if query.is_empty() { "" } else { "?" };
        let url: Uri = format!("{}{}{mark}{query}", account.origin, draft.path)
            .parse()
            .map_err(|e: http::uri::InvalidUri| Error::Argument {
                field: "blob name",
                // The URL itself may hold a SAS.
                message: format!("makes no valid URL ({e}); the longest is 64 KiB"),
            })?;
        Ok(Request {
            method: draft.method,
            url,
            headers: draft.headers,
            body: call.body.clone(),
            dest,
            collect: call.collect,
            idempotent: call.idempotent,
            avoid,
            timeout: account.attempt_timeout.min(left),
            moved: Arc::default(),
            ledger: None,
        })
    }
}

/// Waits for a token until the deadline.
pub(super) async fn in_time<T>(deadline: Instant, signing: impl Future<Output = Result<T>>) -> Result<T> {
    let signed = tokio::time::timeout_at(deadline, signing).await;
    signed.unwrap_or_else(|_| {
        Err(Error::Token {
            message: "the identity service did not answer before the call's deadline".into(),
            retryable: true,
        })
    })
}
