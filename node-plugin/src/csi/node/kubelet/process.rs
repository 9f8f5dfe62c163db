//! What kubelet calls: a node process over a kernel in memory and an account that answers or refuses. Each
//! process has a runtime of its own, and is killed by dropping it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use blob_client::request::Request;
use blob_client::response::Response;
use blob_client::transport::failover::Paths;
use blob_client::transport::{PathStats, Transport, TransportError};
use blob_fs::{Budget, Resources};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use vsc_driver::buffer::Arena;

use crate::cluster::fake::NODE;
use crate::csi::connect::Connector;
use crate::csi::node::NodeService;
use crate::mounts::Mounts;
use crate::mounts::calls::Patience;
use crate::mounts::fake::FakeKernel;
use crate::mounts::steps::Steps;

const EMPTY: &str = "<?xml version=\"1.0\" encoding=\"utf-8\"?><EnumerationResults><Blobs /><NextMarker />\
                     </EnumerationResults>";

/// An account with empty containers of every name.
#[derive(Debug, Default)]
pub(super) struct Account {
    refuses: AtomicBool,
}

impl Account {
    /// Whether it knows nobody from here on.
    pub(super) fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Relaxed);
    }
}

#[async_trait]
impl Transport for Account {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        tokio::time::sleep(std::time::Duration::from_millis(3)).await;
        let (status, code, body) = match self.refuses.load(Ordering::Relaxed) {
            true => (StatusCode::FORBIDDEN, "AuthenticationFailed", ""),
            // What an account with a flat namespace says to the question for permissions.
            false if request.url.to_string().contains("permissions") => {
                (StatusCode::BAD_REQUEST, "InvalidQueryParameterValue", "")
            }
            false => (StatusCode::OK, "", EMPTY),
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-request-id", HeaderValue::from_static("id"));
        if !code.is_empty() {
            headers.insert("x-ms-error-code", HeaderValue::from_static(code));
        }
        Ok(Response {
            status,
            headers,
            body: Bytes::from_static(body.as_bytes()),
            dest: None,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

/// What all processes share, because it costs time: nothing goes over the paths.
static SHARED: LazyLock<(Arc<Arena>, Arc<Paths>, Runtime)> = LazyLock::new(|| {
    let arena = Arena::new(1 << 20).unwrap();
    let runtime = Builder::new_current_thread().build().unwrap();
    let paths = Paths::new(None, arena.clone(), runtime.handle().clone());
    (arena, paths, runtime)
});

/// Does something in a process; `None` when that is killed first.
pub(super) async fn unless_killed<T>(steps: &Steps, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = steps.killed() => None,
        done = work => Some(done),
    }
}

/// A node process.
pub(super) struct Process {
    runtime: Runtime,
    pub(super) service: NodeService,
}

impl Process {
    /// A process that comes up with what is in its state folder; `None` when it ends again.
    pub(super) fn start(
        steps: &Steps,
        kernel: &Arc<FakeKernel>,
        account: &Arc<Account>,
        state: &Path,
    ) -> Option<Self> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (arena, paths, _) = &*SHARED;
        let service = {
            let _entered = runtime.enter();
            let resources = Resources {
                budget: Budget::new(32 << 20),
                arena: arena.clone(),
                runtime: runtime.handle().clone(),
            };
            let mounts = Mounts::new(kernel.clone(), resources, state, Patience::default()).unwrap();
            let connector = Connector::new(paths.clone(), arena.clone()).over(account.clone());
            NodeService::new(NODE, Arc::new(mounts), connector, None)
        };
        // As the command `node` does it.
        runtime
            .block_on(unless_killed(steps, service.mounts.forget_gone()))?
            .ok()?;
        let heals = service.clone();
        runtime.spawn(async move { heals.heal_all(CancellationToken::new()).await });
        Some(Self { runtime, service })
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// It ends as one that is told to.
    pub(super) fn end(self, steps: &Steps, kernel: &FakeKernel) {
        // Killed meanwhile or not, it is gone then.
        let _ = self.block_on(unless_killed(steps, self.service.mounts.shut_down()));
        self.kill(kernel);
    }

    /// It ends in this moment: whatever is at work goes no further.
    pub(super) fn kill(self, kernel: &FakeKernel) {
        kernel.kill_all();
    }
}
