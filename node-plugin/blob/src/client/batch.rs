//! Blob Batch: many deletions in one request.
//!
//! Each part is a request of its own, signed for itself; the service answers the whole with 202 and each part
//! with a status.

use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio::time::Instant;

use super::sign::in_time;
use super::{Container, headers, refusal};
use crate::auth::Draft;
use crate::error::{Error, Result};
use crate::response::Response;
use crate::types::Condition;

/// Most deletions of one request (REST: "Blob Batch").
const MOST: usize = 256;
/// Longest answer: 4 KiB for each of them.
const LONGEST: usize = 1 << 20;

impl Container {
    /// How many deletions [`Container::delete_batch`] takes.
    pub const BATCH: usize = MOST;

    /// Blob Batch: deletes up to [`Container::BATCH`] blobs, each under its condition. What the service said
    /// to each, in their order, is as [`Container::delete`] tells it.
    ///
    /// # Errors
    /// Of the request as a whole; nothing may have been deleted then, or everything. Not every service and
    /// not every credential takes batches, and they say so in many ways: single requests tell.
    pub async fn delete_batch(&self, blobs: &[(&str, Condition)]) -> Result<Vec<Result<()>>> {
        if blobs.is_empty() {
            return Ok(Vec::new());
        }
        if blobs.len() > MOST {
            return Err(Error::Argument {
                field: "blobs",
                message: format!("{} are more than the {MOST} of one request", blobs.len()),
            });
        }
        let boundary = format!("batch_{}", uuid::Uuid::new_v4());
        let parts = self.parts(&boundary, blobs);
        let body = in_time(Instant::now() + self.deadline, parts).await?;
        let mut call = Self::container_call(Method::POST)
            .query("comp", "batch")
            .header("content-type", &format!("multipart/mixed; boundary={boundary}"))?
            .body(Bytes::from(body).into());
        call.collect = LONGEST;
        let answer = self.execute(call).await?;
        self.outcomes(blobs, &answer.response)
    }

