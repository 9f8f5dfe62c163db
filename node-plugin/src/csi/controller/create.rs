//! CreateVolume: where the volume goes, and that it is there once.

use std::collections::HashMap;

use blob_client::{
    Condition, Container, Error as BlobError, ListOptions, Metadata, PutOptions, StoredHeaders,
};
use csi_proto::csi::{CapacityRange, CreateVolumeRequest, Volume};

use super::ownership::{Mark, name_digest, short_digest};
use super::{ControllerService, explain_identity, pods_identity};
use crate::access::Access;
use crate::csi::account::Account;
use crate::csi::connect;
use crate::csi::named_secret;
use crate::csi::required;
use crate::csi::volume_context::{Attributes, AuthType, Identity, MountOptions, OnDelete, Scope, Secrets};
use crate::csi::volume_id::VolumeId;
use crate::error::{Error, Reason, Result};

/// Longest name of a container (REST, "Naming and referencing containers").
const LONGEST_NAME: usize = 63;

/// Keys of a class that are resolved here; the others go on to the volume as they are.
const RESOLVED: &[&str] = &[
    "storageaccount",
    "containername",
    "containernameprefix",
    "prefix",
    "server",
    "storageendpointsuffix",
    "secretnamespace",
    "ondelete",
];

impl ControllerService {
    pub(super) async fn create(&self, request: &CreateVolumeRequest) -> Result<Volume> {
        let name = required("name", &request.name)?;
        check_request(request)?;
        let capacity = capacity(request.capacity_range.as_ref())?;
        let mut attributes = Attributes::parse(&request.parameters, Scope::Class)?;
        // The provisioner names the PersistentVolume as it names the volume here.
        attributes.claim.volume.get_or_insert_with(|| name.to_owned());
        let secrets = Secrets::parse(&request.secrets)?;
        let named = named_secret::of_class(&attributes, &secrets)?;
        let secrets = self.secrets(secrets, named.as_ref()).await?;
        let account = Account::resolve(&attributes, &secrets)?;
        let place = Place::plan(name, &attributes)?;
        let client = self.client(&account, &attributes, &secrets)?;
        let container = connect::container(&client, &place.container)?.for_a_verdict(connect::FIRST_ANSWER);

        let _guard = self.in_flight.enter(name)?;
        let mark = Mark::new(name, capacity, &request.parameters);
        let found = match place.prefix.as_str() {
            "" => create_container(&container, &mark).await,
            prefix => create_directory(&container, prefix, &mark, attributes.on_delete).await,
        };
        let found = found.map_err(|error| match error {
            Failure::Blob(error) => {
                let error = connect::explain(&account, &place.container, error);
                match pods_identity(&attributes) {
                    true => explain_identity(error, &request.secrets),
                    false => error,
                }
            }
            Failure::Told(error) => error,
        })?;
        let capacity = match found {
            Found::Created => capacity,
            Found::Marked(there) => agree(&there, &mark, request.capacity_range.as_ref(), &place)?,
            Found::Unmarked if attributes.on_delete == OnDelete::Retain && attributes.on_delete_given => {
                capacity
            }
            Found::Unmarked => {
                return Err(Error::new(
                    Reason::NameTaken,
                    format!("{} exists and was not created for {name:?}", place.told()),
                ));
            }
        };
        let id = VolumeId {
            account: account.clone(),
            container: place.container.clone(),
            prefix: place.prefix.clone(),
            on_delete: attributes.on_delete,
            secret: named,
            auth_type: attributes.auth_type.filter(|_| !pods_identity(&attributes)),
            identity: identity_for_deletion(&attributes),
            name: Some(name_digest(name)),
        };
        let mut context = volume_context(&request.parameters, &account, &place);
        keep_namespace(&mut context, &attributes);
        Ok(Volume {
            capacity_bytes: capacity,
            volume_id: id.to_string(),
            volume_context: context,
            content_source: None,
            accessible_topology: Vec::new(),
        })
    }
}

/// Where a volume goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) container: String,
    /// Empty: the container is the volume.
    pub(super) prefix: String,
}

impl Place {
    fn plan(name: &str, attributes: &Attributes) -> Result<Self> {
        let container = attributes.expanded_container()?;
        let prefix = attributes.expanded_prefix()?.unwrap_or_default();
        if container.is_some() && attributes.container_prefix.is_some() {
            return Err(Error::new(
                Reason::ConflictingFields,
                "containerNamePrefix: containerName gives the whole name already",
            ));
        }
        match container {
            Some(container) => Ok(Self { container, prefix }),
            None if prefix.is_empty() => {
                let container = container_name(attributes.container_prefix.as_deref().unwrap_or(""), name)?;
                Ok(Self { container, prefix })
            }
            None => Err(Error::new(
                Reason::MissingField,
                "containerName: prefix is set, but not the container it is in",
            )),
        }
    }

    fn told(&self) -> String {
        match self.prefix.as_str() {
            "" => format!("containerName: container {:?}", self.container),
            prefix => format!("prefix: {prefix:?} in container {:?}", self.container),
        }
    }
}

