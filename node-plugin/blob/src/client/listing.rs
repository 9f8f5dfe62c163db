//! List Blobs.

use http::Method;

use super::Container;
use super::call::Call;
use crate::error::Result;
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
}