    async fn parts(&self, boundary: &str, blobs: &[(&str, Condition)]) -> Result<Vec<u8>> {
        let account = &*self.account;
        let (by, dated) = (self.held(), account.signing_time());
        let mut body = Vec::new();
        for (number, (blob, condition)) in blobs.iter().enumerate() {
            let mut headers = super::call::Call::new(Method::DELETE, Some(blob))
                .condition(condition)?
                .headers;
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            let mut draft = Draft {
                method: Method::DELETE,
                path: account.path(&self.name, Some(blob)),
                query: Vec::new(),
                headers,
            };
            let query = by.signer.sign(&mut draft, dated).await?;
            let mark = if query.is_empty() { "" } else { "?" };
            let line = format!(
                "--{boundary}\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: \
                 binary\r\nContent-ID: {number}\r\n\r\nDELETE {}{mark}{query} HTTP/1.1\r\n",
                draft.path
            );
            body.extend_from_slice(line.as_bytes());
            for (name, value) in &draft.headers {
                body.extend_from_slice(name.as_str().as_bytes());
                body.extend_from_slice(b": ");
                body.extend_from_slice(value.as_bytes());
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
        Ok(body)
    }

    fn outcomes(&self, blobs: &[(&str, Condition)], response: &Response) -> Result<Vec<Result<()>>> {
        let mut outcomes: Vec<Option<Result<()>>> = blobs.iter().map(|_| None).collect();
        for part in parts_of(response)? {
            let place = part.number.and_then(|number| outcomes.get_mut(number));
            let Some((place, number)) = place.zip(part.number) else {
                // What is wrong with the batch as a whole may be told in a part that has no number.
                return Err(match part.answer.status.is_success() {
                    true => malformed("a part of the answer to a batch does not say which"),
                    false => self.refusal(&part.answer, None),
                });
            };
            let blob = blobs.get(number).map(|(blob, _)| *blob);
            *place = Some(if part.answer.status.is_success() {
                Ok(())
            } else {
                Err(self.refusal(&part.answer, blob))
            });
        }
        let answered = outcomes.into_iter().collect::<Option<Vec<_>>>();
        answered.ok_or_else(|| malformed("a part of the batch has no answer"))
    }

    fn refusal(&self, answer: &Response, blob: Option<&str>) -> Error {
        let (code, message) = refusal::code_and_message(answer);
        let by = self.held();
        let refusal = refusal::Refusal {
            status: answer.status,
            code: &code,
            message,
            request_id: headers::text(&answer.headers, "x-ms-request-id").unwrap_or_default(),
            server_time: None,
            now: SystemTime::now(),
            by: &by.signer,
        };
        refusal::error(refusal, &self.name, blob)
    }
}

fn malformed(message: &str) -> Error {
    Error::Malformed {
        message: message.to_owned(),
    }
}

/// The answer to one part.
#[derive(Debug)]
struct Part {
    /// Which one.
    number: Option<usize>,
    answer: Response,
}

/// Takes an answer of the type multipart/mixed apart.
fn parts_of(response: &Response) -> Result<Vec<Part>> {
    let kind = headers::text(&response.headers, "content-type").unwrap_or_default();
    let boundary = kind.split(';').find_map(|field| {
        let (name, value) = field.trim().split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty()).then(|| value.to_owned())
    });
    let boundary = boundary.ok_or_else(|| malformed("the answer to a batch has no boundary"))?;
    // Names of blobs are not in it; what is no UTF-8 is in messages.
    let text = String::from_utf8_lossy(&response.body);
    let delimiter = format!("--{boundary}");
    let parts = text.split(delimiter.as_str()).skip(1);
    parts
        .take_while(|part| !part.starts_with("--"))
        .map(|part| part_of(part).ok_or_else(|| malformed("a part of the answer to a batch")))
        .collect()
}

fn part_of(part: &str) -> Option<Part> {
    let (about, answer) = part.split_once("\r\n\r\n")?;
    let number = about.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-id")
            .then(|| value.trim().parse().ok())?
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let mut lines = head.lines();
    let status = lines.next()?.split_ascii_whitespace().nth(1)?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::try_from(name.trim()),
            HeaderValue::from_str(value.trim()),
        ) {
            headers.insert(name, value);
        }
    }
    Some(Part {
        number,
        answer: Response {
            status: StatusCode::from_bytes(status.as_bytes()).ok()?,
            headers,
            body: Bytes::copy_from_slice(body.trim_end().as_bytes()),
            dest: None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: &'static str, body: &str) -> Response {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(kind));
        Response {
            status: StatusCode::ACCEPTED,
            headers,
            body: Bytes::copy_from_slice(body.as_bytes()),
            dest: None,
        }
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let body = "--b\r\nContent-Type: application/http\r\nContent-ID: 1\r\n\r\nHTTP/1.1 202 \
                    Accepted\r\nx-ms-request-id: i\r\n\r\n\r\n--b\r\nContent-Type: application/http\r\n\
                    content-id:0\r\n\r\nHTTP/1.1 404 The specified blob does not exist.\r\n\
                    x-ms-error-code: BlobNotFound\r\nContent-Length: 5\r\n\r\n<E/>\n\r\n--b--";
        for kind in ["multipart/mixed; boundary=b", "multipart/mixed;BOUNDARY=\"b\""] {
            let parts = parts_of(&answer(kind, body)).unwrap();
            let seen: Vec<_> = parts
                .iter()
                .map(|part| {
                    let code = headers::text(&part.answer.headers, "x-ms-error-code").unwrap_or_default();
                    (
                        part.number,
                        part.answer.status.as_u16(),
                        code,
                        part.answer.body.len(),
                    )
                })
                .collect();
            assert_eq!(
                seen,
                [
                    (Some(1), 202, String::new(), 0),
                    (Some(0), 404, "BlobNotFound".into(), 4)
                ]
            );
        }
    }

    #[test]
    fn what_is_no_answer_to_a_batch_is_told() {
        for (kind, body) in [
            ("multipart/mixed", "--b--"),
            ("multipart/mixed; boundary=b", "--b\r\nx\r\n--b--"),
            ("multipart/mixed; boundary=b", "--b\r\n\r\nHTTP/1.1\r\n\r\n--b--"),
            (
                "multipart/mixed; boundary=b",
                "--b\r\n\r\nHTTP/1.1 2x2 OK\r\n\r\n--b--",
            ),
        ] {
            assert!(parts_of(&answer(kind, body)).is_err(), "{kind} {body:?}");
        }
        assert!(
            parts_of(&answer("multipart/mixed; boundary=b", ""))
                .unwrap()
                .is_empty()
        );
    }
}
