//! Which hosts get a token, and what an inline volume may not ask for.

use std::collections::HashMap;

use blob_client::auth::entra::GivenToken;
use blob_client::secret::Secret;

use super::*;
use crate::csi::volume_context::{Scope, Secrets};

fn attributes(pairs: &[(&str, &str)]) -> Attributes {
    let map: HashMap<_, _> = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
    Attributes::parse(&map, Scope::Attributes).unwrap()
}

fn lending(allowed: &[&str]) -> Lending {
    let allowed: Vec<AllowedHost> = allowed.iter().map(|host| host.parse().unwrap()).collect();
    Lending::new(&allowed)
}

const MANAGED: Identity = Identity::Managed {
    user_assigned: None,
    endpoint: None,
    secret: None,
};

fn workload(assertion: Assertion) -> Identity {
    Identity::Workload {
        tenant_id: "tenant".into(),
        client_id: "client".into(),
        assertion,
    }
}

fn drivers() -> Identity {
    workload(Assertion::File("/token".into()))
}

fn checked(
    lending: &Lending,
    identity: &Identity,
    pairs: &[(&str, &str)],
    login: Option<&str>,
) -> Result<()> {
    let attributes = attributes(pairs);
    let account = Account::resolve(&attributes, &Secrets::default())?;
    let login: Option<Url> = login.map(|login| login.parse().unwrap());
    lending.check(identity, &attributes, &account, login.as_ref())
}

#[test]
fn accounts_of_azures_clouds_are_known() {
    let none = lending(&[]);
    for identity in [MANAGED, drivers()] {
        checked(&none, &identity, &[("storageAccount", "acct")], None).unwrap();
        for suffix in [
            "core.windows.net",
            "core.chinacloudapi.cn",
            "core.usgovcloudapi.net",
            "blob.core.windows.net.",
        ] {
            let pairs = [("storageAccount", "acct"), ("storageEndpointSuffix", suffix)];
            checked(&none, &identity, &pairs, None).unwrap();
        }
        for server in [
            "acct.z01.blob.storage.azure.net",
            "https://acct.privatelink.blob.core.windows.net",
            "https://ACCT.Blob.Core.Windows.NET./",
            "https://acct-secondary.blob.core.windows.net:443",
        ] {
            checked(&none, &identity, &[("server", server)], None).unwrap();
        }
    }
}

#[test]
fn what_only_looks_like_one_is_not() {
    let none = lending(&[]);
    for host in [
        "acct.blob.evil.example",
        "acct.blob.core.windows.net.evil.example",
        "acct.evilblob.core.windows.net",
        "acct-blob.core.windows.net",
        "acct.xn--blb-jua.core.windows.net",
        "acct.file.core.windows.net",
        "acct.blob.core.windows.com",
        "login.microsoftonline.com",
        "127.0.0.1",
        "[::1]",
    ] {
        for identity in [MANAGED, drivers()] {
            let server = format!("https://{host}");
            let pairs = [("server", server.as_str()), ("storageAccount", "acct")];
            let error = checked(&none, &identity, &pairs, None).unwrap_err();
            assert_eq!(error.reason, Reason::IdentityRefused, "{host}: {error}");
            assert!(error.message.starts_with("server: "), "{error}");
            let advice = format!("add {host:?} to allowedEndpoints");
            assert!(error.message.contains(&advice), "{error}");
            // It is the way that is named.
            checked(&lending(&[host]), &identity, &pairs, None).unwrap();
        }
    }
    let bare = Account {
        name: "acct".into(),
        endpoint: "https://blob.core.windows.net".parse().unwrap(),
    };
    none.check(&MANAGED, &attributes(&[]), &bare, None).unwrap_err();
}

#[test]
fn the_field_that_names_the_host_is_told() {
    let none = lending(&[]);
    let suffix = [
        ("storageAccount", "acct"),
        ("storageEndpointSuffix", "evil.example"),
    ];
    let error = checked(&none, &MANAGED, &suffix, None).unwrap_err();
    assert!(error.message.starts_with("storageEndpointSuffix: "), "{error}");
    assert!(error.message.contains("\"acct.blob.evil.example\""), "{error}");
    let account = Account::resolve(&attributes(&suffix), &Secrets::default()).unwrap();
    let error = none
        .check(&MANAGED, &attributes(&[]), &account, None)
        .unwrap_err();
    assert!(error.message.starts_with("volume_id: "), "{error}");
}

