//! Lets kubelet's plugin watcher speak to a gRPC server of hyper's HTTP/2.
//!
//! Kubelet dials a registration socket by its path alone, and grpc-go then sends the percent-encoded path as
//! `:authority`. That is no authority (RFC 3986, section 3.2), and the server resets the stream with
//! PROTOCOL_ERROR before any handler sees it. Nobody needs the name of a unix socket's host, so it is
//! replaced on the way in; what the server answers is passed on as it is.

use std::io;

use fluke_hpack::{Decoder, Encoder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;

/// What a client begins with (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// Length of a frame's head (section 4.1).
const HEAD: usize = 9;
const HEADERS: u8 = 0x1;
const CONTINUATION: u8 = 0x9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Largest frame that a client may send unless the server allows more (section 4.2), which ours does not.
const MAX_FRAME: usize = 16 * 1024;
/// Bound of one request's headers.
const MAX_BLOCK: usize = 64 * 1024;
/// What stands in `:authority` afterwards.
const NAME: &[u8] = b"localhost";

/// The connection as the server shall see it. A task of its own carries the bytes until either side ends.
pub(super) fn named_localhost(client: UnixStream) -> DuplexStream {
    let (inner, server) = tokio::io::duplex(MAX_BLOCK);
    tokio::spawn(async move {
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = tokio::io::split(inner);
        let requests = async {
            let carried = carry(&mut from_client, &mut to_server).await;
            // The server sees the end of the connection, and closes its side.
            let _ = to_server.shutdown().await;
            carried
        };
        let answers = tokio::io::copy(&mut from_server, &mut to_client);
        let (requests, _) = tokio::join!(requests, answers);
        if let Err(error) = requests {
            tracing::debug!(%error, "a connection to the registration socket ended");
        }
    });
    server
}

/// Copies a client's frames, each header block with [`NAME`] for its authority.
async fn carry(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let (mut decoder, mut encoder) = (Decoder::new(), Encoder::new());
    while let Some(mut frame) = Frame::read(from).await? {
        if frame.kind == HEADERS {
            frame.strip()?;
            while frame.flags & END_HEADERS == 0 {
                let more = Frame::read(from).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                if more.kind != CONTINUATION || frame.payload.len() + more.payload.len() > MAX_BLOCK {
                    return Err(invalid("headers that do not end"));
                }
                frame.payload.extend_from_slice(&more.payload);
                frame.flags |= more.flags & END_HEADERS;
            }
            let mut headers = decoder
                .decode(&frame.payload)
                .map_err(|error| invalid(&format!("headers: {error:?}")))?;
            for (name, value) in &mut headers {
                if name == b":authority" {
                    *value = NAME.to_vec();
                }
            }
            frame.payload = encoder.encode(
                headers
                    .iter()
                    .map(|(name, value)| (name.as_slice(), value.as_slice())),
            );
            if frame.payload.len() > MAX_FRAME {
                return Err(invalid("headers of more than one frame"));
            }
        }
        to.write_all(&frame.head()).await?;
        to.write_all(&frame.payload).await?;
    }
    Ok(())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// One HTTP/2 frame.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: [u8; 4],
    payload: Vec<u8>,
}

impl Frame {
    /// The next frame; `None` when the client has closed the connection between two.
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD];
        match from.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > MAX_FRAME {
            return Err(invalid("a frame larger than allowed"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Some(Self {
            kind,
            flags,
            stream,
            payload,
        }))
    }

    fn head(&self) -> [u8; HEAD] {
        // At most MAX_FRAME, which read() and carry() see to.
        let [_, a, b, c] = (self.payload.len() as u32).to_be_bytes();
        let [d, e, f, g] = self.stream;
        [a, b, c, self.kind, self.flags, d, e, f, g]
    }

    /// Takes padding and priority off a HEADERS frame (section 6.2): the header block is left.
    fn strip(&mut self) -> io::Result<()> {
        let mut from = 0;
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            padding = usize::from(*self.payload.first().ok_or_else(|| invalid("an empty frame"))?);
            from += 1;
        }
        if self.flags & PRIORITY != 0 {
            from += 5;
        }
        let to = self.payload.len().checked_sub(padding);
        let block = to.and_then(|to| self.payload.get(from..to));
        self.payload = block
            .ok_or_else(|| invalid("padding of more than the frame"))?
            .to_vec();
        self.flags &= END_STREAM | END_HEADERS;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRI: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let frame = Frame {
            kind,
            flags,
            stream: [0, 0, 0, 1],
            payload: payload.to_vec(),
        };
        [&frame.head()[..], payload].concat()
    }

    /// Header blocks of two requests with one encoder, as a client's connection has them: the second refers
    /// to the first.
    fn blocks() -> [Vec<u8>; 2] {
        let mut encoder = Encoder::new();
        let headers: [(&[u8], &[u8]); 3] = [
            (b":method", b"POST"),
            (
                b":authority",
                b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fx-reg.sock",
            ),
            (b"te", b"trailers"),
        ];
        [encoder.encode(headers), encoder.encode(headers)]
    }

    async fn carried(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        carry(&mut &bytes[..], &mut out).await.map(|()| out)
    }

    #[tokio::test]
    async fn every_request_is_for_localhost() {
        let [first, second] = blocks();
        let (begin, end) = first.split_at(3);
        let padded = [&[2, 0, 0, 0, 0, 9][..], begin, &[0, 0]].concat();
        let data = frame(0, END_STREAM, b"body");
        let bytes = [
            &PRI[..],
            &frame(HEADERS, PADDED | PRIORITY, &padded),
            &frame(CONTINUATION, END_HEADERS, end),
            &data,
            &frame(HEADERS, END_HEADERS | END_STREAM, &second),
        ]
        .concat();
        let out = carried(bytes).await.unwrap();
        let mut rest = out.strip_prefix(&PRI[..]).unwrap();
        let mut decoder = Decoder::new();
        let mut seen = Vec::new();
        while let Some(frame) = Frame::read(&mut rest).await.unwrap() {
            if frame.kind != HEADERS {
                assert_eq!(frame.payload, b"body");
                continue;
            }
            let headers = decoder.decode(&frame.payload).unwrap();
            let authority = headers.iter().find(|(name, _)| name == b":authority").unwrap();
            assert_eq!(authority.1, NAME);
            assert_eq!(headers.len(), 3);
            seen.push(frame.flags);
        }
        assert_eq!(seen, [END_HEADERS, END_HEADERS | END_STREAM]);
    }

    #[tokio::test]
    async fn nonsense_ends_the_connection() {
        let huge = [&PRI[..], &[0xff, 0xff, 0xff, HEADERS, 0, 0, 0, 0, 1]].concat();
        let padding = [&PRI[..], &frame(HEADERS, PADDED | END_HEADERS, &[9, 1])].concat();
        let unfinished = [&PRI[..], &frame(HEADERS, 0, &blocks()[0]), &frame(0, 0, b"x")].concat();
        let block = [&PRI[..], &frame(HEADERS, END_HEADERS, &[0xff, 0xff, 0xff])].concat();
        for bytes in [huge, padding, unfinished, block] {
            assert_eq!(
                carried(bytes).await.unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
    }

    mod fuzz {
        use super::*;

        /// Frames of a connection, as far as they are whole.
        async fn frames(mut bytes: &[u8]) -> Vec<Frame> {
            let mut frames = Vec::new();
            while let Ok(Some(frame)) = Frame::read(&mut bytes).await {
                frames.push(frame);
            }
            frames
        }

        /// Whatever a client sends: what goes on to the server is well-formed, and is for localhost.
        #[test]
        fn registrations() {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let words = [
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                "\u{1}\u{4}",
                "\t\u{4}",
                "\0\0\u{1}\t",
            ];
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/registrations");
            fuzzing::bytes(folder, &words, |input| {
                runtime.block_on(async {
                    let mut out = Vec::new();
                    let whole = carry(&mut &input[..], &mut out).await.is_ok();
                    // The preface is the server's to judge.
                    let Some(rest) = out.get(PREFACE..) else { return };
                    assert_eq!(out.get(..PREFACE), input.get(..PREFACE));
                    let sent = frames(&input[PREFACE..]).await;
                    let sent: Vec<_> = sent.iter().filter(|frame| frame.kind != CONTINUATION).collect();
                    let passed = frames(rest).await;
                    let length: usize = passed.iter().map(|frame| HEAD + frame.payload.len()).sum();
                    assert_eq!(length, rest.len(), "half a frame");
                    assert!(!whole || passed.len() >= sent.len());
                    let mut decoder = Decoder::new();
                    for frame in passed {
                        assert!(frame.payload.len() <= MAX_FRAME);
                        if frame.kind != HEADERS {
                            // A continuation of nothing is the server's to refuse.
                            continue;
                        }
                        assert_eq!(frame.flags & !(END_STREAM | END_HEADERS), 0);
                        assert_ne!(frame.flags & END_HEADERS, 0);
                        let headers = decoder.decode(&frame.payload).unwrap();
                        let mut names = headers.iter().filter(|(name, _)| name == b":authority");
                        assert!(names.all(|(_, value)| value == NAME));
                    }
                });
            });
        }
    }
}
