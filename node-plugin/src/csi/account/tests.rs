//! Endpoints and credentials: what is resolved, and what each refusal names.

use std::collections::HashMap;

use super::*;
use crate::csi::volume_context::Scope;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn resolve(attributes: &[(&str, &str)], secrets: &[(&str, &str)]) -> Result<(String, String)> {
    let attributes = Attributes::parse(&map(attributes), Scope::Attributes)?;
    let account = Account::resolve(&attributes, &Secrets::parse(&map(secrets))?)?;
    Ok((account.name, account.endpoint.to_string()))
}

fn credentials(attributes: &[(&str, &str)], secrets: &[(&str, &str)]) -> Result<Credentials> {
    let attributes = Attributes::parse(&map(attributes), Scope::Attributes)?;
    let account = Account::in_cloud("acct", PUBLIC_CLOUD)?;
    account.credentials(&attributes, &Secrets::parse(&map(secrets))?, |kind| {
        panic!("{} was not asked for", kind.name())
    })
}

#[test]
fn endpoints() {
    let cases: &[(Pairs<'_>, &str, &str)] = &[
        (
            &[("storageAccount", "acct")],
            "acct",
            "https://acct.blob.core.windows.net/",
        ),
        (
            &[
                ("storageAccount", "acct"),
                ("storageEndpointSuffix", "core.chinacloudapi.cn"),
            ],
            "acct",
            "https://acct.blob.core.chinacloudapi.cn/",
        ),
        (
            &[("server", "acct.blob.core.windows.net")],
            "acct",
            "https://acct.blob.core.windows.net/",
        ),
        (
            &[("server", "https://acct.privatelink.blob.core.windows.net/")],
            "acct",
            "https://acct.privatelink.blob.core.windows.net/",
        ),
        (
            &[("server", "http://127.0.0.1:10000/devstoreaccount1")],
            "devstoreaccount1",
            "http://127.0.0.1:10000/devstoreaccount1",
        ),
        (
            &[
                ("server", "http://azurite:10000"),
                ("storageAccount", "devstoreaccount1"),
            ],
            "devstoreaccount1",
            "http://azurite:10000/devstoreaccount1",
        ),
        (
            &[(
                "server",
                "http://store.lab.svc.cluster.local:10000/devstoreaccount1",
            )],
            "devstoreaccount1",
            "http://store.lab.svc.cluster.local:10000/devstoreaccount1",
        ),
        (
            &[("server", "http://azurite.corp.example:10000/devstoreaccount1")],
            "devstoreaccount1",
            "http://azurite.corp.example:10000/devstoreaccount1",
        ),
        (
            &[("server", "https://acct.storage.example:8443")],
            "acct",
            "https://acct.storage.example:8443/",
        ),
        (
            &[("server", "https://acct.blob.core.windows.net:8443")],
            "acct",
            "https://acct.blob.core.windows.net:8443/",
        ),
        (
            &[("server", "https://svc.blob.core.windows.net")],
            "svc",
            "https://svc.blob.core.windows.net/",
        ),
        (
            &[("server", "data.example.com"), ("storageAccount", "acct")],
            "acct",
            "https://data.example.com/",
        ),
    ];
    for (attributes, name, endpoint) in cases {
        assert_eq!(
            resolve(attributes, &[]).unwrap(),
            ((*name).to_owned(), (*endpoint).to_owned())
        );
    }
    let from_secret = resolve(&[], &[("azurestorageaccountname", "acct")]).unwrap();
    assert_eq!(from_secret.1, "https://acct.blob.core.windows.net/");
}

#[test]
fn wrong_endpoints_name_their_field() {
    let cases: &[(Pairs<'_>, Pairs<'_>, Reason, &str)] = &[
        (&[], &[], Reason::MissingField, "storageAccount"),
        (
            &[("storageAccount", "a")],
            &[("accountname", "b")],
            Reason::ConflictingFields,
            "storageAccount",
        ),
        (
            &[("storageAccount", "No_Such")],
            &[],
            Reason::InvalidValue,
            "storageAccount",
        ),
        (&[("server", "ftp://x.y")], &[], Reason::InvalidValue, "server"),
        (
            &[("server", "http://127.0.0.1:1")],
            &[],
            Reason::MissingField,
            "storageAccount",
        ),
        (
            &[("server", "https://acct.blob.core.windows.net/photos")],
            &[],
            Reason::InvalidValue,
            "containerName",
        ),
        (
            &[
                ("server", "https://acct.blob.core.windows.net"),
                ("storageEndpointSuffix", "x"),
            ],
            &[],
            Reason::ConflictingFields,
            "storageEndpointSuffix",
        ),
    ];
    for (attributes, secrets, reason, field) in cases {
        let error = resolve(attributes, secrets).unwrap_err();
        assert_eq!(error.reason, *reason, "{error}");
        assert!(error.message.contains(field), "{error}");
    }
}

/// People paste SAS URLs and connection strings; what they paste must not reach a log or an Event.
#[test]
fn wrong_endpoints_do_not_leak() {
    let pasted = [
        ("server", "https://acct.blob.core.windows.net/?sig=canary"),
        ("server", "https://acct.blob.core.windows.net/#canary"),
        ("server", "abfss://acct.dfs.core.windows.net/?sig=canary"),
        ("server", "https://acct .blob.core.windows.net/?sig=canary"),
        ("server", "https://acct.blob.core.windows.net/x%3Fsig=canary"),
        ("server", "http://:canary@127.0.0.1/devstoreaccount1"),
        ("server", "me:canary@acct.blob.core.windows.net"),
        ("server", "https://me:canary@acct.blob.core.windows.net:port"),
        ("storageAccount", "acct?sig=canary"),
        ("storageEndpointSuffix", "core.windows.net/?sig=canary"),
        ("storageEndpointSuffix", "x:canary@example.com"),
        ("storageEndpointSuffix", "core.windows.net/canary?"),
    ];
    for (field, value) in pasted {
        let account = ("storageAccount", "acct");
        let all = [account, (field, value)];
        let attributes = match field {
            "storageEndpointSuffix" => &all[..],
            _ => &all[1..],
        };
        let error = resolve(attributes, &[]).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidValue, "{value}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(field) && !text.contains("canary"),
            "{value}: {text}"
        );
    }
    for url in [
        "abfss://acct.dfs.core.windows.net?sig=canary",
        "http://acct:80canary@x:y/c",
        "//acct.blob.core.windows.net/c?sig=canary",
        "http://:canary@127.0.0.1/devstoreaccount1/c",
        "https://acct.blob.core.windows.net/c#canary",
    ] {
        let text = Account::split_url(url).unwrap_err().to_string();
        assert!(
            text.starts_with("URL") && !text.contains("canary"),
            "{url}: {text}"
        );
    }
}

