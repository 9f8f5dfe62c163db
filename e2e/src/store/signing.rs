//! Signs requests and shared access signatures with an account key: for tests and tools that speak to a store
//! without a client.

use std::net::IpAddr;
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue, Method, Uri};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use time::OffsetDateTime;
use time::macros::format_description;

use super::address::Target;
use super::auth::{Account, Presented, string_to_sign};

/// Version of the SAS made here.
const SAS_VERSION: &str = "2021-12-02";

/// An account's name and key.
#[derive(Debug)]
pub struct AccountKey {
    account: Account,
}

/// What a SAS shall say.
#[derive(Debug, Clone)]
pub struct SasOptions {
    /// `sp`: letters such as `racwdl`, in the order of the reference.
    pub permissions: String,
    /// `se`.
    pub expires: SystemTime,
    /// `st`.
    pub starts: Option<SystemTime>,
    /// `spr`: `https` or `https,http`; `None` allows both.
    pub protocol: Option<String>,
    /// `sip`.
    pub from: Option<IpAddr>,
}

impl SasOptions {
    /// These rights for this long from now.
    pub fn new(permissions: &str, lifetime: std::time::Duration) -> Self {
        Self {
            permissions: permissions.to_owned(),
            expires: SystemTime::now() + lifetime,
            starts: None,
            protocol: None,
            from: None,
        }
    }
}

fn show(time: SystemTime) -> String {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    OffsetDateTime::from(time).format(&format).unwrap_or_default()
}

impl AccountKey {
    /// An account; the key is base64.
    pub fn new(account: &str, key: &str) -> std::io::Result<Self> {
        Ok(Self {
            account: Account::new(account, key)?,
        })
    }

    /// Adds `x-ms-date` (unless there is one) and `Authorization`; all other headers must be set already.
    /// Host-style or path-style URL, absolute.
    pub fn authorize(
        &self,
        method: &Method,
        url: &Uri,
        headers: &mut HeaderMap,
        body_len: u64,
    ) -> std::io::Result<()> {
        let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, what.to_owned());
        let now = SystemTime::now();
        if !headers.contains_key("x-ms-date") {
            let date = HeaderValue::from_str(&httpdate::fmt_http_date(now)).map_err(|_| invalid("date"))?;
            headers.insert("x-ms-date", date);
        }
        let target = Target::parse(url, None, &self.account.name)
            .map_err(|_| invalid("the URL is not one of the account"))?;
        let text = string_to_sign(
            &self.account.name,
            &Presented {
                method,
                target: &target,
                headers,
                body_len,
                peer: None,
                now,
            },
        );
        let value = format!("SharedKey {}:{}", self.account.name, self.account.sign(&text));
        headers.insert(
            http::header::AUTHORIZATION,
            HeaderValue::from_str(&value).map_err(|_| invalid("signature"))?,
        );
        Ok(())
    }

    /// A service SAS for a container, as a query string.
    pub fn container_sas(&self, container: &str, options: &SasOptions) -> String {
        self.service_sas("c", container, options)
    }

    /// A service SAS for one blob, as a query string.
    pub fn blob_sas(&self, container: &str, blob: &str, options: &SasOptions) -> String {
        self.service_sas("b", &format!("{container}/{blob}"), options)
    }

    fn service_sas(&self, kind: &str, resource: &str, options: &SasOptions) -> String {
        let resource = format!("/blob/{}/{resource}", self.account.name);
        let fields = Fields::of(options);
        let text = [
            &options.permissions,
            &fields.starts,
            &fields.expires,
            &resource,
            "",
            &fields.from,
            &fields.protocol,
            SAS_VERSION,
            kind,
            "",
            "",
            "",
            "",
            "",
            "",
            "",
        ]
        .join("\n");
        self.query(&[("sr", kind)], options, &fields, &text)
    }

    /// An account SAS for the Blob service; `types` as in `srt`, such as `sco`.
    pub fn account_sas(&self, types: &str, options: &SasOptions) -> String {
        let fields = Fields::of(options);
        let text = [
            &self.account.name,
            &options.permissions,
            "b",
            types,
            &fields.starts,
            &fields.expires,
            &fields.from,
            &fields.protocol,
            SAS_VERSION,
            "",
            "",
        ]
        .join("\n");
        self.query(&[("ss", "b"), ("srt", types)], options, &fields, &text)
    }

    fn query(&self, kind: &[(&str, &str)], options: &SasOptions, fields: &Fields, text: &str) -> String {
        let signature = self.account.sign(text);
        let mut pairs = vec![("sv", SAS_VERSION)];
        pairs.extend_from_slice(kind);
        pairs.extend([
            ("sp", options.permissions.as_str()),
            ("st", &fields.starts),
            ("se", &fields.expires),
            ("sip", &fields.from),
            ("spr", &fields.protocol),
            ("sig", &signature),
        ]);
        pairs
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)))
            .collect::<Vec<_>>()
            .join("&")
    }
}

/// Fields as text; empty when absent.
struct Fields {
    starts: String,
    expires: String,
    from: String,
    protocol: String,
}

impl Fields {
    fn of(options: &SasOptions) -> Self {
        Self {
            starts: options.starts.map(show).unwrap_or_default(),
            expires: show(options.expires),
            from: options.from.map(|ip| ip.to_string()).unwrap_or_default(),
            protocol: options.protocol.clone().unwrap_or_default(),
        }
    }
}
