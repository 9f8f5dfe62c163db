//! deploy/recipes: what others - policies, GitOps tools, operators - are told about the driver, held against
//! what the chart renders and what the driver takes. Nothing of it runs here.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};
use vsc_blob_csi::DRIVER_NAME;
use vsc_blob_csi::csi::volume_context::{Attributes, MountOptions, SECRET_KEYS, Scope};

use super::objects::assert_typed;
use super::render::{Helm, chart, documents, object, repository, text};

/// Where the recipes have the driver.
const NAMESPACE: &str = "vsc-blob-csi";
const IMAGE: &str = "REGISTRY/vsc-blob-csi";

fn recipe(name: &str) -> Vec<Value> {
    documents(&text(&repository("deploy/recipes").join(name)))
}

/// The chart in the recipes' namespace.
fn rendered() -> Vec<Value> {
    let helm = Helm::new().json("image.repository", &json!(IMAGE));
    helm.argument("--namespace").argument(NAMESPACE).objects()
}

fn names(value: &Value) -> BTreeSet<&str> {
    let items = value.as_array().unwrap_or_else(|| panic!("{value} is no list"));
    items.iter().map(|item| item.as_str().unwrap()).collect()
}

/// The pods that the chart's objects make, by the names of the objects.
fn pods(objects: &[Value]) -> Vec<(String, &Value)> {
    let makers = objects.iter().filter(|object| {
        ["DaemonSet", "Deployment", "Job"].contains(&object["kind"].as_str().unwrap_or_default())
    });
    makers
        .map(|object| {
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            (name, &object["spec"]["template"]["spec"])
        })
        .collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["initContainers", "containers"].into_iter();
    lists.flat_map(move |list| pod[list].as_array().into_iter().flatten())
}

/// Kinds that are not Kubernetes' own: their versions, and the fields that the recipes use of them.
const FOREIGN: [(&str, &str, &[&str]); 13] = [
    (
        "SecurityContextConstraints",
        "security.openshift.io/v1",
        &[
            "allowPrivilegedContainer",
            "allowPrivilegeEscalation",
            "allowHostDirVolumePlugin",
            "allowHostNetwork",
            "allowHostPorts",
            "allowHostPID",
            "allowHostIPC",
            "readOnlyRootFilesystem",
            "allowedCapabilities",
            "defaultAddCapabilities",
            "requiredDropCapabilities",
            "runAsUser",
            "seLinuxContext",
            "fsGroup",
            "supplementalGroups",
            "seccompProfiles",
            "volumes",
            "users",
            "groups",
        ],
    ),
    (
        "MachineConfig",
        "machineconfiguration.openshift.io/v1",
        &["config"],
    ),
    (
        "K8sPSPPrivilegedContainer",
        "constraints.gatekeeper.sh/v1beta1",
        &["match", "parameters"],
    ),
    (
        "K8sPSPHostFilesystem",
        "constraints.gatekeeper.sh/v1beta1",
        &["match", "parameters"],
    ),
    (
        "Application",
        "argoproj.io/v1alpha1",
        &["project", "source", "destination", "syncPolicy"],
    ),
    (
        "GitRepository",
        "source.toolkit.fluxcd.io/v1",
        &["interval", "url", "ref"],
    ),
    (
        "HelmRelease",
        "helm.toolkit.fluxcd.io/v2",
        &[
            "interval",
            "timeout",
            "releaseName",
            "targetNamespace",
            "install",
            "driftDetection",
            "chart",
            "values",
        ],
    ),
    (
        "SecretProviderClass",
        "secrets-store.csi.x-k8s.io/v1",
        &["provider", "parameters", "secretObjects"],
    ),
    (
        "StorageAccount",
        "storage.azure.com/v1api20230101",
        &[
            "azureName",
            "owner",
            "location",
            "kind",
            "sku",
            "accessTier",
            "isHnsEnabled",
            "minimumTlsVersion",
            "supportsHttpsTrafficOnly",
            "allowBlobPublicAccess",
            "allowSharedKeyAccess",
        ],
    ),
    (
        "StorageAccountsBlobService",
        "storage.azure.com/v1api20230101",
        &["owner"],
    ),
    (
        "StorageAccountsBlobServicesContainer",
        "storage.azure.com/v1api20230101",
        &["owner"],
    ),
    (
        "UserAssignedIdentity",
        "managedidentity.azure.com/v1api20230131",
        &["owner", "location", "operatorSpec"],
    ),
    (
        "FederatedIdentityCredential",
        "managedidentity.azure.com/v1api20230131",
        &["owner", "issuer", "subject", "audiences"],
    ),
];
/// Likewise.
const ROLE_ASSIGNMENT: (&str, &str, &[&str]) = (
    "RoleAssignment",
    "authorization.azure.com/v1api20220401",
    &[
        "owner",
        "principalIdFromConfig",
        "principalType",
        "roleDefinitionReference",
    ],
);

