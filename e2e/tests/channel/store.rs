//! The mock in front of the embedded store, in process and over HTTP: the same requests, the same answers.

use std::sync::Arc;

use e2e::store::{BlobStore, StoreConfig};
use e2e::vsp::{Backend, HttpBackend, MockVsp};
use vsc_driver::channel::{Channel, Completion, Data};
use vsc_driver::framing::Method;
use vsc_driver::framing::request::{Authorization, Close, Open, Read, Rest, SCHEMA_VERSION};
use vsc_driver::framing::response::STORE_SUCCESS;

use crate::fixture::{Fixture, answer, data_in, pattern_bytes};

const TOKEN: &str = "token-of-the-test";
const LEN: usize = 3 << 20;

/// Puts a blob, reads a range by REST and by handle, and looks for one that is not there.
async fn round_trip(fixture: &Fixture, channel: &Channel, endpoint: &str) {
    let rest = |method: &str, blob: &str, more: &[(&str, &str)], data: Data| {
        let mut headers = vec![
            ("authorization".to_owned(), format!("Bearer {TOKEN}")),
            ("x-ms-version".into(), "2021-12-02".into()),
        ];
        headers.extend(
            more.iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned())),
        );
        let body = Rest {
            schema_version: SCHEMA_VERSION,
            method: method.into(),
            target: format!("{endpoint}/box/{blob}"),
            headers,
        };
        let exchange = fixture.exchange(Method::Rest, &body, data);
        let channel = channel.clone();
        async move { channel.submit(exchange).await.unwrap() }
    };
    let mut source = fixture.arena.alloc(LEN).unwrap();
    source.copy_from_slice(&pattern_bytes(LEN));
    let put = rest(
        "PUT",
        "a%20b",
        &[("x-ms-blob-type", "BlockBlob")],
        Data::Out(source.freeze()),
    )
    .await;
    let put = answer(&put).unwrap();
    assert_eq!(
        (put.status, put.http_status),
        (STORE_SUCCESS, 201),
        "{put:?} {:?}",
        put.body.clone().map(String::from_utf8)
    );

    let buffer = || Data::In(fixture.arena.alloc(1 << 20).unwrap());
    let range = [("x-ms-range", "bytes=1000-1048575")];
    let got: Completion = rest("GET", "a%20b", &range, buffer()).await;
    let (description, bytes) = (answer(&got).unwrap(), data_in(&got));
    assert_eq!(
        (description.http_status, description.bytes_read),
        (206, Some(1_047_576))
    );
    assert!(bytes[..1_047_576] == pattern_bytes(1 << 20)[1000..]);

    let missing = answer(&rest("GET", "none", &[], buffer()).await).unwrap();
    assert_eq!(missing.http_status, 404);
    assert!(
        String::from_utf8(missing.body.unwrap())
            .unwrap()
            .contains("BlobNotFound")
    );

    let authorization = Some(Authorization {
        kind: "AadBearer".into(),
        token: TOKEN.into(),
    });
    let open = |authorization| Open {
        schema_version: SCHEMA_VERSION,
        url: format!("{endpoint}/box/a%20b"),
        authorization,
        if_match: None,
        client_request_id: "c".into(),
    };
    let refused = channel
        .submit(fixture.exchange(Method::Open, &open(None), Data::None))
        .await
        .unwrap();
    let refused = answer(&refused).unwrap();
    assert!(
        (400..500).contains(&refused.http_status) && refused.handle_key.is_none(),
        "{refused:?}"
    );
    let opened = channel
        .submit(fixture.exchange(Method::Open, &open(authorization), Data::None))
        .await
        .unwrap();
    let handle_key = answer(&opened).unwrap().handle_key.unwrap();
    let read = Read {
        schema_version: SCHEMA_VERSION,
        handle_key: handle_key.clone(),
        offset: LEN as u64 - 100,
        length: 1 << 20,
        authorization: None,
        client_request_id: "c".into(),
    };
    let tail = channel
        .submit(fixture.exchange(Method::Read, &read, buffer()))
        .await
        .unwrap();
    assert_eq!(answer(&tail).unwrap().bytes_read, Some(100));
    assert_eq!(data_in(&tail)[..100], pattern_bytes(LEN)[LEN - 100..]);
    let close = Close {
        schema_version: SCHEMA_VERSION,
        handle_key,
        client_request_id: "c".into(),
    };
    let closed = channel
        .submit(fixture.exchange(Method::Close, &close, Data::None))
        .await
        .unwrap();
    assert_eq!(answer(&closed).unwrap().status, STORE_SUCCESS);
}

fn store() -> Arc<BlobStore> {
    let store = BlobStore::new(StoreConfig::default()).unwrap();
    store.accept_token(TOKEN);
    store.create_container("box").unwrap();
    store
}

async fn behind(backend: Arc<dyn Backend>, endpoint: &str) {
    // The fixture lends its arena and exchanges; the requests go to a second mock.
    let fixture = Fixture::new();
    let dir = tempfile::tempdir().unwrap();
    let mock = MockVsp::mount(dir.path(), backend).unwrap();
    let config = vsc_driver::channel::ChannelConfig {
        device: mock.device(),
        ..Default::default()
    };
    let channel = Channel::open(config).unwrap();
    round_trip(&fixture, &channel, endpoint).await;
    assert!(mock.counters().rest >= 3 && fixture.mock.counters().rest == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_process() {
    behind(store(), "http://store.test/devstoreaccount1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_endpoint_the_request_names() {
    let server = store().serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let endpoint = server.endpoint().to_string();
    behind(
        Arc::new(HttpBackend::new(None).unwrap()),
        endpoint.trim_end_matches('/'),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_an_endpoint_of_its_own() {
    let server = store().serve(([127, 0, 0, 1], 0).into()).await.unwrap();
    let endpoint = server.endpoint().as_str().parse().unwrap();
    let backend = HttpBackend::new(Some(&endpoint)).unwrap();
    behind(Arc::new(backend), "http://somewhere.else.test/devstoreaccount1").await;
    assert!(HttpBackend::new(Some(&"/no/host".parse().unwrap())).is_err());
}
