//! Everything that can go wrong between the caller and the host, one by one.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use e2e::vsp::{Behind, Spoil};
use vsc_driver::channel::{Channel, ChannelConfig, ChannelError, Data, Ledger};
use vsc_driver::framing::FrameError;
use vsc_driver::uapi::STATUS_TIMEOUT;

use crate::fixture::{Fixture, answer, data_in, until, works};

/// An exchange the host gets a second for.
fn impatient(fixture: &Fixture) -> vsc_driver::channel::Exchange {
    let mut exchange = fixture.get(10_000);
    exchange.timeout = Duration::ZERO; // clamped to one second
    exchange
}

/// A channel that has room for so many requests of [`impatient`]'s size, and the bytes of one.
fn narrow(fixture: &Fixture, requests: usize) -> (Channel, usize) {
    let one = fixture.get(10_000);
    let bytes = one.request.capacity() + one.response.capacity() + 4 * 4096;
    let channel = Channel::open(ChannelConfig {
        stuck_after: usize::MAX,
        most_bytes: requests * bytes,
        ..fixture.config()
    });
    (channel.unwrap(), bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_ring_is_waited_for_and_counted() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.eagain_next = 25);
    works(&fixture, &channel).await.unwrap();
    assert_eq!(channel.stats().eagain, 25);
    assert_eq!(fixture.mock.counters().eagain, 25);

    fixture.mock.faults().update(|f| f.eagain_probability = 0.5);
    let all = (0..200).map(|_| works(&fixture, &channel));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    assert!(channel.stats().eagain > 25);
    assert_eq!(channel.stats().completed, 201);

    fixture.mock.faults().reset();
    fixture.mock.faults().update(|f| f.ring = 2);
    let all = (0..50).map(|_| works(&fixture, &channel));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
}

