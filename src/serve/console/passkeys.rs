//! The way in: a passkey is enrolled by an invitation, and opens a session. Neither is ever a vote.

use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::page::{self, Page};
use super::session_cookie::{self, Call};
use super::{Console, answer};
use crate::broker::{Assertion, Refusal, Registration};
use crate::model::{ParseError, Secret};

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/serve/console/askama.toml")]
struct SignInPage {
    page: Page,
    to: String,
}

#[derive(Template)]
#[template(path = "enrol.html", config = "src/serve/console/askama.toml")]
struct EnrolPage {
    page: Page,
    label: &'static str,
}

/// Where to go after signing in.
#[derive(Deserialize)]
pub(super) struct To {
    to: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Serialize)]
struct SignInBegun<'a> {
    challenge: String,
    rp_id: &'a str,
}

/// What a passkey answered, as the script sends it: base64url.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answered {
    pub(super) credential: String,
    pub(super) authenticator_data: String,
    pub(super) client_data_json: String,
    pub(super) signature: String,
    pub(super) user: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolBegin {
    code: String,
}

#[derive(Serialize)]
struct EnrolBegun<'a> {
    challenge: String,
    rp_id: &'a str,
    rp_name: String,
    user: String,
    name: &'a str,
    exclude: &'a [String],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EnrolFinish {
    code: String,
    label: String,
    client_data_json: String,
    attestation_object: String,
}

#[derive(Serialize)]
struct Enrolled {
    person: String,
}

/// Bytes as the script reads them.
pub(super) fn bytes(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read(what: &'static str, text: &str) -> Result<Vec<u8>, ParseError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| ParseError::new(what, "must be base64url without padding"))
}

impl Answered {
    pub(super) fn parse(&self) -> Result<Assertion, ParseError> {
        Ok(Assertion {
            credential: read("credential", &self.credential)?,
            authenticator_data: read("authenticator_data", &self.authenticator_data)?,
            client_data_json: read("client_data_json", &self.client_data_json)?,
            signature: read("signature", &self.signature)?,
            user: match &self.user {
                Some(user) => Some(read("user", user)?),
                None => None,
            },
        })
    }
}

pub(super) async fn sign_in(
    State(console): State<Arc<Console>>,
    Query(asked): Query<To>,
    _call: Call,
) -> Response {
    let to = asked.to.filter(|to| page::is_page(to));
    answer::html(&SignInPage {
        page: Page::stranger(&console, "Sign in"),
        to: to.unwrap_or_else(|| "/console".to_owned()),
    })
}

pub(super) async fn begin_sign_in(
    State(console): State<Arc<Console>>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let begun = answer::read(&console, &call, &headers, &body).map(|Nothing {}| {
        answer::json(&SignInBegun {
            challenge: bytes(&console.broker.begin_sign_in().challenge),
            rp_id: &console.broker.relying_party().id,
        })
    });
    answer::of(&console, &call, begun)
}

pub(super) async fn finish_sign_in(
    State(console): State<Arc<Console>>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let opened = opened(&console, &call, &headers, &body).await;
    answer::of(&console, &call, opened)
}

async fn opened(
    console: &Console,
    call: &Call,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Refusal> {
    let answered: Answered = answer::read(console, call, headers, body)?;
    let assertion = answered
        .parse()
        .map_err(|error| answer::malformed(console, call, &error))?;
    let session = console
        .broker
        .finish_sign_in(call.row.name, assertion)
        .await?;
    // Whoever was here before is not any more.
    if let Some(before) = &call.presented.session {
        console.broker.sign_out(before);
    }
    Ok(with_cookie(
        StatusCode::NO_CONTENT.into_response(),
        session_cookie::given(&console.origin, &session.cookie),
    ))
}

/// Ends the session, if there is one; the answer is the same if not.
pub(super) async fn sign_out(State(console): State<Arc<Console>>, call: Call) -> Response {
    if let Some(cookie) = &call.presented.session {
        console.broker.sign_out(cookie);
    }
    with_cookie(
        Redirect::to("/console/sign-in").into_response(),
        session_cookie::taken(&console.origin),
    )
}

fn with_cookie(mut response: Response, cookie: Option<header::HeaderValue>) -> Response {
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) async fn enrol(State(console): State<Arc<Console>>, _call: Call) -> Response {
    answer::html(&EnrolPage {
        page: Page::stranger(&console, "Enrol a passkey"),
        label: "",
    })
}

pub(super) async fn begin_enrolment(
    State(console): State<Arc<Console>>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let begin = || {
        let asked: EnrolBegin = answer::read(&console, &call, &headers, &body)?;
        let code = Secret::new(asked.code);
        let begun = console.broker.begin_enrolment(call.row.name, &code)?;
        Ok(answer::json(&EnrolBegun {
            challenge: bytes(&begun.challenge),
            rp_id: &console.broker.relying_party().id,
            rp_name: format!("Dipylon {}", console.broker.settings().realm),
            user: bytes(&begun.user),
            name: &begun.name,
            exclude: &begun.exclude,
        }))
    };
    answer::of(&console, &call, begin())
}

pub(super) async fn finish_enrolment(
    State(console): State<Arc<Console>>,
    call: Call,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let enrolled = enrolled(&console, &call, &headers, &body).await;
    answer::of(&console, &call, enrolled)
}

async fn enrolled(
    console: &Console,
    call: &Call,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Response, Refusal> {
    let made: EnrolFinish = answer::read(console, call, headers, body)?;
    let malformed = |error: ParseError| answer::malformed(console, call, &error);
    let code = Secret::new(made.code);
    let registration = Registration {
        client_data_json: read("client_data_json", &made.client_data_json).map_err(malformed)?,
        attestation_object: read("attestation_object", &made.attestation_object)
            .map_err(malformed)?,
    };
    let person = console
        .broker
        .finish_enrolment(call.row.name, &code, &registration, &made.label)
        .await?;
    Ok(answer::json(&Enrolled {
        person: person.to_string(),
    }))
}
