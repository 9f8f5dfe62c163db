//! What a token request is answered: the token, or the service's reason against it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};

use super::principal::Identity;
use crate::store::BlobStore;

/// Path of the metadata service's tokens.
pub(super) const METADATA: &str = "/metadata/identity/oauth2/token";
/// The audience that Entra ID wants in a federated token.
const EXCHANGE: &str = "api://AzureADTokenExchange";
/// What tokens of storage accounts are for.
const STORAGE: &str = "https://storage.azure.com";
/// How a federated token is announced (RFC 7523).
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// How long a token is said to be good, seconds.
const LIFETIME: u64 = 3599;

/// Status and JSON.
#[derive(Debug)]
pub(super) struct Answer {
    status: u16,
    body: Value,
}

impl Answer {
    pub(super) fn refusal(status: u16, error: &str, description: &str) -> Self {
        Self {
            status,
            body: json!({"error": error, "error_description": description}),
        }
    }

    /// Why there is no token.
    pub(super) fn refused(&self) -> Option<&str> {
        self.body["error_description"].as_str()
    }

    pub(super) fn into_response(self) -> http::Response<Full<Bytes>> {
        let mut response = http::Response::new(Full::new(Bytes::from(self.body.to_string())));
        *response.status_mut() =
            StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/json"));
        response
    }
}

/// Answers one request. A token that it gives is accepted by the store before it is told.
pub(super) fn answer(identities: &[Identity], head: &Parts, body: &[u8], store: &BlobStore) -> Answer {
    let result = match (head.method.clone(), head.uri.path()) {
        (Method::GET, METADATA) => managed(identities, head),
        (Method::POST, path) => match path
            .strip_prefix('/')
            .and_then(|path| path.strip_suffix("/oauth2/v2.0/token"))
        {
            Some(tenant) => entra(identities, tenant, body, SystemTime::now()),
            None => Err(not_found(path)),
        },
        (_, path) => Err(not_found(path)),
    };
    result.map_or_else(
        |refusal| refusal,
        |shape| {
            let token = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
            store.accept_token(&token);
            shape.answer(&token)
        },
    )
}

fn not_found(path: &str) -> Answer {
    Answer::refusal(404, "not_found", &format!("{path} gives no tokens"))
}

/// The two services write the same answer differently.
enum Shape {
    /// Numbers are text, and the time of the end is told.
    Metadata {
        client_id: String,
        resource: String,
    },
    Entra,
}