#[test]
fn recipes_have_only_known_fields() {
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir(repository("deploy/recipes")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|kind| kind != "yaml") {
            continue;
        }
        for object in documents(&text(&path)) {
            let kind = object["kind"].as_str().unwrap();
            let foreign = FOREIGN.iter().chain([&ROLE_ASSIGNMENT]);
            let Some((kind, version, fields)) = foreign.copied().find(|(known, ..)| *known == kind) else {
                assert_typed(&object);
                continue;
            };
            seen.insert(kind);
            assert_eq!(object["apiVersion"], version, "{kind}");
            let own = object.as_object().unwrap();
            let own = match own.get("spec") {
                Some(spec) => spec.as_object().unwrap(),
                None => own,
            };
            let outer = ["apiVersion", "kind", "metadata"];
            for field in own
                .keys()
                .map(String::as_str)
                .filter(|field| !outer.contains(field))
            {
                assert!(fields.contains(&field), "{kind}: {field}");
            }
        }
    }
    assert_eq!(seen.len(), FOREIGN.len() + 1, "{seen:?}");
}

/// Whatever a manifest says of a volume, the driver takes.
#[test]
fn the_driver_takes_what_manifests_say() {
    let strings = |map: &Value| -> HashMap<String, String> {
        let map = map.as_object().into_iter().flatten();
        map.map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned()))
            .collect()
    };
    let mut seen = 0;
    for folder in ["deploy/examples", "deploy/recipes"] {
        for entry in std::fs::read_dir(repository(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|kind| kind != "yaml") {
                continue;
            }
            for object in documents(&text(&path)) {
                let csi = &object["spec"]["csi"];
                let (map, scope, options) = if object["provisioner"] == DRIVER_NAME {
                    (&object["parameters"], Scope::Class, &object["mountOptions"])
                } else if csi["driver"] == DRIVER_NAME {
                    let options = &object["spec"]["mountOptions"];
                    (&csi["volumeAttributes"], Scope::Attributes, options)
                } else {
                    continue;
                };
                Attributes::parse(&strings(map), scope)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let options: Vec<_> = options.as_array().into_iter().flatten().collect();
                let options: Vec<_> = options.iter().map(|option| option.as_str().unwrap()).collect();
                MountOptions::parse(&options).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                seen += 1;
            }
        }
    }
    assert!(seen >= 12, "{seen}");
}

