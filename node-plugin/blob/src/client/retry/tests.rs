//! Many volumes of an account that bears only so many requests a second, in virtual time.

use std::collections::HashMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::*;
use crate::auth::Credentials;
use crate::client::{Client, ClientConfig};
use crate::pace::Accounts;
use crate::patience::Patience;
use crate::response::Response;
use crate::transport::{PathStats, Transport, TransportError};
use crate::types::Condition;

/// Requests a second.
const RATE: f64 = 1000.0;
const ROUND_TRIP: Duration = Duration::from_millis(10);

/// Answers so many a second, and turns the rest away.
#[derive(Debug)]
struct Throttling {
    /// Requests that are left, and when they were counted.
    left: Mutex<(f64, Instant)>,
    turned_away: Mutex<u64>,
}

impl Throttling {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            left: Mutex::new((0.0, Instant::now())),
            turned_away: Mutex::default(),
        })
    }

    fn admits(&self) -> bool {
        let mut left = self.left.lock().unwrap();
        let now = Instant::now();
        left.0 = (left.0 + (now - left.1).as_secs_f64() * RATE).min(RATE / 20.0);
        left.1 = now;
        let admits = left.0 >= 1.0;
        if admits {
            left.0 -= 1.0;
        }
        admits
    }
}

#[async_trait]
impl Transport for Throttling {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        tokio::time::sleep(ROUND_TRIP).await;
        let mut headers = HeaderMap::new();
        headers.insert("x-ms-request-id", "id".parse().unwrap());
        let status = if self.admits() {
            headers.insert("etag", "\"1\"".parse().unwrap());
            headers.insert("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT".parse().unwrap());
            headers.insert("content-length", "3".parse().unwrap());
            StatusCode::OK
        } else {
            *self.turned_away.lock().unwrap() += 1;
            headers.insert("x-ms-error-code", "ServerBusy".parse().unwrap());
            StatusCode::SERVICE_UNAVAILABLE
        };
        Ok(Response {
            status,
            headers,
            body: Bytes::new(),
            dest: request.dest,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

/// A volume of the account, in a process that has these.
fn volume(accounts: &Accounts, service: &Arc<Throttling>) -> Container {
    let endpoint = "https://acct.blob.core.windows.net".parse().unwrap();
    let config = ClientConfig {
        accounts: accounts.clone(),
        ..ClientConfig::new(endpoint, Credentials::Anonymous)
    };
    Client::new(config, Arc::clone(service) as _, Arena::new(1 << 20).unwrap())
        .unwrap()
        .container("data")
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn an_account_that_throttles_gives_what_it_has_to_all_alike() {
    const VOLUMES: usize = 30;
    let (accounts, service) = (Accounts::default(), Throttling::new());
    let served = Arc::new(Mutex::new(HashMap::<usize, u64>::new()));
    let begins = Instant::now() + Duration::from_secs(5);
    let ends = begins + Duration::from_secs(20);
    let mut programs = tokio::task::JoinSet::new();
    for number in 0..VOLUMES {
        let c = volume(&accounts, &service);
        // Some ask for more at a time than others.
        for _ in 0..4 + number % 3 * 8 {
            let (c, served) = (c.clone(), Arc::clone(&served));
            programs.spawn(async move {
                while Instant::now() < ends {
                    c.head("b", &Condition::none()).await.unwrap();
                    if Instant::now() >= begins {
                        *served.lock().unwrap().entry(number).or_default() += 1;
                    }
                }
            });
        }
    }
    tokio::time::sleep_until(begins).await;
    *service.turned_away.lock().unwrap() = 0;
    while let Some(done) = programs.join_next().await {
        done.unwrap();
    }
    let served = served.lock().unwrap();
    let (all, away) = (served.values().sum::<u64>(), *service.turned_away.lock().unwrap());
    let (least, most) = (served.values().min().unwrap(), served.values().max().unwrap());
    let bearable = RATE * (ends - begins).as_secs_f64();
    assert!(
        all as f64 >= 0.95 * bearable,
        "{all} of {bearable}, {away} turned away"
    );
    assert!((away as f64) < 0.2 * bearable, "{away} turned away");
    assert!(served.len() == VOLUMES && *least * 5 >= *most * 4, "{served:?}");
}

/// Each attempt moves so many bytes and breaks off then, after so long; one without any succeeds.
#[derive(Debug)]
struct Breaking(Mutex<Vec<(usize, Duration)>>);

impl Breaking {
    fn container(steps: &[(usize, u64)]) -> Container {
        let steps = steps.iter().rev();
        let steps = steps.map(|(bytes, after)| (*bytes, Duration::from_secs(*after)));
        let endpoint = "https://acct.blob.core.windows.net".parse().unwrap();
        let config = ClientConfig::new(endpoint, Credentials::Anonymous);
        let transport = Arc::new(Self(Mutex::new(steps.collect())));
        Client::new(config, transport, Arena::new(1 << 20).unwrap())
            .unwrap()
            .container("data")
            .unwrap()
    }
}

#[async_trait]
impl Transport for Breaking {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let (bytes, after) = self.0.lock().unwrap().pop().expect("another attempt");
        tokio::time::sleep(after).await;
        request.moved.sent(bytes);
        if bytes > 0 {
            return Err(TransportError {
                path: Path::Https,
                kind: FailureKind::Unreachable,
                message: "it broke".to_owned(),
                maybe_executed: true,
                retryable: true,
            });
        }
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-ms-request-id", "id"),
            ("etag", "\"1\""),
            ("last-modified", "Sat, 21 Nov 2026 10:00:00 GMT"),
            ("content-length", "3"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        Ok(Response {
            status: StatusCode::OK,
            headers,
            body: Bytes::new(),
            dest: request.dest,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

/// A call has no clock while its attempts get farther and farther.
#[tokio::test(start_paused = true)]
async fn progress_puts_the_end_of_a_call_off() {
    let began = Instant::now();
    let container = Breaking::container(&[(100, 50), (200, 50), (300, 50), (0, 1)]);
    container.head("b", &Condition::none()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_secs(150));
    let latest = container.progress().latest() + Duration::from_millis(2);
    assert!(latest >= Instant::now(), "the answer is progress");
}

/// What is sent once more is no progress.
#[tokio::test(start_paused = true)]
async fn what_is_moved_again_and_again_does_not_keep_a_call_alive() {
    let began = Instant::now();
    let container = Breaking::container(&[(100, 10); 20]);
    container.head("b", &Condition::none()).await.unwrap_err();
    // The first attempt, as long as anybody is patient, and one that was begun by then.
    let longest = Patience::default().call() + Duration::from_secs(20);
    assert!(began.elapsed() <= longest, "{:?}", began.elapsed());
    assert!(container.progress().latest() <= began + Duration::from_secs(10));
}

/// What is sent once more by another call is none, either, until the service has taken something; nor is it
/// reason for a writer to wait for room.
#[tokio::test(start_paused = true)]
async fn what_no_call_gets_an_answer_to_is_stored_by_none() {
    // Three attempts each, one that is answered, and three more.
    let steps = [[(3, 30); 6].as_slice(), &[(0, 1)], &[(3, 30); 3]].concat();
    let container = Breaking::container(&steps);
    let options = Default::default();
    let put = || container.put("b", Bytes::from_static(b"abc").into(), &options);
    put().await.unwrap_err();
    let first = container.progress().latest_stored();
    put().await.unwrap_err();
    assert_eq!(container.progress().latest_stored(), first);
    put().await.unwrap();
    let answered = container.progress().latest_stored();
    put().await.unwrap_err();
    assert!(container.progress().latest_stored() >= answered + Duration::from_secs(30));
}

/// The first attempt fails after so long, the next one is answered; how long each may be silent.
#[derive(Debug)]
struct Late {
    fails_after: Duration,
    timeouts: Mutex<Vec<Duration>>,
}

#[async_trait]
impl Transport for Late {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let attempts = {
            let mut timeouts = self.timeouts.lock().unwrap();
            timeouts.push(request.timeout);
            timeouts.len()
        };
        if attempts > 1 {
            return Breaking(Mutex::new(vec![(0, Duration::ZERO)]))
                .send(request)
                .await;
        }
        tokio::time::sleep(self.fails_after).await;
        Err(TransportError {
            path: Path::Https,
            kind: FailureKind::TimedOut,
            message: "nothing came".to_owned(),
            maybe_executed: true,
            retryable: true,
        })
    }

    fn stats(&self) -> Vec<PathStats> {
        Vec::new()
    }
}

fn container_over(transport: Arc<dyn Transport>, config: ClientConfig) -> Container {
    let client = Client::new(config, transport, Arena::new(4 << 20).unwrap());
    client.unwrap().container("data").unwrap()
}

/// The time in line is not taken from the attempt that follows: nobody could answer within what is left.
#[tokio::test(start_paused = true)]
async fn an_attempt_whose_turn_came_late_has_time() {
    let second = Duration::from_secs(1);
    let late = Arc::new(Late {
        fails_after: 45 * second,
        timeouts: Mutex::default(),
    });
    let endpoint = "https://acct.blob.core.windows.net".parse().unwrap();
    let container = container_over(
        Arc::clone(&late) as _,
        ClientConfig::new(endpoint, Credentials::Anonymous),
    );
    let others = async {
        tokio::time::sleep(40 * second).await;
        container.progress().note();
        // All of the account's requests are to wait for longer than this call has left.
        let share = &container.account.share;
        let turn = share.turn(Instant::now() + second).await.unwrap();
        turn.busy(Some(20 * second));
    };
    let condition = Condition::none();
    let (answer, ()) = tokio::join!(container.head("b", &condition), others);
    answer.unwrap();
    let timeouts = late.timeouts.lock().unwrap();
    assert!(
        timeouts.len() == 2 && timeouts[1] >= SHORTEST_ATTEMPT,
        "{timeouts:?}"
    );
}

/// A server on loopback with little memory for what it does not read.
fn listens() -> (std::net::TcpListener, url::Url) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let server = socket.listen(16).unwrap().into_std().unwrap();
    server.set_nonblocking(false).unwrap();
    let endpoint = format!("http://{}", server.local_addr().unwrap())
        .parse()
        .unwrap();
    (server, endpoint)
}

/// A body that fits into this machine's memory and gets no farther is one that stopped on its way.
#[tokio::test]
async fn a_body_that_waits_in_this_machine_narrows_the_account() {
    let (server, endpoint) = listens();
    let accounts = Accounts::default();
    let config = ClientConfig {
        accounts: accounts.clone(),
        ..ClientConfig::new(endpoint, Credentials::Anonymous).within(Patience::of(Duration::from_secs(1)))
    };
    let container = container_over(Arc::new(crate::transport::https::Https::new()), config);
    let width = accounts.load().width;
    let body = Bytes::from(vec![7; 256 << 10]);
    container
        .put("b", body.into(), &Default::default())
        .await
        .unwrap_err();
    assert!(accounts.load().width < width, "{:?}", accounts.load());
    drop(server);
}

/// What a service says that turns a request away is none, however slowly it says that.
#[tokio::test]
async fn the_body_of_a_refusal_is_no_progress() {
    use std::io::{Read, Write};
    let (server, endpoint) = listens();
    let config =
        ClientConfig::new(endpoint, Credentials::Anonymous).within(Patience::of(Duration::from_secs(1)));
    let long = config.attempt_timeout / LONG_EXCHANGE;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = server.accept() {
            let _ = stream.read(&mut [0; 4096]);
            std::thread::sleep(long * 2);
            let busy = "HTTP/1.1 503 Busy\r\nx-ms-request-id: id\r\nx-ms-error-code: ServerBusy\r\n\
                        connection: close\r\ncontent-length: 4\r\n\r\nbusy";
            let _ = stream.write_all(busy.as_bytes());
        }
    });
    let container = container_over(Arc::new(crate::transport::https::Https::new()), config);
    let began = container.progress().latest();
    container.head("b", &Condition::none()).await.unwrap_err();
    let list = container.list(&crate::types::ListOptions::default()).await;
    assert!(
        matches!(list, Err(Error::Service { status: 503, .. })),
        "{list:?}"
    );
    assert_eq!(container.progress().latest(), began);
}
