//! Console over HTTP: access by role, CSRF, output escaping, sessions and voting. A minimal HTTP client sends whatever a test
//! wants; passkeys are software.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use dipylon::broker::{CallContext, CallerRole};
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::authorization;
use dipylon::serve::routes::{Access, ROUTES, Route, RouteKind};
use dipylon::webauthn::Assertion;
use dipylon_sdk::client::{TaskHandle, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::dpop;
use dipylon_sdk::model::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::transport::in_time;
use crate::support::served_broker::{ServedBroker, order};
use crate::support::software_authenticator::{PasskeyBehaviour, SoftwareAuthenticator};
use crate::support::{IDP, action, disable, rand_u64, read_case};

/// One HTTP response.
struct HttpResponse {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl HttpResponse {
    fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.headers.iter().filter(|(key, _)| key == name);
        let first = all.next().map(|(_, value)| value.as_str());
        assert!(all.next().is_none(), "{name} is repeated");
        first
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {}", self.body))
    }

    fn reason(&self) -> String {
        self.json()["reason"].as_str().expect("a reason").to_owned()
    }

    fn ok(self) -> Self {
        assert!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.body
        );
        self
    }

    /// Whether the page has an element with this id.
    fn has(&self, id: &str) -> bool {
        self.body.contains(&format!(" id=\"{id}\""))
    }
}

/// A minimal browser: one origin, and at most one cookie.
struct HttpBrowser {
    address: SocketAddr,
    origin: String,
    host: String,
    cookie: Option<String>,
}

