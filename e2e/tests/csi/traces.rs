//! What a collector of traces gets: from calls and operations to the service's request ids.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use e2e::harness::node::{Node, NodeOptions};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response};

use super::*;

/// A collector that keeps what it is sent.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let scopes = resources.flat_map(|resource| resource.scope_spans);
        self.0
            .lock()
            .unwrap()
            .extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let server = TraceServiceServer::new(collector.clone());
        let address = runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .unwrap();
            let address = listener.local_addr().unwrap();
            let incoming = TcpListenerStream::new(listener);
            let server = tonic::transport::Server::builder().add_service(server);
            tokio::spawn(server.serve_with_incoming(incoming));
            address
        });
        (collector, address)
    }

    /// The spans of the first trace whose root has this name and attributes, once its root has come.
    fn trace(&self, root: &str, of: &[(&str, &str)]) -> Vec<Span> {
        let what = format!("the trace of {root}");
        wait_for(&what, PATIENCE, || {
            let spans = self.0.lock().unwrap();
            let root = spans.iter().find(|span| {
                let known = attributes_of(span);
                let fits = |(key, value): &(&str, &str)| known.get(*key).is_some_and(|v| v == value);
                span.name == root && span.parent_span_id.is_empty() && of.iter().all(fits)
            });
            Ok(root.map(|root| {
                let same = spans.iter().filter(|span| span.trace_id == root.trace_id);
                same.cloned().collect()
            }))
        })
        .unwrap()
    }
}

fn attributes_of(span: &Span) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let attributes = span.attributes.iter();
    attributes
        .filter_map(|a| Some((a.key.clone(), text(a.value.as_ref()?.value.as_ref()?))))
        .collect()
}

/// The requests of a trace: what they asked, how they were answered, and that the service has named each.
fn requests(trace: &[Span]) -> Vec<(String, String)> {
    let requests = trace.iter().filter(|span| !span.parent_span_id.is_empty());
    let told = requests.filter_map(|span| {
        let known = attributes_of(span);
        let status = known.get("http.response.status_code")?;
        let id = known.get("az.service_request_id").map_or("", String::as_str);
        assert_eq!(id.len(), 36, "no id of the service: {known:?}");
        assert!(known.contains_key("az.client_request_id"), "{known:?}");
        Some((span.name.clone(), status.clone()))
    });
    told.collect()
}

#[test]
fn from_a_call_or_an_operation_to_the_services_request_id() {
    let (collector, address) = Collector::start();
    let backend = Backend::start(Kind::Embedded).unwrap();
    let container = backend.create_container("photos").unwrap();
    container
        .write("given", vec![1; 64 << 10], &Metadata::new())
        .unwrap();
    let node = Node::start(&NodeOptions {
        budget: 64 << 20,
        more: vec![
            format!("--otlp-endpoint=http://{address}"),
            "--otlp-ratio=1".into(),
        ],
        ..NodeOptions::default()
    })
    .unwrap();
    let at = node.stage("traced", backend.endpoint(), "photos", &[]).unwrap();
    assert_eq!(std::fs::read(at.join("given")).unwrap().len(), 64 << 10);
    std::fs::write(at.join("made"), "new").unwrap();
    std::fs::File::open(at.join("made")).unwrap().sync_all().unwrap();
    drop(node);

    let staged = collector.trace("NodeStageVolume", &[("rpc.grpc.status_code", "0")]);
    assert!(!requests(&staged).is_empty(), "{staged:#?}");
    // The read itself, or the open that has read ahead.
    let wanted = [
        ("GET".to_owned(), "206".to_owned()),
        ("GET".to_owned(), "200".to_owned()),
    ];
    let spans = collector.0.lock().unwrap().clone();
    let roots = spans
        .iter()
        .filter(|span| ["read", "open"].contains(&span.name.as_str()));
    let reads: Vec<_> = roots
        .map(|root| {
            spans
                .iter()
                .filter(|s| s.trace_id == root.trace_id)
                .cloned()
                .collect::<Vec<_>>()
        })
        .flat_map(|trace| requests(&trace))
        .collect();
    assert!(reads.iter().any(|read| wanted.contains(read)), "{reads:?}");
    let flushed = spans.iter().any(|span| {
        let known = attributes_of(span);
        let put = known
            .get("http.request.method")
            .is_some_and(|method| method == "PUT");
        put && known.get("blob").is_some_and(|blob| blob == "made") && !span.parent_span_id.is_empty()
    });
    assert!(flushed, "what was written is in no operation's trace");
    let all = format!("{spans:?}");
    assert!(
        !all.contains(DEV_KEY) && !all.contains("SharedKey"),
        "a secret is in a trace"
    );
}