/// The constraints of OpenShift let each pod of the chart in, and would not if they had less.
#[test]
fn the_constraints_of_openshift_are_what_the_pods_need() {
    let recipe = recipe("openshift.yaml");
    let constraints = object(&recipe, "SecurityContextConstraints", "vsc-blob-csi-node");
    let objects = rendered();
    let set = object(&objects, "DaemonSet", "vsc-blob-csi-node");
    let pod = &set["spec"]["template"]["spec"];
    let account = pod["serviceAccountName"].as_str().unwrap();
    object(&objects, "ServiceAccount", account);
    let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
    assert_eq!(names(&constraints["users"]), BTreeSet::from([user.as_str()]));

    let any = |field: &str| containers(pod).any(|one| one["securityContext"][field] == true);
    let hosts = |field: &str| pod[field] == true;
    let paths = pod["volumes"].as_array().unwrap();
    for (allowed, needed) in [
        ("allowPrivilegedContainer", any("privileged")),
        (
            "allowHostDirVolumePlugin",
            paths.iter().any(|volume| volume["hostPath"].is_object()),
        ),
        ("allowHostNetwork", hosts("hostNetwork")),
        ("allowHostPID", hosts("hostPID")),
        ("allowHostIPC", hosts("hostIPC")),
        (
            "allowHostPorts",
            containers(pod).any(|one| one["ports"].to_string().contains("hostPort")),
        ),
        (
            "readOnlyRootFilesystem",
            containers(pod).all(|one| one["securityContext"]["readOnlyRootFilesystem"] == true),
        ),
    ] {
        assert_eq!(constraints[allowed], needed, "{allowed}");
    }
    let added = containers(pod).flat_map(|one| {
        let added = one["securityContext"]["capabilities"]["add"].as_array();
        added.into_iter().flatten().map(|name| name.as_str().unwrap())
    });
    assert_eq!(
        added.collect::<BTreeSet<_>>(),
        names(&constraints["allowedCapabilities"])
    );
    let mut kinds: BTreeSet<_> = paths
        .iter()
        .flat_map(|volume| volume.as_object().unwrap().keys())
        .map(String::as_str)
        .filter(|field| *field != "name")
        .collect();
    // The token of its account, which every pod gets; certificates of the user's own (caBundle).
    kinds.extend(["projected", "configMap"]);
    assert_eq!(kinds, names(&constraints["volumes"]));
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(constraints["seccompProfiles"], json!(["runtime/default"]));

    // All others take one of OpenShift's own, for which they must not be root.
    let binding = object(&recipe, "RoleBinding", "vsc-blob-csi-nonroot");
    let subjects = binding["subjects"].as_array().unwrap();
    let mut bound: Vec<_> = subjects
        .iter()
        .map(|subject| subject["name"].as_str().unwrap())
        .collect();
    for (name, pod) in pods(&objects)
        .into_iter()
        .filter(|(name, _)| name != "vsc-blob-csi-node")
    {
        assert_eq!(violations(pod, Level::Restricted), Vec::<String>::new(), "{name}");
        let account = pod["serviceAccountName"].as_str().unwrap();
        assert!(bound.contains(&account), "{name}: {account}");
        bound.retain(|bound| *bound != account);
    }
    assert!(bound.is_empty(), "{bound:?}");
}

/// A level of the Pod Security Standards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Baseline,
    Restricted,
}

/// What a level refuses of a pod.
fn violations(pod: &Value, level: Level) -> Vec<String> {
    let mut found = Vec::new();
    let mut refuse = |wrong: bool, what: &str| {
        if wrong && !found.iter().any(|known| known == what) {
            found.push(what.to_owned());
        }
    };
    let shared = &pod["securityContext"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        refuse(pod[field] == true, field);
    }
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        refuse(volume["hostPath"].is_object(), "hostPath");
        let allowed = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let known = allowed.iter().any(|kind| volume[kind].is_object());
        refuse(level == Level::Restricted && !known, "volumes");
    }
    for container in containers(pod) {
        let own = &container["securityContext"];
        let either = |path: &[&str]| {
            let in_context = |context: &Value| {
                path.iter()
                    .fold(context.clone(), |value, name| value[*name].clone())
            };
            match in_context(own) {
                Value::Null => in_context(shared),
                own => own,
            }
        };
        refuse(own["privileged"] == true, "privileged");
        refuse(
            either(&["appArmorProfile", "type"]) == "Unconfined",
            "appArmorProfile",
        );
        refuse(
            either(&["seccompProfile", "type"]) == "Unconfined",
            "seccompProfile",
        );
        let added = own["capabilities"]["add"].as_array().into_iter().flatten();
        // Those of the baseline are more; nobody here asks for any of them.
        refuse(added.count() > 0, "capabilities");
        let mut ports = container["ports"].as_array().into_iter().flatten();
        refuse(ports.any(|port| port["hostPort"].is_u64()), "hostPort");
        if level == Level::Restricted {
            refuse(
                own["allowPrivilegeEscalation"] != false,
                "allowPrivilegeEscalation",
            );
            refuse(either(&["runAsNonRoot"]) != true, "runAsNonRoot");
            refuse(either(&["runAsUser"]) == 0, "runAsUser");
            refuse(either(&["seccompProfile", "type"]).is_null(), "seccompProfile");
            let mut dropped = own["capabilities"]["drop"].as_array().into_iter().flatten();
            refuse(!dropped.any(|name| name == "ALL"), "capabilities");
        }
    }
    found
}

