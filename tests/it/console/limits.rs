//! Console limits: event streams per person, and request bodies that never complete.

use std::sync::Arc;

use bytes::Bytes;
use dipylon_sdk::client::TokenOutcome;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{ConsoleUser, HttpBrowser};
use crate::support::read_case;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::wait::in_time;

/// Event streams per person are bounded; more are refused with a retry delay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_streams_per_person_are_bounded() {
    let s = ServedBroker::start().await;
    let maria = Arc::new(ConsoleUser::sign_in(&s, "maria").await);
    let cookie = maria.browser.cookie.clone().expect("signed in");
    let mut open = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut stream = TcpStream::connect(maria.browser.address)
            .await
            .expect("connects");
        let request = format!(
            "GET /console/events HTTP/1.1\r\nhost: {}\r\ncookie: {cookie}\r\n\r\n",
            maria.browser.host
        );
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut head = [0; 12];
        in_time("a status", stream.read_exact(&mut head))
            .await
            .expect("read");
        match &head[9..] {
            b"200" => open.push(stream),
            b"429" => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((open.len(), refused), (16, 4));
    maria.browser.get("/console").await.ok();
}

/// Three hundred console requests whose bodies never complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_bodies_hold_no_permit() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let browser = HttpBrowser::new(&s);
    let (path, live) = (
        format!("{}/console/sign-in/begin", browser.origin),
        format!("{}/livez", browser.origin),
    );
    let mut open_requests = Vec::new();
    for _ in 0..6 {
        let stream = TcpStream::connect(browser.address).await.expect("connects");
        let (mut sender, connection) = h2::client::handshake(stream).await.expect("h2");
        tokio::spawn(connection);
        for _ in 0..50 {
            sender = in_time("flow-control capacity", sender.ready())
                .await
                .expect("ready");
            let request = http::Request::post(&path)
                .header("origin", &browser.origin)
                .header("content-type", "application/json");
            let request = request.body(()).expect("a request");
            let (answer, mut body) = sender.send_request(request, false).expect("sent");
            let first = Bytes::from_static(b"{");
            body.send_data(first, false).expect("sent");
            open_requests.push((answer, body));
        }
        // Earlier requests on this connection have been read.
        sender = in_time("flow-control capacity", sender.ready())
            .await
            .expect("ready");
        let probe = http::Request::get(&live).body(()).expect("a request");
        let (answer, _) = sender.send_request(probe, true).expect("sent");
        assert_eq!(
            in_time("alive", answer).await.expect("answered").status(),
            200
        );
    }
    assert_eq!(open_requests.len(), 300);
    for n in 0..10 {
        let minted = task
            .request_token(&token_request(read_case(), &format!("r-{n}")))
            .await;
        assert!(matches!(minted, Ok(TokenOutcome::Token(_))), "{minted:?}");
    }
    let none = "dipylon_rate_limited_total{class=\"general\",by=\"concurrency\"} 0\n";
    let metrics = s.broker.read_metrics();
    assert!(metrics.contains(none), "a call was shed: {metrics}");
    // A complete body is answered, and an oversized one is rejected.
    browser
        .post("/console/sign-in/begin", &json!({}))
        .await
        .ok();
    let long = json!({ "long": "x".repeat(70_000) });
    assert_eq!(
        browser.post("/console/sign-in/begin", &long).await.status,
        413
    );
}
