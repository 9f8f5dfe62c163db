//! From a path of kubelet's to the claim behind it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::{Cluster, ObjectRef, Result, VolumeView};

/// What kubelet writes beside a staging or target path (pkg/volume/csi, `volDataKey`); the volume's name
/// stands beside a target path only, in kubelets up to 1.36.
const VOLUME_DATA: &str = "vol_data.json";

/// A volume at a path that kubelet chose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
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

/// Longest time that an answer is believed by those who can live with an old one.
const BELIEVED: Duration = Duration::from_secs(600);
/// Longest time that the first search in vain is believed: the list of pods may be older than the call.
const MISSED_ONCE: Duration = Duration::from_secs(10);
/// Volumes remembered, and claims.
const REMEMBERED: usize = 1024;

/// Whose the volumes of this node are.
///
/// Kubelet does not say for whom it stages, and before 1.37 it does not write the volume's name down either:
/// then the claims of the node's pods are looked at, which takes two requests each. What was found is
/// remembered, also that nothing was, so that a volume that fails every two minutes does not cost that every
/// two minutes.
pub struct Claims {
    cluster: Arc<dyn Cluster>,
    driver: String,
    node: String,
    known: Mutex<Known>,
    /// One search at a time: the next finds what this one learned.
    searching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    volumes: Memory<VolumeAt, Answer>,
    /// The volumes that claims are bound to, by namespace and name of the claim.
    bound: Memory<(String, String), Option<(String, VolumeView)>>,
}

#[derive(Debug, Clone)]
enum Answer {
    Found(Found),
    /// And whether the search before was in vain too.
    Missed {
        again: bool,
    },
}

impl Answer {
    fn believed(&self, at: Instant) -> bool {
        let longest = match self {
            Self::Missed { again: false } => MISSED_ONCE,
            _ => BELIEVED,
        };
        at.elapsed() < longest
    }

    fn found(self) -> Option<Found> {
        match self {
            Self::Found(found) => Some(found),
            Self::Missed { .. } => None,
        }
    }
}

/// A volume of ours that is bound.
#[derive(Debug, Clone)]
struct Found {
    /// Name of the PersistentVolume.
    name: String,
    claim: ObjectRef,
    stage_secret: Option<(String, String)>,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").finish_non_exhaustive()
    }
}

impl Claims {
    /// Nothing is asked yet.
    pub fn new(cluster: Arc<dyn Cluster>, driver: &str, node: &str) -> Self {
        Self {
            cluster,
            driver: driver.to_owned(),
            node: node.to_owned(),
            known: Mutex::default(),
            searching: tokio::sync::Mutex::default(),
        }
    }

    /// The claim of a volume as it was within the last ten minutes: for Events.
    pub(super) async fn of(&self, volume: &VolumeAt) -> Result<Option<ObjectRef>> {
        let found = self.find(volume, &believed).await?;
        Ok(found.map(|found| found.claim))
    }

    /// The claim that a volume has now: for what only the claim's owner may have.
    ///
    /// # Errors
    /// The API server's, as in [`Cluster`].
    pub async fn now_of(&self, volume: &VolumeAt) -> Result<Option<ObjectRef>> {
        Ok(self.found_now(volume).await?.map(|found| found.claim))
    }

    /// Namespace and name of the Secret that a volume is staged with now, as its PersistentVolume says.
    ///
    /// # Errors
    /// As above.
    pub async fn stage_secret_of(&self, volume: &VolumeAt) -> Result<Option<(String, String)>> {
        Ok(self.found_now(volume).await?.and_then(|found| found.stage_secret))
    }