#[test]
fn login_hosts_get_the_drivers_token_only_when_they_are_known_or_allowed() {
    let known = [("storageAccount", "acct")];
    let none = lending(&[]);
    for login in LOGINS {
        let login = format!("https://{}/", login.to_uppercase());
        checked(&none, &drivers(), &known, Some(&login)).unwrap();
    }
    for login in [
        "https://evil.example",
        "https://login.microsoftonline.com.evil.example",
        "https://x.login.microsoftonline.com",
        "https://acct.blob.core.windows.net",
    ] {
        let error = checked(&none, &drivers(), &known, Some(login)).unwrap_err();
        assert_eq!(error.reason, Reason::IdentityRefused, "{login}");
        assert!(error.message.starts_with("AzureStorageAADEndpoint: "), "{error}");
        let host = login.trim_start_matches("https://");
        assert!(error.message.contains(&format!("add {host:?}")), "{error}");
        checked(&lending(&[host]), &drivers(), &known, Some(login)).unwrap();
        // Tokens of the machine come from elsewhere.
        checked(&none, &MANAGED, &known, Some(login)).unwrap();
    }
    let error = checked(
        &lending(&["login.test"]),
        &drivers(),
        &[("server", "acct.blob.evil.example")],
        Some("https://login.test"),
    );
    assert!(error.unwrap_err().message.starts_with("server: "));
}

#[test]
fn who_brings_an_identity_sends_it_where_he_likes() {
    let given = Assertion::Given(GivenToken::new(Secret::new("token".into())));
    let principal = Identity::ServicePrincipal {
        tenant_id: "tenant".into(),
        client_id: "client".into(),
        secret: Secret::new("secret".into()),
    };
    for identity in [workload(given), principal] {
        let there = [("server", "acct.blob.gateway.example")];
        checked(&lending(&[]), &identity, &there, Some("https://login.example")).unwrap();
    }
}

#[test]
fn allowed_hosts() {
    for (allowed, host, has) in [
        ("store.test", "store.test", true),
        ("Store.TEST.", "store.test", true),
        ("store.test", "a.store.test", false),
        ("store.test", "xstore.test", false),
        ("*.store.test", "a.store.test", true),
        ("*.store.test", "a.b.store.test", true),
        ("*.STORE.test.", "a.store.test", true),
        ("*.store.test", "store.test", false),
        ("*.store.test", "xstore.test", false),
        ("10.0.0.7", "10.0.0.7", true),
        ("10.0.0.7", "10.0.0.70", false),
        ("[fd00::0007]", "[fd00::7]", true),
        ("store_1.ns.svc", "store_1.ns.svc", true),
    ] {
        let parsed: AllowedHost = allowed.parse().unwrap();
        assert_eq!(parsed.has(host), has, "{allowed} {host}");
        assert_eq!(parsed.to_string().parse(), Ok(parsed), "{allowed}");
    }
    for wrong in [
        "",
        ".",
        "*",
        "*.",
        "*.*.test",
        "a*.test",
        "store.*",
        "https://store.test",
        "store.test:443",
        "store.test/path",
        "user@store.test",
        "*.10.0.0.7",
        "*.[fd00::7]",
        "fd00::7",
        "a..test",
        ".test",
        "a b",
        "a,b",
    ] {
        let told = AllowedHost::from_str(wrong).unwrap_err();
        assert!(told.starts_with(&format!("{wrong:?}: ")), "{told}");
    }
}

#[test]
fn an_inline_volume_gets_what_its_author_brings() {
    let pod = ("mountWithWorkloadIdentityToken", "true");
    for own in [
        vec![],
        vec![("AzureStorageAuthType", "Key")],
        vec![("AzureStorageAuthType", "SAS")],
        vec![("AzureStorageAuthType", "SPN")],
        vec![("AzureStorageAuthType", "Anonymous")],
        vec![pod],
        vec![("AzureStorageAuthType", "WorkloadIdentity"), pod],
    ] {
        check_inline(&attributes(&own)).unwrap();
    }
    for (lent, field) in [
        (vec![("AzureStorageAuthType", "MSI")], "AzureStorageAuthType"),
        (vec![("azurestorageauthtype", "msi")], "AzureStorageAuthType"),
        // The pod's token does not make the node's identity the pod's.
        (vec![("AzureStorageAuthType", "MSI"), pod], "AzureStorageAuthType"),
        (
            vec![("AzureStorageAuthType", "WorkloadIdentity")],
            "AzureStorageAuthType",
        ),
        (
            vec![
                ("AzureStorageAuthType", "WorkloadIdentity"),
                ("mountWithWorkloadIdentityToken", "false"),
            ],
            "AzureStorageAuthType",
        ),
        (vec![("MSIEndpoint", "http://10.0.0.1/x")], "MSIEndpoint"),
        (
            vec![
                pod,
                ("AzureStorageAADEndpoint", "https://login.microsoftonline.com"),
            ],
            "AzureStorageAADEndpoint",
        ),
        (
            vec![
                ("AzureStorageAuthType", "SPN"),
                ("AzureStorageAADEndpoint", "https://login.example"),
            ],
            "AzureStorageAADEndpoint",
        ),
    ] {
        let error = check_inline(&attributes(&lent)).unwrap_err();
        assert_eq!(error.reason, Reason::IdentityRefused, "{lent:?}");
        assert!(error.message.starts_with(&format!("{field}: ")), "{error}");
        assert!(error.to_string().contains("PersistentVolume"), "{error}");
    }
}
