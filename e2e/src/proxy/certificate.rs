//! What the proxy shows at the TLS handshake: a certificate that clients are told to trust, and one of the
//! same names that they are not.

use std::io;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::listener::Tls;

/// Made anew for each test process.
#[derive(Debug, Clone)]
pub struct Certificates {
    pub(super) trusted: Tls,
    pub(super) untrusted: Tls,
    pem: String,
}

impl Certificates {
    /// For hosts of these names and addresses.
    pub fn new(names: &[&str]) -> io::Result<Self> {
        let (trusted, pem) = certificate(names)?;
        let (untrusted, _) = certificate(names)?;
        Ok(Self {
            trusted,
            untrusted,
            pem,
        })
    }

    /// The trusted one, as clients take it (`SSL_CERT_FILE`).
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

fn certificate(names: &[&str]) -> io::Result<(Tls, String)> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).map_err(io::Error::other)?;
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(io::Error::other)?;
    let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
    Ok((Tls::new(chain, key)?, made.cert.pem()))
}
