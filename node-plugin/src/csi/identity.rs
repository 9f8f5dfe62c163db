//! Identity service: who this is, and - in Probe - what is wrong.

use std::sync::Arc;

use csi_proto::csi::identity_server::Identity;
use csi_proto::csi::plugin_capability::{self, service};
use csi_proto::csi::*;
use tonic::{Request, Response, Status};

use super::answer;
use super::status::{Error, Reason, Result};

/// A check that Probe runs; the sentence says what is missing.
pub type Check = Arc<dyn Fn() -> std::result::Result<(), String> + Send + Sync>;

/// The service; `node` and `controller` give it their own checks.
#[derive(Clone)]
pub struct IdentityService {
    name: String,
    checks: Vec<Check>,
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
            checks,
        }
    }

    fn probe(&self) -> Result<ProbeResponse> {
        let wrong: Vec<String> = self.checks.iter().filter_map(|check| check().err()).collect();
        if wrong.is_empty() {
            return Ok(ProbeResponse { ready: Some(true) });
        }
        Err(Error::new(Reason::NotReady, wrong.join("; ")))
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
        answer("Probe", "", self.probe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_says_what_is_wrong() {
        let good: Check = Arc::new(|| Ok(()));
        let bad: Check = Arc::new(|| Err("/dev/fuse: not there".into()));
        assert_eq!(
            IdentityService::new("n", vec![good.clone()])
                .probe()
                .unwrap()
                .ready,
            Some(true)
        );
        let error = IdentityService::new("n", vec![good, bad]).probe().unwrap_err();
        assert_eq!(error.reason.code(), tonic::Code::FailedPrecondition);
        assert!(error.message.contains("/dev/fuse"));
    }
}