#[test]
fn urls_of_the_mount_command() {
    let (account, container, prefix) =
        Account::split_url("http://127.0.0.1:10000/devstoreaccount1/photos/a%20b/c/").unwrap();
    assert_eq!(
        account.endpoint.as_str(),
        "http://127.0.0.1:10000/devstoreaccount1"
    );
    assert_eq!((container.as_str(), prefix.as_str()), ("photos", "a b/c"));
    let (account, container, _) =
        Account::split_url("http://azurite.corp.example:10000/devstoreaccount1/photos").unwrap();
    assert_eq!(
        account.endpoint.as_str(),
        "http://azurite.corp.example:10000/devstoreaccount1"
    );
    assert_eq!(container, "photos");
    let (account, container, prefix) =
        Account::split_url("https://acct.blob.core.windows.net/photos").unwrap();
    assert_eq!(
        (account.name.as_str(), container.as_str(), prefix.as_str()),
        ("acct", "photos", "")
    );
    for wrong in [
        "photos",
        "https://acct.blob.core.windows.net",
        "http://127.0.0.1:1/devstoreaccount1",
    ] {
        let error = Account::split_url(wrong).unwrap_err();
        assert!(error.message.starts_with("URL"), "{error}");
    }
    let error = Account::split_url("https://acct.blob.core.windows.net/c?sig=canary").unwrap_err();
    assert!(
        error.message.contains("AZURE_STORAGE_SAS_TOKEN") && !error.message.contains("canary"),
        "{error}"
    );
}

#[test]
fn credentials_by_kind() {
    let key = ("azurestorageaccountkey", "a2V5");
    let sas = ("azurestorageaccountsastoken", "sig=1");
    assert!(matches!(
        credentials(&[], &[key]).unwrap(),
        Credentials::SharedKey { .. }
    ));
    assert!(matches!(credentials(&[], &[sas]).unwrap(), Credentials::Sas(_)));
    assert!(matches!(
        credentials(&[("AzureStorageAuthType", "sas")], &[key, sas]).unwrap(),
        Credentials::Sas(_)
    ));
    let anonymous = credentials(&[("AzureStorageAuthType", "Anonymous")], &[]).unwrap();
    assert!(matches!(anonymous, Credentials::Anonymous));
}

#[test]
fn missing_credentials_name_the_field() {
    let error = credentials(&[], &[]).unwrap_err();
    assert_eq!(error.reason, Reason::MissingCredentials);
    assert!(error.message.contains("azurestorageaccountkey"), "{error}");
    let error = credentials(&[("AzureStorageAuthType", "SAS")], &[("accountkey", "a2V5")]).unwrap_err();
    assert!(error.message.contains("azurestorageaccountsastoken"), "{error}");
    let error = credentials(&[], &[("accountkey", "not base64!")]).unwrap_err();
    assert_eq!(error.reason, Reason::InvalidValue);
    assert!(!error.to_string().contains("not base64!"), "{error}");
}
