//! The driver's metrics page, as a scraper reads it.

use anyhow::{Context as _, Result};
use kube::ResourceExt as _;

use crate::lab::Lab;

/// One reading of a page in the Prometheus text format.
#[derive(Debug)]
pub(crate) struct Page(String);

impl Page {
    /// The sum of all samples of this name that have these labels; 0 without any.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.0
            .lines()
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, rest) = series.split_once('{').unwrap_or((series, ""));
                let fits = labels
                    .iter()
                    .all(|(key, value)| rest.contains(&format!("{key}=\"{value}\"")));
                (found == name && fits).then(|| value.parse::<f64>().ok())?
            })
            .sum()
    }

    /// The page itself.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

impl Lab {
    /// The page of the node plugin.
    pub(crate) async fn metrics(&self) -> Result<Page> {
        self.health("metrics").await.map(Page)
    }

    /// Another page of the node plugin's health port.
    pub(crate) async fn health(&self, page: &str) -> Result<String> {
        let pod = self.node_pod().await?;
        let port = pod
            .spec
            .iter()
            .flat_map(|spec| &spec.containers)
            .flat_map(|container| container.ports.iter().flatten())
            .map(|port| port.container_port)
            .next()
            .context("the node plugin's pod has a port (health)")?;
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:{port}/proxy/{page}",
            self.settings.driver_namespace,
            pod.name_any()
        );
        self.get(&path).await.with_context(|| format!("GET {path}"))
    }
}
