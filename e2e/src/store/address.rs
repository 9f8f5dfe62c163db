//! Which resource a request is about: account, container and blob out of the URL, and its query.

use http::Uri;
use percent_encoding::percent_decode_str;

use super::error::ServiceError;

/// Query parameters, decoded; names in lower case.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses `a=b&c=d`.
    pub(super) fn parse(raw: &str) -> Self {
        let pairs = raw
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode_query(name).to_ascii_lowercase(), decode_query(value))
            })
            .collect();
        Self(pairs)
    }
    /// First value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
    /// True when the parameter is there, with any value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
    /// All pairs.
    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

fn decode_query(raw: &str) -> String {
    percent_decode_str(&raw.replace('+', " "))
        .decode_utf8_lossy()
        .into_owned()
}

/// What the URL names.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// Container, when the URL names one.
    pub(super) container: Option<String>,
    /// Blob name, decoded, exactly as stored.
    pub(super) blob: Option<String>,
    /// Path as it came, for signatures.
    pub(super) raw_path: String,
    /// Query.
    pub(super) query: Query,
    /// True for `https` URLs.
    pub(super) secure: bool,
}

impl Target {
    /// Reads a request URI (absolute or origin form) and the Host header. Host-style URLs have the account as
    /// first label of the host followed by `blob` or `dfs`; everything else is path-style,
    /// `/account/container/blob`.
    pub(super) fn parse(uri: &Uri, host: Option<&str>, account: &str) -> Result<Self, ServiceError> {
        let raw_path = uri.path();
        let host = uri.host().or(host).unwrap_or_default();
        let path = raw_path.strip_prefix('/').ok_or_else(ServiceError::invalid_uri)?;
        let path = if is_host_style(host, account) {
            path
        } else {
            let (first, rest) = path.split_once('/').unwrap_or((path, ""));
            if first != account {
                return Err(ServiceError::invalid_uri().detail("Path", raw_path));
            }
            rest
        };
        let query = Query::parse(uri.query().unwrap_or_default());
        let (container, blob) = match path.split_once('/') {
            None | Some((_, "")) if path.is_empty() => (None, None),
            None if query.get("restype") == Some("container") => (Some(decode_path(path)?), None),
            // A single segment is a blob of the root container unless the query says it is a container.
            None => (Some("$root".to_owned()), Some(decode_path(path)?)),
            Some((container, "")) => (Some(decode_path(container)?), None),
            Some((container, blob)) => (Some(decode_path(container)?), Some(decode_path(blob)?)),
        };
        if let Some(blob) = &blob
            && blob.encode_utf16().count() > 1024
        {
            return Err(ServiceError::out_of_range_input());
        }
        Ok(Self {
            container,
            blob,
            raw_path: raw_path.to_owned(),
            query,
            secure: uri.scheme_str() == Some("https"),
        })
    }
}

fn is_host_style(host: &str, account: &str) -> bool {
    host.split_once('.').is_some_and(|(first, rest)| {
        first == account && (rest.starts_with("blob.") || rest.starts_with("dfs."))
    })
}

fn decode_path(raw: &str) -> Result<String, ServiceError> {
    percent_decode_str(raw)
        .decode_utf8()
        .map(|s| s.into_owned())
        .map_err(|_| ServiceError::invalid_uri())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(uri: &str, host: Option<&str>) -> Result<(Option<String>, Option<String>), String> {
        Target::parse(&uri.parse().unwrap(), host, "acct")
            .map(|t| (t.container, t.blob))
            .map_err(|e| e.code.into_owned())
    }
    fn named(container: &str, blob: &str) -> Result<(Option<String>, Option<String>), String> {
        Ok((
            Some(container.to_owned()).filter(|c| !c.is_empty()),
            Some(blob.to_owned()).filter(|b| !b.is_empty()),
        ))
    }

    #[test]
    fn path_and_host_style() {
        assert_eq!(target("/acct", None), named("", ""));
        assert_eq!(target("/acct/", None), named("", ""));
        assert_eq!(target("/acct/c?restype=container", None), named("c", ""));
        assert_eq!(target("/acct/c/", None), named("c", ""));
        assert_eq!(target("/acct/c/a%2Fb%20c", None), named("c", "a/b c"));
        assert_eq!(target("/acct/c/a//b/", None), named("c", "a//b/"));
        assert_eq!(target("/acct/c/%C3%A4+%2B%25", None), named("c", "ä++%"));
        assert_eq!(target("/acct/blob", None), named("$root", "blob"));
        assert_eq!(target("http://127.0.0.1:1/acct/c/b", None), named("c", "b"));
        assert_eq!(
            target("https://acct.blob.core.windows.net/c/b", None),
            named("c", "b")
        );
        assert_eq!(target("/c/b", Some("acct.blob.localhost:80")), named("c", "b"));
        assert_eq!(target("/other/c/b", None), Err("InvalidUri".into()));
        assert_eq!(target("/acct/c/%FF", None), Err("InvalidUri".into()));
    }

    #[test]
    fn query_is_decoded() {
        let query = Query::parse("comp=list&Prefix=a%2Fb+c&empty");
        assert_eq!(query.get("comp"), Some("list"));
        assert_eq!(query.get("prefix"), Some("a/b c"));
        assert!(query.has("empty") && !query.has("none"));
    }
}