/// The driver's namespace has to be privileged because of the node plugin, and of nothing else; pods with its
/// volumes may be in a namespace that is restricted.
#[test]
fn namespaces_have_the_level_that_their_pods_need() {
    let recipe = recipe("pod-security.yaml");
    let level = |namespace: &str| {
        let labels = &object(&recipe, "Namespace", namespace)["metadata"]["labels"];
        let levels = ["enforce", "warn", "audit"].map(|mode| {
            labels[format!("pod-security.kubernetes.io/{mode}")]
                .as_str()
                .unwrap()
        });
        assert!(levels.iter().all(|one| *one == levels[0]), "{levels:?}");
        levels[0]
    };
    assert_eq!(level(NAMESPACE), "privileged");
    let objects = rendered();
    for (name, pod) in pods(&objects) {
        let found = violations(pod, Level::Baseline);
        if name == "vsc-blob-csi-node" {
            let wanted = ["hostPath", "appArmorProfile", "capabilities", "privileged"];
            assert_eq!(found, wanted, "{name}");
        } else {
            assert!(found.is_empty(), "{name}: {found:?}");
        }
    }
    assert_eq!(level("team"), "restricted");
    let pod = object(&recipe, "Pod", "app");
    assert_eq!(pod["metadata"]["namespace"], "team");
    assert_eq!(violations(&pod["spec"], Level::Restricted), Vec::<String>::new());
    // With an inline volume as well.
    let mut inline = pod["spec"].clone();
    inline["volumes"] = json!([{"name": "data", "csi": {"driver": DRIVER_NAME}}]);
    assert_eq!(violations(&inline, Level::Restricted), Vec::<String>::new());
    // The pods of the examples are no worse than the baseline.
    for entry in std::fs::read_dir(repository("deploy/examples")).unwrap() {
        for object in documents(&text(&entry.unwrap().path())) {
            if object["kind"] == "Pod" {
                assert_eq!(violations(&object["spec"], Level::Baseline), Vec::<String>::new());
            }
        }
    }
}

/// Whether a path is at or below another one, as the constraint's template has it.
fn is_below(path: &str, prefix: &str) -> bool {
    let parts = |path: &str| -> Vec<String> {
        let parts = path.trim_matches('/').split('/');
        parts.map(str::to_owned).collect()
    };
    parts(path).starts_with(&parts(prefix))
}

/// What is excepted of Gatekeeper's constraints is what the node plugin needs, in its namespace only.
#[test]
fn the_exceptions_of_gatekeeper_are_what_the_pods_need() {
    let recipe = recipe("gatekeeper.yaml");
    let objects = rendered();
    let set = object(&objects, "DaemonSet", "vsc-blob-csi-node");
    let pod = &set["spec"]["template"]["spec"];
    for kind in ["K8sPSPPrivilegedContainer", "K8sPSPHostFilesystem"] {
        let of_kind: Vec<_> = recipe.iter().filter(|object| object["kind"] == kind).collect();
        let [others, ours] = of_kind.as_slice() else {
            panic!("{kind}: {of_kind:?}");
        };
        let excluded = names(&others["spec"]["match"]["excludedNamespaces"]);
        assert!(excluded.contains(NAMESPACE), "{excluded:?}");
        assert!(others["spec"]["parameters"].is_null());
        assert_eq!(ours["spec"]["match"]["namespaces"], json!([NAMESPACE]));
        for constraint in [others, ours] {
            let kinds = &constraint["spec"]["match"]["kinds"];
            assert_eq!(*kinds, json!([{"apiGroups": [""], "kinds": ["Pod"]}]));
        }
    }
    let exempt = &object(
        &recipe,
        "K8sPSPPrivilegedContainer",
        "no-privileged-containers-but-vsc-blob-csi",
    )["spec"]["parameters"]["exemptImages"];
    for container in containers(pod).filter(|one| one["securityContext"]["privileged"] == true) {
        let image = container["image"].as_str().unwrap();
        // A star at the end stands for any rest.
        let mut prefixes = names(exempt)
            .into_iter()
            .map(|image| image.strip_suffix('*').unwrap());
        assert!(prefixes.any(|prefix| image.starts_with(prefix)), "{image}");
    }
    let allowed = &object(
        &recipe,
        "K8sPSPHostFilesystem",
        "no-files-of-nodes-but-vsc-blob-csi",
    )["spec"]["parameters"]["allowedHostPaths"];
    let allowed = allowed.as_array().unwrap();
    let mut used = BTreeSet::new();
    for volume in pod["volumes"].as_array().unwrap() {
        let Some(path) = volume["hostPath"]["path"].as_str() else {
            continue;
        };
        let mut mounts = containers(pod)
            .flat_map(|one| one["volumeMounts"].as_array().into_iter().flatten())
            .filter(|mount| mount["name"] == volume["name"]);
        let written = mounts.any(|mount| mount["readOnly"] != true);
        let entry = allowed.iter().find(|entry| {
            let prefix = entry["pathPrefix"].as_str().unwrap();
            is_below(path, prefix) && (entry["readOnly"] != true || !written)
        });
        let entry = entry.unwrap_or_else(|| panic!("{path} is not allowed"));
        used.insert(entry["pathPrefix"].as_str().unwrap());
    }
    assert_eq!(used.len(), allowed.len(), "needed: {used:?}");
}

