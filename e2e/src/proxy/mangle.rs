//! What becomes of the service's answer on its way back.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::DATE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::fault::Canned;
use super::wire::Answer;

/// Headers that tell a time by the service's clock,
const TIMES: [&str; 3] = ["date", "last-modified", "x-ms-creation-time"];
/// and the elements of a listing that do.
const ELEMENTS: [&str; 2] = ["Last-Modified", "Creation-Time"];

/// The answer of somebody else.
pub(super) fn canned(canned: &Canned) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(DATE, date(SystemTime::now()));
    for (name, value) in &canned.headers {
        // Written in tests by hand: one that is none shows by its absence.
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            headers.append(name, value);
        }
    }
    Answer {
        status: StatusCode::from_u16(canned.status).unwrap_or(StatusCode::BAD_GATEWAY),
        headers,
        body: Bytes::from(canned.body.clone()),
    }
}

/// Half of the body is all there is.
pub(super) fn halve(answer: &mut Answer) {
    let half = answer.body.slice(..answer.body.len() / 2);
    answer.set_body(half);
}

/// There is more than there is.
pub(super) fn lengthen(answer: &mut Answer) {
    let longer = [&answer.body[..], &[b'x'; 100]].concat();
    answer.set_body(longer.into());
}

/// The service's clock is ahead by this.
pub(super) fn clock_ahead(answer: &mut Answer, by: Duration) {
    for name in TIMES {
        let later = answer.headers.get(name).and_then(|value| {
            let told = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
            Some(date(told + by))
        });
        if let Some(later) = later {
            answer.headers.insert(name, later);
        }
    }
    if let Ok(text) = std::str::from_utf8(&answer.body)
        && text.contains("<EnumerationResults")
    {
        let shifted = ELEMENTS
            .iter()
            .fold(text.to_owned(), |text, element| shift(&text, element, by));
        answer.set_body(shifted.into());
    }
}

/// All times in elements of this name are later.
fn shift(text: &str, element: &str, by: Duration) -> String {
    let open = format!("<{element}>");
    let mut parts = text.split(open.as_str());
    let mut shifted = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shifted.push_str(&open);
        let told = part
            .split_once('<')
            .and_then(|(told, rest)| Some((httpdate::parse_http_date(told).ok()?, rest)));
        match told {
            Some((told, rest)) => {
                shifted.push_str(&httpdate::fmt_http_date(told + by));
                shifted.push('<');
                shifted.push_str(rest);
            }
            None => shifted.push_str(part),
        }
    }
    shifted
}

fn date(time: SystemTime) -> HeaderValue {
    HeaderValue::from_str(&httpdate::fmt_http_date(time)).unwrap_or(HeaderValue::from_static(""))
}
