//! The SDK's examples: the agent and the resource server that a newcomer runs, against a served broker.

use tokio::net::TcpListener;

use crate::admission::get;
use crate::support::served_broker::ServedBroker;

#[path = "../../sdk/examples/agent.rs"]
mod agent;
#[path = "../../sdk/examples/resource_server.rs"]
pub mod resource_server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_and_resource_server_examples_work_together() {
    let broker = ServedBroker::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let router = resource_server::router(&broker.url, broker.env.key_of("cases"), url.clone())
        .await
        .expect("the validator connects");
    let served = tokio::spawn(async move { axum::serve(listener, router).await });

    let read = agent::read_case(&broker.url, broker.evidence("triage"), &url, "INC-8841").await;
    let text = read.expect("the case is read");
    assert_eq!(text, "INC-8841: credential phishing, read by triage\n");
    let unknown = agent::read_case(&broker.url, broker.evidence("triage"), &url, "INC-0").await;
    let refused = unknown.expect_err("an unknown target").to_string();
    assert!(refused.contains("UNKNOWN_TARGET"), "{refused}");
    let (status, _) = get(&url, "/cases/INC-8841").await;
    assert_eq!(status, 401, "without a token");
    served.abort();
}