/// What the tools are told of the chart is there: its folder, its values, its namespace and its name.
#[test]
fn the_tools_find_the_chart() {
    let argo = recipe("argocd.yaml");
    let application = object(&argo, "Application", "vsc-blob");
    let flux = recipe("flux.yaml");
    let release = object(&flux, "HelmRelease", "vsc-blob");
    let (source, chart_of) = (&application["spec"]["source"], &release["spec"]["chart"]["spec"]);
    for folder in [&source["path"], &chart_of["chart"]] {
        assert!(repository(folder.as_str().unwrap()).join("Chart.yaml").exists());
    }
    object(
        &flux,
        "GitRepository",
        chart_of["sourceRef"]["name"].as_str().unwrap(),
    );
    assert_eq!(application["spec"]["destination"]["namespace"], NAMESPACE);
    assert_eq!(release["spec"]["targetNamespace"], NAMESPACE);
    assert_eq!(release["spec"]["releaseName"], "vsc-blob");
    for values in [&source["helm"]["valuesObject"], &release["spec"]["values"]] {
        let mut helm = Helm::new();
        for (key, value) in values.as_object().unwrap() {
            helm = helm.json(key, value);
        }
        let objects = helm.objects();
        object(&objects, "DaemonSet", "vsc-blob-csi-node");
    }
    // As long as the hook of removal may take.
    let defaults = documents(&text(&chart("values.yaml"))).remove(0);
    let grace = defaults["node"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap();
    let timeout = release["spec"]["timeout"].as_str().unwrap();
    let minutes: u64 = timeout.strip_suffix('m').unwrap().parse().unwrap();
    assert!(minutes * 60 >= 2 * grace + 180, "{timeout}");
}

/// What is in the vault becomes keys of a Secret that the driver knows, and the volume names that Secret.
#[test]
fn the_vaults_secret_is_the_volumes() {
    let recipe = recipe("key-vault.yaml");
    let class = object(&recipe, "SecretProviderClass", "blob-account");
    let namespace = &class["metadata"]["namespace"];
    let listed = documents(class["spec"]["parameters"]["objects"].as_str().unwrap()).remove(0);
    let listed: BTreeSet<String> = listed["array"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| documents(text.as_str().unwrap()).remove(0))
        .map(|entry| {
            assert_eq!(entry["objectType"], "secret");
            entry["objectName"].as_str().unwrap().to_owned()
        })
        .collect();
    let [secret] = class["spec"]["secretObjects"].as_array().unwrap().as_slice() else {
        panic!("one Secret");
    };
    let mut taken = BTreeSet::new();
    for entry in secret["data"].as_array().unwrap() {
        let key = entry["key"].as_str().unwrap();
        assert!(SECRET_KEYS.iter().any(|known| known.name == key), "{key}");
        taken.insert(entry["objectName"].as_str().unwrap().to_owned());
    }
    assert_eq!(taken, listed);
    let volume = object(&recipe, "PersistentVolume", "blob-key-vault");
    let wanted = json!({"name": secret["secretName"], "namespace": namespace});
    assert_eq!(volume["spec"]["csi"]["nodeStageSecretRef"], wanted);
    let claim = object(&recipe, "PersistentVolumeClaim", "key-vault");
    assert_eq!(
        volume["spec"]["claimRef"],
        json!({"namespace": claim["metadata"]["namespace"], "name": claim["metadata"]["name"]})
    );
    let keeper = object(&recipe, "Deployment", "blob-account");
    assert_eq!(keeper["metadata"]["namespace"], *namespace);
    let pod = &keeper["spec"]["template"]["spec"];
    let csi = &pod["volumes"][0]["csi"];
    assert_eq!(
        csi["volumeAttributes"]["secretProviderClass"],
        class["metadata"]["name"]
    );
    object(
        &recipe,
        "ServiceAccount",
        pod["serviceAccountName"].as_str().unwrap(),
    );
}

/// The account, its container, the identity and its right hang together, and the class names them.
#[test]
fn the_operators_account_is_the_classes() {
    let recipe = recipe("azure-service-operator.yaml");
    let owner = |kind: &str, name: &str| {
        let owner = &object(&recipe, kind, name)["spec"]["owner"];
        owner["name"].as_str().unwrap().to_owned()
    };
    let class = object(&recipe, "StorageClass", "blob");
    let container = class["parameters"]["containerName"].as_str().unwrap();
    let blobs = owner("StorageAccountsBlobServicesContainer", container);
    let account = owner("StorageAccountsBlobService", &blobs);
    let spec = &object(&recipe, "StorageAccount", &account)["spec"];
    assert_eq!(spec["azureName"], class["parameters"]["storageAccount"]);
    assert_eq!(spec["isHnsEnabled"], false);
    let right = &object(&recipe, "RoleAssignment", "vsc-blob-csi-writes-blobs")["spec"];
    assert_eq!(right["owner"]["name"], account);
    assert_eq!(
        right["roleDefinitionReference"]["wellKnownName"],
        "Storage Blob Data Contributor"
    );
    let identity = &object(&recipe, "UserAssignedIdentity", "vsc-blob-csi")["spec"]["operatorSpec"];
    assert_eq!(
        right["principalIdFromConfig"],
        identity["configMaps"]["principalId"]
    );
    assert_eq!(class["parameters"]["AzureStorageAuthType"], "WorkloadIdentity");
    // Both programs of the driver use it.
    let objects = rendered();
    for account in ["vsc-blob-csi-node", "vsc-blob-csi-controller"] {
        object(&objects, "ServiceAccount", account);
        let credential = &object(&recipe, "FederatedIdentityCredential", account)["spec"];
        assert_eq!(credential["owner"]["name"], "vsc-blob-csi");
        assert_eq!(
            credential["subject"],
            format!("system:serviceaccount:{NAMESPACE}:{account}")
        );
    }
}

/// There is no compiler of Bicep here: brackets, and that what is named is declared and what is declared is
/// named.
#[test]
fn the_bicep_file_hangs_together() {
    let file = text(&repository("deploy/recipes/account.bicep"));
    let code: String = file
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    for (open, close) in [('{', '}'), ('(', ')'), ('[', ']')] {
        assert_eq!(code.matches(open).count(), code.matches(close).count(), "{open}");
    }
    assert_eq!(code.matches('\'').count() % 2, 0, "quotes");
    let mut types = BTreeSet::new();
    for line in code.lines() {
        let mut words = line.split_whitespace();
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if kind == "resource" {
            let (of, version) = words.next().unwrap().trim_matches('\'').split_once('@').unwrap();
            assert!(version.len() == 10 && version.starts_with("20"), "{version}");
            types.insert(of.to_owned());
        }
        if ["param", "var"].contains(&kind) {
            assert!(code.matches(name).count() > 1, "{name} is not used");
        }
    }
    let wanted = [
        "Microsoft.Authorization/roleAssignments",
        "Microsoft.Storage/storageAccounts",
        "Microsoft.Storage/storageAccounts/blobServices",
        "Microsoft.Storage/storageAccounts/blobServices/containers",
    ];
    assert_eq!(types, wanted.map(str::to_owned).into());
    // Storage Blob Data Contributor, on the account itself.
    assert!(code.contains("'ba92f5b4-2d11-453d-a403-e96b0029c9fe'"));
    assert!(code.contains("scope: account\n"));
    assert!(code.contains("isHnsEnabled: false\n"));
}

/// docs/recipes.md has each of the files, and each file its place there.
#[test]
fn each_recipe_is_explained() {
    let page = text(&repository("docs/recipes.md"));
    for entry in std::fs::read_dir(repository("deploy/recipes")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(page.contains(&format!("(../deploy/recipes/{name})")), "{name}");
    }
}
