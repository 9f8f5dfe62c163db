//! Golden bytes of struct and headers, and properties: any cut or flipped bit is an error, nothing panics.

use proptest::prelude::*;

use super::request::{Authorization, Close, Open, Read, Rest, SCHEMA_VERSION};
use super::response::{Response, STORE_SUCCESS};
use super::*;
use crate::uapi::{REQUEST_SIZE, RequestSync, STATUS_POISON};

fn read() -> Read {
    Read {
        schema_version: SCHEMA_VERSION,
        handle_key: "0f8fad5b-d9cb-469f-a165-70867728950e".into(),
        offset: 4096,
        length: 1 << 20,
        authorization: None,
        client_request_id: "11111111-2222-3333-4444-555555555555".into(),
    }
}

fn answer() -> Response {
    Response {
        schema_version: SCHEMA_VERSION,
        response_type: "Read".into(),
        status: STORE_SUCCESS,
        http_status: 206,
        error_description: "OK".into(),
        elapsed_time_ms: 1.5,
        x_ms_request_id: Some("aaaaaaaa-0000-0000-0000-000000000000".into()),
        bytes_read: Some(1 << 20),
        ..Response::default()
    }
}

#[test]
fn request_matches_the_golden_bytes() {
    let golden = include_bytes!("../../tests/golden/read-request.bin");
    let mut buffer = [0xEE; 4096];
    let len = encode_request(Method::Read, &read(), &mut buffer).unwrap();
    assert_eq!(&buffer[..len], golden);
    let frame = decode_request(golden).unwrap();
    assert_eq!(Method::from_code(frame.method), Some(Method::Read));
    assert_eq!(serde_json::from_slice::<Read>(frame.body).unwrap(), read());
}

#[test]
fn response_matches_the_golden_bytes() {
    let golden = include_bytes!("../../tests/golden/read-response.bin");
    let mut buffer = [0xEE; 4096];
    let len = encode_response(&answer(), &mut buffer).unwrap();
    assert_eq!(&buffer[..len], golden);
    assert_eq!(
        decode_response::<Response>(golden, golden.len() as u32).unwrap(),
        answer()
    );
}

#[test]
fn struct_matches_the_golden_bytes() {
    let golden: &[u8; REQUEST_SIZE] = include_bytes!("../../tests/golden/request-sync.bin");
    let request = RequestSync {
        guid: *b"0123456789abcdef",
        timeout_ms: 30_000,
        request_len: 200,
        response_len: 32_768,
        data_len: 1 << 20,
        data_valid: 0,
        reserved: 0,
        request_buffer: 0x7f00_0000_1000,
        response_buffer: 0x7f00_0000_2000,
        data_buffer: 0x7f00_0010_0000,
        status: STATUS_POISON,
        answer_len: 0x0102_0304,
    };
    assert_eq!(&request.to_bytes(), golden);
    assert_eq!(RequestSync::from_bytes(golden), request);
}

#[test]
fn the_published_response_is_understood() {
    // Field names and values as in the public tests of Hadoop's client; the order and the rest are free.
    let json = r#"{"responseType":"Open","schemaVersion":1,"handleKey":"39133dbe-0000-0000-0000-000000000000",
        "crc64":0,"status":1001,"httpStatus":200,"elapsedTimeMs":0,"errorDescription":"OK","xMsRequestId":"r",
        "xMsClientRequestId":"c","xMsVersion":"2019-12-12",
        "responseTimestamp":"Thu, 01 Jan 1970 00:00:00 GMT"}"#;
    let body: Response = serde_json::from_str(json).unwrap();
    assert_eq!((body.status, body.http_status), (STORE_SUCCESS, 200));
    assert_eq!(
        body.handle_key.as_deref(),
        Some("39133dbe-0000-0000-0000-000000000000")
    );
}

#[test]
fn checksum_is_the_storage_one() {
    assert_eq!(CRC64.checksum(b"123456789"), 0xAE8B_1486_0A79_9888);
}

#[test]
fn a_body_that_does_not_fit_says_what_it_needs() {
    let mut buffer = [0; 64];
    match encode_request(Method::Read, &read(), &mut buffer) {
        Err(FrameError::Length { len, most: 64, .. }) => {
            let mut enough = vec![0; len];
            assert_eq!(encode_request(Method::Read, &read(), &mut enough).unwrap(), len);
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        encode_response(&answer(), &mut [0; 31]),
        Err(FrameError::Length { .. })
    ));
}

