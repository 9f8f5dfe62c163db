//! Counting calls of the CSI services: how long each took, how it ended, and for which reason it failed.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use blob_client::TRACE;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;
use tonic::Code;
use tower::{Layer, Service};
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::error::REASON;

/// Calls of methods that no service has.
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ended {
    method: String,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    method: String,
    reason: String,
}

/// Counters of calls, and the layer of a gRPC server that fills them. Clones count together.
#[derive(Debug, Clone)]
pub struct Rpcs {
    durations: Family<Ended, Histogram, fn() -> Histogram>,
    failures: Family<Failed, Counter>,
}

impl Default for Rpcs {
    fn default() -> Self {
        Self {
            durations: Family::new_with_constructor(histogram),
            failures: Family::default(),
        }
    }
}

/// From 5 ms (a statistics call) to 82 s (kubelet gives up after two minutes).
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.005, 4.0, 8))
}

impl Rpcs {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "rpc_duration",
            "Time from the arrival of a CSI call to its answer",
            Unit::Seconds,
            self.durations.clone(),
        );
        registry.register(
            "rpc_failures",
            "CSI calls that failed, by the reason of docs/troubleshooting.md",
            self.failures.clone(),
        );
    }

    fn ended(&self, method: &str, began: Instant, code: Code, reason: Option<String>) {
        let method = method.to_owned();
        if let Some(reason) = reason {
            let labels = Failed {
                method: method.clone(),
                reason,
            };
            self.failures.get_or_create(&labels).inc();
        }
        let code = format!("{code:?}");
        let labels = Ended { method, code };
        self.durations
            .get_or_create(&labels)
            .observe(began.elapsed().as_secs_f64());
    }
}

impl<S> Layer<S> for Rpcs {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            rpcs: self.clone(),
        }
    }
}

/// A service whose calls are counted. See [`Rpcs`].
#[derive(Debug, Clone)]
pub struct Counted<S> {
    inner: S,
    rpcs: Rpcs,
}

/// Counts a call as cancelled when its caller goes away before the answer.
struct AtWork {
    rpcs: Rpcs,
    method: String,
    began: Instant,
    answered: bool,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        if !self.answered {
            self.rpcs.ended(&self.method, self.began, Code::Cancelled, None);
        }
    }
}

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let mut call = AtWork {
            rpcs: self.rpcs.clone(),
            method: method.to_owned(),
            began: Instant::now(),
            answered: false,
        };
        let span = tracing::info_span!(
            target: TRACE, "csi", otel.name = method, otel.kind = "server", otel.status_code = Empty,
            rpc.grpc.status_code = Empty, reason = Empty
        );
        let answer = span.in_scope(|| self.inner.call(request));
        let at_work = span.clone();
        let work = async move {
            let mut answer = answer.await;
            call.answered = true;
            // A status is in the headers when it is an error, and follows the message when it is none.
            let (code, reason) = match &mut answer {
                Ok(response) => {
                    let headers = response.headers_mut();
                    let code = headers
                        .get("grpc-status")
                        .map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()));
                    let reason = headers.remove(REASON);
                    (code, reason.and_then(|r| r.to_str().ok().map(str::to_owned)))
                }
                Err(_) => (Code::Unknown, None),
            };
            // What a caller makes up must not become a label.
            let method = match code {
                Code::Unimplemented => OTHER,
                _ => &call.method,
            };
            if code != Code::Ok {
                span.record("otel.status_code", "ERROR");
            }
            span.record("rpc.grpc.status_code", code as i32);
            if let Some(reason) = &reason {
                span.record("reason", reason);
            }
            call.rpcs.ended(method, call.began, code, reason);
            answer
        };
        Box::pin(work.instrument(at_work))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::Status;
    use tower::{ServiceExt as _, service_fn};

    use super::*;
    use crate::error::{Error, Reason};

    fn scrape(rpcs: &Rpcs) -> String {
        let mut registry = Registry::default();
        rpcs.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    async fn call(rpcs: &Rpcs, path: &str, status: Option<Status>) -> http::Response<()> {
        let answer = service_fn(move |_: http::Request<()>| {
            let response = match &status {
                Some(status) => status.clone().into_http(),
                None => http::Response::new(()),
            };
            async move { Ok::<_, Infallible>(response) }
        });
        let request = http::Request::builder().uri(path).body(()).unwrap();
        rpcs.layer(answer).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_code_and_reason() {
        let rpcs = Rpcs::default();
        call(&rpcs, "/csi.v1.Node/NodeStageVolume", None).await;
        let error = Error::new(Reason::UnknownKey, "volumeAttributes: unknown key");
        let answer = call(&rpcs, "/csi.v1.Node/NodeStageVolume", Some(error.into())).await;
        assert!(answer.headers().get(REASON).is_none(), "for us only");
        assert_eq!(answer.headers()["grpc-status"], "3");
        call(&rpcs, "/made/up", Some(Status::unimplemented(""))).await;
        let text = scrape(&rpcs);
        for line in [
            r#"rpc_duration_seconds_count{method="NodeStageVolume",code="Ok"} 1"#,
            r#"rpc_duration_seconds_count{method="NodeStageVolume",code="InvalidArgument"} 1"#,
            r#"rpc_duration_seconds_count{method="other",code="Unimplemented"} 1"#,
            r#"rpc_failures_total{method="NodeStageVolume",reason="UnknownKey"} 1"#,
        ] {
            assert!(text.contains(line), "no {line} in\n{text}");
        }
        assert!(!text.contains("made"), "{text}");
    }

    #[tokio::test]
    async fn a_call_that_nobody_waits_for_any_more_is_counted() {
        let rpcs = Rpcs::default();
        let never = service_fn(|_: http::Request<()>| {
            std::future::pending::<Result<http::Response<()>, Infallible>>()
        });
        let request = http::Request::builder().uri("/csi.v1.Node/X").body(()).unwrap();
        let mut waiting = Box::pin(rpcs.layer(never).oneshot(request));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(waiting);
        let text = scrape(&rpcs);
        let line = r#"rpc_duration_seconds_count{method="X",code="Cancelled"} 1"#;
        assert!(text.contains(line), "{text}");
    }
}
