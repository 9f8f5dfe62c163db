//! HTTP/1.1 in front of the store: bodies go in and out as shared pieces.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::aids::Fault;
use super::blob_store::BlobStore;
use super::content::{Content, Piece};
use super::error::ServiceError;
use super::job::Ending;
use crate::listener::{Listener, Peer, Settings, Tls};

/// Bodies up to this size are joined into memory of exactly their size; larger ones stay as they were
/// received.
const SMALL: u64 = 64 * 1024;
/// Largest body: Put Blob takes 5,000 MiB, Put Block 4,000 MiB.
const LARGEST: u64 = 5_000 << 20;
/// How much is read from the socket at once, and from a file for one frame of an answer.
const READ: usize = 1 << 20;

/// A listening store; stops when dropped.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    endpoint: url::Url,
}

impl Server {
    /// `http://127.0.0.1:PORT/devstoreaccount1`.
    pub fn endpoint(&self) -> url::Url {
        self.endpoint.clone()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.listener.addr()
    }

    pub(super) fn start(store: Arc<BlobStore>, addr: SocketAddr, tls: Option<Tls>) -> io::Result<Self> {
        let account = store.account().to_owned();
        if account.is_empty()
            || !account
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("account name {account:?}: lower-case letters and digits only"),
            ));
        }
        // Half of the machine, for its clients want the other half.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut connection = hyper::server::conn::http1::Builder::new();
        connection
            .writev(true)
            // 8 KiB of metadata, one header each.
            .max_headers(1024)
            .max_buf_size(READ);
        let settings = Settings {
            name: "blob-store",
            addr,
            tls,
            threads: (processors / 2).max(2),
            connection,
        };
        let listener = Listener::start(settings, move |peer, request| {
            let store = store.clone();
            async move { handle(&store, peer, request).await }
        })?;
        let endpoint = url::Url::parse(&format!("{}/{account}", listener.origin()))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self { listener, endpoint })
    }
}

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("closed by a fault rule")]
    Fault,
    #[error("the request body broke off: {0}")]
    Body(#[from] hyper::Error),
    #[error("a worker of the store ended")]
    Worker,
}

impl From<Infallible> for Dropped {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

async fn handle(
    store: &Arc<BlobStore>,
    peer: Peer,
    request: http::Request<Incoming>,
) -> Result<http::Response<Pieces>, Dropped> {
    let (parts, body) = request.into_parts();
    let mut job = store.plan(&parts);
    if let Ok(target) = &mut job.target {
        // The request line of a server's own URLs has no scheme.
        target.secure |= peer.tls;
    }
    let has_length =
        parts.headers.contains_key(CONTENT_LENGTH) || parts.headers.contains_key(TRANSFER_ENCODING);
    if parts.method == http::Method::PUT && !has_length {
        job.target = Err(ServiceError::missing_content_length());
    }
    if let Some(Fault::EarlyAnswer { .. }) = &job.fault {
        // The body is left where it is; the connection cannot be used any more.
        let (response, _) = store.run(job, &parts, Content::default(), Some(peer.addr.ip()));
        let mut response = response.map(|content| Pieces {
            left: content.len(),
            pieces: content.into_pieces().into(),
            cut: None,
        });
        response
            .headers_mut()
            .insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
        return Ok(response);
    }
    let body = match receive(body).await? {
        Some(body) => body,
        None => {
            let mut response = http::Response::new(Pieces::default());
            *response.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
            return Ok(response);
        }
    };
    if !job.wait.is_zero() {
        tokio::time::sleep(job.wait).await;
    }
    let peer = Some(peer.addr.ip());
    let (response, ending) = if store.folder.is_some() {
        // Files are read and written: not on the threads that serve connections.
        let store = store.clone();
        tokio::task::spawn_blocking(move || store.run(job, &parts, body, peer))
            .await
            .map_err(|_| Dropped::Worker)?
    } else {
        store.run(job, &parts, body, peer)
    };
    let cut = match ending {
        Ending::Whole => None,
        Ending::Cut(after) => Some(after),
        Ending::NoAnswer => return Err(Dropped::Fault),
        Ending::Hang => std::future::pending().await,
    };
    Ok(response.map(|content| Pieces {
        left: content.len(),
        pieces: content.into_pieces().into(),
        cut,
    }))
}

/// Reads a body; `None` when it is larger than any request may be.
async fn receive(mut body: Incoming) -> Result<Option<Content>, hyper::Error> {
    let expected = body.size_hint().exact();
    if expected.is_some_and(|len| len > LARGEST) {
        return Ok(None);
    }
    let mut content = Content::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            content.push(Piece::Memory(data));
        }
        if content.len() > LARGEST {
            return Ok(None);
        }
    }
    if content.len() <= SMALL && content.len() > 0 {
        // A small blob must not keep a whole read buffer alive.
        let mut joined = BytesMut::with_capacity(content.len() as usize);
        for piece in content.pieces() {
            if let Piece::Memory(bytes) = piece {
                joined.extend_from_slice(bytes);
            }
        }
        content = joined.freeze().into();
    }
    Ok(Some(content))
}

/// The body of an answer: pieces handed to the socket as they are; file pieces are read as they are sent.
#[derive(Debug, Default)]
struct Pieces {
    pieces: std::collections::VecDeque<Piece>,
    left: u64,
    /// Breaks off after this many bytes.
    cut: Option<u64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.cut == Some(0) && self.left > 0 {
            return Poll::Ready(Some(Err(io::Error::other("cut by a fault rule"))));
        }
        let cut = self.cut;
        let Some(piece) = self.pieces.front_mut() else {
            return Poll::Ready(None);
        };
        let max = match piece {
            Piece::Memory(_) => usize::MAX,
            _ => READ,
        };
        let max = cut.map_or(max, |cut| max.min(cut as usize));
        let bytes = match piece.take(max) {
            Ok(bytes) => bytes,
            Err(error) => return Poll::Ready(Some(Err(error))),
        };
        if piece.len() == 0 {
            self.pieces.pop_front();
        }
        self.left -= bytes.len() as u64;
        if let Some(cut) = &mut self.cut {
            *cut -= bytes.len() as u64;
        }
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
