//! What goes through the pipe: OPEN, READ, CLOSE, the REST extension, and where its payloads end up.

use vsc_driver::channel::{Completion, Data};
use vsc_driver::framing::Method;
use vsc_driver::framing::request::{Close, Open, Read, SCHEMA_VERSION};
use vsc_driver::framing::response::{
    MAX_INLINE_BODY, STORE_PAYLOAD_TOO_LARGE, STORE_SUCCESS, STORE_UNREACHABLE,
};

use crate::fixture::{Fixture, answer, data_in, pattern_bytes};

fn read(handle_key: &str, offset: u64, length: u64) -> Read {
    Read {
        schema_version: SCHEMA_VERSION,
        handle_key: handle_key.into(),
        offset,
        length,
        authorization: None,
        client_request_id: "c-2".into(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn open_read_close() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let send = |method, body: serde_json::Value, data| {
        let exchange = fixture.exchange(method, &body, data);
        let channel = channel.clone();
        async move { channel.submit(exchange).await.unwrap() }
    };
    let json = |value| serde_json::to_value(value).unwrap();
    let open = |path: &str| Open {
        schema_version: SCHEMA_VERSION,
        url: format!("http://store{path}"),
        authorization: None,
        if_match: None,
        client_request_id: "c-1".into(),
    };

    let completion = send(
        Method::Open,
        serde_json::to_value(open("/none")).unwrap(),
        Data::None,
    )
    .await;
    let missing = answer(&completion).unwrap();
    assert_eq!(
        (completion.status, missing.http_status, missing.handle_key),
        (0, 404, None)
    );
    assert_ne!(missing.status, STORE_SUCCESS);
    assert_eq!(missing.error_description, "BlobNotFound");

    let completion = send(
        Method::Open,
        serde_json::to_value(open("/pattern?len=100000")).unwrap(),
        Data::None,
    )
    .await;
    let opened = answer(&completion).unwrap();
    assert_eq!(
        (opened.status, opened.response_type.as_str()),
        (STORE_SUCCESS, "Open")
    );
    assert_eq!(opened.x_ms_client_request_id.as_deref(), Some("c-1"));
    let key = opened.handle_key.unwrap();

    let buffer = || Data::In(fixture.arena.alloc(50_000).unwrap());
    let part: Completion = send(Method::Read, json(read(&key, 70_000, 50_000)), buffer()).await;
    let got = answer(&part).unwrap();
    assert_eq!(
        (got.http_status, got.bytes_read, got.response_type.as_str()),
        (206, Some(30_000), "Read")
    );
    assert_eq!(data_in(&part)[..30_000], pattern_bytes(100_000)[70_000..]);
    let past_the_end = send(Method::Read, json(read(&key, 100_000, 10)), buffer()).await;
    assert_eq!(answer(&past_the_end).unwrap().http_status, 416);
    let too_long = send(Method::Read, json(read(&key, 0, 50_001)), buffer()).await;
    assert_eq!(answer(&too_long).unwrap().http_status, 400);

    let close = Close {
        schema_version: 1,
        handle_key: key.clone(),
        client_request_id: "c-3".into(),
    };
    let close = serde_json::to_value(close).unwrap();
    let closed = send(Method::Close, close.clone(), Data::None).await;
    assert_eq!(answer(&closed).unwrap().status, STORE_SUCCESS);
    for after in [
        send(Method::Close, close, Data::None).await,
        send(Method::Read, json(read(&key, 0, 1)), buffer()).await,
    ] {
        assert_eq!(answer(&after).unwrap().http_status, 404);
    }
    let counters = fixture.mock.counters();
    assert_eq!(
        (counters.open, counters.read, counters.close, counters.rest),
        (2, 4, 2, 0)
    );
    assert_eq!(counters.requests, 8);
    assert_eq!(counters.bytes_out, 30_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_errors_travel_inside_and_leave_the_buffer_alone() {
    let fixture = Fixture::new();
    let mut buffer = fixture.arena.alloc(4096).unwrap();
    buffer.fill(0x77);
    let completion = fixture
        .channel()
        .submit(fixture.rest("GET", "/none", Data::In(buffer)))
        .await
        .unwrap();
    let answer = answer(&completion).unwrap();
    assert_eq!(
        (answer.status, answer.http_status, answer.bytes_read),
        (STORE_SUCCESS, 404, Some(0))
    );
    assert_eq!(answer.body.unwrap(), b"<Error><Code>BlobNotFound</Code></Error>");
    assert!(
        answer
            .headers
            .unwrap()
            .contains(&("x-ms-error-code".into(), "BlobNotFound".into()))
    );
    assert!(data_in(&completion).iter().all(|&b| b == 0x77));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_goes_inside_when_there_is_no_buffer_and_it_is_small() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let target = |len: usize| format!("/pattern?len={len}");
    let completion = channel
        .submit(fixture.rest("GET", &target(MAX_INLINE_BODY), Data::None))
        .await
        .unwrap();
    assert_eq!(
        answer(&completion).unwrap().body.unwrap(),
        pattern_bytes(MAX_INLINE_BODY)
    );
    let completion = channel
        .submit(fixture.rest("GET", &target(MAX_INLINE_BODY + 1), Data::None))
        .await
        .unwrap();
    assert_eq!(answer(&completion).unwrap().status, STORE_PAYLOAD_TOO_LARGE);
    let small = Data::In(fixture.arena.alloc(100).unwrap());
    let completion = channel
        .submit(fixture.rest("GET", &target(101), small))
        .await
        .unwrap();
    let answer = answer(&completion).unwrap();
    assert_eq!(
        (answer.status, answer.bytes_read),
        (STORE_PAYLOAD_TOO_LARGE, Some(0))
    );
    assert!(
        answer.error_description.contains("101"),
        "{}",
        answer.error_description
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_reached_is_told_apart_from_one_that_refuses() {
    let fixture = Fixture::new();
    let completion = fixture
        .channel()
        .submit(fixture.rest("GET", "/unreachable", Data::None))
        .await
        .unwrap();
    let answer = answer(&completion).unwrap();
    assert_eq!(
        (completion.status, answer.status, answer.http_status),
        (0, STORE_UNREACHABLE, 502)
    );
    assert_eq!(answer.error_description, "nobody there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_it_cannot_read_gets_a_host_status() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let mut exchange = fixture.get(10);
    exchange.request[40] ^= 1;
    let completion = channel.submit(exchange).await.unwrap();
    assert_ne!(completion.status, 0);
    assert_eq!(completion.response_len, 0);
    let not_a_request = fixture.exchange(Method::Rest, &"text", Data::None);
    assert_ne!(channel.submit(not_a_request).await.unwrap().status, 0);
}
