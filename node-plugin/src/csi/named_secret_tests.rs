//! Which Secret is read for which volume, and what is refused.

use std::sync::Arc;

use super::*;
use crate::cluster::fake::{FakeCluster, NODE, claim, pod};
use crate::cluster::{Claims, Reporter};
use crate::csi::volume_context::Scope;

const UID: &str = "0a1b-2c3d";

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    Attributes::parse(&map(pairs), Scope::Attributes).unwrap()
}

/// A cluster with Secret `key` in namespaces `team` and `other`; the claim of volume `h` is in `team`.
fn cluster() -> (Arc<FakeCluster>, Link) {
    let cluster = FakeCluster::new();
    cluster.set(|state| {
        for namespace in ["team", "other"] {
            let secret = map(&[
                ("azurestorageaccountname", namespace),
                ("azurestorageaccountkey", "a2V5"),
            ]);
            state.secrets.insert((namespace.into(), "key".into()), secret);
        }
        state.pods.push(pod("team", "reader", &["data"]));
        state.bound("team", "data", "pv-1");
        state.volume("pv-1", crate::DRIVER_NAME, "h", Some(claim("team", "data")));
    });
    let link = Link {
        cluster: cluster.clone(),
        driver: crate::DRIVER_NAME.into(),
        node: NODE.into(),
        claims: Arc::new(Claims::new(cluster.clone(), crate::DRIVER_NAME, NODE)),
        reporter: Reporter::default(),
    };
    (cluster, link)
}

async fn staged(link: Option<&Link>, pairs: &[(&str, &str)], given: &[(&str, &str)]) -> Result<Secrets> {
    let at = VolumeAt {
        handle: "h".into(),
        path: "/nonexistent/globalmount".into(),
    };
    let given = Secrets::parse(&map(given)).unwrap();
    on_node(link, &attributes(pairs), given, Owner::Staged(&at)).await
}

/// As kubelet publishes an inline volume of pod `team/reader`, with `forged` over what it says.
async fn inline(link: &Link, pairs: &[(&str, &str)], forged: &[(&str, &str)]) -> Result<Secrets> {
    let at = VolumeAt {
        handle: "csi-1".into(),
        path: format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/v/mount").into(),
    };
    let mut context = map(&[
        ("csi.storage.k8s.io/pod.name", "reader"),
        ("csi.storage.k8s.io/pod.namespace", "team"),
        ("csi.storage.k8s.io/pod.uid", UID),
        ("csi.storage.k8s.io/ephemeral", "true"),
    ]);
    context.extend(map(pairs));
    context.extend(map(forged));
    let attributes = Attributes::parse(&context, Scope::Attributes).unwrap();
    let owner = Owner::Pod {
        at: &at,
        context: &context,
        inline: true,
    };
    on_node(Some(link), &attributes, Secrets::default(), owner).await
}

#[tokio::test]
async fn the_namespace_is_the_written_one_or_the_claims() {
    let (_cluster, link) = cluster();
    let read = staged(Some(&link), &[("secretName", "key")], &[]).await.unwrap();
    assert_eq!(read.account.as_deref(), Some("team"));
    let pairs = [("secretName", "key"), ("secretNamespace", "other")];
    let read = staged(Some(&link), &pairs, &[]).await.unwrap();
    assert_eq!(read.account.as_deref(), Some("other"));
}

#[tokio::test]
async fn nothing_is_asked_when_nothing_is_needed() {
    let (cluster, link) = cluster();
    let named = ("secretName", "key");
    let given = staged(Some(&link), &[named], &[("accountkey", "Z2l2ZW4=")])
        .await
        .unwrap();
    assert_eq!(given.account, None, "what came with the call counts");
    for kind in ["Anonymous", "WorkloadIdentity"] {
        let secrets = staged(Some(&link), &[named, ("AzureStorageAuthType", kind)], &[]).await;
        assert!(secrets.unwrap().is_empty());
    }
    assert!(staged(None, &[], &[]).await.unwrap().is_empty());
    assert!(cluster.calls().is_empty(), "{:?}", cluster.calls());
    // A Secret of other programs is no usable one.
    let read = staged(Some(&link), &[named], &[("tls.crt", "x")]).await.unwrap();
    assert!(read.key.is_some());
}

