//! Self-registration with kubelet's plugin watcher: a socket in plugins_registry that says who is here and
//! where.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use csi_proto::registration::registration_server::{Registration, RegistrationServer};
use csi_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::csi::identity::Check;
use crate::socket::Socket;

/// Kubelet's word for a CSI driver (k8s.io/kubelet, pluginregistration/v1 constants).
const PLUGIN_TYPE: &str = "CSIPlugin";
/// Kubelet wants a version of the CSI interface it can parse, major 1.
const VERSIONS: [&str; 1] = ["1.0.0"];

/// The service on the registration socket.
#[derive(Debug, Clone)]
pub struct RegistrationService {
    driver: String,
    /// The CSI socket, as kubelet sees it.
    endpoint: PathBuf,
    /// Kubelet has said so, since the socket was bound.
    registered: Arc<AtomicBool>,
}

impl RegistrationService {
    /// Announces the driver's CSI socket at a path of the host.
    pub fn new(driver: &str, endpoint: &Path) -> Self {
        Self {
            driver: driver.to_owned(),
            endpoint: endpoint.to_owned(),
            registered: Arc::default(),
        }
    }

    /// Binds the socket anew where it is missing, and says what is wrong until kubelet has registered the
    /// driver: no pod gets a volume before.
    pub fn check(&self, socket: Arc<Socket>) -> Check {
        let registered = Arc::clone(&self.registered);
        Arc::new(move || {
            // Kubelet deregisters a driver whose socket goes away; what it says of the new one comes later.
            socket
                .look_and(|| registered.store(false, Ordering::Relaxed))
                .map_err(|error| format!("{error:#}"))?;
            if registered.load(Ordering::Relaxed) {
                return Ok(());
            }
            Err(format!(
                "kubelet has not registered the driver yet (it watches {})",
                socket.path().display()
            ))
        })
    }

    /// Where kubelet looks: `REGISTRY/DRIVER-reg.sock`.
    pub fn socket(&self, registry: &Path) -> PathBuf {
        registry.join(format!("{}-reg.sock", self.driver))
    }

    /// The service, ready to be served.
    pub fn routes(self) -> Routes {
        Routes::new(RegistrationServer::new(self))
    }
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: PLUGIN_TYPE.to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: VERSIONS.map(str::to_owned).to_vec(),
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.registered.store(status.plugin_registered, Ordering::Relaxed);
        if status.plugin_registered {
            tracing::info!(driver = self.driver, "registered with kubelet");
        } else {
            // Kubelet tries again by itself.
            tracing::error!(
                driver = self.driver,
                error = status.error,
                "kubelet did not register the driver"
            );
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
