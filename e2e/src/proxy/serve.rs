//! Connections: accepted or not, and each one's requests relayed as the rule of the moment says.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{CONNECTION, HOST, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::fault::Fault;
use super::mangle;
use super::state::State;
use super::wire::{Answer, Head, Wire};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// A reset takes away what the peer has not read yet: it gets this long for it.
const BEFORE_A_RESET: Duration = Duration::from_millis(10);

pub(super) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

/// Accepts for ever. `_holder`: keeps the port while nobody listens.
pub(super) async fn accept(_holder: TcpSocket, listener: TcpListener, addr: SocketAddr, state: Arc<State>) {
    let mut listener = Some(listener);
    let mut listens = state.listens();
    let mut connections = JoinSet::new();
    loop {
        if !*listens.borrow_and_update() {
            listener = None;
            // The sender is in `state`.
            let _ = listens.changed().await;
            continue;
        }
        if listener.is_none() {
            match listen(addr) {
                Ok(again) => listener = Some(again),
                Err(error) => {
                    tracing::warn!(%error, %addr, "cannot listen again yet");
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            }
        }
        let Some(open) = &listener else { continue };
        tokio::select! {
            accepted = open.accept() => match accepted {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(connection(stream, Arc::clone(&state)));
                }
                Err(error) => tracing::debug!(%error, "a connection died in the queue"),
            },
            _ = listens.changed() => {}
        }
        while connections.try_join_next().is_some() {}
    }
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Reset,
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let mut cuts = state.cuts();
    let (number, fault) = state.connection();
    match fault {
        Some(Fault::Refused) => return reset(&stream),
        Some(Fault::Mute) => {
            let _ = cuts.changed().await;
            return reset(&stream);
        }
        Some(Fault::HandshakeReset) => {
            let _ = stream.readable().await;
            return reset(&stream);
        }
        _ => {}
    }
    let accepted = tokio::select! {
        accepted = state.certificate(fault.as_ref()).acceptor().accept(stream) => accepted,
        _ = cuts.changed() => return,
    };
    let mut wire = match accepted {
        Ok(tls) => Wire::new(tls),
        Err(error) => {
            tracing::debug!(%error, "no TLS came about");
            return;
        }
    };
    let ending = tokio::select! {
        ending = converse(&mut wire, &state, number) => ending,
        _ = cuts.changed() => Ok(Ending::Reset),
    };
    match ending {
        Ok(Ending::Reset) => reset(wire.stream().get_ref().0),
        Ok(Ending::Closed) => drop(wire.end().await),
        Err(error) => tracing::debug!(%error, "connection ended"),
    }
}

/// The connection is reset when it is dropped.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::warn!(%error, "a connection is closed and not reset");
    }
}

/// One request after the other, until the connection ends.
async fn converse<S>(wire: &mut Wire<S>, state: &State, number: u64) -> io::Result<Ending>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(head) = wire.head().await? {
        let fault = state.request(&head, number);
        if let Some(Fault::Early(answer)) = &fault {
            let mut answer = mangle::canned(answer);
            answer
                .headers
                .insert(CONNECTION, HeaderValue::from_static("close"));
            wire.write(&whole(&answer, &head)).await?;
            wire.close().await?;
            return Ok(Ending::Closed);
        }
        if fault == Some(Fault::RequestReset) {
            wire.body(head.length / 2).await?;
            return Ok(Ending::Reset);
        }
        let body = wire.body(head.length).await?;
        let again = || request(&head, body.clone());
        match &fault {
            Some(Fault::Silent) => return pending().await,
            Some(Fault::HalfClosed) => {
                wire.close().await?;
                return Ok(Ending::Closed);
            }
            Some(Fault::Late(after)) => {
                state.execute_late(again()?, *after);
                return Ok(Ending::Reset);
            }
            _ => {}
        }
        let mut answer = match &fault {
            Some(Fault::Answered(answer)) => mangle::canned(answer),
            _ => executed(state, again()?).await?,
        };
        if fault == Some(Fault::Doubled) {
            executed(state, again()?).await?;
        }
        let full = answer.status.is_success() && answer.has_body(&head.method) && answer.body.len() > 1;
        match &fault {
            Some(Fault::Lost) => return Ok(Ending::Closed),
            Some(Fault::AnsweredAfter(instead)) => answer = mangle::canned(instead),
            Some(Fault::Short) if full => mangle::halve(&mut answer),
            Some(Fault::Long) if full => mangle::lengthen(&mut answer),
            Some(Fault::ClockAhead(by)) => mangle::clock_ahead(&mut answer, *by),
            Some(Fault::Slow(by)) => sleep(*by).await,
            _ => {}
        }
        if let Some(ending) = deliver(wire, &head, &answer, fault.as_ref()).await? {
            return Ok(ending);
        }
    }
    Ok(Ending::Closed)
}

/// Sends an answer, or what there will be of it; how the connection ends, if it does.
async fn deliver<S>(
    wire: &mut Wire<S>,
    head: &Head,
    answer: &Answer,
    fault: Option<&Fault>,
) -> io::Result<Option<Ending>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let all = whole(answer, head);
    let head_len = answer.head(&head.method).len();
    let half_of_the_body = head_len + (all.len() - head_len) / 2;
    Ok(match fault {
        Some(Fault::HeadReset) => {
            wire.write(all.get(..head_len / 2).unwrap_or_default()).await?;
            sleep(BEFORE_A_RESET).await;
            Some(Ending::Reset)
        }
        Some(Fault::BodyReset) => {
            wire.write(all.get(..half_of_the_body).unwrap_or_default())
                .await?;
            sleep(BEFORE_A_RESET).await;
            Some(Ending::Reset)
        }
        Some(Fault::BodyClosed) => {
            wire.write(all.get(..half_of_the_body).unwrap_or_default())
                .await?;
            Some(Ending::Closed)
        }
        Some(Fault::Trickle(piece, pause)) => {
            for piece in all.chunks((*piece).max(1)) {
                wire.write(piece).await?;
                sleep(*pause).await;
            }
            None
        }
        _ => {
            wire.write(&all).await?;
            (fault == Some(&Fault::ClosedAfter)).then_some(Ending::Closed)
        }
    })
}

/// Head and body in one piece.
fn whole(answer: &Answer, head: &Head) -> Vec<u8> {
    let mut all = answer.head(&head.method);
    if answer.has_body(&head.method) {
        all.extend_from_slice(&answer.body);
    }
    all
}

async fn executed(state: &State, request: Request<Bytes>) -> io::Result<Answer> {
    let (parts, body) = state.execute(request).await?.into_parts();
    Ok(Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.concat().into(),
    })
}

fn request(head: &Head, body: Bytes) -> io::Result<Request<Bytes>> {
    let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
    let uri = format!("https://{}{}", host.unwrap_or("localhost"), head.target);
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.parse().map_err(io::Error::other)?;
    *request.headers_mut() = head.headers.clone();
    Ok(request)
}
