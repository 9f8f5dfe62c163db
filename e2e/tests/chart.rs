//! The Helm chart, what is generated from it, and the pages that describe it; its alerts and its dashboard in
//! a real Prometheus. Renders with helm; no cluster is needed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed unwrap is a failed test.

#[path = "chart/alerts.rs"]
mod alerts;
#[path = "chart/generated.rs"]
mod generated;
#[path = "chart/gitops.rs"]
mod gitops;
#[path = "chart/objects.rs"]
mod objects;
#[path = "chart/prometheus.rs"]
mod prometheus;
#[path = "chart/recipes.rs"]
mod recipes;
#[path = "chart/render.rs"]
mod render;
#[path = "chart/security.rs"]
mod security;
#[path = "chart/values.rs"]
mod values;
