//! Places, names, capacities and what the node is told.

use super::*;

fn plan(name: &str, pairs: &[(&str, &str)]) -> Result<Place> {
    let map = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Place::plan(name, &Attributes::parse(&map, Scope::Class)?)
}

fn valid(name: &str) -> bool {
    (3..=63).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

#[test]
fn places() {
    let place = |c: &str, p: &str| Place {
        container: c.into(),
        prefix: p.into(),
    };
    assert_eq!(plan("pvc-1", &[]).unwrap(), place("pvc-1", ""));
    assert_eq!(
        plan("pvc-1", &[("containerNamePrefix", "team-")]).unwrap(),
        place("team-pvc-1", "")
    );
    let pairs = [
        ("containerName", "shared"),
        ("prefix", "x/${pv.metadata.name}"),
        ("csi.storage.k8s.io/pv/name", "p"),
    ];
    assert_eq!(plan("pvc-1", &pairs).unwrap(), place("shared", "x/p"));
    assert_eq!(
        plan("n", &[("prefix", "a")]).unwrap_err().reason,
        Reason::MissingField
    );
    let both = [("containerName", "a"), ("containerNamePrefix", "b")];
    assert_eq!(plan("n", &both).unwrap_err().reason, Reason::ConflictingFields);
    assert!(
        plan("n", &[("containerNamePrefix", "Team")])
            .unwrap_err()
            .message
            .contains("containerNamePrefix")
    );
}

proptest::proptest! {
    #[test]
    fn container_names_are_valid_and_differ(
        a in "\\PC{1,128}",
        b in "\\PC{1,128}",
        prefix in "([a-z0-9]{1,5}-?)?",
    ) {
        let name_a = container_name(&prefix, &a).unwrap();
        let name_b = container_name(&prefix, &b).unwrap();
        proptest::prop_assert!(valid(&name_a), "{name_a}");
        proptest::prop_assert_eq!(a == b, name_a == name_b);
    }
}

#[test]
fn capacities() {
    let range = |required_bytes, limit_bytes| CapacityRange {
        required_bytes,
        limit_bytes,
    };
    assert_eq!(capacity(None).unwrap(), 0);
    assert_eq!(capacity(Some(&range(5, 0))).unwrap(), 5);
    for wrong in [range(-1, 0), range(0, -1), range(6, 5)] {
        assert_eq!(
            capacity(Some(&wrong)).unwrap_err().reason.code(),
            tonic::Code::OutOfRange
        );
    }
}

#[test]
fn the_node_gets_what_it_needs_and_no_more() {
    let parameters: HashMap<String, String> = [
        ("Transport", "https"),
        ("onDelete", "retain"),
        ("containerNamePrefix", "x"),
        ("csi.storage.k8s.io/pvc/name", "claim"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    let (account, container, prefix) = Account::split_url("http://127.0.0.1:1/acct/c/p").unwrap();
    let context = volume_context(&parameters, &account, &Place { container, prefix });
    let mut keys: Vec<_> = context.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["Transport", "containerName", "prefix", "server", "storageAccount"]
    );
    assert_eq!(context["server"], "http://127.0.0.1:1/acct");
    Attributes::parse(&context, Scope::Attributes).unwrap();
}

/// The namespace is the claim's, or what the class says in whatever spelling, and stands there once.
#[test]
fn the_volume_remembers_where_its_secret_is() {
    let claim = ("csi.storage.k8s.io/pvc/namespace", "team");
    for (pairs, wanted) in [
        (vec![("secretName", "key"), claim], Some("team")),
        (
            vec![("secretName", "key"), ("SecretNamespace", "vault"), claim],
            Some("vault"),
        ),
        (vec![claim], None),
    ] {
        let parameters: HashMap<String, String> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let (account, container, prefix) = Account::split_url("http://127.0.0.1:1/acct/c").unwrap();
        let mut context = volume_context(&parameters, &account, &Place { container, prefix });
        keep_namespace(
            &mut context,
            &Attributes::parse(&parameters, Scope::Class).unwrap(),
        );
        let read = Attributes::parse(&context, Scope::Attributes).unwrap();
        assert_eq!(read.secret_namespace.as_deref(), wanted);
    }
}

#[tokio::test]
async fn create_and_delete_read_the_secret_that_the_class_names() {
    use blob_client::transport::failover::Paths;
    use csi_proto::csi::volume_capability::access_mode::Mode;
    use csi_proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
    use csi_proto::csi::{DeleteVolumeRequest, VolumeCapability};
    use vsc_driver::buffer::Arena;

    let arena = Arena::new(64 << 20).unwrap();
    let paths = Paths::new(None, arena.clone(), tokio::runtime::Handle::current());
    let cluster = crate::cluster::fake::FakeCluster::new();
    let service = ControllerService::new(connect::Connector::new(paths, arena)).in_cluster(cluster.clone());
    let pairs = [
        ("storageAccount", "acct"),
        ("secretName", "key"),
        ("csi.storage.k8s.io/pvc/namespace", "team"),
    ];
    let request = CreateVolumeRequest {
        name: "pvc-1".into(),
        parameters: pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        volume_capabilities: vec![VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume::default())),
            access_mode: Some(AccessMode {
                mode: Mode::MultiNodeMultiWriter as i32,
            }),
        }],
        ..CreateVolumeRequest::default()
    };
    let error = service.create(&request).await.unwrap_err();
    assert_eq!(error.reason, Reason::SecretNotFound, "{error}");
    let request = DeleteVolumeRequest {
        volume_id: "acct#pvc-1##delete##team/key".into(),
        ..DeleteVolumeRequest::default()
    };
    let error = service.delete(&request).await.unwrap_err();
    assert_eq!(error.reason, Reason::SecretNotFound, "{error}");
    assert_eq!(cluster.calls(), ["secret team/key", "secret team/key"]);
}

