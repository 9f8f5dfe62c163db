//! Token requests against a fake of the login endpoint and of the instance metadata service.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use ::http::{HeaderMap, Method, Response, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::*;
use crate::auth::token_sources::TokenSources;
use crate::transport::https::Https;

/// What the fake was asked.
#[derive(Debug, Clone)]
struct Asked {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    form: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Fake {
    asked: Mutex<Vec<Asked>>,
    answers: Mutex<VecDeque<(u16, String)>>,
}

impl Fake {
    async fn start() -> (Arc<Self>, url::Url) {
        let fake = Arc::new(Self::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap())
            .parse()
            .unwrap();
        let serving = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let fake = Arc::clone(&fake);
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (fake, url)
    }

    async fn answer(&self, request: ::http::Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        self.asked.lock().unwrap().push(Asked {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            form: url::form_urlencoded::parse(&body).into_owned().collect(),
        });
        let (status, text) = self
            .answers
            .lock()
            .unwrap()
            .pop_front()
            .unwrap_or((500, String::new()));
        Response::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(text)))
            .unwrap()
    }

    fn will_answer(&self, status: u16, text: String) {
        self.answers.lock().unwrap().push_back((status, text));
    }

    fn will_give(&self, token: &str) {
        self.will_answer(
            200,
            format!(r#"{{"token_type":"Bearer","expires_in":3600,"access_token":"{token}"}}"#),
        );
    }

    fn last(&self) -> Asked {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

fn https() -> Arc<dyn Transport> {
    Arc::new(Https::with_roots(rustls::RootCertStore::empty()))
}

async fn token(source: &Arc<dyn TokenSource>) -> String {
    source.token().await.unwrap().expose().clone()
}

fn workload(assertion: Assertion) -> Identity {
    Identity::Workload {
        tenant_id: "tenant-1".into(),
        client_id: "client-1".into(),
        assertion,
    }
}

#[tokio::test]
async fn workload_identity_with_the_token_of_the_kubelet() {
    let (fake, url) = Fake::start().await;
    let given = GivenToken::new("first.jwt".to_owned().into());
    let identity = workload(Assertion::Given(given.clone()));
    let source = token_source(identity, Some(url.clone()), https()).unwrap();
    fake.will_give("access-1");
    assert_eq!(token(&source).await, "access-1");
    let asked = fake.last();
    assert_eq!(
        (asked.method, asked.path.as_str()),
        (Method::POST, "/tenant-1/oauth2/v2.0/token")
    );
    assert_eq!(asked.form["client_id"], "client-1");
    assert_eq!(asked.form["client_assertion"], "first.jwt");
    assert_eq!(asked.form["scope"], SCOPE);
    assert_eq!(asked.form["grant_type"], "client_credentials");
    // Cached.
    assert_eq!(token(&source).await, "access-1");
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
    given.replace("second.jwt".to_owned().into());
    let fresh = token_source(workload(Assertion::Given(given)), Some(url), https());
    fake.will_give("access-2");
    assert_eq!(token(&fresh.unwrap()).await, "access-2");
    assert_eq!(fake.last().form["client_assertion"], "second.jwt");
}

#[tokio::test]
async fn workload_identity_reads_the_file_anew() {
    let (fake, url) = Fake::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "from-file-1\n").unwrap();
    let source = Entra {
        identity: workload(Assertion::File(file.clone())),
        authority: url,
        https: https(),
    };
    fake.will_give("a");
    source.fetch().await.unwrap();
    assert_eq!(fake.last().form["client_assertion"], "from-file-1");
    std::fs::write(&file, "from-file-2").unwrap();
    fake.will_give("b");
    assert_eq!(source.fetch().await.unwrap().token.expose(), "b");
    assert_eq!(fake.last().form["client_assertion"], "from-file-2");
    std::fs::remove_file(&file).unwrap();
    let error = source.fetch().await.unwrap_err().to_string();
    assert!(error.contains("federated token file"), "{error}");
}

#[tokio::test]
async fn a_service_principal_and_what_entra_says_against_it() {
    let (fake, url) = Fake::start().await;
    let identity = Identity::ServicePrincipal {
        tenant_id: "tenant-2".into(),
        client_id: "app".into(),
        secret: "s3cret".to_owned().into(),
    };
    assert!(!format!("{identity:?}").contains("s3cret"));
    let source = token_source(identity.clone(), Some(url.clone()), https()).unwrap();
    fake.will_answer(
        401,
        r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided."}"#
            .into(),
    );
    let error = source.token().await.unwrap_err();
    assert!(matches!(error, Error::Token { retryable: false, .. }), "{error}");
    let error = error.to_string();
    assert!(
        error.contains("AADSTS7000215") && error.contains("AzureStorageSPNClientID"),
        "{error}"
    );
    assert!(!error.contains("s3cret"));
    // The refusal is kept for a moment; the mended volume has a source of its own.
    let source = token_source(identity, Some(url), https()).unwrap();
    fake.will_give("spn");
    assert_eq!(token(&source).await, "spn");
    assert_eq!(fake.last().form["client_secret"], "s3cret");
}

#[tokio::test]
async fn an_identity_service_that_is_out_is_worth_another_try() {
    let (fake, url) = Fake::start().await;
    let source = |authority: &url::Url| Entra {
        identity: workload(Assertion::Given(GivenToken::new("jwt".to_owned().into()))),
        authority: authority.clone(),
        https: https(),
    };
    for (answer, retryable) in [
        (
            (
                400,
                r#"{"error":"invalid_request","error_description":"AADSTS900023"}"#,
            ),
            false,
        ),
        ((200, "no JSON"), true),
        ((403, "a proxy's page"), true),
    ] {
        fake.will_answer(answer.0, answer.1.into());
        let error = source(&url).fetch().await.unwrap_err();
        assert!(
            matches!(error, Error::Token { retryable: again, .. } if again == retryable),
            "{answer:?}: {error}"
        );
    }
    // As the library's errors come, without its half minute of retries.
    let refused = |status: u16| ErrorKind::HttpResponse {
        status: status.into(),
        error_code: None,
        raw_response: None,
    };
    for (kind, retryable) in [
        (refused(401), false),
        (refused(429), true),
        (refused(503), true),
        (ErrorKind::Io, true),
        (ErrorKind::Credential, false),
    ] {
        let inner = azure_core::Error::with_message(kind, "inner");
        let outer = azure_core::Error::with_error(ErrorKind::Credential, inner, "outer");
        assert_eq!(is_retryable(&outer), retryable, "{outer:?}");
    }
}

#[tokio::test]
async fn managed_identity_at_another_endpoint() {
    let (fake, url) = Fake::start().await;
    let identity = Identity::Managed {
        user_assigned: Some(UserAssigned::ClientId("id-7".into())),
        endpoint: Some(url.join("/msi/token").unwrap()),
        secret: Some("msi-secret".to_owned().into()),
    };
    let source = token_source(identity, None, https()).unwrap();
    let expires = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 7200;
    fake.will_answer(
        200,
        format!(
            r#"{{"access_token":"msi","expires_on":"{expires}","token_type":"Bearer",
                "resource":"https://storage.azure.com"}}"#
        ),
    );
    assert_eq!(token(&source).await, "msi");
    let asked = fake.last();
    assert_eq!((asked.method, asked.path.as_str()), (Method::GET, "/msi/token"));
    let query: std::collections::BTreeMap<String, String> =
        url::form_urlencoded::parse(asked.query.as_bytes())
            .into_owned()
            .collect();
    assert_eq!(query["resource"], "https://storage.azure.com");
    assert_eq!(query["client_id"], "id-7");
    assert_eq!(asked.headers["metadata"], "true");
    assert_eq!(asked.headers["secret"], "msi-secret");
}

