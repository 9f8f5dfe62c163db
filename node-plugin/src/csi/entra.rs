//! Entra identities of a volume: managed identity, service principal, workload identity - from what the user
//! wrote.

use std::collections::HashMap;
use std::path::PathBuf;

use blob_client::auth::entra::{Assertion, GivenToken, Identity, UserAssigned};
use blob_client::secret::Secret;
use serde::Deserialize;
use url::Url;

use super::account;
use super::volume_context::{Attributes, Secrets, TokenKind};
use crate::error::{Error, Reason, Result};

/// Under this key kubelet hands over tokens of the pod's service account (CSIDriver `tokenRequests`): in the
/// secrets with `serviceAccountTokenInSecrets`, in the volume context without.
const POD_TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";
/// The audience Entra ID accepts for a token exchange.
const AUDIENCE: &str = "api://AzureADTokenExchange";

/// What Azure's workload identity webhook sets for the driver's own service account.
const CLIENT_ID: &str = "AZURE_CLIENT_ID";
const TENANT_ID: &str = "AZURE_TENANT_ID";
const TOKEN_FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";

/// Where tokens are asked for, when it is not the public cloud.
pub fn authority(attributes: &Attributes) -> Result<Option<Url>> {
    let written = attributes.identity.aad_endpoint.as_deref();
    url("AzureStorageAADEndpoint", written)
}