/// A container's name out of the volume's. A name that had to be changed gets a digest, so that two never
/// become one.
fn container_name(prefix: &str, name: &str) -> Result<String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !prefix.chars().all(fits) || prefix.starts_with('-') || prefix.contains("--") || prefix.len() > 32 {
        return Err(Error::new(
            Reason::InvalidValue,
            format!(
                "containerNamePrefix: {prefix:?}: at most 32 lower-case letters, digits and single dashes"
            ),
        ));
    }
    let wanted = match prefix.trim_end_matches('-') {
        "" => name.to_owned(),
        prefix => format!("{prefix}-{name}"),
    };
    let mut clean = String::with_capacity(wanted.len());
    for c in wanted.chars().map(|c| c.to_ascii_lowercase()) {
        let c = if fits(c) { c } else { '-' };
        if c != '-' || !(clean.is_empty() || clean.ends_with('-')) {
            clean.push(c);
        }
    }
    let clean = clean.trim_end_matches('-');
    if clean == wanted && (3..=LONGEST_NAME).contains(&clean.len()) {
        return Ok(wanted);
    }
    let digest = short_digest(name);
    // All ASCII by now: any byte is a boundary.
    let kept = clean[..clean.len().min(LONGEST_NAME - digest.len() - 1)].trim_end_matches('-');
    Ok(if kept.is_empty() {
        digest
    } else {
        format!("{kept}-{digest}")
    })
}

/// What was there.
enum Found {
    Created,
    Marked(Mark),
    Unmarked,
}

/// Why it could not be created: the client's error, or a sentence.
enum Failure {
    Blob(BlobError),
    Told(Error),
}

impl From<BlobError> for Failure {
    fn from(error: BlobError) -> Self {
        Self::Blob(error)
    }
}

async fn create_container(container: &Container, mark: &Mark) -> Result<Found, Failure> {
    match container.create(&mark.metadata()).await {
        Ok(_) => Ok(Found::Created),
        Err(BlobError::AlreadyExists { .. }) => {
            let (_, metadata) = container.properties().await?;
            Ok(Mark::read(&metadata).map_or(Found::Unmarked, Found::Marked))
        }
        // The service answers so for half a minute after a deletion.
        Err(BlobError::Service { code, .. }) if code == "ContainerBeingDeleted" => {
            Err(Failure::Told(Error::new(
                Reason::ServiceBusy,
                format!(
                    "containerName: a container {:?} is still being deleted",
                    container.name()
                ),
            )))
        }
        Err(error) => Err(error.into()),
    }
}

async fn create_directory(
    container: &Container,
    prefix: &str,
    mark: &Mark,
    on_delete: OnDelete,
) -> Result<Found, Failure> {
    let there = match container.head(prefix, &Condition::none()).await {
        Ok(properties) => match Mark::read(&properties.metadata) {
            Some(mark) => return Ok(Found::Marked(mark)),
            None => true,
        },
        Err(BlobError::BlobNotFound { .. }) => false,
        Err(error) => return Err(error.into()),
    };
    check_outside(container, prefix).await?;
    if there {
        return Ok(Found::Unmarked);
    }
    let inside = ListOptions {
        prefix: format!("{prefix}/"),
        max_results: Some(1),
        ..ListOptions::default()
    };
    if on_delete == OnDelete::Delete && !container.list(&inside).await?.items.is_empty() {
        // A directory without a marker, made by somebody else: deleting the volume would delete it.
        return Ok(Found::Unmarked);
    }
    let mut metadata = mark.metadata();
    metadata.insert("hdi_isfolder".into(), "true".into());
    let options = PutOptions {
        metadata,
        stored: Some(StoredHeaders::default()),
        condition: Condition::absent(),
        ..PutOptions::default()
    };
    match container.put(prefix, bytes::Bytes::new().into(), &options).await {
        Ok(_) => Ok(Found::Created),
        Err(BlobError::AlreadyExists { .. } | BlobError::ConditionNotMet { .. }) => {
            let properties = container.head(prefix, &Condition::none()).await?;
            Ok(Mark::read(&properties.metadata).map_or(Found::Unmarked, Found::Marked))
        }
        Err(error) => Err(error.into()),
    }
}

