//! `secretName` and `secretNamespace`: a Secret read through the API server, when the call brought no usable
//! one.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::volume_context::{Attributes, AuthType, Secrets};
use crate::cluster::{self, Cluster, Link, ObjectRef, VolumeAt};
use crate::error::{Error, Reason, Result};

/// All requests together; kubelet and the provisioner repeat the call.
const PATIENCE: Duration = Duration::from_secs(15);

/// A Secret by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
}

impl SecretRef {
    /// Both names are checked: they become parts of a request's path, and users write them.
    pub fn new(namespace: &str, name: &str) -> Result<Self> {
        let word = |text: &str, longest: usize, dots: bool| {
            let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            let ends = text.bytes().next().is_some_and(inside) && text.bytes().last().is_some_and(inside);
            let all = text
                .bytes()
                .all(|b| inside(b) || b == b'-' || (dots && b == b'.'));
            ends && all && text.len() <= longest
        };
        for (field, text, longest, dots) in [
            ("secretNamespace", namespace, 63, false),
            ("secretName", name, 253, true),
        ] {
            if !word(text, longest, dots) {
                return Err(Error::new(
                    Reason::InvalidValue,
                    format!("{field}: {text:?} is not a name that Kubernetes accepts"),
                ));
            }
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// Whose volume it is, which decides where its Secret is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// A PersistentVolume at its staging path: in the namespace of its claim. Kubelet stages no inline
    /// volumes.
    Staged(&'a VolumeAt),
    /// A volume that is mounted for one pod. An inline one is written by whoever writes the pod.
    Pod {
        at: &'a VolumeAt,
        context: &'a HashMap<String, String>,
        inline: bool,
    },
}

/// The same, for as long as the volume is mounted.
#[derive(Debug, Clone)]
pub(super) enum Whose {
    Staged(VolumeAt),
    Pod {
        at: VolumeAt,
        context: HashMap<String, String>,
        inline: bool,
    },
}

impl Whose {
    pub(super) fn owner(&self) -> Owner<'_> {
        match self {
            Self::Staged(at) => Owner::Staged(at),
            Self::Pod { at, context, inline } => Owner::Pod {
                at,
                context,
                inline: *inline,
            },
        }
    }
}

/// Whether a volume's secrets are read by name when a call brings none.
pub(super) fn is_wanted(attributes: &Attributes) -> bool {
    wanted(attributes, &Secrets::default()).is_some()
}

/// Reads the Secret that the volume names once more.
pub(super) async fn again(link: Option<&Link>, attributes: &Attributes, whose: &Whose) -> Result<Secrets> {
    on_node(link, attributes, Secrets::default(), whose.owner()).await
}

/// The Secret that a staged volume's PersistentVolume names (`nodeStageSecretRef`): kubelet reads it when it
/// stages, and not again. None at all where the PersistentVolume names none any more.
pub(super) async fn of_volume(link: Option<&Link>, at: &VolumeAt) -> Result<Secrets> {
    let link = link.ok_or_else(no_cluster)?;
    in_time(async {
        let named = link.claims.stage_secret_of(at).await.map_err(|error| {
            Error::new(
                Reason::ClusterUnavailable,
                format!("nodeStageSecretRef: the volume could not be looked at: {error}"),
            )
        })?;
        match named {
            Some((namespace, name)) => read(&*link.cluster, &SecretRef::new(&namespace, &name)?).await,
            None => Ok(Secrets::default()),
        }
    })
    .await
}

/// The secrets of a call, or those of the Secret that the volume names.
pub(super) async fn on_node(
    link: Option<&Link>,
    attributes: &Attributes,
    secrets: Secrets,
    owner: Owner<'_>,
) -> Result<Secrets> {
    let Some(name) = wanted(attributes, &secrets) else {
        return Ok(secrets);
    };
    let link = link.ok_or_else(no_cluster)?;
    let written = attributes.secret_namespace.as_deref();
    in_time(async {
        let namespace = match owner {
            Owner::Staged(at) => namespace_of_claim(link, written, at).await?,
            Owner::Pod { at, context, inline } => {
                let pod = told_by_kubelet(&at.path, context)?;
                if inline {
                    namespace_of_pod(written, &pod)?
                } else {
                    namespace_of_claim(link, written, at).await?
                }
            }
        };
        read(&*link.cluster, &SecretRef::new(&namespace, name)?).await
    })
    .await
}

/// The secrets of the stage of a PersistentVolume, which it names as `nodeStageSecretRef`; `None` when no
/// volume of this handle that names one is bound to a claim. `paths`: where kubelet has it.
pub(super) async fn of_stage<'a>(
    link: &Link,
    handle: &str,
    paths: impl Iterator<Item = &'a PathBuf>,
) -> Result<Option<Secrets>> {
    let read = in_time(async {
        let found = link.claims.stage_secret(handle, paths).await.map_err(|error| {
            let text = format!("secretName: looking for the PersistentVolume failed: {error}");
            Error::new(Reason::ClusterUnavailable, text)
        })?;
        match found {
            Some((namespace, name)) => read(&*link.cluster, &SecretRef::new(&namespace, &name)?)
                .await
                .map(Some),
            None => Ok(None),
        }
    });
    // The volume says it by another name.
    read.await.map_err(|error| {
        let rest = error
            .message
            .strip_prefix("secretName: ")
            .unwrap_or(&error.message);
        Error::new(error.reason, format!("nodeStageSecretRef: {rest}"))
    })
}

/// The same in the controller, where the Secret is known or follows from class and claim.
pub(super) async fn in_controller(
    cluster: Option<&dyn Cluster>,
    secrets: Secrets,
    named: Option<&SecretRef>,
) -> Result<Secrets> {
    let Some(named) = named.filter(|_| secrets.is_empty()) else {
        return Ok(secrets);
    };
    let cluster = cluster.ok_or_else(no_cluster)?;
    in_time(read(cluster, named)).await
}

/// The Secret that a class names for a claim, if the volume needs one.
pub(super) fn of_class(attributes: &Attributes, secrets: &Secrets) -> Result<Option<SecretRef>> {
    let Some(name) = wanted(attributes, secrets) else {
        return Ok(None);
    };
    let namespace = namespace_of_class(attributes).ok_or_else(|| {
        Error::new(
            Reason::MissingField,
            "secretNamespace: it is not set, and the namespace of the claim is not known \
             (external-provisioner passes it when started with --extra-create-metadata)",
        )
    })?;
    SecretRef::new(namespace, name).map(Some)
}

/// `secretNamespace`, else the claim's.
pub(super) fn namespace_of_class(attributes: &Attributes) -> Option<&str> {
    let written = attributes.secret_namespace.as_deref();
    written.or(attributes.claim.namespace.as_deref())
}

/// The name, when there is one, the call brought nothing, and the volume's kind of credential is kept in
/// Secrets.
fn wanted<'a>(attributes: &'a Attributes, secrets: &Secrets) -> Option<&'a str> {
    let kept_elsewhere = match attributes.auth_type {
        Some(AuthType::Anonymous | AuthType::WorkloadIdentity) => true,
        Some(_) => false,
        None => attributes.identity.with_pod_token,
    };
    let name = attributes.secret_name.as_deref();
    name.filter(|_| secrets.is_empty() && !kept_elsewhere)
}

