//! Whose identity reaches which host: each kind of credential, in an inline volume and in a PersistentVolume,
//! with an account at a host of Azure's clouds, at an allowed one and at any other.

use e2e::harness::canary::{Canary, METADATA, REDIRECT, Seen};
use e2e::harness::plugin::Surroundings;

use super::*;

const ASSERTION: &str = "assertion-of-the-driver";
const TENANT: &str = "11111111-2222-3333-4444-666666666666";
const CLIENT: &str = "11111111-2222-3333-4444-555555555555";

/// Account and login host of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    account: &'static str,
    login: &'static str,
}

const KNOWN: Place = Place {
    account: "acct.blob.core.windows.net",
    login: "login.microsoftonline.com",
};
const ALLOWED: Place = Place {
    account: "acct.blob.allowed.test",
    login: "login.allowed.test",
};
const FOREIGN: Place = Place {
    account: "acct.blob.foreign.test",
    login: "login.foreign.test",
};

/// A kind of credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Credential {
    Key,
    Sas,
    Principal,
    Machine,
    Driver,
    Pod,
    Anonymous,
}

use Credential::{Anonymous, Driver, Key, Machine, Pod, Principal, Sas};

const ALL: [Credential; 7] = [Key, Sas, Principal, Machine, Driver, Pod, Anonymous];

impl Credential {
    /// Whether it is the volume's author who has it.
    fn is_brought(self) -> bool {
        !matches!(self, Machine | Driver)
    }

    fn attributes(self, place: Place, metadata: &str) -> Vec<(&'static str, String)> {
        let login = ("AzureStorageAADEndpoint", format!("https://{}", place.login));
        let kind = |kind: &str| ("AzureStorageAuthType", kind.to_owned());
        match self {
            Key => vec![],
            Sas => vec![kind("SAS")],
            Principal => vec![
                kind("SPN"),
                ("AzureStorageSPNClientID", CLIENT.to_owned()),
                ("AzureStorageSPNTenantID", TENANT.to_owned()),
                login,
            ],
            Machine => vec![kind("MSI"), ("MSIEndpoint", metadata.to_owned())],
            Driver => vec![kind("WorkloadIdentity"), login],
            Pod => vec![
                ("mountWithWorkloadIdentityToken", "true".to_owned()),
                ("ClientID", CLIENT.to_owned()),
                ("tenantID", TENANT.to_owned()),
                login,
            ],
            Anonymous => vec![kind("Anonymous")],
        }
    }

    fn secrets(self) -> HashMap<String, String> {
        let secret = match self {
            Key => ("azurestorageaccountkey", DEV_KEY),
            Sas => (
                "azurestorageaccountsastoken",
                "sv=2024-08-04&se=2099-01-01T00%3A00%3A00Z&sr=c&sp=rwdl&sig=c2ln",
            ),
            Principal => ("azurestoragespnclientsecret", "secret-of-the-principal"),
            Machine | Driver | Pod | Anonymous => return HashMap::new(),
        };
        HashMap::from([(secret.0.to_owned(), secret.1.to_owned())])
    }

    /// Where it is traded for a token, and what reaches that place.
    fn traded(self) -> Option<&'static str> {
        match self {
            Principal => Some("client_secret=secret-of-the-principal"),
            Driver => Some("client_assertion=assertion-of-the-driver"),
            Pod => Some("client_assertion=assertion-of-the-pod"),
            Key | Sas | Machine | Anonymous => None,
        }
    }

    /// How the header begins that the account gets.
    fn authorization(self) -> &'static str {
        match self {
            Key => "SharedKey acct:",
            Sas | Anonymous => "",
            Principal => "Bearer token-for-secret-of-the-principal",
            Machine => "Bearer token-for-metadata",
            Driver => "Bearer token-for-assertion-of-the-driver",
            Pod => "Bearer token-for-assertion-of-the-pod",
        }
    }

    /// The service was asked, in the name of this credential and of nobody else.
    #[track_caller]
    fn assert_reaches(self, seen: &[Seen], account: &str, login: &str) {
        let asked: Vec<_> = seen.iter().filter(|seen| seen.host == account).collect();
        assert!(!asked.is_empty(), "{account} was asked nothing: {seen:?}");
        for request in asked {
            let header = &request.authorization;
            assert!(header.starts_with(self.authorization()), "{request:?}");
            assert_eq!(header.is_empty(), self.authorization().is_empty(), "{request:?}");
            assert_eq!(request.path.contains("sig="), self == Sas, "{request:?}");
        }
        if let Some(traded) = self.traded() {
            let trading = seen.iter().find(|seen| seen.host == login);
            let trading = trading.unwrap_or_else(|| panic!("{login} was asked nothing: {seen:?}"));
            assert!(trading.body.contains(traded), "{trading:?}");
        }
    }
}

