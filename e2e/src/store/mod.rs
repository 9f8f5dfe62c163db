//! Embedded blob store: the Blob REST calls the client uses, in memory with an optional folder behind it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// The account of emulators: name `devstoreaccount1`.
pub const DEV_ACCOUNT: &str = "devstoreaccount1";
/// The public, well-known key of that account.
pub const DEV_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Settings of a store.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Account name.
    pub account: String,
    /// Account key, base64.
    pub key: String,
    /// Keep blobs in this folder too.
    pub folder: Option<PathBuf>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            account: DEV_ACCOUNT.into(),
            key: DEV_KEY.into(),
            folder: None,
        }
    }
}

/// The service itself, without a socket: what HTTP connections and the mock VSP both call.
#[derive(Debug)]
pub struct BlobStore {}

impl BlobStore {
    /// An empty store (or what the folder holds).
    pub fn new(config: StoreConfig) -> std::io::Result<Arc<Self>> {
        let _ = config;
        todo!()
    }
    /// Executes one request (absolute or origin-form URI, path-style `/account/container/blob`); never fails, errors are
    /// answers. The body of a GET is a list of shared pieces, not a copy.
    pub fn execute(&self, request: http::Request<Bytes>) -> http::Response<Vec<Bytes>> {
        let _ = request;
        todo!()
    }
    /// Serves HTTP/1.1 on `addr` (port 0 = any) until the server is dropped.
    pub async fn serve(self: &Arc<Self>, addr: SocketAddr) -> std::io::Result<Server> {
        let _ = addr;
        todo!()
    }
}

/// A listening store; stops when dropped.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// `http://127.0.0.1:PORT/devstoreaccount1`.
    pub fn endpoint(&self) -> url::Url {
        todo!()
    }
}