async fn namespace_of_claim(link: &Link, written: Option<&str>, at: &VolumeAt) -> Result<String> {
    if let Some(written) = written {
        return Ok(written.to_owned());
    }
    let claim = link.claims.now_of(at).await.map_err(|error| {
        Error::new(
            Reason::ClusterUnavailable,
            format!("secretNamespace: it is not set, and looking for the volume's claim failed: {error}"),
        )
    })?;
    claim.map(|claim| claim.namespace).ok_or_else(|| {
        Error::new(
            Reason::MissingField,
            "secretNamespace: it is not set, and no claim of this node's pods is bound to the volume",
        )
    })
}

fn namespace_of_pod(written: Option<&str>, pod: &ObjectRef) -> Result<String> {
    match written {
        Some(written) if written != pod.namespace => Err(Error::new(
            Reason::SecretNamespaceRefused,
            format!(
                "secretNamespace: {written:?} is not the namespace of the pod, {:?}",
                pod.namespace
            ),
        )),
        _ => Ok(pod.namespace.clone()),
    }
}

/// The pod, if it is kubelet that names it. Without `podInfoOnMount` whoever writes an inline volume could
/// name another one; the UID in the target path is known to nobody before the pod exists.
fn told_by_kubelet(target: &Path, context: &HashMap<String, String>) -> Result<ObjectRef> {
    let pod = super::node::pod_of(context);
    pod.filter(|pod| !pod.uid.is_empty() && cluster::pod_uid(target) == Some(pod.uid.as_str()))
        .ok_or_else(|| {
            Error::new(
                Reason::SecretNamespaceRefused,
                "secretName: kubelet does not say which pod this volume is for (the CSIDriver object needs \
                 podInfoOnMount: true)",
            )
        })
}

async fn read(cluster: &dyn Cluster, named: &SecretRef) -> Result<Secrets> {
    let SecretRef { namespace, name } = named;
    match cluster.secret(namespace, name).await {
        Ok(secret) => {
            let secrets = Secrets::parse(&secret)?;
            if secrets.is_empty() {
                let keys: std::collections::BTreeSet<_> = secret.keys().cloned().collect();
                let keys: Vec<_> = keys.into_iter().collect();
                return Err(Error::new(
                    Reason::MissingCredentials,
                    format!(
                        "secretName: Secret {namespace}/{name} holds no known key, for instance \
                         azurestorageaccountkey; it has: {}",
                        keys.join(", ")
                    ),
                ));
            }
            Ok(secrets)
        }
        Err(cluster::Error::NotFound(_)) => Err(Error::new(
            Reason::SecretNotFound,
            format!("secretName: there is no Secret {name:?} in namespace {namespace:?}"),
        )),
        Err(cluster::Error::Denied(said)) => Err(Error::new(
            Reason::SecretAccessDenied,
            format!(
                "secretName: the driver may not read Secret {name:?} in namespace {namespace:?}: it needs a \
                 Role there with verb get on secrets, resourceNames [{name:?}], bound to its service \
                 account ({said})"
            ),
        )),
        Err(error) => Err(Error::new(
            Reason::ClusterUnavailable,
            format!("secretName: Secret {namespace}/{name} could not be read: {error}"),
        )),
    }
}

async fn in_time<T>(reading: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, reading).await {
        Ok(read) => read,
        Err(_) => Err(Error::new(
            Reason::ClusterUnavailable,
            format!("secretName: the API server gave no answer within {PATIENCE:?}"),
        )),
    }
}

fn no_cluster() -> Error {
    Error::new(
        Reason::ClusterUnavailable,
        "secretName: the driver does not speak to Kubernetes here (it is not in a cluster, or --kubernetes \
        is off)",
    )
}

#[cfg(test)]
#[path = "named_secret_tests.rs"]
mod tests;
