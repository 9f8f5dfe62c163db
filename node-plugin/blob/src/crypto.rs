//! Where TLS, signatures and digests come from: ring, or, with the feature `fips`, AWS-LC's FIPS module.
//!
//! Not here, because they protect nothing: the MD5 and CRC-64 of contents, and random numbers for ids and
//! pauses.

#[cfg(feature = "fips")]
pub use aws_lc_rs::{digest, hmac};
#[cfg(not(feature = "fips"))]
pub use ring::{digest, hmac};
use rustls::crypto::CryptoProvider;

/// What TLS connections are made of.
pub fn provider() -> CryptoProvider {
    #[cfg(feature = "fips")]
    return rustls::crypto::default_fips_provider();
    #[cfg(not(feature = "fips"))]
    rustls::crypto::ring::default_provider()
}

/// For libraries that take the process' provider, and would have to guess where two are linked. The first
/// call counts.
pub fn install() {
    // An error says that there is one already.
    let _ = provider().install_default();
}

/// Whether all of it is the FIPS module. The module has tested itself when the program started, or there
/// would be no program.
pub fn is_fips() -> bool {
    cfg!(feature = "fips") && provider().fips()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a connection is, not what was asked for.
    #[test]
    fn connections_are_what_the_build_says() {
        let config = rustls::ClientConfig::builder_with_provider(provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        assert_eq!(config.fips(), cfg!(feature = "fips"));
        assert_eq!(is_fips(), cfg!(feature = "fips"));
    }

    /// RFC 4231, test case 2; FIPS 180-4, "abc".
    #[test]
    fn signatures_and_digests_are_those_of_the_standards() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"Jefe");
        assert_eq!(
            hex(hmac::sign(&key, b"what do ya want for nothing?").as_ref()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(digest::digest(&digest::SHA256, b"abc").as_ref()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
