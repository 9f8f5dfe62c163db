//! Blob Batch: deletions, each a request of its own.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

use super::call::Call;
use crate::store::blob_store::{BlobStore, folder_failed};
use crate::store::content::Content;
use crate::store::error::ServiceError;
use crate::store::headers;
use crate::store::operation::Operation;
use crate::store::reply::Reply;

/// REST: "Blob Batch", remarks.
const MOST: usize = 256;
const LONGEST: u64 = 4 << 20;

fn invalid(reason: &str) -> ServiceError {
    ServiceError::new(400, "InvalidInput", "One of the request inputs is not valid.").detail("Reason", reason)
}

/// A request inside the batch.
struct Part {
    /// `Content-ID`.
    id: String,
    parts: http::request::Parts,
}

/// Blob Batch.
pub(super) fn batch(store: &BlobStore, call: &Call<'_>) -> Result<Reply, ServiceError> {
    let kind = headers::text(call.headers, "content-type").unwrap_or_default();
    let boundary = kind
        .strip_prefix("multipart/mixed")
        .and_then(|rest| rest.split_once("boundary="))
        .map(|(_, boundary)| boundary.trim().trim_matches('"'))
        .filter(|boundary| !boundary.is_empty())
        .ok_or_else(|| ServiceError::invalid_header("content-type", kind))?;
    if call.body.len() > LONGEST {
        return Err(ServiceError::new(
            413,
            "RequestBodyTooLarge",
            "The request body is too large and exceeds the maximum permissible limit.",
        ));
    }
    let body = call.body.joined().map_err(folder_failed)?;
    let text = std::str::from_utf8(&body).map_err(|_| invalid("the body is no text"))?;
    let delimiter = format!("--{boundary}");
    let (inside, _) = text
        .split_once(&format!("{delimiter}--"))
        .ok_or_else(|| invalid("the batch has no end"))?;
    let parts: Vec<Part> = inside
        .split(&delimiter)
        .skip(1)
        .map(|part| parse(part, call))
        .collect::<Result<_, _>>()?;
    if parts.is_empty() || parts.len() > MOST {
        return Err(invalid("1 to 256 subrequests"));
    }
    let answers = format!("batchresponse_{}", uuid::Uuid::new_v4());
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(
            format!(
                "--{answers}\r\nContent-Type: application/http\r\nContent-ID: {}\r\n\r\n",
                part.id
            )
            .as_bytes(),
        );
        let job = store.plan(&part.parts);
        let within = job
            .target
            .as_ref()
            .ok()
            .and_then(|target| target.container.as_deref());
        if call.target.container.is_some() && call.target.container.as_deref() != within {
            return Err(invalid("a blob of another container"));
        }
        if job.operation != Operation::DeleteBlob {
            return Err(invalid("only deletions are implemented"));
        }
        let (response, _) = store.run(job, &part.parts, Content::default(), call.peer);
        let (head, body) = response.into_parts();
        let reason = head.status.canonical_reason().unwrap_or_default();
        out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", head.status.as_u16()).as_bytes());
        for (name, value) in &head.headers {
            out.extend_from_slice(name.as_str().as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&body.joined().map_err(folder_failed)?);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(format!("--{answers}--").as_bytes());
    let mut reply = Reply::new(202).header("content-type", format!("multipart/mixed; boundary={answers}"));
    reply.body = bytes::Bytes::from(out).into();
    Ok(reply)
}

fn parse(part: &str, call: &Call<'_>) -> Result<Part, ServiceError> {
    let (about, request) = part
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("a part has no request"))?;
    let about = fields(about.trim_start_matches("\r\n"))?;
    let field = |name: &str| headers::text(&about, name).unwrap_or_default();
    if field("content-type") != "application/http" || field("content-transfer-encoding") != "binary" {
        return Err(invalid("a part is no application/http in binary"));
    }
    let (head, _) = request
        .split_once("\r\n\r\n")
        .ok_or_else(|| invalid("a request has no end"))?;
    let (line, rest) = head.split_once("\r\n").unwrap_or((head, ""));
    let words: Vec<&str> = line.split(' ').collect();
    let [method, path, "HTTP/1.1"] = words[..] else {
        return Err(invalid("a request line"));
    };
    let mut own = fields(rest)?;
    if own.contains_key("x-ms-version") {
        return Err(invalid("a subrequest has a version of its own"));
    }
    // It is signed without the version, which is that of the whole.
    if let Some(host) = call.headers.get("host") {
        own.insert("host", host.clone());
    }
    let scheme = if call.target.secure { "https" } else { "http" };
    let host = headers::text(call.headers, "host").unwrap_or("localhost");
    let uri: Uri = format!("{scheme}://{host}{path}")
        .parse()
        .map_err(|_| ServiceError::invalid_uri())?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| invalid("a method"))?;
    let mut built = http::Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .map_err(|_| ServiceError::invalid_uri())?;
    *built.headers_mut() = own;
    let (parts, ()) = built.into_parts();
    Ok(Part {
        id: field("content-id").to_owned(),
        parts,
    })
}

/// Lines of the form `name: value`.
fn fields(text: &str) -> Result<HeaderMap, ServiceError> {
    let mut fields = HeaderMap::new();
    for line in text.split("\r\n").filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| invalid("a header"))?;
        let name = HeaderName::try_from(name.trim()).map_err(|_| invalid("a header's name"))?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| invalid("a header's value"))?;
        fields.insert(name, value);
    }
    Ok(fields)
}
