//! Get Blob and Get Blob Properties.

use std::ops::Range;

use http::{Method, StatusCode};
use vsc_driver::buffer::Buffer;

use super::call::Call;
use super::{Container, headers};
use crate::error::{Error, Result};
use crate::types::{Condition, Got, Properties};

impl Container {
    /// Get Blob, `range` in bytes (end exclusive, at most `dest.len()` long). Reading at or past the end
    /// gives 0 bytes (the service's 416 is turned into an empty answer with the blob's properties).
    pub async fn get(
        &self,
        blob: &str,
        range: Range<u64>,
        condition: &Condition,
        mut dest: Buffer,
    ) -> Result<Got> {
        let wanted = range
            .end
            .checked_sub(range.start)
            .and_then(|len| usize::try_from(len).ok())
            .filter(|len| *len <= dest.len())
            .ok_or_else(|| Error::Argument {
                field: "range",
                message: format!(
                    "{}..{} does not fit a destination of {} bytes",
                    range.start,
                    range.end,
                    dest.len()
                ),
            })?;
        if wanted == 0 {
            return self.nothing(blob, condition, dest).await;
        }
        dest.set_len(wanted);
        let mut call = Call::new(Method::GET, Some(blob))
            .header("x-ms-range", &format!("bytes={}-{}", range.start, range.end - 1))?
            .condition(condition)?;
        call.dest = Some(dest);
        call.range = Some(range);
        let failed = match self.execute(call).await {
            Ok(answer) => {
                let Some(buffer) = answer.response.dest else {
                    return Err(Error::Malformed {
                        message: "the transport lost the read's destination".into(),
                    });
                };
                let total = headers::whole_length(&answer.response.headers, buffer.len() as u64);
                return Ok(Got {
                    properties: headers::properties(&answer.response.headers, total)?,
                    buffer,
                });
            }
            Err(failed) => failed,
        };
        if failed.status == Some(StatusCode::RANGE_NOT_SATISFIABLE) {
            let dest = match failed.dest {
                Some(dest) => dest,
                None => self.account.arena.alloc(wanted).map_err(|source| Error::Io {
                    call: "allocating a read buffer",
                    source,
                })?,
            };
            return self.nothing(blob, condition, dest).await;
        }
        Err(failed.into())
    }

    /// An empty read: the properties alone.
    async fn nothing(&self, blob: &str, condition: &Condition, mut dest: Buffer) -> Result<Got> {
        let properties = self.head(blob, condition).await?;
        dest.set_len(0);
        Ok(Got {
            buffer: dest,
            properties,
        })
    }

    /// Get Blob Properties.
    pub async fn head(&self, blob: &str, condition: &Condition) -> Result<Properties> {
        let headers = self.head_headers(blob, condition).await?;
        let mut properties = Self::head_properties(&headers)?;
        properties.copied_from = self.copied_from(&headers);
        Ok(properties)
    }

    /// Properties out of the headers of Get Blob Properties.
    pub(super) fn head_properties(headers: &http::HeaderMap) -> Result<Properties> {
        let length = headers::text(headers, "content-length")
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| Error::Malformed {
                message: "the answer has no Content-Length header".into(),
            })?;
        headers::properties(headers, length)
    }

    /// All headers of Get Blob Properties (copies have their state there).
    pub(super) async fn head_headers(&self, blob: &str, condition: &Condition) -> Result<http::HeaderMap> {
        let call = Call::new(Method::HEAD, Some(blob)).condition(condition)?;
        Ok(self.execute(call).await?.response.headers)
    }
}