#[tokio::test]
async fn an_inline_volume_uses_secrets_of_its_pods_namespace_only() {
    let (cluster, link) = cluster();
    let named = ("secretName", "key");
    let own = inline(&link, &[named], &[]).await.unwrap();
    assert_eq!(own.account.as_deref(), Some("team"));
    inline(&link, &[named, ("secretNamespace", "team")], &[])
        .await
        .unwrap();
    let asked = cluster.calls().len();
    for (written, forged) in [
        (vec![named, ("secretNamespace", "other")], vec![]),
        // Without podInfoOnMount nothing of this is kubelet's.
        (
            vec![named],
            vec![
                ("csi.storage.k8s.io/pod.namespace", "other"),
                ("csi.storage.k8s.io/pod.uid", "guessed"),
            ],
        ),
        (
            vec![named, ("secretNamespace", "other")],
            vec![
                ("csi.storage.k8s.io/ephemeral", "false"),
                ("csi.storage.k8s.io/pod.uid", ""),
            ],
        ),
        // Published without a stage: nothing that is written makes a PersistentVolume of it.
        (
            vec![named, ("secretNamespace", "other")],
            vec![("csi.storage.k8s.io/ephemeral", "false")],
        ),
    ] {
        let error = inline(&link, &written, &forged).await.unwrap_err();
        assert_eq!(error.reason, Reason::SecretNamespaceRefused, "{error}");
        assert!(error.message.starts_with("secretName"), "{error}");
    }
    assert_eq!(cluster.calls().len(), asked, "refused before anything is read");
}

#[tokio::test]
async fn each_refusal_names_the_secret_and_what_to_do() {
    let (cluster, link) = cluster();
    let refusal = async |pairs: &[(&str, &str)]| staged(Some(&link), pairs, &[]).await.unwrap_err();
    let error = refusal(&[("secretName", "none")]).await;
    assert_eq!(error.reason, Reason::SecretNotFound);
    assert!(
        error.message.contains("\"none\" in namespace \"team\""),
        "{error}"
    );

    let denied = cluster::Error::Denied("secrets \"key\" is forbidden: User \"u\" cannot get".into());
    cluster.set(|state| state.refused.push(("secret ".into(), denied)));
    let error = refusal(&[("secretName", "key")]).await;
    assert_eq!(error.reason, Reason::SecretAccessDenied);
    for part in [
        "\"key\"",
        "namespace \"team\"",
        "Role",
        "get",
        "User \"u\"",
        "secretNamespaces",
    ] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }

    cluster.set(|state| {
        state.refused.clear();
        state.broken = Some(cluster::Error::Unavailable("refused".into()));
    });
    for pairs in [
        vec![("secretName", "key")],
        vec![("secretName", "key"), ("secretNamespace", "team")],
    ] {
        assert_eq!(refusal(&pairs).await.reason, Reason::ClusterUnavailable);
    }
    let error = staged(None, &[("secretName", "key")], &[]).await.unwrap_err();
    assert_eq!(error.reason, Reason::ClusterUnavailable);
    assert!(error.message.contains("--kubernetes"), "{error}");
}

#[tokio::test]
async fn a_secret_without_our_keys_is_told_by_its_keys_and_never_its_values() {
    let (cluster, link) = cluster();
    cluster.set(|state| {
        let secret = map(&[("acountkey", "dG9wLXNlY3JldA==")]);
        state.secrets.insert(("team".into(), "key".into()), secret);
    });
    let error = staged(Some(&link), &[("secretName", "key")], &[])
        .await
        .unwrap_err();
    assert_eq!(error.reason, Reason::MissingCredentials);
    assert!(error.message.contains("acountkey"), "{error}");
    assert!(!error.to_string().contains("dG9w"), "{error}");
}

/// The name becomes a part of the request's path.
#[test]
fn names_that_are_none_are_refused() {
    for (namespace, name) in [
        ("team", "../../../nodes/n"),
        ("team/secrets/x?", "key"),
        ("team", ""),
        ("", "key"),
        ("team", "key/../x"),
        ("te.am", "key"),
        ("team", "-key"),
        ("team", "Key"),
    ] {
        let error = SecretRef::new(namespace, name).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidValue, "{namespace}/{name}");
    }
    SecretRef::new("kube-system", "azure-storage-account-x.y-secret").unwrap();
}

#[tokio::test]
async fn the_controller_takes_the_class_and_the_claim() {
    let (cluster, _link) = cluster();
    let class = |pairs: &[(&str, &str)]| Attributes::parse(&map(pairs), Scope::Class).unwrap();
    let none = Secrets::default();
    let named = of_class(
        &class(&[
            ("secretName", "key"),
            ("csi.storage.k8s.io/pvc/namespace", "team"),
        ]),
        &none,
    );
    let named = named.unwrap().unwrap();
    assert_eq!((named.namespace.as_str(), named.name.as_str()), ("team", "key"));
    let read = in_controller(Some(&*cluster), none.clone(), Some(&named))
        .await
        .unwrap();
    assert_eq!(read.account.as_deref(), Some("team"));
    let error = of_class(&class(&[("secretName", "key")]), &none).unwrap_err();
    assert_eq!(error.reason, Reason::MissingField);
    assert_eq!(of_class(&class(&[]), &none).unwrap(), None);
    let error = in_controller(None, none, Some(&named)).await.unwrap_err();
    assert_eq!(error.reason, Reason::ClusterUnavailable);
}
