//! Bytes in and out: all sizes, alignments, many at once, straight into the caller's buffer.

use std::sync::Arc;

use vsc_driver::buffer::PAGE;
use vsc_driver::channel::{Abi, ChannelConfig, ChannelError, Data};
use vsc_driver::framing::RESPONSE_CAPACITY;
use vsc_driver::framing::response::STORE_SUCCESS;

use crate::fixture::{Fixture, answer, data_in, pattern_bytes, until, works};

/// Calls of the probe that reach a mock knowing both numbers (the kernel answers those with a null pointer).
const PROBE_CALLS: u64 = 2;

/// The most that fits beside one page of request and the response.
const MOST: usize = (32 << 20) - PAGE - RESPONSE_CAPACITY;

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_all_sizes_land_in_the_callers_buffer() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    for len in [
        1,
        2,
        4095,
        4096,
        4097,
        65_536,
        (1 << 20) + 3,
        8 << 20,
        MOST - 1,
        MOST,
    ] {
        let exchange = fixture.get(len);
        let Data::In(buffer) = &exchange.data else {
            panic!()
        };
        let address = buffer.as_ptr();
        let completion = channel.submit(exchange).await.unwrap();
        assert_eq!(completion.status, 0);
        let answer = answer(&completion).unwrap();
        assert_eq!(
            (answer.status, answer.http_status, answer.bytes_read),
            (STORE_SUCCESS, 200, Some(len as u64))
        );
        let buffer = data_in(&completion);
        assert!(
            buffer[..] == pattern_bytes(len)[..],
            "wrong bytes at length {len}"
        );
        // No copy on the way: the host was given this address, and the buffer has come back at it.
        assert_eq!(buffer.as_ptr(), address);
        let seen = fixture.mock.last_request().unwrap();
        assert_eq!(seen.data_buffer, address as u64);
        assert_eq!((seen.data_len, seen.data_valid), (len as u32, 0));
        assert_eq!(seen.data_buffer % PAGE as u64, 0);
    }
    let too_large = channel.submit(fixture.get(MOST + 1)).await.unwrap_err();
    assert!(
        matches!(too_large, ChannelError::TooLarge { pages: 8193 }),
        "{too_large}"
    );
    assert_eq!(
        fixture.mock.counters().refused,
        PROBE_CALLS,
        "nothing malformed was sent"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_of_all_sizes_and_alignments_arrive() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let mut source = fixture.arena.alloc(32 << 20).unwrap();
    source.copy_from_slice(&pattern_bytes(32 << 20));
    let source = source.freeze();
    for (start, len) in [
        (0, 0),
        (0, 1),
        (1, 1),
        (4095, 2),
        (1, 65_536),
        (17, (4 << 20) + 5),
        (0, MOST),
        (5, MOST - PAGE),
    ] {
        let slice = source.slice(start..start + len);
        let address = slice.as_ptr() as u64;
        let completion = channel
            .submit(fixture.rest("PUT", "/c/blob", Data::Out(slice)))
            .await
            .unwrap();
        assert_eq!(completion.status, 0);
        assert_eq!(answer(&completion).unwrap().http_status, 201);
        assert!(
            fixture.store.blobs.lock().unwrap()["/c/blob"] == source[start..start + len],
            "{start}+{len}"
        );
        let seen = fixture.mock.last_request().unwrap();
        assert_eq!((seen.data_len, seen.data_valid), (len as u32, len as u32));
        assert_eq!(seen.data_buffer, address);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_data_needs_no_buffer() {
    let fixture = Fixture::new();
    let completion = fixture
        .channel()
        .submit(fixture.rest("HEAD", "/pattern?len=5", Data::None))
        .await
        .unwrap();
    let answer = answer(&completion).unwrap();
    assert_eq!(
        (answer.http_status, answer.bytes_read, answer.body),
        (200, Some(0), None)
    );
    assert_eq!(fixture.mock.last_request().unwrap().data_len, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_requests_are_out_at_once_and_no_more() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.hold_next = 65);
    let submitted: Vec<_> = (0..65)
        .map(|i| {
            let (channel, exchange) = (channel.clone(), fixture.get(1000 + i));
            tokio::spawn(async move { channel.submit(exchange).await.unwrap() })
        })
        .collect();
    until("64 requests with the host", || fixture.mock.counters().held == 64).await;
    let stats = channel.stats();
    assert_eq!((stats.in_flight, stats.queued), (64, 1));
    assert_eq!(fixture.mock.faults().release(), 64);
    until("the last one with the host", || fixture.mock.counters().held == 1).await;
    fixture.mock.faults().release();
    for (i, task) in submitted.into_iter().enumerate() {
        assert!(data_in(&task.await.unwrap())[..] == pattern_bytes(1000 + i)[..]);
    }
    assert_eq!(fixture.mock.counters().most_in_flight, 64);
    assert_eq!(channel.stats().completed, 65);
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_of_many_runtimes_share_one_channel() {
    let fixture = Arc::new(Fixture::new());
    let channel = fixture.channel();
    let threads: Vec<_> = (0..64usize)
        .map(|thread| {
            let (fixture, channel) = (Arc::clone(&fixture), channel.clone());
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    for round in 1..=10 {
                        let len = thread * 1000 + round;
                        let completion = channel.submit(fixture.get(len)).await.unwrap();
                        assert!(data_in(&completion)[..] == pattern_bytes(len)[..]);
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(channel.stats().completed, 640);
    assert_eq!(fixture.arena.usage().allocated, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_abi_is_found_whichever_number_the_device_knows() {
    for (list, ubuntu, expected) in [
        (true, false, Some(Abi::List)),
        (false, true, Some(Abi::Ubuntu)),
        (true, true, Some(Abi::List)),
        (false, false, None),
    ] {
        let fixture = Fixture::with(e2e::vsp::Faults {
            knows_list: list,
            knows_ubuntu: ubuntu,
            ..Default::default()
        });
        match (vsc_driver::channel::Channel::open(fixture.config()), expected) {
            (Ok(channel), Some(abi)) => {
                assert_eq!(channel.abi(), abi);
                assert_eq!(fixture.mock.counters().requests, 0, "the probe sends nothing");
                works(&fixture, &channel).await.unwrap();
            }
            (Err(ChannelError::UnknownAbi { device }), None) => {
                assert_eq!(device, fixture.mock.device().display().to_string());
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_thread_is_enough_for_everything_in_turn() {
    let fixture = Fixture::new();
    let config = ChannelConfig {
        threads: 1,
        ..fixture.config()
    };
    let channel = vsc_driver::channel::Channel::open(config).unwrap();
    let all = (0..50).map(|_| works(&fixture, &channel));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(fixture.mock.counters().most_in_flight, 1);
}
