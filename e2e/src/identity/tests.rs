//! The driver's own token client against the server, and the store against the tokens.

use blob_client::auth::TokenSource;
use blob_client::auth::entra::{Assertion, GivenToken, Identity as Client, UserAssigned, token_source};
use blob_client::transport::Transport;
use blob_client::transport::https::Https;

use super::*;
use crate::store::StoreConfig;

const TENANT: &str = "00000000-0000-0000-0000-00000000000a";
const APP: &str = "00000000-0000-0000-0000-000000000001";
const RESOURCE: &str =
    "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/i";

fn identity(text: serde_json::Value) -> Identity {
    let mut whole = serde_json::json!({"tenant": TENANT, "clientId": APP});
    whole
        .as_object_mut()
        .unwrap()
        .extend(text.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

struct World {
    store: Arc<BlobStore>,
    server: TokenServer,
}

impl World {
    fn new(identities: Vec<Identity>) -> Self {
        let store = BlobStore::new(StoreConfig::default()).unwrap();
        let server = TokenServer::start(
            store.clone(),
            identities,
            SocketAddr::from(([127, 0, 0, 1], 0)),
            None,
        )
        .unwrap();
        Self { store, server }
    }

    fn source(&self, client: Client) -> Arc<dyn TokenSource> {
        let https: Arc<dyn Transport> = Arc::new(Https::with_roots(rustls::RootCertStore::empty()));
        token_source(client, Some(self.server.authority().parse().unwrap()), https).unwrap()
    }

    async fn refused(&self, client: Client) -> String {
        self.source(client).token().await.unwrap_err().to_string()
    }

    /// Whether the store lets the bearer list its containers.
    fn accepts(&self, token: &str) -> bool {
        let request = http::Request::get(format!("http://x/{}?comp=list", self.store.account()))
            .header("authorization", format!("Bearer {token}"))
            .header("x-ms-version", "2021-12-02")
            .body(Bytes::new())
            .unwrap();
        self.store.execute(request).status().is_success()
    }

    async fn given(&self, client: Client) {
        let token = self.source(client).token().await.unwrap();
        assert!(self.accepts(token.expose()));
        assert!(!self.accepts(&token.expose()[1..]), "any token is accepted");
    }
}

fn managed(world: &World, user_assigned: Option<UserAssigned>) -> Client {
    Client::Managed {
        user_assigned,
        endpoint: Some(world.server.metadata().parse().unwrap()),
        secret: None,
    }
}

fn principal(client_id: &str, secret: &str) -> Client {
    Client::ServicePrincipal {
        tenant_id: TENANT.into(),
        client_id: client_id.into(),
        secret: secret.to_owned().into(),
    }
}

fn workload(claims: serde_json::Value) -> Client {
    use base64::Engine as _;
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    Client::Workload {
        tenant_id: TENANT.into(),
        client_id: APP.into(),
        assertion: Assertion::Given(GivenToken::new(format!("head.{payload}.signature").into())),
    }
}

#[tokio::test]
async fn the_machine_has_the_identities_that_are_said_to_be_its_own() {
    let world = World::new(vec![
        identity(serde_json::json!({"managed": true, "resourceId": RESOURCE})),
        identity(serde_json::json!({"clientId": "not-of-the-machine"})),
    ]);
    for user_assigned in [
        None,
        Some(UserAssigned::ClientId(APP.into())),
        Some(UserAssigned::ResourceId(RESOURCE.into())),
    ] {
        world.given(managed(&world, user_assigned)).await;
    }
    for other in [
        UserAssigned::ClientId("not-of-the-machine".into()),
        UserAssigned::ResourceId("/other".into()),
    ] {
        let error = world.refused(managed(&world, Some(other))).await;
        // The client's own words for the answer 400.
        assert!(error.contains("has not been assigned"), "{error}");
    }
}

/// What the client does not pass on.
#[test]
fn the_machine_is_told_why_it_gets_no_token() {
    let identities = [
        identity(serde_json::json!({"managed": true})),
        identity(serde_json::json!({"managed": true, "clientId": "second"})),
    ];
    let store = BlobStore::new(StoreConfig::default()).unwrap();
    let ask = |query: &str, metadata: &str| {
        let request = http::Request::get(format!("http://x{}?{query}", answer::METADATA))
            .header("metadata", metadata)
            .body(())
            .unwrap();
        let told = answer(&identities, &request.into_parts().0, b"", &store);
        told.refused().unwrap_or("a token").to_owned()
    };
    let good = "api-version=2018-02-01&resource=https://storage.azure.com";
    assert!(ask(good, "true").contains("specify the clientId"));
    assert_eq!(ask(&format!("{good}&client_id=second"), "true"), "a token");
    assert_eq!(
        ask(&format!("{good}&client_id=third"), "true"),
        "Identity not found"
    );
    assert!(ask(good, "false").contains("metadata header"));
    assert!(ask("resource=https://storage.azure.com", "true").contains("api-version"));
    let other = "api-version=2018-02-01&resource=https://vault.azure.net";
    assert!(ask(other, "true").contains("AADSTS500011"));
}

#[tokio::test]
async fn an_application_needs_its_secret() {
    let world = World::new(vec![identity(serde_json::json!({"secret": "s3cret"}))]);
    world.given(principal(APP, "s3cret")).await;
    let error = world.refused(principal(APP, "wrong")).await;
    assert!(error.contains("AADSTS7000215"), "{error}");
    let error = world.refused(principal("nobody", "s3cret")).await;
    assert!(error.contains("AADSTS700016"), "{error}");
    let text = format!("{:?}", identity(serde_json::json!({"secret": "s3cret"})));
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_federated_token_is_looked_into() {
    let world = World::new(vec![identity(
        serde_json::json!({"subject": "system:serviceaccount:team-*:app"}),
    )]);
    let claims = |subject: &str, audience: serde_json::Value, expires: u64| {
        workload(serde_json::json!({"sub": subject, "aud": audience, "exp": expires, "nbf": 1}))
    };
    let good = "system:serviceaccount:team-a:app";
    let audience = serde_json::json!("api://AzureADTokenExchange");
    let far = 4_102_444_800;
    world.given(claims(good, audience.clone(), far)).await;
    let several = serde_json::json!(["x", "api://AzureADTokenExchange"]);
    world.given(claims(good, several, far)).await;
    for (client, code) in [
        (
            claims("system:serviceaccount:other:app", audience.clone(), far),
            "AADSTS700213",
        ),
        (
            claims("system:serviceaccount:team-a:other", audience.clone(), far),
            "AADSTS700213",
        ),
        (
            claims(good, serde_json::json!("https://kubernetes.default.svc"), far),
            "AADSTS700212",
        ),
        (claims(good, audience, 2), "AADSTS700024"),
        (workload(serde_json::json!("no claims")), "AADSTS50027"),
    ] {
        let error = world.refused(client).await;
        assert!(error.contains(code), "{code}: {error}");
    }
}

#[test]
fn a_file_with_an_unknown_key_is_refused() {
    let text = r#"[{"tenant": "t", "clientId": "c", "sekret": "x"}]"#;
    let error = serde_json::from_str::<Vec<Identity>>(text)
        .unwrap_err()
        .to_string();
    assert!(error.contains("sekret"), "{error}");
}
