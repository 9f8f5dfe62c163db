//! A connection that says how much of what it was given the other side has not acknowledged yet.
#![expect(unsafe_code, reason = "an ioctl of a socket that is known to be open")]

use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use http::{Extensions, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::transport::proxy::Proxied;

/// The socket of a connection, for as long as that is open; goes with what hyper tells of it.
#[derive(Debug, Clone)]
pub(super) struct Wire(Arc<Mutex<Option<RawFd>>>);

impl Wire {
    /// Bytes that the other side has not acknowledged. `None` when the connection is not there yet, or no
    /// more.
    fn unacknowledged(&self) -> Option<u64> {
        let socket = self.lock();
        let fd = (*socket)?;
        let mut bytes: libc::c_int = 0;
        // SAFETY: the descriptor is open: its owner takes it away under the lock that is held here before it
        // closes it. The kernel writes one integer, which is there.
        let done = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
        drop(socket);
        u64::try_from(bytes).ok().filter(|_| done == 0)
    }

    /// The same of the connection that a request got.
    pub(super) fn unacknowledged_by(connection: &CaptureConnection) -> Option<u64> {
        let mut told = Extensions::new();
        connection.connection_metadata().as_ref()?.get_extras(&mut told);
        told.get::<Self>()?.unacknowledged()
    }

    fn lock(&self) -> MutexGuard<'_, Option<RawFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Wired {
    stream: TokioIo<TcpStream>,
    wire: Wire,
}

impl Wired {
    fn new(stream: TokioIo<TcpStream>) -> Self {
        let fd = stream.inner().as_raw_fd();
        Self {
            stream,
            wire: Wire(Arc::new(Mutex::new(Some(fd)))),
        }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        // Before the stream is closed, which is dropped after this.
        *self.wire.lock() = None;
    }
}

impl Connection for Wired {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.wire.clone())
    }
}

impl Read for Wired {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buffer)
    }
}

impl Write for Wired {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, data)
    }
}

/// Makes such connections.
#[derive(Debug, Clone)]
pub(super) struct Wiring(pub(super) Proxied);

impl Service<Uri> for Wiring {
    type Response = Wired;
    type Error = <Proxied as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Wired, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move { connecting.await.map(Wired::new) })
    }
}
