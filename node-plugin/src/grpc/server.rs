//! Serving gRPC on a unix socket: `unix:///path`, no stale socket in the way, private to root.

use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use super::authority;
use super::rpc::Rpcs;

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

/// Binds a socket, replacing one that a former process left behind.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path)
                .with_context(|| format!("removing the old socket {}", path.display()))?;
        }
        Ok(_) => bail!(
            "{} exists and is no socket; remove it or name another path",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("binding {}", path.display()))?;
    // Requests carry secrets, answers mount file systems: root only.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("permissions of {}", path.display()))?;
    Ok(listener)
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
    path: &Path,
    listener: UnixListener,
    routes: Routes,
    rpcs: Rpcs,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let incoming = UnixListenerStream::new(listener);
    let served = Server::builder()
        .layer(rpcs)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    end(path, served)
}

/// Serves kubelet's plugin watcher, whose requests hyper would not take as they are (see the module
/// `authority`).
pub async fn serve_watcher(
    path: &Path,
    listener: UnixListener,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let incoming = UnixListenerStream::new(listener).map(|client| client.map(authority::named_localhost));
    let served = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop)
        .await;
    end(path, served)
}

fn end(path: &Path, served: Result<(), tonic::transport::Error>) -> anyhow::Result<()> {
    // A successor may have replaced it already; gone is gone.
    let _ = std::fs::remove_file(path);
    served.with_context(|| format!("serving {}", path.display()))
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

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/csi.sock");
        drop(listen(&path).unwrap());
        let _listener = listen(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(listen(&file).unwrap_err().to_string().contains("no socket"));
    }
}
