//! What goes wrong between the host and the service.

use std::io;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::backend::Backend;

/// What happens to a request that the host sends to the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Behind {
    /// It does not get there.
    Unreachable,
    /// It is executed, and its answer does not get back.
    Lost,
    /// It is executed twice; the first answer counts.
    Doubled,
    /// It is not executed: a proxy says 404, without a header of the service.
    Foreign,
}

/// Has the service execute a request, with what happens on the way.
pub(super) async fn execute(
    backend: &dyn Backend,
    request: Request<Bytes>,
    behind: Option<Behind>,
) -> io::Result<Response<Vec<Bytes>>> {
    match behind {
        None => backend.execute(request).await,
        Some(Behind::Unreachable) => Err(io::ErrorKind::ConnectionRefused.into()),
        Some(Behind::Lost) => {
            backend.execute(request).await?;
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Some(Behind::Doubled) => {
            let first = backend.execute(request.clone()).await?;
            backend.execute(request).await?;
            Ok(first)
        }
        Some(Behind::Foreign) => {
            let mut page = Response::new(vec![Bytes::from_static(b"<html><body>404</body></html>")]);
            *page.status_mut() = StatusCode::NOT_FOUND;
            Ok(page)
        }
    }
}