/// A process that may not is told so; the host has seen nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_driver_does_not_take_was_not_sent() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.deny_next = 1);
    let error = works(&fixture, &channel).await.unwrap_err();
    assert!(matches!(error, ChannelError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("credentials"), "{error}");
    assert_eq!(fixture.mock.counters().requests, 0);
    assert_eq!(fixture.arena.usage().allocated, 0);
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ring_that_stays_full_is_busy_at_the_deadline() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.eagain_next = u64::MAX);
    let error = channel.submit(impatient(&fixture)).await.unwrap_err();
    assert!(matches!(error, ChannelError::Busy), "{error}");
    assert_eq!(channel.stats().written_off, 0);
    assert_eq!(fixture.arena.usage().allocated, 0);
    fixture.mock.faults().reset();
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_device_is_gone_and_is_opened_again_when_it_is_back() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    works(&fixture, &channel).await.unwrap();
    fixture.mock.faults().update(|f| f.gone_after = Some(1));
    works(&fixture, &channel).await.unwrap();
    let error = works(&fixture, &channel).await.unwrap_err();
    assert!(matches!(error, ChannelError::Gone { .. }), "{error}");
    assert!(!fixture.mock.device().exists());
    // Refused at once, without asking the device, while the back-off lasts.
    assert!(matches!(
        works(&fixture, &channel).await,
        Err(ChannelError::Gone { .. })
    ));
    assert!(matches!(channel.check().await, Err(ChannelError::Gone { .. })));

    fixture.mock.faults().reset();
    assert!(fixture.mock.device().exists());
    let mut refused = 0;
    while let Err(error) = works(&fixture, &channel).await {
        assert!(matches!(error, ChannelError::Gone { .. }), "{error}");
        refused += 1;
        assert!(refused < 10_000, "the device is back and the channel is not");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(channel.stats().reopened, 1);
    assert_eq!(channel.check().await.unwrap(), channel.abi());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_back_by_itself_with_the_other_abi() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| {
        f.gone = true;
        f.return_after = Some(1);
        f.knows_list = false;
    });
    assert!(works(&fixture, &channel).await.is_err());
    let mut tries = 0;
    while channel.check().await.is_err() {
        tries += 1;
        assert!(tries < 10_000);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(channel.abi(), vsc_driver::channel::Abi::Ubuntu);
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_with_the_host_survive_the_removal() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.hold_next = 1);
    let out = {
        let (channel, exchange) = (channel.clone(), fixture.get(5000));
        tokio::spawn(async move { channel.submit(exchange).await })
    };
    until("the request is held", || fixture.mock.counters().held == 1).await;
    fixture.mock.faults().update(|f| f.gone = true);
    assert!(matches!(
        works(&fixture, &channel).await,
        Err(ChannelError::Gone { .. })
    ));
    fixture.mock.faults().release();
    assert_eq!(
        answer(&out.await.unwrap().unwrap()).unwrap().bytes_read,
        Some(5000)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_never_returns_keeps_its_buffers_until_it_does() {
    let fixture = Fixture::new();
    let channel = Channel::open(ChannelConfig {
        stuck_after: 2,
        ..fixture.config()
    })
    .unwrap();
    fixture.mock.faults().update(|f| f.hold_next = 2);

    let error = channel.submit(impatient(&fixture)).await.unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    assert_eq!(channel.stats().written_off, 1);
    let kept = fixture.arena.usage().allocated;
    assert!(
        kept >= 10_000 + 32 * 1024,
        "the host may still write into {kept} bytes"
    );

    // One lost request does not stop the others... (the second is held, too, and then it is two)
    let error = channel.submit(impatient(&fixture)).await.unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    let error = works(&fixture, &channel).await.unwrap_err();
    assert!(
        matches!(error, ChannelError::Stuck { written_off: 2, .. }),
        "{error}"
    );
    assert!(matches!(channel.check().await, Err(ChannelError::Stuck { .. })));
    let before = fixture.mock.counters().requests;

    assert_eq!(fixture.mock.faults().release(), 2);
    until("the lost threads are back", || channel.stats().written_off == 0).await;
    until("their buffers are free", || fixture.arena.usage().allocated == 0).await;
    assert_eq!(fixture.mock.counters().requests, before + 2);
    works(&fixture, &channel).await.unwrap();
}

/// Bytes that are lost now.
#[derive(Debug, Default)]
struct Books(Arc<AtomicUsize>);

/// One entry.
struct Entry(usize, Arc<AtomicUsize>);

impl Ledger for Books {
    fn lost(&self, bytes: usize) -> Box<dyn Any + Send> {
        self.0.fetch_add(bytes, Ordering::SeqCst);
        Box::new(Entry(bytes, Arc::clone(&self.0)))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_keeps_of_requests_that_nobody_waits_for_is_in_the_books() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let books = Arc::new(Books::default());
    let lost = || books.0.load(Ordering::SeqCst);
    fixture.mock.faults().update(|f| f.hold_next = 2);

    // One is given up.
    let ledger = Arc::clone(&books) as Arc<dyn Ledger>;
    let error = channel
        .submit_for(impatient(&fixture), Some(Arc::clone(&ledger)))
        .await
        .unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    let of_one = fixture.arena.usage().allocated;
    assert_eq!((lost(), channel.stats().lost_bytes), (of_one, of_one));

    // The caller of the other leaves.
    let other = channel.clone();
    let exchange = fixture.get(10_000);
    let leaves = tokio::spawn(async move { other.submit_for(exchange, Some(ledger)).await });
    until("it is with the host", || channel.stats().in_flight == 2).await;
    assert_eq!(lost(), of_one, "somebody waits for it");
    leaves.abort();
    assert!(leaves.await.unwrap_err().is_cancelled());
    let of_both = fixture.arena.usage().allocated;
    assert_eq!((lost(), channel.stats().lost_bytes), (of_both, of_both));
    assert!(of_both > of_one);

    // What is answered is in no books.
    works(&fixture, &channel).await.unwrap();
    assert_eq!(lost(), of_both);

    assert_eq!(fixture.mock.faults().release(), 2);
    until("nothing is lost any more", || lost() == 0).await;
    until("their buffers are free", || fixture.arena.usage().allocated == 0).await;
    assert_eq!(channel.stats().lost_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_keeps_so_many_bytes_and_then_gets_no_more() {
    let fixture = Fixture::new();
    let (channel, bytes) = narrow(&fixture, 4);
    fixture.mock.faults().update(|f| f.hold_next = u64::MAX);
    let all = (0..12).map(|_| {
        let (channel, exchange) = (channel.clone(), impatient(&fixture));
        tokio::spawn(async move { channel.submit(exchange).await })
    });
    let all: Vec<_> = all.collect();
    until("the host has as many as it may", || {
        channel.stats().in_flight == 4
    })
    .await;
    assert_eq!(channel.stats().queued, 8);
    for one in all {
        let error = one.await.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                ChannelError::TimedOut { .. } | ChannelError::Busy | ChannelError::Stuck { .. }
            ),
            "{error}"
        );
        assert!(channel.stats().in_flight <= 4);
    }
    assert_eq!(channel.stats().lost_bytes, 4 * bytes);
    assert_eq!(fixture.arena.usage().allocated, 4 * bytes);
    let error = works(&fixture, &channel).await.unwrap_err();
    assert!(matches!(error, ChannelError::Stuck { .. }), "{error}");

    fixture.mock.faults().reset();
    assert_eq!(fixture.mock.faults().release(), 4);
    until("nothing is lost any more", || channel.stats().lost_bytes == 0).await;
    works(&fixture, &channel).await.unwrap();
}

/// In a channel for a small budget: what is lost leaves room for one request, however large that is.
#[tokio::test(flavor = "multi_thread")]
async fn one_lost_request_keeps_no_larger_one_back() {
    let fixture = Fixture::new();
    let (channel, bytes) = narrow(&fixture, 2);
    fixture.mock.faults().update(|f| f.hold_next = 1);
    let error = channel.submit(impatient(&fixture)).await.unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut { .. }), "{error}");
    until("it is lost", || channel.stats().lost_bytes == bytes).await;
    let completion = channel.submit(fixture.get(8 * bytes)).await.unwrap();
    assert_eq!(data_in(&completion).len(), 8 * bytes);
    assert_eq!(fixture.mock.faults().release(), 1);
    until("nothing is lost any more", || channel.stats().lost_bytes == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_out_delay_others_and_fail_none() {
    let fixture = Fixture::new();
    // Each of them is alone with the host.
    let channel = Channel::open(ChannelConfig {
        most_bytes: 1,
        ..fixture.config()
    })
    .unwrap();
    let all = (0..200).map(|_| works(&fixture, &channel));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    assert_eq!(channel.stats().completed, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_threads_are_replaced() {
    let fixture = Fixture::new();
    let config = ChannelConfig {
        threads: 1,
        stuck_after: 3,
        ..fixture.config()
    };
    let channel = Channel::open(config).unwrap();
    for lost in 1..=2 {
        fixture.mock.faults().update(|f| f.hold_next = 1);
        assert!(matches!(
            channel.submit(impatient(&fixture)).await,
            Err(ChannelError::TimedOut { .. })
        ));
        assert_eq!(channel.stats().written_off, lost);
        works(&fixture, &channel).await.unwrap();
    }
    fixture.mock.faults().release();
    until("the lost threads are back", || channel.stats().written_off == 0).await;
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_request_is_taken_back_at_its_deadline() {
    let fixture = Fixture::new();
    let channel = Channel::open(ChannelConfig {
        threads: 1,
        ..fixture.config()
    })
    .unwrap();
    fixture.mock.faults().update(|f| f.hold_next = 1);
    let held = {
        let (channel, exchange) = (channel.clone(), fixture.get(5000));
        tokio::spawn(async move { channel.submit(exchange).await })
    };
    until("the only thread is taken", || fixture.mock.counters().held == 1).await;
    let error = channel.submit(impatient(&fixture)).await.unwrap_err();
    assert!(
        matches!(error, ChannelError::Busy),
        "it never reached the host: {error}"
    );
    assert_eq!(channel.stats().queued, 0);
    fixture.mock.faults().release();
    held.await.unwrap().unwrap();
    assert_eq!(fixture.mock.counters().requests, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_future_leaves_its_buffers_with_the_host() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.hold_next = 1);
    let task = {
        let (channel, exchange) = (channel.clone(), fixture.get(100_000));
        tokio::spawn(async move { channel.submit(exchange).await })
    };
    until("the request is held", || fixture.mock.counters().held == 1).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(fixture.arena.usage().allocated >= 100_000);
    fixture.mock.faults().release();
    until("the buffers are free", || fixture.arena.usage().allocated == 0).await;
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_within_the_grace_counts() {
    let fixture = Fixture::new();
    let channel = Channel::open(ChannelConfig {
        grace: Duration::from_secs(20),
        ..fixture.config()
    })
    .unwrap();
    fixture.mock.faults().update(|f| {
        f.late_next = 1;
        f.late_ms = 1200;
    });
    let completion = channel.submit(impatient(&fixture)).await.unwrap();
    assert_eq!(answer(&completion).unwrap().bytes_read, Some(10_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_keeps_the_timeout_it_is_given() {
    let fixture = Fixture::new();
    fixture.mock.faults().update(|f| f.latency_us = 60_000_000);
    let completion = fixture.channel().submit(impatient(&fixture)).await.unwrap();
    assert_eq!((completion.status, completion.response_len), (STATUS_TIMEOUT, 0));
    let given = fixture.mock.last_request().unwrap().timeout_ms;
    assert!((1..=1000).contains(&given), "{given} ms of one second");
}

#[tokio::test(flavor = "multi_thread")]
async fn spoiled_responses_are_errors_of_the_frame() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    let spoil = |spoil| {
        fixture.mock.faults().update(|f| {
            f.spoil = spoil;
            f.spoil_next = 1;
        });
        channel.submit(fixture.get(10_000))
    };
    let frame = |completion| answer(&completion).unwrap_err();
    assert!(matches!(
        frame(spoil(Spoil::Short).await.unwrap()),
        FrameError::Crc { .. }
    ));
    assert!(matches!(
        frame(spoil(Spoil::Empty).await.unwrap()),
        FrameError::Length { len: 0, .. }
    ));
    assert!(matches!(
        frame(spoil(Spoil::Crc).await.unwrap()),
        FrameError::Crc { .. }
    ));
    assert!(matches!(
        frame(spoil(Spoil::Body).await.unwrap()),
        FrameError::Crc { .. }
    ));
    assert!(matches!(
        frame(spoil(Spoil::Magic).await.unwrap()),
        FrameError::Magic
    ));
    assert!(matches!(
        frame(spoil(Spoil::Json).await.unwrap()),
        FrameError::Json(_)
    ));
    // The response buffer is the one of the request before, with that one's answer in it.
    works(&fixture, &channel).await.unwrap();
    assert!(matches!(
        frame(spoil(Spoil::Unwritten).await.unwrap()),
        FrameError::Magic
    ));
    let error = spoil(Spoil::Overlong).await.unwrap_err();
    assert!(matches!(error, ChannelError::Io { call: "ioctl", .. }), "{error}");
    // What the kernel module says of an answer that makes no sense: an error, and nothing of the device's own
    // that is gone or full.
    let error = spoil(Spoil::Protocol).await.unwrap_err();
    let ChannelError::Io {
        call: "ioctl",
        source,
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(source.raw_os_error(), Some(nix::errno::Errno::EPROTO as i32));
    let half = answer(&spoil(Spoil::Data).await.unwrap()).unwrap();
    assert_eq!(
        half.bytes_read,
        Some(5000),
        "well-formed: the client has to notice"
    );
    works(&fixture, &channel).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn host_statuses_come_through_and_a_missing_one_is_noticed() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    for status in [1, STATUS_TIMEOUT, u32::MAX] {
        fixture.mock.faults().update(|f| {
            f.status = status;
            f.status_next = 1;
        });
        let completion = channel.submit(fixture.get(10)).await.unwrap();
        assert_eq!((completion.status, completion.response_len), (status, 0));
    }
    fixture.mock.faults().update(|f| f.silent_next = 1);
    let error = channel.submit(fixture.get(10)).await.unwrap_err();
    assert!(error.to_string().contains("without a status"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vsp_without_the_extension_refuses_it() {
    let fixture = Fixture::new();
    fixture.mock.faults().update(|f| f.refuse_rest = true);
    let completion = fixture.channel().submit(fixture.get(10)).await.unwrap();
    assert_ne!(completion.status, 0);
    assert_eq!((completion.response_len, fixture.mock.counters().unknown), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_is_shared() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.bytes_per_second = 4 << 20);
    let started = std::time::Instant::now();
    let all = (0..4).map(|_| channel.submit(fixture.get(256 << 10)));
    for result in futures::future::join_all(all).await {
        result.unwrap();
    }
    // A lower bound, so a slow machine cannot fail it.
    assert!(started.elapsed() >= Duration::from_millis(250));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mock_goes_away_under_an_open_channel() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.hold_next = 1);
    let held = {
        let (channel, exchange) = (
            channel.clone(),
            fixture.rest("HEAD", "/pattern?len=1", Data::None),
        );
        tokio::spawn(async move { channel.submit(exchange).await })
    };
    until("the request is held", || fixture.mock.counters().held == 1).await;
    let device = fixture.mock.device();
    drop(fixture);
    assert!(!device.exists(), "still mounted");
    // Answered or dropped, but never left hanging.
    let _ = held.await.unwrap();
    until("nothing is out", || channel.stats().in_flight == 0).await;
}

/// A thread of a process that ends while it waits for a server of the same process would keep that process
/// for ever.
#[test]
fn a_device_still_open_when_the_mock_goes_is_let_go() {
    let fixture = Fixture::new();
    let device = std::fs::File::open(fixture.mock.device()).unwrap();
    drop(fixture);
    assert_eq!(
        device
            .metadata()
            .and_then(|_| device.sync_all())
            .unwrap_err()
            .raw_os_error(),
        Some(libc::ENOTCONN)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_by_the_control_file() {
    let fixture = Fixture::new();
    let control = fixture.dir().join(e2e::vsp::CONTROL_NAME);
    std::fs::write(&control, "eagain_next=2 latency_us=10\n").unwrap();
    works(&fixture, &fixture.channel()).await.unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&std::fs::read(&control).unwrap()).unwrap();
    assert_eq!(shown["counters"]["eagain"], 2);
    assert_eq!(shown["counters"]["rest"], 1);
    assert_eq!(shown["faults"]["latency_us"], 10);
    assert_eq!(shown["last_error"], serde_json::Value::Null);

    assert!(std::fs::write(&control, "no_such_fault=1\n").is_err());
    let shown = std::fs::read_to_string(&control).unwrap();
    assert!(shown.contains("no_such_fault"), "{shown}");
    std::fs::write(&control, "reset\n").unwrap();
    assert_eq!(fixture.mock.faults().get(), e2e::vsp::Faults::default());
    assert!(
        std::fs::read(fixture.mock.device()).is_err(),
        "the device has neither read nor write"
    );
}

/// What the host executes after its caller has given up: the caller of the channel is told that it may have
/// been executed, and it is, later.
#[tokio::test(flavor = "multi_thread")]
async fn a_postponed_request_is_executed_when_it_is_released() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    fixture.mock.faults().update(|f| f.postpone_next = 1);
    let out = {
        let (channel, exchange) = (channel.clone(), fixture.get(5000));
        tokio::spawn(async move { channel.submit(exchange).await })
    };
    until("the request is held", || fixture.mock.counters().held == 1).await;
    assert_eq!(fixture.mock.counters().rest, 0, "it is not executed yet");
    fixture.mock.faults().release();
    let answered = out.await.unwrap().unwrap();
    assert_eq!(answer(&answered).unwrap().bytes_read, Some(5000));
    assert_eq!(fixture.mock.counters().rest, 1);
}

/// The host is well, and the way from it to the service is not.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_behind_the_host_is_told_by_it() {
    let fixture = Fixture::new();
    let channel = fixture.channel();
    for (behind, status) in [
        (Behind::Unreachable, 502),
        (Behind::Lost, 502),
        (Behind::Foreign, 404),
        (Behind::Doubled, 200),
    ] {
        fixture.mock.faults().update(|f| {
            f.behind = behind;
            f.behind_next = 1;
        });
        let completion = channel.submit(fixture.get(10)).await.unwrap();
        assert_eq!(answer(&completion).unwrap().http_status, status, "{behind:?}");
        works(&fixture, &channel).await.unwrap();
    }
}