impl Shape {
    fn answer(self, token: &str) -> Answer {
        let body = match self {
            Self::Metadata { client_id, resource } => {
                let end = seconds(SystemTime::now()) + LIFETIME;
                json!({
                    "access_token": token,
                    "client_id": client_id,
                    "expires_in": LIFETIME.to_string(),
                    "expires_on": end.to_string(),
                    "ext_expires_in": LIFETIME.to_string(),
                    "not_before": (end - LIFETIME).to_string(),
                    "resource": resource,
                    "token_type": "Bearer",
                })
            }
            Self::Entra => json!({
                "access_token": token,
                "expires_in": LIFETIME,
                "ext_expires_in": LIFETIME,
                "token_type": "Bearer",
            }),
        };
        Answer { status: 200, body }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

fn form(text: &[u8]) -> HashMap<String, String> {
    url::form_urlencoded::parse(text).into_owned().collect()
}

/// The metadata service: whoever reaches it speaks for the machine. (Entra docs: "How to use managed
/// identities for Azure resources on an Azure VM to acquire an access token".)
fn managed(identities: &[Identity], head: &Parts) -> Result<Shape, Answer> {
    let invalid = |text: &str| Answer::refusal(400, "invalid_request", text);
    if head.headers.get("metadata").map(HeaderValue::as_bytes) != Some(b"true") {
        return Err(invalid("Required metadata header not specified"));
    }
    let query = form(head.uri.query().unwrap_or_default().as_bytes());
    if !query.contains_key("api-version") {
        return Err(invalid("api-version is missing"));
    }
    let resource = query.get("resource").cloned().unwrap_or_default();
    if resource.trim_end_matches('/') != STORAGE {
        let text = format!("AADSTS500011: the resource {resource:?} is none that this account accepts");
        return Err(Answer::refusal(400, "invalid_resource", &text));
    }
    let of_the_machine = identities.iter().filter(|identity| identity.managed);
    let client_id = query.get("client_id");
    let resource_id = query.get("msi_res_id").or_else(|| query.get("mi_res_id"));
    let mut fitting = of_the_machine.filter(|identity| {
        client_id.is_none_or(|id| identity.client_id.eq_ignore_ascii_case(id))
            && resource_id.is_none_or(|id| {
                identity
                    .resource_id
                    .as_ref()
                    .is_some_and(|own| own.eq_ignore_ascii_case(id))
            })
    });
    match (fitting.next(), fitting.next()) {
        (Some(identity), None) => Ok(Shape::Metadata {
            client_id: identity.client_id.clone(),
            resource,
        }),
        (None, _) => Err(invalid("Identity not found")),
        (Some(_), Some(_)) => Err(invalid(
            "Multiple user assigned identities exist, please specify the clientId / resourceId of the \
             identity in the token request",
        )),
    }
}

/// Entra ID: an application proves who it is. (Entra docs: "OAuth 2.0 client credentials flow".)
fn entra(identities: &[Identity], tenant: &str, body: &[u8], now: SystemTime) -> Result<Shape, Answer> {
    let form = form(body);
    let field = |name: &str| form.get(name).map_or("", String::as_str);
    if field("grant_type") != "client_credentials" {
        let text = "AADSTS70003: only the grant type client_credentials is offered";
        return Err(Answer::refusal(400, "unsupported_grant_type", text));
    }
    if field("scope") != format!("{STORAGE}/.default") {
        let text = format!("AADSTS70011: the scope {:?} is not valid", field("scope"));
        return Err(Answer::refusal(400, "invalid_scope", &text));
    }
    if !identities
        .iter()
        .any(|identity| identity.tenant.eq_ignore_ascii_case(tenant))
    {
        let text = format!("AADSTS90002: Tenant '{tenant}' not found");
        return Err(Answer::refusal(400, "invalid_request", &text));
    }
    let client_id = field("client_id");
    let identity = identities
        .iter()
        .find(|one| one.tenant.eq_ignore_ascii_case(tenant) && one.client_id.eq_ignore_ascii_case(client_id))
        .ok_or_else(|| {
            let text = format!("AADSTS700016: application '{client_id}' was not found in the directory");
            Answer::refusal(400, "unauthorized_client", &text)
        })?;
    let invalid = |text: &str| Answer::refusal(401, "invalid_client", text);
    match (form.get("client_secret"), form.get("client_assertion")) {
        (Some(secret), None) if identity.secret.as_ref() == Some(secret) => Ok(Shape::Entra),
        (Some(_), None) => Err(invalid("AADSTS7000215: Invalid client secret provided")),
        (None, Some(token)) if field("client_assertion_type") == JWT_BEARER => {
            federated(identity, token, now).map_err(|text| invalid(&text))?;
            Ok(Shape::Entra)
        }
        _ => Err(invalid(
            "AADSTS7000218: the request must contain client_secret, or client_assertion with its type",
        )),
    }
}

/// What is looked at in a federated token.
#[derive(Debug, Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: u64,
    #[serde(default)]
    nbf: u64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

fn federated(identity: &Identity, token: &str, now: SystemTime) -> Result<(), String> {
    let claims: Claims = token
        .split('.')
        .nth(1)
        .and_then(|payload| URL_SAFE_NO_PAD.decode(payload).ok())
        .and_then(|payload| serde_json::from_slice(&payload).ok())
        .ok_or("AADSTS50027: JWT token is invalid or malformed")?;
    let for_exchange = match &claims.aud {
        Audience::One(one) => one == EXCHANGE,
        Audience::Several(all) => all.iter().any(|one| one == EXCHANGE),
    };
    if !for_exchange {
        return Err(format!(
            "AADSTS700212: no matching federated identity record found for presented assertion audience {:?}",
            claims.aud
        ));
    }
    let now = seconds(now);
    if now < claims.nbf || claims.exp <= now {
        return Err("AADSTS700024: client assertion is not within its valid time range".to_owned());
    }
    let fits = identity
        .subject
        .as_ref()
        .is_some_and(|pattern| matches(pattern, &claims.sub));
    fits.then_some(()).ok_or_else(|| {
        format!(
            "AADSTS700213: no matching federated identity record found for presented assertion subject '{}'",
            claims.sub
        )
    })
}

/// Part by part between colons; `*` is any text.
fn matches(pattern: &str, subject: &str) -> bool {
    let (pattern, subject) = (pattern.split(':'), subject.split(':'));
    pattern.clone().count() == subject.clone().count()
        && pattern.zip(subject).all(|(wanted, found)| {
            wanted.split_once('*').map_or(wanted == found, |(begin, end)| {
                found.len() >= begin.len() + end.len() && found.starts_with(begin) && found.ends_with(end)
            })
        })
}
