//! gRPC on unix sockets: serving and connecting, kubelet's odd requests, and what calls come to.

mod authority;
pub mod rpc;
pub mod server;
