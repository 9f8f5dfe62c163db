//! Controller service: a container per volume, or a directory inside one. No ARM rights: only the blob
//! endpoint.

mod create;
mod delete;
mod ownership;

use std::collections::HashMap;
use std::sync::Arc;

use blob_client::transport::failover::TransportMode;
use blob_client::{Client, Condition, Container, Patience};
use csi_proto::csi::controller_server::Controller;
use csi_proto::csi::controller_service_capability::{self, Rpc, rpc};
use csi_proto::csi::validate_volume_capabilities_response::Confirmed;
use csi_proto::csi::*;
use tonic::{Request, Response, Status};

use self::create::Place;
use self::ownership::Mark;
use super::account::Account;
use super::connect::{self, Connector};
use super::in_flight::InFlight;
use super::named_secret::{self, SecretRef};
use super::volume_context::{Attributes, AuthType, Identity, MountOptions, Scope, Secrets};
use super::volume_id::VolumeId;
use super::{answer, required};
use crate::access::Access;
use crate::cluster::Cluster;
use crate::error::{Error, Reason, Result};

const CAPABILITIES: [rpc::Type; 2] = [rpc::Type::CreateDeleteVolume, rpc::Type::SingleNodeMultiWriter];

/// The service.
#[derive(Debug, Clone)]
pub struct ControllerService {
    connector: Connector,
    cluster: Option<Arc<dyn Cluster>>,
    in_flight: InFlight,
    looked: delete::Looked,
    unbatched: delete::Unbatched,
}

impl ControllerService {
    /// A service over shared paths.
    pub fn new(connector: Connector) -> Self {
        Self {
            connector,
            cluster: None,
            in_flight: InFlight::default(),
            looked: delete::Looked::default(),
            unbatched: delete::Unbatched::default(),
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

    /// A client for the controller's own requests. What a volume says of its transport and of its pods'
    /// identity is for the nodes: the controller need not have the channel, and gets no token of a pod.
    fn client(&self, account: &Account, attributes: &Attributes, secrets: &Secrets) -> Result<Client> {
        let own = own_access(attributes, secrets);
        let credentials = self.connector.credentials(account, &own, secrets, None)?;
        let patience = Patience::default();
        self.connector
            .client(account, credentials, own.transport, &own.keeping, patience)
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
        let client = self.client(&account, &attributes, &secrets)?;
        let at = connect::container(&client, &container)?;
        connect::check(&account, &at, &prefix).await?;
        let place = Place { container, prefix };
        let checked = match check_arguments(&request, &attributes, &secrets, (&account, &place)) {
            Ok(()) => created_with(&at, &place, &request.parameters).await,
            Err(error) => Err(error),
        };
        Ok(match checked {
            Ok(parameters) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters,
                    mutable_parameters: HashMap::new(),
                }),
                message: String::new(),
            },
            Err(error) => ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: error.to_string(),
            },
        })
    }
}

/// See [`ControllerService::client`].
fn own_access(attributes: &Attributes, secrets: &Secrets) -> Attributes {
    let mut own = attributes.clone();
    if own.transport == TransportMode::Require {
        own.transport = TransportMode::default();
    }
    if pods_identity(attributes) {
        own.auth_type = own_identity(secrets);
        own.identity = Identity {
            aad_endpoint: own.identity.aad_endpoint,
            ..Identity::default()
        };
    }
    own
}

/// True when each pod reaches the volume as itself.
fn pods_identity(attributes: &Attributes) -> bool {
    attributes.identity.with_pod_token
        && matches!(attributes.auth_type, None | Some(AuthType::WorkloadIdentity))
}

/// Without key and SAS the driver's own identity does it: a service principal from the Secret, the workload
/// identity of the controller's service account, or the node's managed identity.
fn own_identity(secrets: &Secrets) -> Option<AuthType> {
    if secrets.key.is_some() || secrets.sas.is_some() {
        None
    } else if secrets.spn_client_secret.is_some() {
        Some(AuthType::Spn)
    } else if std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        Some(AuthType::WorkloadIdentity)
    } else {
        Some(AuthType::Msi)
    }
}

/// An error of the controller's own identity, with the other way there is.
fn explain_identity(mut error: Error, given: &HashMap<String, String>) -> Error {
    if error.reason == Reason::TokenUnavailable && given.is_empty() {
        error.message.push_str(
            "; the call brought no key or SAS either (csi.storage.k8s.io/provisioner-secret-name in the \
            class)",
        );
    }
    error
}

/// What ValidateVolumeCapabilities can tell without the service: capabilities, parameters by themselves, and
/// that a volume of ours is where its context says.
fn check_arguments(
    request: &ValidateVolumeCapabilitiesRequest,
    attributes: &Attributes,
    secrets: &Secrets,
    (account, place): (&Account, &Place),
) -> Result<()> {
    for capability in &request.volume_capabilities {
        let access = Access::parse(Some(capability), Reason::BlockNotSupported)?;
        MountOptions::parse(&access.mount_flags)?;
    }
    create::check_mutable(&request.mutable_parameters)?;
    Attributes::parse(&request.parameters, Scope::Class)?;
    if request.volume_context.is_empty() {
        return Ok(());
    }
    let said = Account::resolve(attributes, secrets)?;
    let differs = |key: &str, said: &str, is: &str| {
        let text = format!("volume_context: {key} is {said:?}, the volume of this id has {is:?}");
        Err(Error::new(Reason::ConflictingFields, text))
    };
    let container = attributes.container.as_deref().unwrap_or_default();
    let prefix = attributes.prefix.as_deref().unwrap_or_default();
    if said.endpoint != account.endpoint {
        return differs("server", said.endpoint.as_str(), account.endpoint.as_str());
    }
    if container != place.container {
        return differs("containerName", container, &place.container);
    }
    if prefix != place.prefix {
        return differs("prefix", prefix, &place.prefix);
    }
    Ok(())
}

/// The parameters, when the volume's mark says that they are those it was created with; none when there is no
/// mark to read.
async fn created_with(
    container: &Container,
    place: &Place,
    parameters: &HashMap<String, String>,
) -> Result<HashMap<String, String>> {
    if parameters.is_empty() {
        return Ok(HashMap::new());
    }
    let container = container.for_a_verdict(connect::FIRST_ANSWER);
    let metadata = match place.prefix.as_str() {
        "" => container.properties().await.map(|(_, metadata)| metadata),
        prefix => {
            let head = container.head(prefix, &Condition::none()).await;
            head.map(|properties| properties.metadata)
        }
    };
    // Not every credential may ask, and a static volume has no mark: neither is an answer to the question.
    match metadata.ok().as_ref().and_then(Mark::read) {
        Some(mark) if mark.parameters != Mark::digest(parameters) => Err(Error::new(
            Reason::VolumeExistsDifferently,
            "parameters: the volume was created with others",
        )),
        Some(_) => Ok(parameters.clone()),
        None => Ok(HashMap::new()),
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