/// A driver for which the canary is the internet, and which has an identity of its own.
struct Lab {
    canary: Canary,
    node: CsiClient,
    controller: CsiClient,
    plugin: Plugin,
    _token: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let places = [KNOWN, ALLOWED, FOREIGN];
        let names: Vec<&str> = places
            .iter()
            .flat_map(|place| [place.account, place.login])
            .collect();
        let canary = Canary::start(&names, FOREIGN.account).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, ASSERTION).unwrap();
        let mut environment = canary.environment();
        let identity = [
            ("AZURE_FEDERATED_TOKEN_FILE", token.to_str().unwrap()),
            ("AZURE_CLIENT_ID", CLIENT),
            ("AZURE_TENANT_ID", TENANT),
        ];
        environment.extend(identity.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let surroundings = Surroundings {
            allowed_endpoints: vec![ALLOWED.account.to_owned(), "*.ALLOWED.test.".to_owned()],
            environment,
            apart: false,
        };
        let plugin = Plugin::start_in(None, surroundings).unwrap();
        Self {
            canary,
            node: plugin.node().unwrap(),
            controller: plugin.controller().unwrap(),
            plugin,
            _token: folder,
        }
    }

    fn volume(&self, credential: Credential, account: &str, login: Place) -> Volume {
        let attributes = credential.attributes(login, &self.canary.metadata());
        let mut context: HashMap<_, _> = attributes
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        context.insert("server".to_owned(), format!("https://{account}"));
        context.insert("containerName".to_owned(), "photos".to_owned());
        let staging = self.plugin.folder().join("staging");
        std::fs::create_dir_all(&staging).unwrap();
        Volume {
            id: "photos".to_owned(),
            context,
            secrets: credential.secrets(),
            staging,
            target: self.plugin.folder().join("pods/1/mount"),
        }
    }

    /// As kubelet mounts a PersistentVolume; every account refuses it at last.
    fn persistent(&self, volume: &Volume) -> Status {
        let Err(status) = call(self.node.node.clone().node_stage_volume(volume.stage())) else {
            // The pod's token comes with the publish.
            return self.publish(volume.publish());
        };
        status
    }

    /// As kubelet mounts an inline volume.
    fn inline(&self, volume: &Volume) -> Status {
        let mut request = volume.publish();
        request.staging_target_path.clear();
        let ephemeral = ("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned());
        request.volume_context.extend([ephemeral]);
        self.publish(request)
    }

    fn publish(&self, mut request: NodePublishVolumeRequest) -> Status {
        let tokens = serde_json::json!({"api://AzureADTokenExchange": {
            "token": "assertion-of-the-pod",
            "expirationTimestamp": "2100-01-01T00:00:00Z"
        }});
        let tokens = (
            "csi.storage.k8s.io/serviceAccount.tokens".to_owned(),
            tokens.to_string(),
        );
        request.volume_context.extend([tokens]);
        call(self.node.node.clone().node_publish_volume(request)).unwrap_err()
    }

    /// Refused, and nobody has heard of it: neither who has the identity nor the host.
    #[track_caller]
    fn assert_lends_nothing(&self, status: Status, names: &[&str]) {
        refused::<()>(Err(status), Code::PermissionDenied, "IdentityRefused", names);
        let seen = self.canary.seen();
        assert!(seen.is_empty(), "{seen:?}");
    }

    /// What was seen, when nothing of it was for a foreign host to see.
    #[track_caller]
    fn seen(&self) -> Vec<Seen> {
        let seen = self.canary.seen();
        let foreign = [FOREIGN.account, FOREIGN.login];
        for request in seen.iter().filter(|seen| foreign.contains(&seen.host.as_str())) {
            let text = format!("{request:?}");
            assert!(
                !text.contains(ASSERTION) && !text.contains("token-for-metadata"),
                "{text}"
            );
        }
        seen
    }
}

