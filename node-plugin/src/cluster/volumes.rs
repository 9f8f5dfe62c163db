//! From a path of kubelet's to the claim and the pods behind it.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Cluster, ObjectRef, PodView, Result, VolumeView};

/// What kubelet writes beside a staging or target path (pkg/volume/csi, `volDataKey`); the volume's name
/// stands beside a target path only, in kubelets up to 1.36.
const VOLUME_DATA: &str = "vol_data.json";

/// A volume at a path that kubelet chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeAt {
    /// Volume id, which is the `volumeHandle` of its PersistentVolume.
    pub handle: String,
    /// Staging or target path.
    pub path: PathBuf,
}

#[derive(Deserialize)]
struct VolumeData {
    #[serde(rename = "specVolID")]
    name: Option<String>,
}

/// Name of the PersistentVolume at a path, where kubelet wrote it down.
fn name_at(path: &Path) -> Option<String> {
    let file = path.parent()?.join(VOLUME_DATA);
    let data: VolumeData = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    data.name.filter(|name| !name.is_empty())
}

/// The pod's UID in a target path: `.../pods/UID/volumes/kubernetes.io~csi/NAME/mount`.
pub(crate) fn pod_uid(target: &Path) -> Option<&str> {
    let parts: Vec<&str> = target.iter().filter_map(|part| part.to_str()).collect();
    let at = parts
        .windows(3)
        .rposition(|three| three[0] == "pods" && three[2] == "volumes")?;
    Some(parts[at + 1])
}

/// The claim of a volume, and the pods of the node that use it. Kubelet does not say for whom it stages, and
/// before 1.37 it does not write the volume's name down either: then the claims of the node's pods are looked
/// at.
pub async fn claim_of(
    cluster: &dyn Cluster,
    driver: &str,
    node: &str,
    volume: &VolumeAt,
) -> Result<Option<ObjectRef>> {
    let ours = |found: &VolumeView| found.driver == driver && found.handle == volume.handle;
    if let Some(name) = name_at(&volume.path) {
        // An inline volume has a name there that no PersistentVolume has.
        let found = gone_is_none(cluster.volume(&name).await)?.flatten();
        return Ok(found.filter(ours).and_then(|found| found.claim));
    }
    let mut seen: Vec<(String, String)> = Vec::new();
    for pod in cluster.pods(node).await? {
        for claim in &pod.claims {
            let key = (pod.object.namespace.clone(), claim.clone());
            if seen.contains(&key) {
                continue;
            }
            if let Some(name) = cluster.bound_volume(&key.0, &key.1).await?
                && let Some(found) = gone_is_none(cluster.volume(&name).await)?.flatten()
                && ours(&found)
            {
                return Ok(found.claim);
            }
            seen.push(key);
        }
    }
    Ok(None)
}

/// The pods that use a claim.
pub(super) fn users(pods: Vec<PodView>, claim: &ObjectRef) -> Vec<ObjectRef> {
    let uses = |pod: &PodView| pod.object.namespace == claim.namespace && pod.claims.contains(&claim.name);
    pods.into_iter().filter(uses).map(|pod| pod.object).collect()
}

fn gone_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Err(super::Error::NotFound(_)) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fake::{FakeCluster, claim, pod};

    const DRIVER: &str = crate::DRIVER_NAME;

    fn at(path: &Path, handle: &str) -> VolumeAt {
        VolumeAt {
            handle: handle.into(),
            path: path.to_owned(),
        }
    }

    #[test]
    fn target_paths_name_the_pod() {
        let path = "/var/lib/kubelet/pods/2f0c-11/volumes/kubernetes.io~csi/pvc-1/mount";
        assert_eq!(pod_uid(Path::new(path)), Some("2f0c-11"));
        assert_eq!(pod_uid(Path::new("/var/lib/kubelet/pods/x")), None);
        assert_eq!(pod_uid(Path::new("/tmp/target")), None);
    }

    #[tokio::test]
    async fn the_name_that_kubelet_wrote_is_enough() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mount");
        std::fs::write(
            folder.path().join(VOLUME_DATA),
            r#"{"specVolID":"pv-1","volumeHandle":"h","driverName":"d"}"#,
        )
        .unwrap();
        let cluster = FakeCluster::new();
        cluster.set(|state| state.volume("pv-1", DRIVER, "h", Some(claim("team", "data"))));
        let found = claim_of(&*cluster, DRIVER, "n", &at(&path, "h")).await.unwrap();
        assert_eq!(found, Some(claim("team", "data")));
        assert_eq!(cluster.calls(), ["volume pv-1"]);
        // Another volume's file is no proof.
        let other = claim_of(&*cluster, DRIVER, "n", &at(&path, "other"))
            .await
            .unwrap();
        assert_eq!(other, None);
        let other = claim_of(&*cluster, "other.driver", "n", &at(&path, "h"))
            .await
            .unwrap();
        assert_eq!(other, None);
    }

    #[tokio::test]
    async fn without_a_name_the_claims_of_the_nodes_pods_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("globalmount");
        // What kubelet 1.36 writes at staging.
        std::fs::write(
            folder.path().join(VOLUME_DATA),
            r#"{"volumeHandle":"h","driverName":"d"}"#,
        )
        .unwrap();
        let cluster = FakeCluster::new();
        cluster.set(|state| {
            state.pods.push(pod("team", "a", &["scratch", "unbound"]));
            state.pods.push(pod("team", "b", &["scratch", "data"]));
            state.bound("team", "scratch", "pv-0");
            state.volume("pv-0", "disk.csi.azure.com", "h", Some(claim("team", "scratch")));
            state.bound("team", "data", "pv-1");
            state.volume("pv-1", DRIVER, "h", Some(claim("team", "data")));
        });
        let found = claim_of(&*cluster, DRIVER, "n", &at(&path, "h")).await.unwrap();
        assert_eq!(found, Some(claim("team", "data")));
        let asked = cluster.calls();
        let scratch = asked
            .iter()
            .filter(|call| *call == "bound_volume team/scratch")
            .count();
        assert_eq!(scratch, 1, "{asked:?}");
        let none = claim_of(&*cluster, DRIVER, "n", &at(&path, "x")).await.unwrap();
        assert_eq!(none, None);
    }
}