/// Who asks for tokens. `env` reads the driver's environment.
pub fn identity(
    kind: TokenKind,
    attributes: &Attributes,
    secrets: &Secrets,
    pod_token: Option<&GivenToken>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Identity> {
    let written = &attributes.identity;
    match kind {
        TokenKind::Spn => Ok(Identity::ServicePrincipal {
            tenant_id: needed(
                "AzureStorageSPNTenantID",
                &[&written.spn_tenant_id, &secrets.spn_tenant_id],
            )?,
            client_id: needed(
                "AzureStorageSPNClientID",
                &[&written.spn_client_id, &secrets.spn_client_id],
            )?,
            secret: secrets
                .spn_client_secret
                .clone()
                .ok_or_else(|| secrets.missing("azurestoragespnclientsecret", kind.name()))?,
        }),
        TokenKind::WorkloadIdentity => Ok(Identity::Workload {
            tenant_id: needed("tenantID", &[&written.tenant_id, &env(TENANT_ID)])?,
            // The driver's application is for the driver's own token.
            client_id: match written.with_pod_token {
                true => needed("ClientID", &[&written.client_id])?,
                false => needed("ClientID", &[&written.client_id, &env(CLIENT_ID)])?,
            },
            assertion: match (written.with_pod_token, pod_token) {
                (true, Some(token)) => Assertion::Given(token.clone()),
                (true, None) => {
                    return Err(Error::new(
                        Reason::MissingCredentials,
                        "mountWithWorkloadIdentityToken: kubelet gave no token of the pod; the CSIDriver \
                         object needs tokenRequests with audience api://AzureADTokenExchange",
                    ));
                }
                (false, _) => Assertion::File(PathBuf::from(env(TOKEN_FILE).ok_or_else(|| {
                    Error::new(
                        Reason::MissingCredentials,
                        format!(
                            "AzureStorageAuthType: WorkloadIdentity needs mountWithWorkloadIdentityToken: \
                             \"true\", or a federated token of the driver itself ({TOKEN_FILE} is not set)"
                        ),
                    )
                })?)),
            },
        }),
        TokenKind::Msi => Ok(Identity::Managed {
            user_assigned: match (&written.msi_client_id, &written.msi_resource_id) {
                (Some(_), Some(_)) => {
                    return Err(Error::new(
                        Reason::ConflictingFields,
                        "AzureStorageIdentityClientID: AzureStorageIdentityResourceID names the identity \
                        already",
                    ));
                }
                (Some(id), None) => Some(UserAssigned::ClientId(id.clone())),
                (None, Some(id)) => Some(UserAssigned::ResourceId(id.clone())),
                (None, None) => None,
            },
            endpoint: url("MSIEndpoint", written.msi_endpoint.as_deref())?,
            secret: secrets.msi_secret.clone(),
        }),
    }
}

/// The first value that is given.
fn needed(field: &str, values: &[&Option<String>]) -> Result<String> {
    let value = values.iter().find_map(|value| value.as_deref());
    let value = value.ok_or_else(|| Error::new(Reason::MissingField, format!("{field}: it is not set")))?;
    Ok(value.to_owned())
}

fn url(field: &str, text: Option<&str>) -> Result<Option<Url>> {
    let parsed = text.map(|text| {
        let full = if text.contains("://") {
            text.to_owned()
        } else {
            format!("https://{text}")
        };
        let wrong = |why: String| {
            Error::new(
                Reason::InvalidValue,
                format!("{field}: {}: {why}", account::shown(text)),
            )
        };
        let url = Url::parse(&full).map_err(|e| wrong(e.to_string()))?;
        if account::more_than_a_place(&url) {
            return Err(wrong("no query and no user name belong there".to_owned()));
        }
        Ok(url)
    });
    parsed.transpose()
}

/// The pod's token for an exchange, from secrets or volume context.
pub fn pod_token(
    secrets: &HashMap<String, String>,
    context: &HashMap<String, String>,
) -> Result<Option<Secret<String>>> {
    #[derive(Deserialize)]
    struct Given {
        token: String,
    }
    let find = |map: &HashMap<String, String>| {
        map.iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(POD_TOKENS))
            .map(|(_, value)| value.clone())
    };
    let Some(text) = find(secrets)
        .or_else(|| find(context))
        .filter(|text| !text.is_empty())
    else {
        return Ok(None);
    };
    // The parser's own message could quote the token.
    let unreadable = || {
        Error::new(
            Reason::InvalidValue,
            format!("{POD_TOKENS}: not the JSON that kubelet writes"),
        )
    };
    let mut tokens: HashMap<String, Given> = serde_json::from_str(&text).map_err(|_| unreadable())?;
    let token = tokens.remove(AUDIENCE);
    Ok(token.map(|given| Secret::new(given.token)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::csi::volume_context::Scope;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    fn found(kind: TokenKind, attributes: &[(&str, &str)], secrets: &[(&str, &str)]) -> Result<Identity> {
        let attributes = Attributes::parse(&map(attributes), Scope::Attributes)?;
        let token = GivenToken::new(Secret::new("canary".into()));
        let env = |name: &str| match name {
            TENANT_ID => Some("env-tenant".to_owned()),
            CLIENT_ID => Some("env-client".to_owned()),
            _ => None,
        };
        identity(
            kind,
            &attributes,
            &Secrets::parse(&map(secrets))?,
            Some(&token),
            env,
        )
    }

    #[test]
    fn managed_identities() {
        let Identity::Managed {
            user_assigned,
            endpoint,
            secret,
        } = found(
            TokenKind::Msi,
            &[
                ("AzureStorageIdentityClientID", "id"),
                ("MSIEndpoint", "http://127.0.0.1:1/msi"),
            ],
            &[("msisecret", "canary")],
        )
        .unwrap()
        else {
            panic!("not a managed identity");
        };
        assert_eq!(user_assigned, Some(UserAssigned::ClientId("id".into())));
        assert_eq!(endpoint.unwrap().as_str(), "http://127.0.0.1:1/msi");
        assert!(secret.is_some());
        for pasted in [
            "http://me:canary@127.0.0.1/msi",
            "127.0.0.1/msi?key=canary",
            "http://me:canary@x:y",
        ] {
            let error = found(TokenKind::Msi, &[("MSIEndpoint", pasted)], &[]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("MSIEndpoint") && !text.contains("canary"), "{text}");
        }
        let both = [
            ("AzureStorageIdentityClientID", "a"),
            ("AzureStorageIdentityResourceID", "b"),
        ];
        assert_eq!(
            found(TokenKind::Msi, &both, &[]).unwrap_err().reason,
            Reason::ConflictingFields
        );
    }

    #[test]
    fn service_principals_come_from_attributes_and_secret() {
        let secrets = [
            ("azurestoragespnclientsecret", "canary"),
            ("azurestoragespntenantid", "tenant"),
        ];
        let identity = found(TokenKind::Spn, &[("AzureStorageSPNClientID", "app")], &secrets).unwrap();
        assert!(!format!("{identity:?}").contains("canary"));
        assert!(
            matches!(identity, Identity::ServicePrincipal { tenant_id, client_id, .. }
            if tenant_id == "tenant" && client_id == "app")
        );
        let error = found(TokenKind::Spn, &[], &secrets).unwrap_err();
        assert!(error.message.contains("AzureStorageSPNClientID"), "{error}");
        let both = [
            ("AzureStorageSPNClientID", "app"),
            ("AzureStorageSPNTenantID", "t"),
        ];
        let error = found(TokenKind::Spn, &both, &[]).unwrap_err();
        assert!(error.message.contains("azurestoragespnclientsecret"), "{error}");
    }

    #[test]
    fn workload_identities_take_the_pods_token_or_the_drivers() {
        let pod = [("ClientID", "app"), ("mountWithWorkloadIdentityToken", "true")];
        let identity = found(TokenKind::WorkloadIdentity, &pod, &[]).unwrap();
        assert!(!format!("{identity:?}").contains("canary"));
        assert!(
            matches!(identity, Identity::Workload { tenant_id, assertion: Assertion::Given(_), .. }
            if tenant_id == "env-tenant")
        );
        // With the pod's token as the driver's application: nobody says that it may be.
        let error = found(TokenKind::WorkloadIdentity, &pod[1..], &[]).unwrap_err();
        assert!(error.message.starts_with("ClientID: "), "{error}");
        let error = found(TokenKind::WorkloadIdentity, &pod[..1], &[]).unwrap_err();
        assert!(
            error.message.contains("mountWithWorkloadIdentityToken"),
            "{error}"
        );
    }

    #[test]
    fn pod_tokens_are_read_from_either_place() {
        let json = r#"{
            "api://AzureADTokenExchange": {"token": "t1", "expirationTimestamp": "2026-01-01T00:00:00Z"},
            "x": {"token": "t2"}
        }"#;
        let tokens = map(&[(POD_TOKENS, json)]);
        for (secrets, context) in [(&tokens, &map(&[])), (&map(&[]), &tokens)] {
            assert_eq!(pod_token(secrets, context).unwrap().unwrap().expose(), "t1");
        }
        assert!(pod_token(&map(&[]), &map(&[])).unwrap().is_none());
        let error = pod_token(&map(&[(POD_TOKENS, "canary")]), &map(&[])).unwrap_err();
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