#[test]
fn a_persistent_volume_gets_identities_for_known_and_allowed_hosts() {
    let lab = Lab::new();
    for place in [KNOWN, ALLOWED, FOREIGN] {
        for credential in ALL {
            let volume = lab.volume(credential, place.account, place);
            let status = lab.persistent(&volume);
            if place == FOREIGN && !credential.is_brought() {
                let named = match credential {
                    Driver => place.login,
                    _ => place.account,
                };
                lab.assert_lends_nothing(status, &[named, "allowedEndpoints"]);
            } else {
                assert!(!status.message().contains("[IdentityRefused]"), "{status:?}");
                credential.assert_reaches(&lab.seen(), place.account, place.login);
            }
        }
    }
    // Each of the two hosts counts by itself.
    let volume = lab.volume(Driver, FOREIGN.account, KNOWN);
    lab.assert_lends_nothing(lab.persistent(&volume), &["server", FOREIGN.account]);
    let volume = lab.volume(Driver, KNOWN.account, FOREIGN);
    lab.assert_lends_nothing(
        lab.persistent(&volume),
        &["AzureStorageAADEndpoint", FOREIGN.login],
    );
    let mut volume = lab.volume(Machine, KNOWN.account, KNOWN);
    volume.context.remove("server");
    volume.context.extend(
        [
            ("storageAccount", "acct"),
            ("storageEndpointSuffix", "foreign.test"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let status = lab.persistent(&volume);
    lab.assert_lends_nothing(status, &["storageEndpointSuffix", FOREIGN.account]);
}

#[test]
fn an_inline_volume_gets_what_its_author_brings() {
    let lab = Lab::new();
    for place in [KNOWN, ALLOWED, FOREIGN] {
        for credential in ALL {
            let mut volume = lab.volume(credential, place.account, place);
            if credential.is_brought() {
                let asks_elsewhere = volume.context.contains_key("AzureStorageAADEndpoint");
                if asks_elsewhere {
                    lab.assert_lends_nothing(lab.inline(&volume), &["AzureStorageAADEndpoint"]);
                    volume.context.remove("AzureStorageAADEndpoint");
                }
                let status = lab.inline(&volume);
                assert!(!status.message().contains("[IdentityRefused]"), "{status:?}");
                credential.assert_reaches(&lab.seen(), place.account, KNOWN.login);
                continue;
            }
            for endpoint in [true, false] {
                if !endpoint {
                    volume.context.remove("AzureStorageAADEndpoint");
                    volume.context.remove("MSIEndpoint");
                }
                lab.assert_lends_nothing(lab.inline(&volume), &["AzureStorageAuthType"]);
                // The pod's token beside it changes nothing for the node's identity.
                if credential == Machine {
                    let mut with_token = volume.clone();
                    let key = "mountWithWorkloadIdentityToken".to_owned();
                    with_token.context.insert(key, "true".to_owned());
                    lab.assert_lends_nothing(lab.inline(&with_token), &["AzureStorageAuthType"]);
                }
            }
        }
    }
    // With a key of his own the author of the pod may not have the node ask anywhere either.
    let mut volume = lab.volume(Key, KNOWN.account, KNOWN);
    volume
        .context
        .insert("MSIEndpoint".to_owned(), lab.canary.metadata());
    lab.assert_lends_nothing(lab.inline(&volume), &["MSIEndpoint"]);
}

/// What kubelet says of a volume stands among what the author of the pod writes.
#[test]
fn nobody_can_say_that_an_inline_volume_is_none() {
    let lab = Lab::new();
    let volume = lab.volume(Machine, ALLOWED.account, ALLOWED);
    let publish = |said: &[(&str, &str)], staged: bool| {
        let mut request = volume.publish();
        if !staged {
            request.staging_target_path.clear();
        }
        let said = said
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        request.volume_context.extend(said);
        lab.publish(request)
    };
    let written = ("CSI.storage.k8s.io/Ephemeral", "false");
    let told = ("csi.storage.k8s.io/ephemeral", "true");
    let status = publish(&[written, told], false);
    refused::<()>(Err(status), Code::InvalidArgument, "DuplicateKey", &["Ephemeral"]);
    // Kubelet says nothing (a CSIDriver object without podInfoOnMount), and stages no inline volume.
    for said in [&[][..], &[written], &[("csi.storage.k8s.io/ephemeral", "false")]] {
        lab.assert_lends_nothing(publish(said, false), &["AzureStorageAuthType"]);
    }
    lab.assert_lends_nothing(publish(&[told], true), &["AzureStorageAuthType"]);
    // The driver's application, of which the pod's token says nothing.
    let mut pods = lab.volume(Pod, ALLOWED.account, ALLOWED);
    pods.context.remove("AzureStorageAADEndpoint");
    pods.context.remove("ClientID");
    let status = lab.inline(&pods);
    refused::<()>(Err(status), Code::InvalidArgument, "MissingField", &["ClientID"]);
    assert!(lab.canary.seen().is_empty());
}

#[test]
fn the_controller_lends_identities_to_known_and_allowed_hosts() {
    let lab = Lab::new();
    for place in [KNOWN, ALLOWED, FOREIGN] {
        for credential in [Machine, Driver, Pod] {
            let mut volume = lab.volume(credential, place.account, place);
            let client = || lab.controller.controller.clone();
            let create = call(client().create_volume(volume.create("pvc-1"))).map(drop);
            let validate = ValidateVolumeCapabilitiesRequest {
                volume_id: volume.id.clone(),
                volume_context: volume.context.clone(),
                volume_capabilities: vec![mount_capability(&[])],
                ..ValidateVolumeCapabilitiesRequest::default()
            };
            let validate = call(client().validate_volume_capabilities(validate)).map(drop);
            volume.id = match credential {
                Machine => format!(
                    "acct#photos##delete#https://{}#auth=MSI#msiat={}",
                    place.account,
                    lab.canary.metadata()
                ),
                // Without a kind it is the driver's own.
                _ => format!(
                    "acct#photos##delete#https://{}#login=https://{}",
                    place.account, place.login
                ),
            };
            let delete = call(client().delete_volume(volume.delete())).map(drop);
            let seen = lab.seen();
            for result in [create, validate, delete] {
                let status = result.unwrap_err();
                let is_refused = status.message().ends_with("[IdentityRefused]");
                assert_eq!(
                    is_refused,
                    place == FOREIGN,
                    "{credential:?} {place:?}: {status:?}"
                );
            }
            if place == FOREIGN {
                assert!(seen.is_empty(), "{seen:?}");
            } else {
                // No pod gives the controller its token: it takes its own.
                let used = if credential == Pod { Driver } else { credential };
                used.assert_reaches(&seen, place.account, place.login);
            }
        }
    }
}

/// A host that may have a token could name one that may not.
#[test]
fn nothing_follows_a_redirection() {
    let lab = Lab::new();
    let mut account = lab.volume(Machine, ALLOWED.account, ALLOWED);
    account
        .context
        .insert("containerName".to_owned(), REDIRECT.to_owned());
    let mut metadata = lab.volume(Machine, ALLOWED.account, ALLOWED);
    let at = format!("{}/{REDIRECT}/token", lab.canary.metadata());
    metadata.context.insert("MSIEndpoint".to_owned(), at);
    let mut login = lab.volume(Driver, ALLOWED.account, ALLOWED);
    login
        .context
        .insert("tenantID".to_owned(), format!("{REDIRECT}.test"));
    for (volume, host) in [
        (account, ALLOWED.account),
        (metadata, METADATA),
        (login, ALLOWED.login),
    ] {
        lab.persistent(&volume);
        let seen = lab.seen();
        let redirected = |seen: &&Seen| seen.host == host && seen.path.contains(REDIRECT);
        assert!(seen.iter().any(|seen| redirected(&seen)), "{host}: {seen:?}");
        let foreign = seen.iter().find(|seen| seen.host.contains("foreign"));
        assert!(foreign.is_none(), "{foreign:?}");
    }
}

/// A wrong host in the option is told when the program starts.
#[test]
fn wrong_hosts_are_refused_by_the_options_name() {
    for wrong in ["https://store.test", "a.test,", "store.test:443", "*"] {
        for command in ["node", "controller"] {
            let output = std::process::Command::new(e2e::harness::tools::vsc_blob_csi().unwrap())
                .args([command, "--node-id", "n", "--allowed-endpoints", wrong])
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains("--allowed-endpoints"), "{wrong}: {told}");
        }
    }
}
