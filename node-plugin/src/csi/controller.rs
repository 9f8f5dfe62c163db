//! Controller service: a container per volume, or a directory inside one. No ARM rights: only the blob endpoint.

mod create;
mod delete;
mod ownership;

use std::sync::Arc;

use csi_proto::csi::controller_server::Controller;
use csi_proto::csi::controller_service_capability::{self, Rpc, rpc};
use csi_proto::csi::validate_volume_capabilities_response::Confirmed;
use csi_proto::csi::*;
use tonic::{Request, Response, Status};

use super::account::Account;
use super::capability::Access;
use super::connect::{self, Connector};
use super::guard::Guards;
use super::named_secret::{self, SecretRef};
use super::status::{Error, Reason, Result};
use super::volume_context::{Attributes, MountOptions, Scope, Secrets};
use super::volume_id::VolumeId;
use super::{answer, required};
use crate::cluster::Cluster;

const CAPABILITIES: [rpc::Type; 2] = [rpc::Type::CreateDeleteVolume, rpc::Type::SingleNodeMultiWriter];

/// The service.
#[derive(Debug, Clone)]
pub struct ControllerService {
    connector: Connector,
    cluster: Option<Arc<dyn Cluster>>,
    guards: Guards,
}

impl ControllerService {
    /// A service over shared paths.
    pub fn new(connector: Connector) -> Self {
        Self {
            connector,
            cluster: None,
            guards: Guards::default(),
        }
    }

    /// The same in a cluster: Secrets are read by name.
    pub fn in_cluster(mut self, cluster: Arc<dyn Cluster>) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// The secrets of a call, or those of a Secret by name.
    async fn secrets(&self, secrets: Secrets, named: Option<&SecretRef>) -> Result<Secrets> {
        named_secret::in_controller(self.cluster.as_deref(), secrets, named).await
    }

    async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse> {
        let volume_id = required("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(Error::new(
                Reason::MissingField,
                "volume_capabilities: none is set",
            ));
        }
        let attributes = Attributes::parse(&request.volume_context, Scope::Attributes)?;
        let secrets = Secrets::parse(&request.secrets)?;
        let id = VolumeId::parse(volume_id);
        let named = match id.as_ref().and_then(|id| id.secret.clone()) {
            Some(named) => Some(named),
            None => named_secret::of_class(&attributes, &secrets)?,
        };
        let secrets = self.secrets(secrets, named.as_ref()).await?;
        let (account, container, prefix) = match (id, &attributes.container) {
            (Some(id), _) => (id.account, id.container, id.prefix),
            // A static volume: its id may be anything, its attributes say where it is.
            (None, Some(container)) => (
                Account::resolve(&attributes, &secrets)?,
                container.clone(),
                attributes.prefix.clone().unwrap_or_default(),
            ),
            (None, None) => {
                let text = format!("volume_id: {volume_id:?} names no volume of this driver");
                return Err(Error::new(Reason::VolumeNotFound, text));
            }
        };
        let credentials = self
            .connector
            .credentials(&account, &attributes, &secrets, None)?;
        let client = self
            .connector
            .client(&account, credentials, attributes.transport)?;
        connect::check(&account, &connect::container(&client, &container)?, &prefix).await?;
        for capability in &request.volume_capabilities {
            let access = Access::parse(Some(capability), Reason::BlockNotSupported);
            if let Err(error) = access.and_then(|a| MountOptions::parse(&a.mount_flags)) {
                return Ok(ValidateVolumeCapabilitiesResponse {
                    confirmed: None,
                    message: error.to_string(),
                });
            }
        }
        Ok(ValidateVolumeCapabilitiesResponse {
            confirmed: Some(Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        })
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        let result = self.create(&request).await;
        let volume = result.map(|volume| CreateVolumeResponse { volume: Some(volume) });
        answer("CreateVolume", &request.name, volume)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let request = request.into_inner();
        let result = self.delete(&request).await;
        answer(
            "DeleteVolume",
            &request.volume_id,
            result.map(|()| DeleteVolumeResponse {}),
        )
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        let volume_id = request.volume_id.clone();
        answer(
            "ValidateVolumeCapabilities",
            &volume_id,
            self.validate(request).await,
        )
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let capability = |r#type: rpc::Type| ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(Rpc {
                r#type: r#type as i32,
            })),
        };
        let capabilities = CAPABILITIES.map(capability).to_vec();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }
}
