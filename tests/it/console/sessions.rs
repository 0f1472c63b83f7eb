//! Console sessions and their event streams: sign-out, the end of a session, change notices of the inbox.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{ConsoleUser, HttpBrowser, assertion_json, pending};
use crate::support::disable;
use crate::support::served_broker::ServedBroker;
use crate::support::wait::in_time;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_out_ends_the_session() {
    let s = ServedBroker::start().await;
    let mut maria = ConsoleUser::sign_in(&s, "maria").await;
    let origin = maria.browser.origin.clone();
    let assertion = maria.passkey.get(&maria.challenge().await, &origin);
    let mut other = HttpBrowser::new(&s);
    assert_eq!(
        other
            .post("/console/sign-in/finish", &assertion_json(&assertion))
            .await
            .status,
        204
    );
    let again = other
        .post("/console/sign-in/finish", &assertion_json(&assertion))
        .await;
    assert_eq!(
        (again.status, again.reason().as_str()),
        (401, "NOT_AUTHENTICATED")
    );
    assert_eq!(again.header("set-cookie"), None);

    maria.browser.get("/console").await.ok();
    let out = maria.browser.submit("/console/sign-out").await;
    assert_eq!(
        (out.status, out.header("location")),
        (303, Some("/console/sign-in"))
    );
    assert!(
        out.header("set-cookie")
            .expect("taken")
            .contains("Max-Age=0")
    );
    assert_eq!(maria.browser.get("/console").await.status, 303);
    assert_eq!(
        maria.browser.get("/console/fragment/inbox").await.status,
        401
    );

    // Two session cookies are ambiguous: neither is accepted.
    let lee = ConsoleUser::sign_in(&s, "lee").await;
    let one = lee.browser.cookie.clone().expect("signed in");
    maria.browser.cookie = Some(format!("{one}; dipylon-session=x"));
    assert_eq!(maria.browser.get("/console").await.status, 303);
    lee.browser.get("/console").await.ok();

    // No open redirect: the return path is a console path or the default.
    other.cookie = None;
    for (requested, target) in [
        ("/console/rules", "/console/rules"),
        ("//evil.example", "/console"),
        ("https://evil.example/console/rules", "/console"),
        ("/console/rules%22%3E%3Cscript%3E", "/console"),
        ("javascript:alert(1)", "/console"),
    ] {
        let page = other
            .get(&format!("/console/sign-in?to={requested}"))
            .await
            .ok();
        assert!(
            page.body.contains(&format!("data-to=\"{target}\"")),
            "{requested}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbox_event_stream() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let mut stream = TcpStream::connect(maria.browser.address)
        .await
        .expect("connects");
    let cookie = maria.browser.cookie.clone().expect("signed in");
    let host = &maria.browser.host;
    let request =
        format!("GET /console/events HTTP/1.1\r\nhost: {host}\r\ncookie: {cookie}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let heard = async |stream: &mut TcpStream, wanted: &str| {
        let mut text = String::new();
        let mut part = [0; 4_096];
        while !text.contains(wanted) {
            let n = in_time("an event", stream.read(&mut part))
                .await
                .expect("read");
            assert!(n > 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&part[..n]));
        }
        text
    };
    let head = heard(&mut stream, "retry:").await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/event-stream"),
        "{head}"
    );
    let id = pending(&task, disable("ann"), "r-1").await;
    let notice = heard(&mut stream, "event: changed").await;
    assert!(!notice.contains(&id.to_string()), "only a change notice");
    let rows = maria.browser.get("/console/fragment/inbox").await.ok();
    assert!(rows.body.contains(&format!("data-request=\"{id}\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn event_stream_ends_with_its_session() {
    let s = ServedBroker::start().await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let mut stream = TcpStream::connect(maria.browser.address)
        .await
        .expect("connects");
    let cookie = maria.browser.cookie.clone().expect("signed in");
    let request = format!(
        "GET /console/events HTTP/1.1\r\nconnection: close\r\nhost: {}\r\ncookie: {cookie}\r\n\r\n",
        maria.browser.host
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = [0; 12];
    in_time("a status", stream.read_exact(&mut head))
        .await
        .expect("read");
    assert_eq!(&head[9..], b"200");
    maria.browser.submit("/console/sign-out").await;
    let mut rest = Vec::new();
    in_time("the end", stream.read_to_end(&mut rest))
        .await
        .expect("ended");
}
