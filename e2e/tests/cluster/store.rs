//! The embedded store's REST interface as somebody outside the cluster sees it: through the API server, with
//! a SAS.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::store::{AccountKey, DEV_ACCOUNT, DEV_KEY, SasOptions};
use http::Request;
use kube::error::Error;

use crate::lab::{LAB, Lab};

fn path(of: &str, query: &str) -> Result<String> {
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY)?;
    let sas = key.account_sas("sco", &SasOptions::new("rwdlac", Duration::from_secs(3600)));
    let and = if query.is_empty() { "" } else { "&" };
    Ok(format!(
        "/api/v1/namespaces/{LAB}/services/http:store:10000/proxy/{DEV_ACCOUNT}/{of}?{query}{and}{}",
        sas.trim_start_matches('?')
    ))
}

/// A SAS of one container for the data in it: read, write, create, delete and list, and no right on
/// containers.
pub(crate) fn container_sas(container: &str) -> Result<String> {
    container_sas_for(container, Duration::from_secs(3600))
}

/// The same for so long.
pub(crate) fn container_sas_for(container: &str, lifetime: Duration) -> Result<String> {
    let key = AccountKey::new(DEV_ACCOUNT, DEV_KEY)?;
    let data = SasOptions::new("rcwdl", lifetime);
    Ok(key
        .container_sas(container, &data)
        .trim_start_matches('?')
        .to_owned())
}

impl Lab {
    /// The content of a blob, `None` when there is none (or no such container).
    pub(crate) async fn blob(&self, container: &str, blob: &str) -> Result<Option<String>> {
        none_if_missing(self.get(&path(&format!("{container}/{blob}"), "")?).await)
            .with_context(|| format!("reading {container}/{blob} from the store"))
    }

    /// The listing of a container as the service writes it, `None` when there is no such container.
    pub(crate) async fn listing(&self, container: &str) -> Result<Option<String>> {
        none_if_missing(self.get(&path(container, "restype=container&comp=list")?).await)
            .with_context(|| format!("listing {container} of the store"))
    }

    /// Makes a container.
    pub(crate) async fn make_container(&self, container: &str) -> Result<()> {
        self.put(&path(container, "restype=container")?, None)
            .await
            .with_context(|| format!("making the container {container} in the store"))
    }

    /// Makes a container that everybody may read and list.
    pub(crate) async fn make_public_container(&self, container: &str) -> Result<()> {
        let request = Request::put(path(container, "restype=container")?)
            .header("x-ms-blob-public-access", "container")
            .body(Vec::new())?;
        let made = self.client.request_text(request).await;
        made.map(drop)
            .with_context(|| format!("making the public container {container} in the store"))
    }

    /// Writes a blob.
    pub(crate) async fn put_blob(&self, container: &str, blob: &str, content: &str) -> Result<()> {
        self.put(&path(&format!("{container}/{blob}"), "")?, Some(content))
            .await
            .with_context(|| format!("writing {container}/{blob} to the store"))
    }

    async fn put(&self, path: &str, blob: Option<&str>) -> Result<()> {
        let mut request = Request::put(path);
        if blob.is_some() {
            request = request.header("x-ms-blob-type", "BlockBlob");
        }
        let body = blob.unwrap_or_default().as_bytes().to_vec();
        self.client.request_text(request.body(body)?).await?;
        Ok(())
    }
}

fn none_if_missing(answer: kube::Result<String>) -> Result<Option<String>> {
    match answer {
        Ok(text) => Ok(Some(text)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error.into()),
    }
}
