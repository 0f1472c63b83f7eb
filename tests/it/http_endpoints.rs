//! Plain HTTP: the key set and its caching, errors as problem details, hosts, and connections that the broker closes.

use bytes::Bytes;
use dipylon_sdk::model::{CorrelationId, Reason};

use crate::support::raw_http::{Answer, Http2, http1, raw_http1};
use crate::support::served_broker::ServedBroker;

const JWKS: &str = "/.well-known/jwks.json";

fn assert_problem(answer: &Answer, status: u16, reason: Reason, what: &str) {
    assert_eq!(answer.status, status, "{what}");
    let kind = answer.header("content-type");
    assert_eq!(kind, Some("application/problem+json"), "{what}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    let problem = answer.json();
    assert_eq!(problem["status"], status, "{what}");
    assert_eq!(problem["reason"], reason.as_str(), "{what}");
    let kind = format!("urn:dipylon:reason:{reason}");
    assert_eq!(problem["type"], kind, "{what}");
    let correlation = problem["correlation_id"].as_str().expect("an id");
    CorrelationId::parse(correlation).expect("a correlation id");
    for member in ["title", "detail"] {
        assert_ne!(problem[member].as_str().expect("text"), "", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_set_is_cacheable_and_public() {
    let s = ServedBroker::start().await;
    let send = async |method: &str, headers: &[(&str, &str)]| {
        http1(&s.url, method, JWKS, headers, &[]).await
    };
    let whole = send("GET", &[("origin", "https://elsewhere.example")]).await;
    assert_eq!(whole.status, 200);
    assert!(
        whole.json()["keys"]
            .as_array()
            .is_some_and(|keys| !keys.is_empty())
    );
    let etag = whole.header("etag").expect("a tag").to_owned();
    let shared = |answer: &Answer| {
        assert_eq!(answer.header("etag"), Some(etag.as_str()));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=300"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    };
    shared(&whole);
    let head = send("HEAD", &[]).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    shared(&head);
    for tag in [&etag, &format!("W/{etag}"), &format!("\"x\", {etag}"), "*"] {
        let known = send("GET", &[("if-none-match", tag)]).await;
        assert_eq!((known.status, known.body.len()), (304, 0), "{tag}");
        shared(&known);
    }
    assert_eq!(send("GET", &[("if-none-match", "\"x\"")]).await.status, 200);
    let preflight = send("OPTIONS", &[("access-control-request-method", "GET")]).await;
    assert_eq!(preflight.status, 204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
    assert_eq!(preflight.header("allow"), Some("GET, HEAD, OPTIONS"));
    let post = send("POST", &[]).await;
    assert_problem(&post, 405, Reason::Malformed, "POST");
    assert!(post.header("allow").expect("Allow").contains("GET"));
}

/// RFC 9110 §8.6: a length that a response to HEAD, or a 304, states is the one of the content that GET gets.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_without_content_are_true() {
    let s = ServedBroker::start().await;
    let mut http2 = Http2::connect(&s.url).await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), (JWKS, 200), ("/x", 404)] {
        let got = http1(&s.url, "GET", path, &[], &[]).await;
        assert_eq!(got.status, status, "{path}");
        let length = got.body.len().to_string();
        let mut answers = vec![
            http1(&s.url, "HEAD", path, &[], &[]).await,
            http2.send("HEAD", path, &[], Bytes::new()).await,
        ];
        if let Some(etag) = got.header("etag") {
            let known = [("if-none-match", etag)];
            answers.push(http1(&s.url, "GET", path, &known, &[]).await);
            answers.push(http1(&s.url, "HEAD", path, &known, &[]).await);
            answers.push(http2.send("GET", path, &known, Bytes::new()).await);
        }
        for answer in answers {
            assert!(answer.body.is_empty(), "{path}");
            let stated = answer.header("content-length");
            let may_be_left_out = answer.status == 304;
            assert!(
                stated == Some(length.as_str()) || may_be_left_out && stated.is_none(),
                "{path} {}: {stated:?}",
                answer.status
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_errors_are_problem_details() {
    let s = ServedBroker::start().await;
    let console = s.url.replace("127.0.0.1", "localhost");
    let host = console.trim_start_matches("http://").to_owned();
    let ours = ("host", host.as_str());
    let origin = ("origin", console.as_str());
    let json = ("content-type", "application/json");
    let (large, long) = ("x".repeat(20_000), format!("/{}", "x".repeat(20_000)));
    let body = "x".repeat(70_000);
    let vote = "/console/requests/areq_AAAAAAAAAAAAAAAAAAAAAA/vote/begin";
    let cookie = ("cookie", "dipylon-session=forged");
    type Case<'a> = (
        &'a str,
        &'a str,
        Vec<(&'a str, &'a str)>,
        &'a str,
        u16,
        Reason,
    );
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/nothing", vec![], "", 404, Reason::NotFound),
        ("GET", "/oauth/token", vec![], "", 404, Reason::NotFound),
        ("GET", "/livez/", vec![], "", 404, Reason::NotFound),
        ("POST", "/livez", vec![], "", 405, Reason::Malformed),
        (
            "GET",
            "/",
            vec![("x", &large)],
            "",
            431,
            Reason::RequestTooLarge,
        ),
        ("GET", &long, vec![], "", 404, Reason::NotFound),
        (
            "GET",
            "/console/nothing",
            vec![ours],
            "",
            404,
            Reason::NotFound,
        ),
        ("PUT", "/console", vec![ours], "", 405, Reason::Malformed),
        (
            "GET",
            "/console/assets/x/y",
            vec![ours],
            "",
            404,
            Reason::NotFound,
        ),
        ("GET", "/console", vec![], "", 421, Reason::NotPermitted),
        (
            "GET",
            "/console/events",
            vec![ours],
            "",
            401,
            Reason::NotAuthenticated,
        ),
        (
            "POST",
            "/console/sign-in/begin",
            vec![ours, origin, json],
            &body,
            413,
            Reason::RequestTooLarge,
        ),
        (
            "POST",
            "/console/sign-in/finish",
            vec![ours, origin, json],
            "{\"x\":1}",
            400,
            Reason::Malformed,
        ),
        (
            "POST",
            "/console/sign-in/finish",
            vec![ours, origin],
            "{}",
            415,
            Reason::Malformed,
        ),
        // A vote with a cookie alone: first the page that sent it, then the session, then its form.
        (
            "POST",
            vote,
            vec![ours, cookie],
            "{}",
            403,
            Reason::NotPermitted,
        ),
        (
            "POST",
            vote,
            vec![ours, cookie, json],
            "{}",
            403,
            Reason::NotPermitted,
        ),
        (
            "POST",
            vote,
            vec![ours, cookie, origin],
            "{}",
            401,
            Reason::NotAuthenticated,
        ),
        (
            "POST",
            vote,
            vec![ours, cookie, origin, json],
            "",
            401,
            Reason::NotAuthenticated,
        ),
    ];
    for (method, path, headers, body, status, reason) in cases {
        let what = format!("{method} {} {status}", &path[..path.len().min(60)]);
        let answer = http1(&s.url, method, path, &headers, body.as_bytes()).await;
        assert_problem(&answer, status, reason, &what);
    }
    // A browser gets a page.
    for path in ["/console/nothing", "/console/assets/x/y"] {
        let html = [ours, ("accept", "text/html,*/*")];
        let answer = http1(&s.url, "GET", path, &html, &[]).await;
        assert_eq!(answer.status, 404);
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("text/html; charset=utf-8"), "{path}");
        assert!(answer.header("content-security-policy").is_some());
    }
    // A member is named, a value is not.
    let finish = "/console/sign-in/finish";
    for (body, named) in [
        ("{\"secret-member\":1}", "unknown field `secret-member`"),
        ("{}", "missing field `"),
        (
            "{\"credential\":\"s3cr3t\",\"credential\":1}",
            "duplicate field",
        ),
        ("[\"s3cr3t\"]", "column"),
    ] {
        let headers = [ours, origin, json];
        let answer = http1(&s.url, "POST", finish, &headers, body.as_bytes()).await;
        let detail = answer.json()["detail"].as_str().expect("text").to_owned();
        assert!(
            detail.contains(named) && !detail.contains("s3cr3t"),
            "{detail}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn contradicting_hosts_are_refused() {
    let s = ServedBroker::start().await;
    let address = s.url.trim_start_matches("http://").to_owned();
    for (target, hosts) in [
        ("/livez", "host: a.example\r\nhost: a.example\r\n"),
        ("/livez", "host: a.example\r\nhost: b.example\r\n"),
        ("/livez", ""),
        ("http://a.example/livez", "host: b.example\r\n"),
    ] {
        let request = format!("GET {target} HTTP/1.1\r\n{hosts}connection: close\r\n\r\n");
        let answer = raw_http1(&address, request.as_bytes()).await;
        assert_problem(&answer, 400, Reason::Malformed, &request);
    }
    let mut http2 = Http2::connect(&s.url).await;
    let other = [("host", "b.example")];
    let answer = http2
        .send("GET", "/livez", &other, bytes::Bytes::new())
        .await;
    assert_problem(&answer, 400, Reason::Malformed, "HTTP/2");
    let same = [("host", address.as_str())];
    let answer = http2
        .send("GET", "/livez", &same, bytes::Bytes::new())
        .await;
    assert_eq!(answer.status, 200);
}

/// A request that is refused before its body is read: the connection closes, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unread_bodies_close_the_connection() {
    let s = ServedBroker::start().await;
    let address = s.url.trim_start_matches("http://").to_owned();
    let head = |path: &str, length: usize| {
        format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n")
    };
    let path = "/dipylon.v1.TaskService/OpenTask";
    // More than is read of a refused request, and less than the connection lingers for.
    let long = format!("{}{}", head(path, 400_000), "x".repeat(200_000));
    let answer = raw_http1(&address, long.as_bytes()).await;
    assert_eq!(answer.status, 415);
    assert_eq!(answer.header("connection"), Some("close"));
    // A short body is read to its end: the next request on the connection is answered.
    for body in ["", "12345"] {
        let kept = format!(
            "{}{body}GET /livez HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n",
            head(path, body.len())
        );
        let answer = raw_http1(&address, kept.as_bytes()).await;
        assert_eq!(answer.status, 415);
        assert_eq!(answer.header("connection"), None);
        assert!(String::from_utf8_lossy(&answer.body).ends_with("alive\n"));
    }
}