#[tokio::test]
async fn wrong_ids_are_refused_before_anything_is_sent() {
    let identity = Identity::Workload {
        tenant_id: "not a tenant".into(),
        client_id: "c".into(),
        assertion: Assertion::Given(GivenToken::new(String::new().into())),
    };
    let error = token_source(identity.clone(), None, https())
        .unwrap_err()
        .to_string();
    assert!(error.contains("tenantID"), "{error}");
    let Identity::Workload {
        client_id, assertion, ..
    } = identity
    else {
        unreachable!()
    };
    let good = Identity::Workload {
        tenant_id: "tenant".into(),
        client_id,
        assertion,
    };
    let open = Some("http://login.example".parse().unwrap());
    let error = token_source(good.clone(), open, https()).unwrap_err().to_string();
    assert!(
        error.contains("AzureStorageAADEndpoint") && error.contains("https://"),
        "{error}"
    );
    token_source(good, Some("http://localhost:1".parse().unwrap()), https()).unwrap();
}

#[tokio::test]
async fn a_hundred_volumes_of_one_identity_fetch_one_token() {
    let (fake, url) = Fake::start().await;
    let sources = TokenSources::new(https());
    let principal = |secret: &str| Identity::ServicePrincipal {
        tenant_id: "tenant-1".into(),
        client_id: "client-1".into(),
        secret: Secret::new(secret.to_owned()),
    };
    let volumes: Vec<_> = (0..100)
        .map(|_| sources.get(principal("s"), Some(url.clone())).unwrap())
        .collect();
    fake.will_give("access-1");
    let tokens = futures::future::join_all(volumes.iter().map(token)).await;
    assert!(tokens.iter().all(|token| token == "access-1"));
    assert_eq!(fake.asked.lock().unwrap().len(), 1);
    // Another secret, another authority, another pod: another source.
    let elsewhere = format!("{url}other").parse().unwrap();
    let given = || GivenToken::new("first.jwt".to_owned().into());
    let pods = [given(), given()].map(|token| workload(Assertion::Given(token)));
    let own = Identity::Managed {
        user_assigned: None,
        endpoint: None,
        secret: None,
    };
    let others = [
        (principal("t"), Some(url.clone())),
        (principal("s"), Some(elsewhere)),
        (principal("s"), None),
        (pods[0].clone(), Some(url.clone())),
        (pods[1].clone(), Some(url.clone())),
        (own, None),
    ];
    let mut seen = vec![volumes[0].clone()];
    for (identity, authority) in others {
        let source = sources.get(identity.clone(), authority.clone()).unwrap();
        assert!(
            seen.iter().all(|seen| !Arc::ptr_eq(seen, &source)),
            "{identity:?}"
        );
        let again = sources.get(identity, authority).unwrap();
        assert!(Arc::ptr_eq(&again, &source));
        seen.push(source);
    }
    // Gone with the last volume.
    drop((volumes, seen));
    assert_eq!(sources.len(), 0, "their secrets, too");
    fake.will_give("access-2");
    let source = sources.get(principal("s"), Some(url)).unwrap();
    assert_eq!(token(&source).await, "access-2");
}
