//! Types and services of the Container Storage Interface and of kubelet's plugin registration, generated from
//! `proto/`.
//!
//! Messages that carry a field marked `csi_secret` print `***` for it in their Debug output. Fields keep the
//! names of the interface, where the specification documents them.

mod debug;

/// `csi.v1`: Identity, Controller, Node and the services this plugin does not offer.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::pedantic,
    clippy::doc_lazy_continuation,
    reason = "generated code; the CSI specification documents it"
)]
pub mod csi {
    tonic::include_proto!("csi.v1");
    include!(concat!(env!("OUT_DIR"), "/debug.rs"));
}

/// `pluginregistration`, v1: how a plugin introduces itself to kubelet.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "generated code; kubelet's API documents it"
)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

#[cfg(test)]
mod tests;
