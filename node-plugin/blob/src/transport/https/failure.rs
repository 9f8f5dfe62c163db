//! What hyper's errors mean.

use crate::transport::path::Path;
use crate::transport::{FailureKind, TransportError};

pub(super) fn unsuitable(message: String) -> TransportError {
    TransportError {
        path: Path::Https,
        kind: FailureKind::Unsuitable,
        message,
        maybe_executed: false,
        retryable: false,
    }
}

/// An error with its causes; hyper's own text says only "client error (Connect)".
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Whether TLS refused the server's certificate.
pub(super) fn is_untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(_));
    }
    // An io::Error is transparent: its source is the source of what it wraps.
    let wrapped = error
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::get_ref);
    match wrapped {
        Some(inner) => is_untrusted(inner),
        None => error.source().is_some_and(is_untrusted),
    }
}

/// Whether a failed connect says that nobody is there, rather than that the network had a bad moment.
pub(super) fn is_nobody(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind as K;
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<rustls::Error>() {
            return true;
        }
        let Some(io) = error.downcast_ref::<std::io::Error>() else {
            // The resolver's error has no kind, and hyper's for it no public type.
            if error.to_string() == "dns error" {
                return true;
            }
            next = error.source();
            continue;
        };
        if matches!(
            io.kind(),
            K::ConnectionRefused | K::HostUnreachable | K::NetworkUnreachable
        ) {
            return true;
        }
        // An io::Error is transparent: its source is the source of what it wraps.
        next = match io.get_ref() {
            Some(inner) => Some(inner),
            None => None,
        };
    }
    false
}

/// Whether the kernel has given a connection up because the peer acknowledged nothing.
pub(super) fn is_silence(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::TimedOut
        {
            return true;
        }
        next = error.source();
    }
    false
}