    async fn found_now(&self, volume: &VolumeAt) -> Result<Option<Found>> {
        let started = Instant::now();
        // Of any age: it is looked at whether it is so yet, which costs less than a search.
        let known = self.remembered(volume);
        // Where kubelet says the volume's name that is asked for below.
        if let Some(known) = known.filter(|_| name_at(&volume.path).is_none())
            && let Some(found) = self.named(&known.name, volume).await?
        {
            // A volume that is let go of names its claim yet, and the next one may have its handle.
            let ObjectRef { namespace, name, .. } = &found.claim;
            let bound = self.cluster.bound_volume(namespace, name).await?;
            if bound.as_ref() == Some(&found.name) {
                let answer = Answer::Found(found.clone());
                self.lock().volumes.put(volume.clone(), answer);
                return Ok(Some(found));
            }
        }
        self.find(volume, &|at| at > started).await
    }

    /// The Secret that the PersistentVolume of this handle names for its stage, by namespace and name, as it
    /// is now. `paths`: where kubelet has the volume; it wrote the name down beside some of them.
    ///
    /// # Errors
    /// The API server's, as in [`Cluster`].
    pub async fn stage_secret<'a>(
        &self,
        handle: &str,
        paths: impl Iterator<Item = &'a PathBuf>,
    ) -> Result<Option<(String, String)>> {
        let started = Instant::now();
        let paths: Vec<&PathBuf> = paths.collect();
        let named = paths.iter().find(|path| name_at(path).is_some());
        let Some(path) = named.or_else(|| paths.first()) else {
            return Ok(None);
        };
        let volume = VolumeAt {
            handle: handle.to_owned(),
            path: (*path).clone(),
        };
        let found = self.find(&volume, &|at| at > started).await?;
        Ok(found.and_then(|found| found.stage_secret))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Whole after a panic elsewhere: every change is one step.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found last.
    fn remembered(&self, volume: &VolumeAt) -> Option<Found> {
        let known = self.lock();
        let (_, answer) = known.volumes.get(volume)?;
        answer.clone().found()
    }

    fn known(&self, volume: &VolumeAt, fresh: Fresh<'_>) -> Option<Option<Found>> {
        let known = self.lock();
        let (at, answer) = known.volumes.get(volume)?;
        (fresh(at) && answer.believed(at)).then(|| answer.clone().found())
    }

    async fn find(&self, volume: &VolumeAt, fresh: Fresh<'_>) -> Result<Option<Found>> {
        if let Some(found) = self.known(volume, fresh) {
            return Ok(found);
        }
        let _turn = self.searching.lock().await;
        if let Some(found) = self.known(volume, fresh) {
            return Ok(found);
        }
        let found = match name_at(&volume.path) {
            // An inline volume has a name there that no PersistentVolume has.
            Some(name) => self.named(&name, volume).await?,
            None => self.search(volume, fresh).await?,
        };
        let mut known = self.lock();
        let again = matches!(known.volumes.get(volume), Some((_, Answer::Missed { .. })));
        let answer = found.clone().map_or(Answer::Missed { again }, Answer::Found);
        known.volumes.put(volume.clone(), answer);
        Ok(found)
    }

    /// The volume of this name, when it is the one and bound.
    async fn named(&self, name: &str, volume: &VolumeAt) -> Result<Option<Found>> {
        let view = gone_is_none(self.cluster.volume(name).await)?.flatten();
        Ok(view.and_then(|view| self.ours(name, view, volume)))
    }

    fn ours(&self, name: &str, view: VolumeView, volume: &VolumeAt) -> Option<Found> {
        let is_it = view.driver == self.driver && view.handle == volume.handle;
        let claim = view.claim.filter(|_| is_it)?;
        Some(Found {
            name: name.to_owned(),
            claim,
            stage_secret: view.stage_secret,
        })
    }

    /// Looks through the claims of the node's pods.
    async fn search(&self, volume: &VolumeAt, fresh: Fresh<'_>) -> Result<Option<Found>> {
        let mut pods = self.cluster.pods(&self.node).await?;
        // A volume is staged, or fails to be, for a pod that waits for it.
        pods.sort_by_key(|pod| !pod.waits);
        let mut seen = HashSet::new();
        for pod in &pods {
            for claim in &pod.claims {
                let key = (pod.object.namespace.clone(), claim.clone());
                if !seen.insert(key.clone()) {
                    continue;
                }
                let known = self
                    .lock()
                    .bound
                    .get(&key)
                    .filter(|(at, _)| fresh(*at))
                    .map(|(_, b)| b.clone());
                let bound = match known {
                    Some(bound) => bound,
                    None => self.bound(key).await?,
                };
                let found = bound.and_then(|(name, view)| self.ours(&name, view, volume));
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// What a claim is bound to; not remembered while that is nothing.
    async fn bound(&self, key: (String, String)) -> Result<Option<(String, VolumeView)>> {
        let Some(name) = self.cluster.bound_volume(&key.0, &key.1).await? else {
            return Ok(None);
        };
        let view = gone_is_none(self.cluster.volume(&name).await)?.flatten();
        let bound = view.map(|view| (name, view));
        self.lock().bound.put(key, bound.clone());
        Ok(bound)
    }
}

/// Whether something that was learned at this time is good enough.
type Fresh<'a> = &'a (dyn Fn(Instant) -> bool + Sync);

fn believed(at: Instant) -> bool {
    at.elapsed() < BELIEVED
}

/// The last answers, each with its time.
struct Memory<K, V>(HashMap<K, (Instant, V)>);

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Clone, V> Memory<K, V> {
    fn get(&self, key: &K) -> Option<(Instant, &V)> {
        self.0.get(key).map(|(at, value)| (*at, value))
    }

    fn put(&mut self, key: K, value: V) {
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, (at, _))| *at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.0.remove(&oldest);
            }
        }
        self.0.insert(key, (Instant::now(), value));
    }
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

    fn claims(cluster: &Arc<FakeCluster>) -> Claims {
        Claims::new(cluster.clone(), DRIVER, "n")
    }

    fn count(cluster: &FakeCluster, call: &str) -> usize {
        cluster.calls().iter().filter(|asked| *asked == call).count()
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
        let found = claims(&cluster).of(&at(&path, "h")).await.unwrap();
        assert_eq!(found, Some(claim("team", "data")));
        assert_eq!(cluster.calls(), ["volume pv-1"]);
        // Another volume's file is no proof.
        let other = claims(&cluster).of(&at(&path, "other")).await.unwrap();
        assert_eq!(other, None);
        let others = Claims::new(cluster.clone(), "other.driver", "n");
        let other = others.of(&at(&path, "h")).await.unwrap();
        assert_eq!(other, None);
    }

    /// Pods with a claim of another driver and one of ours, staged as kubelet 1.36 leaves it.
    fn staged(folder: &Path) -> (Arc<FakeCluster>, VolumeAt) {
        std::fs::write(
            folder.join(VOLUME_DATA),
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
        (cluster, at(&folder.join("globalmount"), "h"))
    }

    #[tokio::test]
    async fn without_a_name_the_claims_of_the_nodes_pods_are_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, volume) = staged(folder.path());
        let claims = claims(&cluster);
        let found = claims.of(&volume).await.unwrap();
        assert_eq!(found, Some(claim("team", "data")));
        assert_eq!(count(&cluster, "bound_volume team/scratch"), 1);
        let none = claims.of(&at(&volume.path, "x")).await.unwrap();
        assert_eq!(none, None);
        // What the first search learned.
        assert_eq!(count(&cluster, "bound_volume team/scratch"), 1);
        assert_eq!(count(&cluster, "volume pv-1"), 1);
    }

    #[tokio::test]
    async fn the_claims_of_pods_that_wait_are_looked_at_first() {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, volume) = staged(folder.path());
        cluster.set(|state| {
            state.pods.push(pod("team", "c", &["data"]));
            state.pods[2].waits = true;
        });
        claims(&cluster).now_of(&volume).await.unwrap();
        assert_eq!(
            cluster.calls(),
            ["pods n", "bound_volume team/data", "volume pv-1"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_is_searched_once_in_ten_minutes_and_so_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, volume) = staged(folder.path());
        let unknown = at(&folder.path().join("other"), "x");
        let claims = claims(&cluster);
        let look = async || {
            (
                claims.of(&volume).await.unwrap(),
                claims.of(&unknown).await.unwrap(),
            )
        };
        let expected = (Some(claim("team", "data")), None);
        assert_eq!(look().await, expected);
        // The first search in vain proves little: the list of pods may be older than the volume's pod.
        tokio::time::sleep(MISSED_ONCE).await;
        assert_eq!(look().await, expected);
        let asked = cluster.calls().len();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_secs(120)).await;
            assert_eq!(look().await, expected);
        }
        assert_eq!(cluster.calls().len(), asked, "{:?}", cluster.calls());
        assert_eq!(count(&cluster, "pods n"), 3);
        tokio::time::sleep(Duration::from_secs(200)).await;
        cluster.set(|state| state.pods.clear());
        assert_eq!(look().await, (None, None));
    }

    /// The volume's Secret is in the namespace of the claim: a claim that has another volume now, or a volume
    /// that has another claim, must not read the former one's.
    #[tokio::test(start_paused = true)]
    async fn what_only_the_owner_may_have_is_asked_for_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, volume) = staged(folder.path());
        let claims = claims(&cluster);
        cluster.set(|state| state.pods.pop());
        assert_eq!(claims.now_of(&volume).await.unwrap(), None);
        // The list of pods may be old; the next call finds it, at the cost of two requests from then on.
        cluster.set(|state| state.pods.push(pod("team", "b", &["data"])));
        let found = claims.now_of(&volume).await.unwrap();
        assert_eq!(found, Some(claim("team", "data")));
        let asked = cluster.calls().len();
        claims.now_of(&volume).await.unwrap();
        assert_eq!(
            cluster.calls()[asked..],
            ["volume pv-1", "bound_volume team/data"]
        );
        // Let go of, it names its claim yet; the claim, or another volume with its handle, has moved on.
        let bound = |to: Option<&str>| {
            let key = ("team".to_owned(), "data".to_owned());
            cluster.set(|state| match to {
                Some(to) => state.claims.insert(key, to.to_owned()),
                None => state.claims.remove(&key),
            });
        };
        bound(None);
        assert_eq!(claims.now_of(&volume).await.unwrap(), None);
        bound(Some("pv-1"));
        // Kept by its class, and given to somebody else.
        cluster.set(|state| state.volume("pv-1", DRIVER, "h", Some(claim("others", "data"))));
        let found = claims.now_of(&volume).await.unwrap();
        assert_eq!(found, Some(claim("others", "data")));
    }

    /// Whoever reads a Secret again and again pays for one search.
    #[tokio::test(start_paused = true)]
    async fn a_volume_that_was_found_once_is_not_searched_again() {
        let folder = tempfile::tempdir().unwrap();
        let (cluster, volume) = staged(folder.path());
        let claims = claims(&cluster);
        claims.now_of(&volume).await.unwrap();
        for _ in 0..3 {
            tokio::time::sleep(2 * BELIEVED).await;
            let found = claims.now_of(&volume).await.unwrap();
            assert_eq!(found, Some(claim("team", "data")));
        }
        assert_eq!(count(&cluster, "pods n"), 1, "{:?}", cluster.calls());
        assert_eq!(count(&cluster, "volume pv-1"), 4);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut memory = Memory::default();
        for key in 0..REMEMBERED * 2 {
            memory.put(key, key);
        }
        assert_eq!(memory.0.len(), REMEMBERED);
        assert!(memory.get(&0).is_none() && memory.get(&(REMEMBERED * 2 - 1)).is_some());
    }
}
