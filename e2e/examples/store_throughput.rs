//! How fast the embedded store itself is: raw sockets that read and write as fast as they can, so that no
//! client is measured.
//!
//! `cargo run --release -p e2e --example store_throughput [SECONDS]`. Server and clients share the machine.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use e2e::store::{AccountKey, BlobStore, DEV_ACCOUNT, DEV_KEY, StoreConfig};
use http::{HeaderMap, HeaderValue, Method};

const BLOB: usize = 64 << 20;
const PART: usize = 8 << 20;

fn main() -> Result<()> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(3), |text| text.parse())
        .context("SECONDS")?;
    let time = Duration::from_secs(seconds);
    let store = BlobStore::new(StoreConfig::default())?;
    store.create_container("bench")?;
    let server = e2e::harness::runtime().block_on(store.serve(([127, 0, 0, 1], 0).into()))?;
    let mut client = Client::open(server.addr())?;
    client.send("PUT", "big", &[("x-ms-blob-type", "BlockBlob")], &vec![7; BLOB])?;
    client.send("PUT", "small", &[("x-ms-blob-type", "BlockBlob")], &[7; 4096])?;
    for i in 0..5000 {
        client.send(
            "PUT",
            &format!("many/{i:05}"),
            &[("x-ms-blob-type", "BlockBlob")],
            b"x",
        )?;
    }

    println!(
        "{:<34} {:>8} {:>12} {:>12}",
        "what", "clients", "requests/s", "MiB/s"
    );
    for clients in [1, 2, 4, 8] {
        run(
            "GET 8 MiB ranges",
            clients,
            time,
            server.addr(),
            |client, turn| {
                let start = (turn % (BLOB / PART)) * PART;
                let range = format!("bytes={start}-{}", start + PART - 1);
                client.send("GET", "big", &[("x-ms-range", &range)], b"")
            },
        )?;
    }
    for clients in [1, 4, 16] {
        run("GET 4 KiB", clients, time, server.addr(), |client, _| {
            client.send("GET", "small", &[], b"")
        })?;
    }
    run("HEAD", 4, time, server.addr(), |client, _| {
        client.send("HEAD", "small", &[], b"")
    })?;
    let body = vec![3u8; 4096];
    run("PUT 4 KiB", 4, time, server.addr(), |client, turn| {
        client.send(
            "PUT",
            &format!("put/{}", turn % 1000),
            &[("x-ms-blob-type", "BlockBlob")],
            &body,
        )
    })?;
    let body = vec![3u8; PART];
    for clients in [1, 4] {
        run("Put Block 8 MiB", clients, time, server.addr(), |client, turn| {
            let path = format!("staged?comp=block&blockid={:08}", turn % 16);
            client.send("PUT", &path, &[], &body)
        })?;
    }
    run("List 5,000", 1, time, server.addr(), |client, _| {
        client.send("GET", "?restype=container&comp=list&prefix=many/", &[], b"")
    })?;
    Ok(())
}

/// Runs as many clients for a while and prints what they moved in both directions.
fn run(
    what: &str,
    clients: usize,
    time: Duration,
    addr: SocketAddr,
    turn: impl Fn(&mut Client, usize) -> Result<usize> + Sync,
) -> Result<()> {
    let requests = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|worker| {
                let (requests, bytes, turn) = (&requests, &bytes, &turn);
                scope.spawn(move || -> Result<()> {
                    let mut client = Client::open(addr)?;
                    let mut number = worker * 7919;
                    while began.elapsed() < time {
                        let moved = turn(&mut client, number)?;
                        number += 1;
                        requests.fetch_add(1, Ordering::Relaxed);
                        bytes.fetch_add(moved as u64, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(())
    })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{what:<34} {clients:>8} {:>12.0} {:>12.0}",
        requests.load(Ordering::Relaxed) as f64 / seconds,
        bytes.load(Ordering::Relaxed) as f64 / seconds / (1 << 20) as f64
    );
    Ok(())
}

/// One keep-alive connection.
struct Client {
    stream: TcpStream,
    key: AccountKey,
    origin: String,
    buffer: Vec<u8>,
}

impl Client {
    fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            key: AccountKey::new(DEV_ACCOUNT, DEV_KEY)?,
            origin: format!("http://{addr}/{DEV_ACCOUNT}/bench"),
            buffer: vec![0; 1 << 20],
        })
    }

    /// Sends one signed request and reads its answer; the body bytes moved in both directions.
    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&'static str, &str)],
        body: &[u8],
    ) -> Result<usize> {
        let separator = if path.starts_with('?') { "" } else { "/" };
        let url: http::Uri = format!("{}{separator}{path}", self.origin).parse()?;
        let method: Method = method.parse()?;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_str(value)?);
        }
        map.insert("x-ms-version", HeaderValue::from_static("2021-12-02"));
        map.insert("content-length", HeaderValue::from(body.len()));
        self.key.authorize(&method, &url, &mut map, body.len() as u64)?;
        let target = url.path_and_query().context("a path")?;
        let mut head = format!("{method} {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n").into_bytes();
        for (name, value) in &map {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        if body.len() <= 64 * 1024 {
            head.extend_from_slice(body);
            self.stream.write_all(&head)?;
        } else {
            self.stream.write_all(&head)?;
            self.stream.write_all(body)?;
        }
        Ok(body.len() + self.receive(method == Method::HEAD)?)
    }

    /// Reads an answer and throws its body away.
    fn receive(&mut self, head_only: bool) -> Result<usize> {
        let mut filled = 0;
        let end = loop {
            let n = self.stream.read(&mut self.buffer[filled..])?;
            if n == 0 {
                bail!("the store closed the connection");
            }
            filled += n;
            if let Some(at) = self.buffer[..filled]
                .windows(4)
                .position(|part| part == b"\r\n\r\n")
            {
                break at + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end])?.to_ascii_lowercase();
        if !head.starts_with("http/1.1 2") {
            bail!("{}", String::from_utf8_lossy(&self.buffer[..filled]));
        }
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .context("content-length")?
            .parse()?;
        if head_only {
            return Ok(0);
        }
        let mut left = length - (filled - end);
        while left > 0 {
            let max = left.min(self.buffer.len());
            let n = self.stream.read(&mut self.buffer[..max])?;
            if n == 0 {
                bail!("the store closed the connection");
            }
            left -= n;
        }
        Ok(length)
    }
}