/// A volume inside another one would be deleted with it.
async fn check_outside(container: &Container, prefix: &str) -> Result<(), Failure> {
    let refuse = |what: String, metadata: &Metadata| match Mark::read(metadata) {
        Some(mark) => Err(Failure::Told(Error::new(
            Reason::NameTaken,
            format!(
                "prefix: {prefix:?} is inside {what}, which belongs to volume {:?}",
                mark.name
            ),
        ))),
        None => Ok(()),
    };
    match container.properties().await {
        Ok((_, metadata)) => refuse(format!("container {:?}", container.name()), &metadata)?,
        // A SAS for the container may not ask; DeleteVolume looks before it deletes.
        Err(BlobError::Denied { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    for (end, _) in prefix.match_indices('/') {
        let above = &prefix[..end];
        match container.head(above, &Condition::none()).await {
            Ok(properties) => refuse(format!("{above:?}"), &properties.metadata)?,
            // A SAS for a directory may not look above it.
            Err(BlobError::BlobNotFound { .. } | BlobError::Denied { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What DeleteVolume has to know of the class's identity, which it is not told.
fn identity_for_deletion(attributes: &Attributes) -> Identity {
    let Identity {
        msi_client_id,
        msi_resource_id,
        msi_endpoint,
        spn_client_id,
        spn_tenant_id,
        aad_endpoint,
        client_id,
        tenant_id,
        with_pod_token: _,
    } = attributes.identity.clone();
    let none = Identity::default();
    match attributes.auth_type {
        _ if pods_identity(attributes) => Identity { aad_endpoint, ..none },
        Some(AuthType::Msi) => Identity {
            msi_client_id,
            msi_resource_id,
            msi_endpoint,
            ..none
        },
        Some(AuthType::Spn) => Identity {
            spn_client_id,
            spn_tenant_id,
            aad_endpoint,
            ..none
        },
        Some(AuthType::WorkloadIdentity) => Identity {
            client_id,
            tenant_id,
            aad_endpoint,
            ..none
        },
        Some(AuthType::Key | AuthType::Sas | AuthType::Anonymous) | None => none,
    }
}

/// The capacity of a volume that exists, when the request fits it.
fn agree(there: &Mark, wanted: &Mark, range: Option<&CapacityRange>, place: &Place) -> Result<i64> {
    let different = |what: &str| {
        let text = format!("name: volume {:?} exists with {what}", wanted.name);
        Err(Error::new(Reason::VolumeExistsDifferently, text))
    };
    if there.name != wanted.name {
        let text = format!("{} belongs to volume {:?}", place.told(), there.name);
        return Err(Error::new(Reason::NameTaken, text));
    }
    if there.parameters != wanted.parameters {
        return different("other parameters");
    }
    let (required, limit) = range.map_or((0, 0), |r| (r.required_bytes, r.limit_bytes));
    if there.capacity < required || (limit > 0 && there.capacity > limit) {
        return different(&format!("capacity_range {} bytes", there.capacity));
    }
    Ok(there.capacity)
}

/// Containers have no quota: what was asked for is what is answered.
fn capacity(range: Option<&CapacityRange>) -> Result<i64> {
    let Some(range) = range else { return Ok(0) };
    let (required, limit) = (range.required_bytes, range.limit_bytes);
    if required < 0 || limit < 0 || (limit > 0 && required > limit) {
        return Err(Error::new(
            Reason::CapacityOutOfRange,
            format!("capacity_range: required_bytes {required}, limit_bytes {limit}"),
        ));
    }
    Ok(required)
}

fn check_request(request: &CreateVolumeRequest) -> Result<()> {
    if request.volume_capabilities.is_empty() {
        return Err(Error::new(
            Reason::MissingField,
            "volume_capabilities: none is set",
        ));
    }
    for capability in &request.volume_capabilities {
        let access = Access::parse(Some(capability), Reason::BlockNotSupported)?;
        MountOptions::parse(&access.mount_flags)?;
    }
    if request.volume_content_source.is_some() {
        return Err(Error::new(
            Reason::SourceNotSupported,
            "volume_content_source: snapshots and clones are not offered",
        ));
    }
    check_mutable(&request.mutable_parameters)
}

/// There are none to set.
pub(super) fn check_mutable(parameters: &HashMap<String, String>) -> Result<()> {
    match parameters.keys().min() {
        Some(key) => Err(Error::new(
            Reason::NotSupportedYet,
            format!("mutable_parameters: {key:?} cannot be set"),
        )),
        None => Ok(()),
    }
}

/// volumeAttributes of the new PersistentVolume: everything the node needs, nothing of the claim.
fn volume_context(
    parameters: &HashMap<String, String>,
    account: &Account,
    place: &Place,
) -> HashMap<String, String> {
    let mut context: HashMap<String, String> = parameters
        .iter()
        .filter(|(key, value)| {
            let key = key.to_ascii_lowercase();
            !value.is_empty() && !key.starts_with("csi.storage.k8s.io/") && !RESOLVED.contains(&key.as_str())
        })
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    context.insert("storageAccount".into(), account.name.clone());
    context.insert("containerName".into(), place.container.clone());
    if !place.prefix.is_empty() {
        context.insert("prefix".into(), place.prefix.clone());
    }
    let cloud = Account::in_cloud(&account.name, "core.windows.net").map(|a| a.endpoint);
    if cloud.ok().as_ref() != Some(&account.endpoint) {
        context.insert(
            "server".into(),
            account.endpoint.as_str().trim_end_matches('/').to_owned(),
        );
    }
    context
}

/// The node learns nothing of the claim: where a Secret that the class names is, is written down.
fn keep_namespace(context: &mut HashMap<String, String>, attributes: &Attributes) {
    if attributes.secret_name.is_some()
        && let Some(namespace) = named_secret::namespace_of_class(attributes)
    {
        context.insert("secretNamespace".into(), namespace.to_owned());
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