#[test]
fn a_length_beyond_the_buffer_is_an_error() {
    let golden = include_bytes!("../../tests/golden/read-response.bin");
    for len in [golden.len() as u32 + 1, u32::MAX] {
        assert!(matches!(
            decode_response::<Response>(golden, len),
            Err(FrameError::Length { .. })
        ));
    }
}

#[test]
fn another_format_is_refused_even_with_a_good_checksum() {
    let mut buffer = [0; 4096];
    let len = encode_response(&answer(), &mut buffer).unwrap();
    buffer[8] = 2;
    let crc = checksum(&buffer[..len]);
    buffer[16..24].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(
        decode_response::<Response>(&buffer, len as u32),
        Err(FrameError::Format(2))
    ));
}

#[test]
fn debug_shows_no_secret() {
    let authorization = Some(Authorization {
        kind: "AadBearer".into(),
        token: "SECRET".into(),
    });
    let url = String::from("https://a.blob.core.windows.net/c/b?sig=SECRET");
    let open = Open {
        schema_version: 1,
        url: url.clone(),
        authorization: authorization.clone(),
        if_match: None,
        client_request_id: "id".into(),
    };
    let rest = Rest {
        schema_version: 1,
        method: "GET".into(),
        target: url,
        headers: vec![("authorization".into(), "SECRET".into())],
    };
    let read = Read {
        authorization,
        ..read()
    };
    let close = Close {
        schema_version: 1,
        handle_key: "k".into(),
        client_request_id: "id".into(),
    };
    let mut buffer = [0; 1024];
    let len = encode_request(Method::Open, &open, &mut buffer).unwrap();
    let frame = decode_request(&buffer[..len]).unwrap();
    let shown = format!("{open:?} {rest:?} {read:?} {close:?} {frame:?}");
    assert!(!shown.contains("SECRET") && !shown.contains("83, 69"), "{shown}");
}

fn body() -> impl Strategy<Value = Response> {
    let header = (".{0,20}", ".{0,40}");
    let headers = prop::option::of(prop::collection::vec(header, 0..8));
    let inline = prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
    (
        headers,
        inline,
        any::<i64>(),
        any::<u16>(),
        ".{0,30}",
        prop::option::of(any::<u64>()),
    )
        .prop_map(
            |(headers, body, status, http_status, error_description, bytes_read)| Response {
                schema_version: 1,
                response_type: "Rest".into(),
                status,
                http_status,
                error_description,
                bytes_read,
                headers,
                body,
                ..Response::default()
            },
        )
}

proptest! {
    #[test]
    fn responses_round_trip(body in body()) {
        let mut buffer = vec![0; RESPONSE_CAPACITY];
        let len = encode_response(&body, &mut buffer).unwrap();
        prop_assert_eq!(decode_response::<Response>(&buffer, len as u32).unwrap(), body);
    }

    #[test]
    fn every_cut_is_an_error(body in body(), at in any::<prop::sample::Index>()) {
        let mut buffer = vec![0; RESPONSE_CAPACITY];
        let len = encode_response(&body, &mut buffer).unwrap();
        prop_assert!(decode_response::<Response>(&buffer, at.index(len) as u32).is_err());
        let len = encode_request(Method::Rest, &body, &mut buffer).unwrap();
        prop_assert!(decode_request(&buffer[..at.index(len)]).is_err());
    }

    #[test]
    fn every_flipped_bit_is_an_error(body in body(), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut buffer = vec![0; RESPONSE_CAPACITY];
        let len = encode_response(&body, &mut buffer).unwrap();
        buffer[at.index(len)] ^= 1u8 << bit;
        prop_assert!(decode_response::<Response>(&buffer, len as u32).is_err());
        let len = encode_request(Method::Rest, &body, &mut buffer).unwrap();
        buffer[at.index(len)] ^= 1u8 << bit;
        prop_assert!(decode_request(&buffer[..len]).is_err());
    }

    #[test]
    fn noise_never_panics(
        noise in prop::collection::vec(any::<u8>(), 0..300),
        len in any::<u32>(),
        magic in any::<bool>(),
    ) {
        let mut noise = noise;
        if magic && noise.len() >= 8 {
            noise[..8].copy_from_slice(RESPONSE_MAGIC);
        }
        prop_assert!(decode_response::<Response>(&noise, len).is_err());
        prop_assert!(decode_request(&noise).is_err());
    }

    #[test]
    fn struct_round_trips(bytes in prop::collection::vec(any::<u8>(), REQUEST_SIZE)) {
        let bytes: [u8; REQUEST_SIZE] = bytes.try_into().unwrap();
        prop_assert_eq!(RequestSync::from_bytes(&bytes).to_bytes(), bytes);
    }
}
