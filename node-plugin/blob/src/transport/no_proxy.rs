//! `NO_PROXY`: the hosts that are reached straight, as curl and Go read them.
//!
//! Entries are separated by commas or blanks. `*` is every host; an address or a network (`10.0.0.0/8`,
//! `fd00::/8`) is an address as the URL has it, and nothing is looked up for it; a domain is the domain
//! itself and all below it, whether it is written `example.org`, `.example.org` or `*.example.org`. A port
//! after it limits an entry to that port.

use std::net::IpAddr;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct NoProxy(Vec<Entry>);

#[derive(Debug, Clone)]
struct Entry {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, Clone)]
enum Hosts {
    All,
    /// The first so many bits of this address.
    Network(IpAddr, u32),
    /// In lower case, without dots at its ends.
    Domain(String),
}

impl NoProxy {
    pub(super) fn new(list: &str) -> Self {
        let entries = list.split(|c: char| c == ',' || c.is_whitespace());
        Self(entries.filter(|entry| !entry.is_empty()).map(entry).collect())
    }

    /// Whether this host is reached straight.
    pub(super) fn has(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        self.0
            .iter()
            .any(|entry| entry.port.is_none_or(|only| only == port) && entry.hosts.has(&host))
    }
}

impl Hosts {
    fn has(&self, host: &str) -> bool {
        match (self, host.parse::<IpAddr>()) {
            (Self::All, _) => true,
            (Self::Network(network, bits), Ok(address)) => same_start(*network, address, *bits),
            (Self::Domain(domain), Err(_)) => {
                let above = host.strip_suffix(domain.as_str());
                above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Self::Network(..), Err(_)) | (Self::Domain(_), Ok(_)) => false,
        }
    }
}

/// In lower case, without brackets, and without the dot at the end of a full name.
fn bare(host: &str) -> String {
    let host = host.strip_prefix('[').unwrap_or(host);
    let host = host.strip_suffix(']').unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn entry(text: &str) -> Entry {
    if let Some(hosts) = network(text) {
        return Entry { hosts, port: None };
    }
    // An address with colons has its port after brackets.
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (text, None),
        },
        None => (text, None),
    };
    let domain = || bare(host.strip_prefix("*.").unwrap_or(host));
    let hosts = match host {
        "*" => Hosts::All,
        _ => network(host).unwrap_or_else(|| Hosts::Domain(domain().trim_start_matches('.').to_owned())),
    };
    Entry { hosts, port }
}

fn network(text: &str) -> Option<Hosts> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = bare(address).parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        Some(bits) => bits.parse().ok().filter(|bits| *bits <= whole)?,
        None => whole,
    };
    Some(Hosts::Network(address, bits))
}

fn same_start(a: IpAddr, b: IpAddr, bits: u32) -> bool {
    let (differs, whole) = match (a, b.to_canonical()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits() ^ b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits(), 128),
        _ => return false,
    };
    // None of the first bits differs.
    differs.checked_shr(whole - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_excepted_as_curl_and_go_do() {
        let account = "acct.blob.core.windows.net";
        for (list, host, port, straight) in [
            ("", account, 443, false),
            ("*", account, 443, true),
            ("blob.core.windows.net", account, 443, true),
            (".blob.core.windows.net", account, 443, true),
            ("*.blob.core.windows.net", account, 443, true),
            (
                "*.BLOB.core.windows.net",
                "Acct.blob.core.windows.NET.",
                443,
                true,
            ),
            ("a.example, b.example  *.windows.net", account, 443, true),
            ("a.example,,blob.core.windows.net.", account, 443, true),
            ("ob.core.windows.net", account, 443, false),
            ("*.other.windows.net", account, 443, false),
            (account, account, 443, true),
            (account, "other.blob.core.windows.net", 443, false),
            ("windows.net:443", account, 443, true),
            ("windows.net:8443", account, 443, false),
            ("*:8443", account, 8443, true),
            ("10.0.0.0/8", "10.1.2.3", 443, true),
            ("10.0.0.0/8", "11.1.2.3", 443, false),
            ("10.1.2.3", "10.1.2.3", 443, true),
            ("10.1.2.3:443", "10.1.2.3", 8443, false),
            ("10.1.2.3:443", "10.1.2.3", 443, true),
            ("10.1.2", "10.1.2.3", 443, false),
            ("0.0.0.0/0", "10.1.2.3", 443, true),
            ("0.0.0.0/0", account, 443, false),
            ("0.0.0.0/0", "[fd00::1]", 443, false),
            ("10.0.0.0/33", "10.1.2.3", 443, false),
            ("fd00::/8", "[fd12::1]", 443, true),
            ("fd00::/8", "[fe80::1]", 443, false),
            ("::1", "[::1]", 443, true),
            ("[::1]:443", "[::1]", 443, true),
            ("[::1]:443", "[::1]", 80, false),
            ("10.0.0.0/8", "[::ffff:10.1.2.3]", 443, true),
        ] {
            assert_eq!(
                NoProxy::new(list).has(host, port),
                straight,
                "{list:?} {host} {port}"
            );
        }
    }
}
