//! Serving gRPC on a unix socket: `unix:///path`.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use super::authority;
use super::rpc::Rpcs;
use crate::socket::{Incoming, Socket};

/// The path of `unix:///path`, `unix:/path` or `/path`, as other CSI drivers take it.
pub fn socket_path(endpoint: &str) -> anyhow::Result<PathBuf> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    if !path.starts_with('/') {
        bail!("--endpoint: {endpoint:?} is no unix socket; write unix:///absolute/path.sock");
    }
    Ok(PathBuf::from(path))
}

/// Connects to a socket that is being listened on.
pub async fn connect(path: &Path) -> anyhow::Result<Channel> {
    let socket = path.to_owned();
    // The address is not used: the connector decides.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        }))
        .await
        .with_context(|| format!("connecting to {}", path.display()))
}

/// Serves until `stop` is done, finishing the calls at work; then removes the socket. Calls are counted in
/// `rpcs`.
pub async fn serve(
    socket: &Socket,
    incoming: Incoming,
    routes: Routes,
    rpcs: Rpcs,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let served = Server::builder()
        .layer(rpcs)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    end(socket, served)
}

/// Serves kubelet's plugin watcher, whose requests hyper would not take as they are (see the module
/// `authority`).
pub async fn serve_watcher(
    socket: &Socket,
    incoming: Incoming,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let incoming = incoming.map(|client| client.map(authority::named_localhost));
    let served = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    end(socket, served)
}

fn end(socket: &Socket, served: Result<(), tonic::transport::Error>) -> anyhow::Result<()> {
    socket.give_up();
    served.with_context(|| format!("serving {}", socket.path().display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        for endpoint in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(socket_path(endpoint).unwrap(), Path::new("/csi/csi.sock"));
        }
        for endpoint in ["tcp://127.0.0.1:1", "csi.sock", "unix://csi.sock"] {
            assert!(
                socket_path(endpoint)
                    .unwrap_err()
                    .to_string()
                    .contains("--endpoint")
            );
        }
    }
}
