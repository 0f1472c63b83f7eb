//! OTLP export: spans of calls, as a collector receives them from the real process.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dipylon_sdk::client::{AgentClient, EvidenceSource, OpenTaskRequest};
use dipylon_sdk::clock::Clock;
use tonic::{Request, Response, Status};

use super::metrics::{TRACE, traced};
use crate::support::DOMAIN;
use crate::support::broker_deployment::BrokerDeployment;

/// `ExportTraceServiceRequest`, undecoded.
#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(bytes = "vec", repeated, tag = "1")]
    resource_spans: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Received {}

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl tonic::server::UnaryService<Export> for Collector {
    type Response = Received;
    type Future = std::future::Ready<Result<Response<Received>, Status>>;

    fn call(&mut self, request: Request<Export>) -> Self::Future {
        let mut all = self.0.lock().expect("collector");
        for spans in request.into_inner().resource_spans {
            all.extend(spans);
        }
        std::future::ready(Ok(Response::new(Received {})))
    }
}

impl Collector {
    fn has(&self, what: &[u8]) -> bool {
        let all = self.0.lock().expect("collector");
        all.windows(what.len()).any(|window| window == what)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_a_collector() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("listens");
    let address = listener.local_addr().expect("address");
    let received = collector.clone();
    let export = move |request: axum::extract::Request| {
        let collector = received.clone();
        async move {
            let codec = tonic_prost::ProstCodec::<Received, Export>::default();
            tonic::server::Grpc::new(codec)
                .unary(collector, request)
                .await
        }
    };
    let path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
    let router = axum::Router::new().route(path, axum::routing::post(export));
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });

    let temp = tempfile::tempdir().expect("dir");
    let more = format!("otlp_endpoint = \"http://{address}\"\n");
    let realm = BrokerDeployment::with_config(temp.path(), &more);
    // The export does not depend on the log level.
    let mut broker = realm
        .broker_with_log(std::process::Stdio::inherit(), "error")
        .await;
    let id = format!("spiffe://{DOMAIN}/agent/triage");
    let svid = realm
        .env
        .svid_for(&realm.url, &id, Clock::system().now(), 3_600);
    let agent = AgentClient::new(realm.endpoint(), EvidenceSource::Fixed(svid.clone()), None);
    let opening = OpenTaskRequest {
        purpose: "CANARY-purpose".into(),
        max_duration_s: 600,
        idempotency_key: Some("open-1".into()),
        heartbeat_s: None,
    };
    let task = agent.open_task(&opening).await.expect("opens");
    traced(&realm.url).await;
    let trace: Vec<u8> = (0..16)
        .map(|i| u8::from_str_radix(&TRACE[2 * i..2 * i + 2], 16).expect("hex"))
        .collect();
    for _ in 0..1_000 {
        if collector.has(task.id().to_string().as_bytes()) && collector.has(&trace) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(collector.has(b"dipylon.v1.TaskService/OpenTask"));
    assert!(collector.has(task.id().to_string().as_bytes()));
    assert!(collector.has(&trace), "part of the caller's trace");
    assert!(!collector.has(b"CANARY"));
    let signature = svid.expose_secret().rsplit('.').next().expect("a part");
    assert!(!collector.has(signature.as_bytes()));
    broker.kill().await.expect("stopped");
    serving.abort();
}
