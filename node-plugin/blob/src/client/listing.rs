//! List Blobs.

use http::Method;

use super::call::Call;
use super::{Container, headers};
use crate::error::{Error, Result};
use crate::types::{ListOptions, ListPage};
use crate::xml;

impl Container {
    /// One page of List Blobs.
    pub async fn list(&self, options: &ListOptions) -> Result<ListPage> {
        let mut call = Call::new(Method::GET, None)
            .query("restype", "container")
            .query("comp", "list");
        if !options.prefix.is_empty() {
            call = call.query("prefix", &options.prefix);
        }
        if let Some(delimiter) = &options.delimiter {
            call = call.query("delimiter", delimiter);
        }
        if let Some(marker) = &options.marker {
            call = call.query("marker", marker);
        }
        if let Some(max) = options.max_results {
            call = call.query("maxresults", max.clamp(1, 5000).to_string());
        }
        if options.metadata {
            call = call.query("include", "metadata");
        }
        let answer = self.execute(call).await?;
        xml::list_page(&answer.response.body)
    }

    /// Refuses credentials that can serve no volume, whatever the service says: a SAS for one blob or for
    /// another service. The error names the field.
    pub fn check_reach(&self) -> Result<()> {
        self.account.signer.check_reach()
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