fn class(pairs: &[(&str, &str)]) -> Attributes {
    let map = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Attributes::parse(&map, Scope::Class).unwrap()
}

/// Of what a class says about its pods the controller takes nothing for itself but where to log in.
#[test]
fn the_controller_is_none_of_the_pods() {
    use super::super::own_access;
    use blob_client::transport::failover::TransportMode;

    let pods = class(&[
        ("mountWithWorkloadIdentityToken", "true"),
        ("ClientID", "app"),
        ("tenantID", "tenant"),
        ("AzureStorageAADEndpoint", "https://login.example.com"),
        ("transport", "require"),
    ]);
    let own = own_access(&pods, &Secrets::default());
    assert_eq!(own.transport, TransportMode::Prefer);
    assert!(
        matches!(own.auth_type, Some(AuthType::Msi | AuthType::WorkloadIdentity)),
        "the driver's own: {own:?}"
    );
    let wanted = Identity {
        aad_endpoint: Some("https://login.example.com".into()),
        ..Identity::default()
    };
    assert_eq!(own.identity, wanted);
    let key = HashMap::from([("azurestorageaccountkey".to_owned(), "a2V5".to_owned())]);
    let own = own_access(&pods, &Secrets::parse(&key).unwrap());
    assert_eq!(own.auth_type, None, "the key");

    let other = class(&[("AzureStorageAuthType", "WorkloadIdentity"), ("ClientID", "app")]);
    assert_eq!(own_access(&other, &Secrets::default()), other);
}

/// DeleteVolume gets what the class's kind of identity needs, and nothing else of it.
#[test]
fn the_id_keeps_the_identity_of_the_class() {
    let all = [
        ("AzureStorageIdentityClientID", "msi"),
        ("AzureStorageSPNClientID", "spn"),
        ("AzureStorageSPNTenantID", "spn-tenant"),
        ("ClientID", "client"),
        ("tenantID", "tenant"),
    ];
    let kept = |kind: &str| {
        let pairs = [&all[..], &[("AzureStorageAuthType", kind)]].concat();
        identity_for_deletion(&class(&pairs))
    };
    let some = |text: &str| Some(text.to_owned());
    let none = Identity::default();
    assert_eq!(
        kept("MSI"),
        Identity {
            msi_client_id: some("msi"),
            ..none.clone()
        }
    );
    assert_eq!(
        kept("SPN"),
        Identity {
            spn_client_id: some("spn"),
            spn_tenant_id: some("spn-tenant"),
            ..none.clone()
        }
    );
    assert_eq!(
        kept("WorkloadIdentity"),
        Identity {
            client_id: some("client"),
            tenant_id: some("tenant"),
            ..none.clone()
        }
    );
    assert_eq!(kept("Key"), none);
}
