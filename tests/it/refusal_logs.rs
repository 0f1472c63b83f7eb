//! Log lines of refusals before authentication: one throttle for all lines of a refused call.

use std::io::Write;
use std::sync::{Arc, Mutex};

use crate::support::raw_http::{Http2, http1};
use crate::support::served_broker::ServedBroker;

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One thread, so that the log has what the broker did for this test alone.
#[tokio::test]
async fn a_refused_call_is_logged_as_often_as_its_refusal() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let s = ServedBroker::start().await;
    let mut http2 = Http2::connect(&s.url).await;
    let host = s
        .url
        .trim_start_matches("http://")
        .replace("127.0.0.1", "localhost");
    let ours = ("host", host.as_str());
    let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
    let calls = 12;
    for _ in 0..calls {
        let list = "/dipylon.v1.GovernanceService/ListFreezes";
        let body = bytes::Bytes::from_static(&[0; 5]);
        let refused = http2.send("POST", list, &grpc, body).await;
        assert_eq!(refused.grpc_status().code(), tonic::Code::Unauthenticated);
        for (method, path, headers, status) in [
            ("GET", "/nothing", vec![], 404),
            (
                "GET",
                "/console/nothing",
                vec![ours, ("accept", "text/html")],
                404,
            ),
            ("GET", "/console", vec![ours], 303),
            ("GET", "/console", vec![("host", "evil.example")], 421),
            (
                "POST",
                "/console/sign-out",
                vec![ours, ("origin", "https://evil.example")],
                403,
            ),
            (
                "GET",
                "/console",
                vec![ours, ("sec-fetch-dest", "image")],
                403,
            ),
        ] {
            let answer = http1(&s.url, method, path, &headers, &[]).await;
            assert_eq!(answer.status, status, "{method} {path} {headers:?}");
        }
    }
    let text = String::from_utf8(log.0.lock().expect("whole").clone()).expect("text");
    let count = |part: &str| text.lines().filter(|line| line.contains(part)).count();
    let refused = count("refused");
    assert!((1..7 * calls).contains(&refused), "throttled: {text}");
    assert!(count("request completed") <= refused, "{text}");
    assert_eq!(count("cross-site request rejected"), 0, "{text}");
}
