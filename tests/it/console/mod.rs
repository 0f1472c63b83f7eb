//! Console over HTTP: a minimal HTTP client with software passkeys, and tests by subject.

mod access;
mod confirmation;
mod former_people;
mod idle_sessions;
mod limits;
mod pages;
mod read_access;
mod recovery;
mod sessions;
mod vote_marks;
mod votes;
mod weak_passkeys;

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dipylon::broker::CallContext;
use dipylon::rate_limit::ConcurrencyPermit;
use dipylon::serve::authorization;
use dipylon::serve::routes::{ROUTES, Route};
use dipylon::webauthn::Assertion;
use dipylon_sdk::client::{TaskHandle, TokenOutcome};
use dipylon_sdk::clock::Clock;
use dipylon_sdk::jose::dpop;
use dipylon_sdk::model::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::passkey_votes::{CONFIRM, confirm_passkeys};
use crate::support::rand_u64;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::software_authenticator::SoftwareAuthenticator;
use crate::support::wait::in_time;

/// One HTTP response.
pub struct HttpResponse {
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

    pub fn ok(self) -> Self {
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
#[derive(Clone)]
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
pub struct ConsoleUser {
    browser: HttpBrowser,
    passkey: SoftwareAuthenticator,
}

/// A call signed by the operator's key.
fn operator_call(s: &ServedBroker, method: &str) -> CallContext {
    person_call(s, method, "olga")
}

/// A call signed by a person's key.
fn person_call(s: &ServedBroker, method: &str, name: &str) -> CallContext {
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
        proof: Some(dpop::create(&s.env.keys[name], &claims).expect("proof")),
        bearer: None,
        session: None,
        permit: ConcurrencyPermit::unlimited(policy.rate_class),
    }
}

fn decode_base64url(text: &Value) -> Vec<u8> {
    let text = text.as_str().expect("text");
    URL_SAFE_NO_PAD.decode(text).expect("base64url")
}

fn assertion_json(assertion: &Assertion) -> Value {
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
        let user = Self::enrol_unconfirmed(s, name).await;
        confirm_passkeys(&s.broker, name, |by| {
            let known = s.env.keys.contains_key(by);
            known.then(|| person_call(s, CONFIRM, by))
        })
        .await;
        user
    }

    async fn enrol_unconfirmed(s: &ServedBroker, name: &str) -> Self {
        let code = invite(s, name).await;
        Self::enrol_with(s, &code, name).await
    }

    async fn enrol_with(s: &ServedBroker, code: &str, name: &str) -> Self {
        let browser = HttpBrowser::new(s);
        let begun = browser
            .post("/console/enrol/begin", &json!({ "code": code }))
            .await
            .ok()
            .json();
        let (passkey, made) = SoftwareAuthenticator::create(
            begun["rp_id"].as_str().expect("rp id"),
            &browser.origin,
            &decode_base64url(&begun["challenge"]),
            &decode_base64url(&begun["user"]),
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
        decode_base64url(&begun.json()["challenge"])
    }

    /// Enrolled and signed in.
    pub async fn sign_in(s: &ServedBroker, name: &str) -> Self {
        let mut user = Self::enrol(s, name).await;
        let cookie = user.new_session().await;
        user.browser.cookie = Some(cookie);
        user
    }

    /// The cookie of a further session.
    async fn new_session(&mut self) -> String {
        let mut browser = self.browser.clone();
        browser.cookie = None;
        let assertion = self
            .passkey
            .get(&self.challenge().await, &self.browser.origin);
        let done = browser
            .post("/console/sign-in/finish", &assertion_json(&assertion))
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
        pair.to_owned()
    }

    /// Begins a vote on the current card, unless the request names a policy.
    async fn begin_vote(&self, id: AccessRequestId, mut ask: Value) -> HttpResponse {
        if ask.get("policy").is_none() {
            ask["policy"] = self.policy(id).await.into();
        }
        if ask.get("facts").is_none() {
            ask["facts"] = self.facts(id).await.into();
        }
        self.browser
            .post(&format!("/console/requests/{id}/vote/begin"), &ask)
            .await
    }

    /// The policy digest that a card names.
    async fn policy(&self, id: AccessRequestId) -> String {
        self.digest_row(id, "policy").await
    }

    /// The digest of the facts that a card shows.
    async fn facts(&self, id: AccessRequestId) -> String {
        self.digest_row(id, "facts").await
    }

    async fn digest_row(&self, id: AccessRequestId, name: &str) -> String {
        let path = format!("/console/requests/{id}");
        let page = self.browser.get(&path).await.ok().body;
        let row = format!("data-row=\"{name}\"");
        let (_, row) = page.split_once(&row).expect("a row");
        let (_, row) = row.split_once("<bdi dir=\"ltr\">").expect("its words");
        let (digest, _) = row.split_once("</bdi>").expect("its words");
        digest.to_owned()
    }

    async fn cast_vote(
        &self,
        id: AccessRequestId,
        begun: &Value,
        assertion: &Assertion,
    ) -> HttpResponse {
        let mut body = assertion_json(assertion);
        body["statement"] = begun["statement"].clone();
        self.browser
            .post(&format!("/console/requests/{id}/vote/cast"), &body)
            .await
    }

    pub async fn vote(&self, id: AccessRequestId, ask: Value) -> HttpResponse {
        let begun = self.begin_vote(id, ask).await.ok().json();
        let assertion = self
            .passkey
            .get(&decode_base64url(&begun["challenge"]), &self.browser.origin);
        self.cast_vote(id, &begun, &assertion).await
    }
}

async fn pending(task: &TaskHandle, action: Action, idempotency_key: &str) -> AccessRequestId {
    match task
        .request_token(&token_request(action, idempotency_key))
        .await
    {
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

fn journal_size(s: &ServedBroker) -> u64 {
    s.broker.journal().head().borrow().checkpoint.size
}

/// The event stream of a signed-in browser, after the status of its answer.
async fn open_event_stream(browser: &HttpBrowser) -> TcpStream {
    let mut stream = TcpStream::connect(browser.address).await.expect("connects");
    let request = format!(
        "GET /console/events HTTP/1.1\r\nconnection: close\r\nhost: {}\r\ncookie: {}\r\n\r\n",
        browser.host,
        browser.cookie.as_deref().expect("signed in"),
    );
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut head = [0; 12];
    in_time("a status", stream.read_exact(&mut head))
        .await
        .expect("read");
    assert_eq!(&head[9..], b"200");
    stream
}
