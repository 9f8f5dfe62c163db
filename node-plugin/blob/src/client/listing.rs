//! List Blobs.

use bytes::Bytes;
use http::Method;

use super::call::Call;
use super::{Container, headers, pages};
use crate::error::{Error, Result};
use crate::types::{ListOptions, ListPage};
use crate::xml;

/// Body of a page, in bytes, that is not parsed beside the other tasks of a thread.
const LONG_PAGE: usize = 1 << 20;

fn list_call(options: &ListOptions, entries: Option<u32>) -> Call<'static> {
    let mut call = Call::new(Method::GET, None)
        .query("restype", "container")
        .query("comp", "list")
        .answered_by("EnumerationResults");
    if !options.prefix.is_empty() {
        call = call.query("prefix", &options.prefix);
    }
    if let Some(delimiter) = &options.delimiter {
        call = call.query("delimiter", delimiter);
    }
    if let Some(marker) = &options.marker {
        call = call.query("marker", marker);
    }
    if let Some(entries) = entries {
        call = call.query("maxresults", entries.to_string());
    }
    if options.metadata {
        call = call.query("include", "metadata");
    }
    call.collect = pages::LONGEST;
    call
}

/// A page of some MiB takes longer than others should wait for a thread of the runtime.
async fn parse(body: Bytes) -> Result<ListPage> {
    if body.len() < LONG_PAGE {
        return xml::list_page(&body);
    }
    let parsed = tokio::task::spawn_blocking(move || xml::list_page(&body)).await;
    parsed.unwrap_or_else(|error| {
        Err(Error::Malformed {
            message: format!("listing: {error}"),
        })
    })
}

impl Container {
    /// One page of List Blobs. It may have fewer entries than were asked for, and more follow all the same.
    pub async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        loop {
            let entries = self.pages.entries(options.max_results);
            let answer = match self.execute(list_call(options, entries)).await {
                Ok(answer) => answer,
                Err(failed) => match failed.error {
                    Error::TooLong { .. } if self.pages.too_long(entries) => continue,
                    error => return Err(error),
                },
            };
            let body = answer.response.body;
            let bytes = body.len();
            let page = parse(body).await?;
            self.pages.had(page.items.len(), bytes);
            if page.next_marker.is_some() && page.next_marker == options.marker {
                return Err(Error::Malformed {
                    message: "listing: the next page is the same one again".into(),
                });
            }
            return Ok(page);
        }
    }

    /// Refuses credentials that can serve no volume, whatever the service says: a SAS for one blob or for
    /// another service. The error names the field.
    pub fn check_reach(&self) -> Result<()> {
        self.held().signer.check_reach()
    }

    /// Whether the account has a hierarchical namespace: asked by a List that only such an account
    /// understands, because that needs no right but to list.
    pub async fn is_hierarchical(&self) -> Result<bool> {
        let call = Call::new(Method::GET, None)
            .query("restype", "container")
            .query("comp", "list")
            .query("maxresults", "1")
            .query("include", "permissions");
        let answer = match self.execute(call).await.map_err(Error::from) {
            Ok(answer) => answer,
            Err(Error::Service { status: 400, .. }) => return Ok(false),
            Err(error) => return Err(error),
        };
        // An emulator that looks over words it does not know.
        let server = headers::text(&answer.response.headers, "server").unwrap_or_default();
        Ok(!server.starts_with("Azurite"))
    }
}

#[cfg(test)]
mod tests;
