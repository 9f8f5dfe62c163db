//! Identity service: who this is, and - in Probe - what is wrong.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use csi_proto::csi::identity_server::Identity;
use csi_proto::csi::plugin_capability::{self, service};
use csi_proto::csi::*;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::error::{Error, Reason, Result};
use crate::mounts::bounded::bounded;
use crate::socket::Socket;

/// A check that Probe runs; the sentence says what is missing.
pub type Check = Arc<dyn Fn() -> std::result::Result<(), String> + Send + Sync>;

/// [`Socket::look`]: binds a socket anew where it is missing.
pub fn in_place(socket: Arc<Socket>) -> Check {
    Arc::new(move || socket.look().map(drop).map_err(|error| format!("{error:#}")))
}

/// How long all checks together may take: a disk that hangs makes the node not ready, and Probe answers all
/// the same.
const PATIENCE: Duration = Duration::from_secs(3);

/// The service; `node` and `controller` give it their own checks.
#[derive(Clone)]
pub struct IdentityService {
    name: String,
    checks: Arc<[Check]>,
    /// One run of the checks at a time; one that hangs is not joined by others.
    running: Arc<Semaphore>,
    /// What was wrong at the last Probe, to log changes only.
    latest: Arc<Mutex<Option<String>>>,
}

impl std::fmt::Debug for IdentityService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentityService")
            .field("name", &self.name)
            .field("checks", &self.checks.len())
            .finish()
    }
}

impl IdentityService {
    /// A service of the driver's name that is ready when all checks hold.
    pub fn new(name: &str, checks: Vec<Check>) -> Self {
        Self {
            name: name.to_owned(),
            checks: checks.into(),
            running: Arc::new(Semaphore::new(1)),
            latest: Arc::default(),
        }
    }

    /// Runs the checks.
    ///
    /// # Errors
    /// `NotReady`, with what is wrong.
    pub async fn ready(&self) -> Result<()> {
        let wrong = self.wrong().await;
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if *latest != wrong {
            match &wrong {
                Some(why) => tracing::warn!(why, "not ready"),
                None => tracing::info!("ready again"),
            }
            latest.clone_from(&wrong);
        }
        drop(latest);
        wrong.map_or(Ok(()), |why| Err(Error::new(Reason::NotReady, why)))
    }

    async fn wrong(&self) -> Option<String> {
        let hangs = || {
            Some(format!(
                "the checks of this node did not return within {PATIENCE:?}"
            ))
        };
        let running = tokio::time::timeout(PATIENCE, Arc::clone(&self.running).acquire_owned());
        // The semaphore is never closed.
        let Ok(Ok(permit)) = running.await else {
            return hangs();
        };
        let checks = Arc::clone(&self.checks);
        let ran = bounded("probe", PATIENCE, move || {
            let wrong: Vec<String> = checks.iter().filter_map(|check| check().err()).collect();
            drop(permit);
            wrong
        });
        match ran.await {
            Ok(wrong) if wrong.is_empty() => None,
            Ok(wrong) => Some(wrong.join("; ")),
            Err(error) => Some(error.to_string()),
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: self.name.clone(),
            vendor_version: crate::VERSION.to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let controller = plugin_capability::Service {
            r#type: service::Type::ControllerService as i32,
        };
        let capability = PluginCapability {
            r#type: Some(plugin_capability::Type::Service(controller)),
        };
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: vec![capability],
        }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.ready().await?;
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn probe_says_what_is_wrong() {
        let good: Check = Arc::new(|| Ok(()));
        let bad: Check = Arc::new(|| Err("/dev/fuse: not there".into()));
        IdentityService::new("n", vec![good.clone()])
            .ready()
            .await
            .unwrap();
        let error = IdentityService::new("n", vec![good, bad])
            .ready()
            .await
            .unwrap_err();
        assert_eq!(error.reason.code(), tonic::Code::FailedPrecondition);
        assert!(error.message.contains("/dev/fuse"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_hangs_is_told_and_not_started_again() {
        let (release, hung) = std::sync::mpsc::channel::<()>();
        let (started, runs) = std::sync::mpsc::channel();
        let both = Mutex::new((hung, started));
        let check: Check = Arc::new(move || {
            let (hung, started) = &*both.lock().unwrap();
            started.send(()).unwrap();
            let _ = hung.recv();
            Ok(())
        });
        let service = IdentityService::new("n", vec![check]);
        for _ in 0..3 {
            let error = service.ready().await.unwrap_err();
            assert!(error.message.contains("did not return within 3s"), "{error}");
        }
        // The clock of this test runs ahead of the thread: without waiting, it may not have begun.
        runs.recv().unwrap();
        drop(release);
        // The check, and with it the sender, goes with the service: whoever had started it again has said so
        // by then.
        drop(service);
        assert_eq!(runs.iter().count(), 0);
    }
}