impl HttpBrowser {
    fn new(s: &ServedBroker) -> Self {
        let host = s.url.trim_start_matches("http://").to_owned();
        let address = host.parse().expect("address");
        let host = host.replace("127.0.0.1", "localhost");
        Self {
            address,
            origin: format!("http://{host}"),
            host,
            cookie: None,
        }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        extra: &[(&str, &str)],
        body: &str,
    ) -> HttpResponse {
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !extra.iter().any(|(name, _)| *name == "host") {
            request.push_str(&format!("host: {}\r\n", self.host));
        }
        if let Some(cookie) = &self.cookie {
            request.push_str(&format!("cookie: {cookie}\r\n"));
        }
        for (name, value) in extra {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
        let mut stream = TcpStream::connect(self.address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        in_time("an answer", stream.read_to_end(&mut answer))
            .await
            .expect("read");
        let text = String::from_utf8(answer).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.lines();
        let status = lines.next().expect("a status line");
        HttpResponse {
            status: status[9..12].parse().expect("a status"),
            headers: lines
                .map(|line| line.split_once(": ").expect("a header"))
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect(),
            body: body.to_owned(),
        }
    }

    async fn get(&self, path: &str) -> HttpResponse {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, body: &Value) -> HttpResponse {
        let headers = [
            ("origin", self.origin.as_str()),
            ("sec-fetch-site", "same-origin"),
            ("content-type", "application/json"),
        ];
        self.send("POST", path, &headers, &body.to_string()).await
    }

    async fn submit(&self, path: &str) -> HttpResponse {
        let headers = [
            ("origin", self.origin.as_str()),
            ("content-type", "application/x-www-form-urlencoded"),
        ];
        self.send("POST", path, &headers, "").await
    }
}

/// A person with an enrolled passkey at a browser.
struct ConsoleUser {
    browser: HttpBrowser,
    passkey: SoftwareAuthenticator,
}

/// A call signed by the operator's key.
fn operator_call(s: &ServedBroker, method: &str) -> CallContext {
    let policy = authorization::method_policy(method).expect("a method with a row");
    let jti = format!(
        "{:032x}",
        u128::from(rand_u64()) << 64 | u128::from(rand_u64())
    );
    let nonce = s.broker.nonce();
    let claims = dpop::ProofClaims {
        htm: "POST",
        htu: &format!("{}/{method}", s.url),
        iat: Clock::system().now(),
        jti: &jti,
        nonce: Some(&nonce),
        ath: None,
        action_digest: None,
        evidence_hash: None,
    };
    CallContext {
        method: policy.name,
        allowed_roles: policy.allowed_roles,
        proof: Some(dpop::create(&s.env.keys["olga"], &claims).expect("proof")),
        bearer: None,
        session: None,
        permit: ConcurrencyPermit::unlimited(policy.rate_class),
    }
}

fn bytes(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("text");
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

fn sent(assertion: &Assertion) -> Value {
    let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    json!({
        "credential": part(&assertion.credential),
        "authenticator_data": part(&assertion.authenticator_data),
        "client_data_json": part(&assertion.client_data_json),
        "signature": part(&assertion.signature),
        "user": assertion.user.as_deref().map(part),
    })
}

async fn invite(s: &ServedBroker, name: &str) -> String {
    let call = operator_call(s, "dipylon.v1.ApprovalService/InviteApprover");
    let person = PersonId::parse(name).expect("id");
    let invited = s
        .broker
        .invite_approver(&call, person)
        .await
        .expect("invited");
    invited.code.expose_secret().to_owned()
}

impl ConsoleUser {
    async fn enrol(s: &ServedBroker, name: &str) -> Self {
        let browser = HttpBrowser::new(s);
        let code = invite(s, name).await;
        let begun = browser
            .post("/console/enrol/begin", &json!({ "code": code }))
            .await
            .ok()
            .json();
        let (passkey, made) = SoftwareAuthenticator::create(
            begun["rp_id"].as_str().expect("rp id"),
            &browser.origin,
            &bytes(&begun["challenge"]),
            &bytes(&begun["user"]),
        );
        let finish = json!({
            "code": code,
            "label": "a test's passkey",
            "client_data_json": URL_SAFE_NO_PAD.encode(&made.client_data_json),
            "attestation_object": URL_SAFE_NO_PAD.encode(&made.attestation_object),
        });
        let done = browser.post("/console/enrol/finish", &finish).await.ok();
        assert_eq!(done.json()["person"], name);
        let again = browser.post("/console/enrol/finish", &finish).await;
        assert_eq!(
            (again.status, again.reason().as_str()),
            (403, "INVALID_INVITATION")
        );
        Self { browser, passkey }
    }

    async fn challenge(&self) -> Vec<u8> {
        let begun = self
            .browser
            .post("/console/sign-in/begin", &json!({}))
            .await
            .ok();
        bytes(&begun.json()["challenge"])
    }

    /// Enrolled and signed in.
    async fn sign_in(s: &ServedBroker, name: &str) -> Self {
        let mut seated = Self::enrol(s, name).await;
        let assertion = seated
            .passkey
            .get(&seated.challenge().await, &seated.browser.origin);
        let done = seated
            .browser
            .post("/console/sign-in/finish", &sent(&assertion))
            .await;
        assert_eq!(
            (done.status, done.body.as_str()),
            (204, ""),
            "{}",
            done.body
        );
        let cookie = done.header("set-cookie").expect("a cookie").to_owned();
        let (pair, rest) = cookie.split_once("; ").expect("attributes");
        assert_eq!(rest, "Path=/; HttpOnly; SameSite=Strict");
        seated.browser.cookie = Some(pair.to_owned());
        seated
    }

    /// Begins a vote on the current card, unless the request names a policy.
    async fn begin(&self, id: AccessRequestId, mut ask: Value) -> HttpResponse {
        if ask.get("policy").is_none() {
            ask["policy"] = self.policy(id).await.into();
        }
        self.browser
            .post(&format!("/console/requests/{id}/vote/begin"), &ask)
            .await
    }

    /// The policy digest that a card names.
    async fn policy(&self, id: AccessRequestId) -> String {
        let path = format!("/console/requests/{id}");
        let page = self.browser.get(&path).await.ok().body;
        let (_, row) = page.split_once("data-row=\"policy\"").expect("a row");
        let (_, row) = row.split_once("<bdi>").expect("its words");
        let (policy, _) = row.split_once("</bdi>").expect("its words");
        policy.to_owned()
    }

    async fn cast(
        &self,
        id: AccessRequestId,
        begun: &Value,
        assertion: &Assertion,
    ) -> HttpResponse {
        let mut body = sent(assertion);
        body["statement"] = begun["statement"].clone();
        self.browser
            .post(&format!("/console/requests/{id}/vote/cast"), &body)
            .await
    }

    async fn vote(&self, id: AccessRequestId, ask: Value) -> HttpResponse {
        let begun = self.begin(id, ask).await.ok().json();
        let assertion = self
            .passkey
            .get(&bytes(&begun["challenge"]), &self.browser.origin);
        self.cast(id, &begun, &assertion).await
    }
}

async fn pending(task: &TaskHandle, action: Action, idempotency_key: &str) -> AccessRequestId {
    match task.request_token(&order(action, idempotency_key)).await {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    }
}

/// Every route with its placeholders filled.
fn paths() -> impl Iterator<Item = (&'static Route, String)> {
    ROUTES.iter().map(|row| {
        let path = row
            .path
            .replace("{id}", "areq_AAAAAAAAAAAAAAAAAAAAAA")
            .replace("{jti}", "tok_AAAAAAAAAAAAAAAAAAAAAA")
            .replace("{hash}", "0")
            .replace("{name}", "console.css");
        (row, path)
    })
}

fn method(row: &Route) -> &'static str {
    if row.is_mutation() { "POST" } else { "GET" }
}

const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
         base-uri 'none'; frame-ancestors 'none'",
    ),
    ("x-frame-options", "DENY"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "same-origin"),
    ("cache-control", "no-store"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    (
        "permissions-policy",
        "publickey-credentials-get=(self), publickey-credentials-create=(self)",
    ),
];

fn assert_security_headers(answer: &HttpResponse, what: &str) {
    for (name, value) in HEADERS {
        assert_eq!(answer.header(name), Some(*value), "{what}: {name}");
    }
    assert_eq!(answer.header("access-control-allow-origin"), None, "{what}");
}

fn size(s: &ServedBroker) -> u64 {
    s.broker.journal().head().borrow().checkpoint.size
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_console_access() {
    let s = ServedBroker::start().await;
    let mut browser = HttpBrowser::new(&s);
    for cookie in [None, Some("dipylon-session=forged".to_owned())] {
        browser.cookie = cookie;
        let before = size(&s);
        for (row, path) in paths() {
            let headers = [("origin", browser.origin.as_str())];
            let answer = browser.send(method(row), &path, &headers, "").await;
            assert_security_headers(&answer, row.name);
            if row.access == Access::Anonymous {
                assert!(
                    ![401, 403].contains(&answer.status),
                    "{}: {}",
                    row.name,
                    answer.status
                );
                continue;
            }
            match row.kind {
                RouteKind::Page => {
                    assert_eq!(answer.status, 303, "{}", row.name);
                    let to = answer.header("location").expect("a location");
                    assert!(to.starts_with("/console/sign-in"), "{}: {to}", row.name);
                    assert_eq!(answer.body, "");
                }
                RouteKind::Fragment | RouteKind::Stream => {
                    assert_eq!(answer.status, 401, "{}", row.name);
                    assert_eq!(answer.reason(), "NOT_AUTHENTICATED");
                }
                RouteKind::Form | RouteKind::Json => assert_eq!(answer.status, 401, "{}", row.name),
                RouteKind::Asset => unreachable!("assets are public"),
            }
        }
        assert_eq!(size(&s), before, "an anonymous request wrote nothing");
        for (path, ask) in [
            (
                "vote/begin",
                json!({ "profile": "one-security", "verdict": "approve" }),
            ),
            (
                "vote/cast",
                json!({
                    "statement": "{}", "credential": "", "authenticator_data": "", "client_data_json": "", "signature": "",
                    "user": null,
                }),
            ),
        ] {
            let path = format!("/console/requests/areq_AAAAAAAAAAAAAAAAAAAAAA/{path}");
            let answer = browser.post(&path, &ask).await;
            assert_eq!(
                (answer.status, answer.reason().as_str()),
                (401, "NOT_AUTHENTICATED")
            );
        }
    }
    browser.cookie = None;
    for path in [
        "/console/",
        "/console/nothing",
        "/console/requests/",
        "/console/../console/x",
    ] {
        let answer = browser.get(path).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_security_headers(&answer, path);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn csrf_posts_are_rejected_and_gets_are_safe() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let olga = ConsoleUser::sign_in(&s, "olga").await;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begun = maria.begin(id, ask.clone()).await.ok().json();
    let before = size(&s);
    for seated in [&maria, &olga] {
        let browser = &seated.browser;
        let cross = [
            vec![],
            vec![("origin", "null")],
            vec![("origin", "http://localhost:1")],
            vec![("origin", "http://evil.example")],
            vec![
                ("origin", browser.origin.as_str()),
                ("sec-fetch-site", "cross-site"),
            ],
            vec![
                ("origin", browser.origin.as_str()),
                ("origin", "http://evil.example"),
            ],
        ];
        for (row, path) in paths() {
            let path = path.replace("areq_AAAAAAAAAAAAAAAAAAAAAA", &id.to_string());
            if row.is_mutation() {
                for headers in &cross {
                    let mut headers = headers.clone();
                    headers.push(("content-type", "application/json"));
                    let answer = browser
                        .send("POST", &path, &headers, &ask.to_string())
                        .await;
                    assert_eq!(answer.status, 403, "{} {headers:?}", row.name);
                    assert_security_headers(&answer, row.name);
                }
                let answer = browser.get(&path).await;
                assert_eq!(answer.status, 405, "{}", row.name);
                assert_security_headers(&answer, row.name);
            } else if row.kind != RouteKind::Stream {
                let answer = browser.get(&path).await;
                assert!(answer.status < 500, "{}: {}", row.name, answer.body);
                assert_security_headers_or_asset(&answer, row);
                let headers = [("origin", browser.origin.as_str())];
                let answer = browser.send("POST", &path, &headers, "").await;
                assert_eq!(answer.status, 405, "{}", row.name);
            }
            let elsewhere = [
                ("host", "evil.example"),
                ("origin", browser.origin.as_str()),
            ];
            let answer = browser.send(method(row), &path, &elsewhere, "").await;
            assert_eq!(answer.status, 421, "{}", row.name);
            assert_security_headers(&answer, row.name);
        }
    }
    // A cross-site form can send this body without a preflight, but not as JSON.
    let browser = &maria.browser;
    let headers = [
        ("origin", browser.origin.as_str()),
        ("content-type", "text/plain"),
    ];
    let path = format!("/console/requests/{id}/vote/begin");
    let answer = browser
        .send("POST", &path, &headers, &ask.to_string())
        .await;
    assert_eq!(
        (answer.status, answer.reason().as_str()),
        (400, "MALFORMED")
    );
    assert_eq!(size(&s), before, "no entry was written");
    // Neither the session nor the statement was ended by any of the above.
    let assertion = maria
        .passkey
        .get(&bytes(&begun["challenge"]), &maria.browser.origin);
    let cast = maria.cast(id, &begun, &assertion).await.ok();
    assert_eq!(cast.json()["status"], "approved");
    assert_eq!(size(&s), before + 1);
}

fn assert_security_headers_or_asset(answer: &HttpResponse, row: &Route) {
    if row.kind != RouteKind::Asset {
        assert_security_headers(answer, row.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_pages_by_role() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    for (name, kind) in [
        ("maria", CallerRole::Approver),
        ("olga", CallerRole::Operator),
    ] {
        let seated = ConsoleUser::sign_in(&s, name).await;
        let inbox = seated.browser.get("/console").await.ok();
        for (row, path) in paths() {
            let Access::Roles(kinds) = row.access else {
                continue;
            };
            if row.kind == RouteKind::Stream {
                continue;
            }
            let path = match row.name {
                "console/task" => row.path.replace("{id}", &task.id().to_string()),
                "console/agent" => row.path.replace("{id}", "triage"),
                _ => path.replace("areq_AAAAAAAAAAAAAAAAAAAAAA", &id.to_string()),
            };
            let body = match row.name {
                "console/vote-begin" => json!({
                    "profile": "one-security", "verdict": "deny", "policy": Digest::sha256(b"another").to_string(),
                }),
                _ => json!({
                    "statement": "{}", "credential": "", "authenticator_data": "", "client_data_json": "", "signature": "",
                    "user": null,
                }),
            };
            let answer = match row.kind {
                RouteKind::Form => seated.browser.submit(&path).await,
                RouteKind::Json => seated.browser.post(&path, &body).await,
                RouteKind::Page | RouteKind::Fragment | RouteKind::Stream | RouteKind::Asset => {
                    seated.browser.get(&path).await
                }
            };
            if kinds.contains(&kind) {
                assert_ne!(answer.status, 403, "{name} {}: {}", row.name, answer.body);
                assert_ne!(answer.status, 401, "{name} {}", row.name);
                if row.kind == RouteKind::Page {
                    assert_eq!(answer.status, 200, "{name} {}: {}", row.name, answer.body);
                }
            } else {
                assert_eq!(answer.status, 403, "{name} {}", row.name);
            }
            // The navigation links only to pages that the role may open.
            if row.kind == RouteKind::Page && !row.path.contains('{') && row.path != "/console" {
                let led = inbox.body.contains(&format!("href=\"{}\"", row.path));
                assert_eq!(led, kinds.contains(&kind), "{name} {}", row.name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passkey_vote_end_to_end() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let (maria, lee) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "lee").await,
    );
    let dana = ConsoleUser::sign_in(&s, "dana").await;

    let id = pending(&task, disable("ann"), "r-1").await;
    let inbox = maria.browser.get("/console").await.ok();
    assert!(
        inbox.body.contains(&format!("data-request=\"{id}\"")),
        "{}",
        inbox.body
    );
    let card = maria
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    let (deny, approve) = (
        card.body.find(" id=\"deny\""),
        card.body.find(" id=\"approve\""),
    );
    assert!(
        deny.expect("deny") < approve.expect("approve"),
        "deny before approve"
    );
    assert!(!card.body.contains("autofocus"));
    let owners = dana
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    assert!(owners.has("not-eligible") && !owners.has("approve") && !owners.has("deny"));
    let refused = dana
        .begin(
            id,
            json!({ "profile": "one-security", "verdict": "approve" }),
        )
        .await;
    assert_eq!(
        (refused.status, refused.reason().as_str()),
        (403, "NOT_ELIGIBLE")
    );

    let narrowed = json!({ "profile": "one-security", "verdict": "approve", "max_ttl": 60 });
    let cast = maria.vote(id, narrowed).await.ok();
    assert_eq!(cast.json()["status"], "approved");
    let token = match task.request_token(&order(disable("ann"), "r-1")).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    let left = token.expires_at().since(Clock::system().now());
    assert!((1..=60_000).contains(&left), "narrowed: {left} ms");
    let late = lee
        .begin(id, json!({ "profile": "one-security", "verdict": "deny" }))
        .await;
    assert_eq!(
        (late.status, late.reason().as_str()),
        (409, "ACCESS_REQUEST_CLOSED")
    );
    let over = lee
        .browser
        .get(&format!("/console/requests/{id}"))
        .await
        .ok();
    assert!(over.body.contains("data-status=\"consumed\"") && !over.has("approve"));

    let id = pending(&task, disable("cara"), "r-2").await;
    let said = json!({ "profile": "one-security", "verdict": "deny", "comment": "not Cara" });
    assert_eq!(
        lee.vote(id, said).await.ok().json()["status"],
        json!("denied")
    );
    let hostile = json!({ "profile": "one-security", "verdict": "deny", "comment": "a\u{202e}b" });
    assert_eq!(maria.begin(id, hostile).await.reason(), "MALFORMED");
    let seen = s.broker.state().access_request(&id).expect("known");
    let statement = seen.votes[0].statement.as_deref().expect("kept");
    let statement = VoteStatement::parse(statement).expect("statement");
    assert_eq!(statement.comment.expect("a comment").as_str(), "not Cara");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_in_assertion_is_not_a_vote() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let (maria, lee) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "lee").await,
    );
    let origin = &maria.browser.origin;
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    let begin = async || maria.begin(id, ask.clone()).await.ok().json();

    // A valid assertion of another ceremony.
    let begun = begin().await;
    let signed_in = maria.passkey.get(&maria.challenge().await, origin);
    let cast = maria.cast(id, &begun, &signed_in).await;
    assert_eq!(
        (cast.status, cast.reason().as_str()),
        (403, "INVALID_PASSKEY_ASSERTION")
    );
    // The statement is consumed by the attempt.
    let good = maria.passkey.get(&bytes(&begun["challenge"]), origin);
    let cast = maria.cast(id, &begun, &good).await;
    assert_eq!(
        (cast.status, cast.reason().as_str()),
        (409, "VOTE_STATEMENT_EXPIRED")
    );
    // An assertion over the previous statement.
    let begun = begin().await;
    assert_eq!(
        maria.cast(id, &begun, &good).await.reason(),
        "INVALID_PASSKEY_ASSERTION"
    );
    // Without user verification, from another origin, in a frame, with a colleague's passkey.
    let behaviour = |change: fn(&mut PasskeyBehaviour)| {
        let mut behaviour = PasskeyBehaviour::default();
        change(&mut behaviour);
        behaviour
    };
    for (what, bad) in [
        ("no verification", behaviour(|m| m.verified = false)),
        ("no presence", behaviour(|m| m.present = false)),
        (
            "another origin",
            behaviour(|m| m.origin = Some("http://localhost:1".to_owned())),
        ),
        (
            "another type",
            behaviour(|m| m.kind = Some("webauthn.create")),
        ),
        ("a frame", behaviour(|m| m.cross_origin = Some(json!(true)))),
        (
            "another relying party",
            behaviour(|m| m.rp_id = Some("evil.example".to_owned())),
        ),
    ] {
        let begun = begin().await;
        let answer = maria
            .passkey
            .get_as(&bytes(&begun["challenge"]), origin, &bad);
        let cast = maria.cast(id, &begun, &answer).await;
        assert_eq!(
            (cast.status, cast.reason().as_str()),
            (403, "INVALID_PASSKEY_ASSERTION"),
            "{what}"
        );
    }
    let begun = begin().await;
    let lees = lee.passkey.get(&bytes(&begun["challenge"]), origin);
    assert_eq!(
        maria.cast(id, &begun, &lees).await.reason(),
        "INVALID_PASSKEY_ASSERTION"
    );
    // A statement is bound to its voter.
    assert_eq!(
        lee.cast(id, &begin().await, &lees).await.reason(),
        "VOTE_STATEMENT_EXPIRED"
    );
    // A click without any assertion.
    let begun = begin().await;
    let path = format!("/console/requests/{id}/vote/cast");
    let cast = maria
        .browser
        .post(&path, &json!({ "statement": begun["statement"] }))
        .await;
    assert_eq!((cast.status, cast.reason().as_str()), (400, "MALFORMED"));
    let seen = s.broker.state().access_request(&id).expect("known");
    assert!(seen.votes.is_empty(), "none of these was a vote");
    assert_eq!(
        maria.vote(id, ask.clone()).await.ok().json()["status"],
        "approved"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sign_out_ends_the_session() {
    let s = ServedBroker::start().await;
    let mut maria = ConsoleUser::sign_in(&s, "maria").await;
    let origin = maria.browser.origin.clone();
    let assertion = maria.passkey.get(&maria.challenge().await, &origin);
    let mut other = HttpBrowser::new(&s);
    assert_eq!(
        other
            .post("/console/sign-in/finish", &sent(&assertion))
            .await
            .status,
        204
    );
    let again = other
        .post("/console/sign-in/finish", &sent(&assertion))
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
    for (asked, led) in [
        ("/console/rules", "/console/rules"),
        ("//evil.example", "/console"),
        ("https://evil.example/console/rules", "/console"),
        ("/console/rules%22%3E%3Cscript%3E", "/console"),
        ("javascript:alert(1)", "/console"),
    ] {
        let page = other
            .get(&format!("/console/sign-in?to={asked}"))
            .await
            .ok();
        assert!(page.body.contains(&format!("data-to=\"{led}\"")), "{asked}");
    }
}

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}<b>bold</b> \u{202E}gnp.exe\u{200B}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_text_is_html_escaped() {
    // A policy bundle rejects invisible characters; the agent's text may contain any.
    let visible = HOSTILE.split(" \u{202E}").next().unwrap_or_default();
    let quoted = visible.replace('"', "\\\"");
    let s = ServedBroker::start_with_policy(|policy| {
        for (file, was, now) in [
            ("schema.cedarschema", "Disable an account", quoted.clone()),
            (
                "schema.cedarschema",
                "The account can no longer sign in.",
                quoted.clone(),
            ),
            (
                "schema.cedarschema",
                "Enable the account at the identity provider.",
                quoted.clone(),
            ),
            ("entities.json", "Ann Archer", quoted.clone()),
            ("agents.toml", "example-large-2", "<i>model</i>".to_owned()),
            ("people.toml", "Maria Moreau", "<u>Maria</u>".to_owned()),
            (
                "rules/20-guardrails.cedar",
                "Somebody from security agrees before anything stops working.",
                quoted.clone(),
            ),
        ] {
            let text = policy.get_mut(file).expect("a file");
            assert!(text.contains(was), "{file}: {was}");
            *text = text.replace(was, &now);
        }
    })
    .await;
    let task = s.task_for("triage", HOSTILE).await;
    let mut asked = order(disable("ann"), "r-1");
    asked.reason = HOSTILE.to_owned();
    let id = match task.request_token(&asked).await {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    };
    let (maria, olga) = (
        ConsoleUser::sign_in(&s, "maria").await,
        ConsoleUser::sign_in(&s, "olga").await,
    );
    let tags = |page: &str| -> BTreeSet<String> {
        let starts = page.match_indices('<').map(|(at, _)| &page[at + 1..]);
        let named = starts.map(|rest| rest.split([' ', '>', '\n']).next().unwrap_or_default());
        named.map(str::to_owned).collect()
    };
    let mut shown = 0;
    for (seated, path) in [
        (&maria, "/console".to_owned()),
        (&maria, "/console/fragment/inbox".to_owned()),
        (&maria, format!("/console/requests/{id}")),
        (&maria, format!("/console/tasks/{}", task.id())),
        (&maria, "/console/rules".to_owned()),
        (&maria, "/console/approvers".to_owned()),
        (&olga, "/console/agents".to_owned()),
        (&olga, "/console/agents/triage".to_owned()),
        (&olga, "/console/tasks".to_owned()),
        (&olga, "/console/tokens".to_owned()),
        (&olga, "/console/journal".to_owned()),
        (
            &olga,
            "/console/journal?q=%3Cscript%3Ealert(1)%3C/script%3E%22%3E".to_owned(),
        ),
    ] {
        let page = seated.browser.get(&path).await.ok().body;
        for markup in [
            "<script>",
            "<img",
            "<b>bold",
            "<i>model",
            "<u>Maria",
            "\u{202E}",
            "\u{200B}",
            "onerror=alert(2)>",
        ] {
            assert!(!page.contains(markup), "{path}: {markup}\n{page}");
        }
        // One external script; no inline script, style or handler.
        assert_eq!(
            page.matches("<script").count(),
            usize::from(!path.contains("fragment")),
            "{path}"
        );
        assert!(
            !tags(&page).contains("style")
                && !page.contains(" style=")
                && !page.contains(" onclick="),
            "{path}"
        );
        shown += page.matches("&#60;script&#62;alert(1)").count();
    }
    assert!(shown >= 6, "shown as text, often: {shown}");
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
    let news = heard(&mut stream, "event: changed").await;
    assert!(!news.contains(&id.to_string()), "only a change notice");
    let rows = maria.browser.get("/console/fragment/inbox").await.ok();
    assert!(rows.body.contains(&format!("data-request=\"{id}\"")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoke_token_form() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let token = match task.request_token(&order(read_case(), "r-1")).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    let olga = ConsoleUser::sign_in(&s, "olga").await;
    let page = olga.browser.get("/console/tokens").await.ok();
    assert!(
        page.body.contains(&format!("data-jti=\"{}\"", token.jti())),
        "{}",
        page.body
    );
    let done = olga
        .browser
        .submit(&format!("/console/tokens/{}/revoke", token.jti()))
        .await;
    assert_eq!(done.status, 303, "{}", done.body);
    let page = olga
        .browser
        .get(done.header("location").expect("back"))
        .await
        .ok();
    assert!(
        page.has("outcome") && !page.body.contains("data-jti="),
        "{}",
        page.body
    );
    let told = olga
        .browser
        .get(&format!("/console/tasks/{}", task.id()))
        .await
        .ok();
    assert!(
        told.body.contains("data-kind=\"GrantsEnded\""),
        "{}",
        told.body
    );
    let found = olga
        .browser
        .get(&format!("/console/journal?q={}", token.jti()))
        .await
        .ok();
    assert!(
        found.body.contains("data-kind=\"TokenIssued\""),
        "{}",
        found.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn assets_are_immutable_by_hash() {
    let s = ServedBroker::start().await;
    let browser = HttpBrowser::new(&s);
    let page = browser.get("/console/sign-in").await.ok().body;
    let mut seen = 0;
    for part in page
        .split('"')
        .filter(|part| part.starts_with("/console/assets/"))
    {
        let asset = browser.get(part).await.ok();
        assert_eq!(
            asset.header("cache-control"),
            Some("public, max-age=31536000, immutable")
        );
        assert_eq!(asset.header("x-content-type-options"), Some("nosniff"));
        assert!(
            !asset.body.contains("http://") || part.ends_with(".svg"),
            "{part} fetches nothing"
        );
        let (head, name) = part.rsplit_once('/').expect("a name");
        assert_eq!(browser.get(&format!("{head}0/{name}")).await.status, 404);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn high_risk_card_dwell_time_and_quorum() {
    let s = ServedBroker::start_with_policy(|files| {
        let people = files.get_mut("people.toml").expect("people");
        *people = people.replace("dwell = \"off\"", "dwell = \"3s\"");
    })
    .await;
    let task = s.task("triage").await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let id = pending(&task, isolate.clone(), "r-1").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let lee = ConsoleUser::sign_in(&s, "lee").await;
    let policy = lee.policy(id).await;
    let ask = json!({ "profile": "two-security", "verdict": "approve", "policy": policy });
    let dwell = |page: &str| -> u64 {
        let (_, rest) = page.split_once("data-dwell=\"").expect("a ballot");
        let (ms, _) = rest.split_once('"').expect("a number");
        ms.parse().expect("a number")
    };
    let unread = maria.begin(id, ask.clone()).await;
    assert_eq!(
        (unread.status, unread.reason().as_str()),
        (409, "DWELL_REQUIRED")
    );
    let path = format!("/console/requests/{id}");
    for seated in [&maria, &lee] {
        let page = seated.browser.get(&path).await.ok().body;
        assert!(
            page.contains("data-risk=\"high\"") && page.contains("HIGH RISK"),
            "{page}"
        );
        assert!((1..=3_000).contains(&dwell(&page)), "{page}");
    }
    let mut status = String::new();
    for seated in [&maria, &lee] {
        let cast = in_time("an approval after the dwell time", async {
            loop {
                let begun = seated.begin(id, ask.clone()).await;
                if begun.status == 200 {
                    let begun = begun.json();
                    let challenge = bytes(&begun["challenge"]);
                    let answer = seated.passkey.get(&challenge, &seated.browser.origin);
                    return seated.cast(id, &begun, &answer).await.ok();
                }
                assert_eq!(begun.reason(), "DWELL_REQUIRED");
                assert!(begun.header("retry-after").is_some(), "a retry delay");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        })
        .await;
        status.push_str(cast.json()["status"].as_str().expect("a status"));
        status.push(' ');
    }
    assert_eq!(status, "waiting approved ");
    let page = maria.browser.get(&path).await.ok();
    assert!(page.body.contains("data-status=\"approved\"") && !page.has("approve"));
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
    let mut held = Vec::new();
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
            held.push((answer, body));
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
    assert_eq!(held.len(), 300);
    for n in 0..10 {
        let minted = task
            .request_token(&order(read_case(), &format!("r-{n}")))
            .await;
        assert!(matches!(minted, Ok(TokenOutcome::Token(_))), "{minted:?}");
    }
    let none = "dipylon_rate_limited_total{class=\"general\",by=\"places\"} 0\n";
    let figures = s.broker.read_metrics();
    assert!(figures.contains(none), "a call was shed: {figures}");
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

/// Dwell time starts when a card is fetched, so prefetches and embedded fetches are rejected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn non_navigation_get_is_rejected() {
    let s = ServedBroker::start_with_policy(|files| {
        let people = files.get_mut("people.toml").expect("people");
        *people = people.replace("dwell = \"off\"", "dwell = \"60s\"");
    })
    .await;
    let task = s.task("triage").await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    let id = pending(&task, isolate, "r-1").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let card = format!("/console/requests/{id}");
    for (row, path) in paths().chain([(&ROUTES[0], "/console/nothing".to_owned())]) {
        let answer = maria.browser.send("HEAD", &path, &[], "").await;
        assert_eq!(answer.status, 405, "{}", row.name);
    }
    for headers in [
        &[("sec-fetch-dest", "image"), ("sec-fetch-site", "same-site")][..],
        &[
            ("sec-fetch-dest", "iframe"),
            ("sec-fetch-site", "cross-site"),
        ],
        &[("sec-fetch-dest", "empty"), ("sec-fetch-site", "same-site")],
        &[("sec-fetch-dest", "document"), ("sec-purpose", "prefetch")],
    ] {
        for path in [
            &card,
            "/console",
            "/console/fragment/inbox",
            "/console/events",
        ] {
            let answer = maria.browser.send("GET", path, headers, "").await;
            assert_eq!(answer.status, 403, "{path} {headers:?}");
            assert!(!answer.body.contains("web-1"), "{path} {headers:?}");
            assert_security_headers(&answer, path);
        }
    }
    let window = [
        ("sec-fetch-dest", "document"),
        ("sec-fetch-site", "cross-site"),
    ];
    let page = maria.browser.send("GET", &card, &window, "").await.ok();
    assert!(page.has("approve"));
    let picture = page
        .body
        .split('"')
        .find(|part| part.starts_with("/console/assets/"));
    let wanted = [
        ("sec-fetch-dest", "style"),
        ("sec-fetch-site", "same-origin"),
    ];
    let picture = picture.expect("an asset");
    maria.browser.send("GET", picture, &wanted, "").await.ok();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vote_names_the_policy_of_its_card() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let id = pending(&task, disable("ann"), "r-1").await;
    let maria = ConsoleUser::sign_in(&s, "maria").await;
    let policy = maria.policy(id).await;
    let page = maria.browser.get(&format!("/console/requests/{id}")).await;
    assert!(page.body.contains(&format!("data-policy=\"{policy}\"")));
    let path = format!("/console/requests/{id}/vote/begin");
    for ask in [
        json!({ "profile": "one-security", "verdict": "approve" }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": null }),
        json!({ "profile": "one-security", "verdict": "approve", "policy": "the last one" }),
    ] {
        let begun = maria.browser.post(&path, &ask).await;
        assert_eq!(
            (begun.status, begun.reason().as_str()),
            (400, "MALFORMED"),
            "{ask}"
        );
    }
    let ask = json!({ "profile": "one-security", "verdict": "approve", "policy": policy });
    maria.begin(id, ask.clone()).await.ok();
    let files = s.env.policy_with("schema.cedarschema", |text| {
        text.replace(
            "The account can no longer sign in.",
            "The account and its mailbox are gone.",
        )
    });
    let call = operator_call(&s, "dipylon.v1.GovernanceService/ApplyPolicyBundle");
    let operator = s.broker.authenticate_person(&call).expect("an operator");
    let applied = s.broker.apply_policy_bundle(&call, operator, files).await;
    applied.expect("applied");
    let stale = maria.begin(id, ask).await;
    assert_eq!(
        (stale.status, stale.reason().as_str()),
        (409, "POLICY_CHANGED")
    );
    // The card fetched again names the new policy, and may be voted on.
    assert_ne!(maria.policy(id).await, policy);
    let ask = json!({ "profile": "one-security", "verdict": "approve" });
    maria.vote(id, ask).await.ok();
}
