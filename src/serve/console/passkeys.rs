//! Sign-in and enrolment: an invitation enrols a passkey, another person confirms it, and a passkey opens a session. None is ever a vote.

use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::rejection::FormRejection;
use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Redirect, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::error::ConsoleError;
use super::page::{self, Page};
use super::response;
use super::session_cookie::{self, ConsoleRequest, QueryString};
use super::state::Console;
use crate::broker::{Assertion, Registration};
use crate::model::{ConfirmationCode, ParseError, ParseField as _, PersonId, Secret};

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

/// The page to open after sign-in.
#[derive(Deserialize)]
pub(super) struct SignInQuery {
    to: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyBody {}

#[derive(Serialize)]
struct SignInOptionsBody<'a> {
    challenge: String,
    rp_id: &'a str,
}

/// A passkey's assertion as the script sends it: base64url.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PasskeyAnswer {
    pub(super) credential: String,
    pub(super) authenticator_data: String,
    pub(super) client_data_json: String,
    pub(super) signature: String,
    pub(super) user: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BeginEnrolmentBody {
    code: String,
}

#[derive(Serialize)]
struct EnrolmentOptionsBody<'a> {
    challenge: String,
    rp_id: &'a str,
    rp_name: String,
    user: String,
    name: &'a str,
    exclude: &'a [String],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FinishEnrolmentBody {
    code: String,
    label: String,
    client_data_json: String,
    attestation_object: String,
}

#[derive(Serialize)]
struct EnrolledBody {
    person: String,
    /// What the person reads out to the one who confirms the passkey.
    confirmation_code: String,
    /// The people who could confirm it: names and ids.
    confirmers: Vec<String>,
}

/// Bytes as the script reads them.
pub(super) fn to_base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn from_base64url(what: &'static str, text: &str) -> Result<Vec<u8>, ParseError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| ParseError::new(what, "must be base64url without padding"))
}

impl PasskeyAnswer {
    pub(super) fn parse(&self) -> Result<Assertion, ParseError> {
        Ok(Assertion {
            credential: from_base64url("credential", &self.credential)?,
            authenticator_data: from_base64url("authenticator_data", &self.authenticator_data)?,
            client_data_json: from_base64url("client_data_json", &self.client_data_json)?,
            signature: from_base64url("signature", &self.signature)?,
            user: match &self.user {
                Some(user) => Some(from_base64url("user", user)?),
                None => None,
            },
        })
    }
}

pub(super) async fn sign_in(
    State(console): State<Arc<Console>>,
    QueryString(query): QueryString<SignInQuery>,
    _request: ConsoleRequest,
) -> Response {
    let to = query.to.filter(|to| page::is_page(to));
    response::html(&SignInPage {
        page: Page::signed_out(&console, "Sign in"),
        to: to.unwrap_or_else(|| "/console".to_owned()),
    })
}

pub(super) async fn begin_sign_in(
    State(console): State<Arc<Console>>,
    _request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    let EmptyBody {} = response::parse_json(&headers, &body)?;
    Ok(response::json(&SignInOptionsBody {
        challenge: to_base64url(&console.broker.begin_sign_in().challenge),
        rp_id: &console.broker.relying_party().id,
    }))
}

pub(super) async fn finish_sign_in(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    let answer: PasskeyAnswer = response::parse_json(&headers, &body)?;
    let assertion = answer.parse()?;
    let session = console
        .broker
        .finish_sign_in(request.route.name, assertion)
        .await?;
    // The browser's previous session ends.
    if let Some(previous) = &request.context.session {
        console.broker.sign_out(previous);
    }
    Ok(with_cookie(
        StatusCode::NO_CONTENT.into_response(),
        session_cookie::set_cookie(&console.origin, &session.cookie),
    ))
}

/// Ends the session; without one the response is the same.
pub(super) async fn sign_out(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
) -> Response {
    if let Some(cookie) = &request.context.session {
        console.broker.sign_out(cookie);
    }
    with_cookie(
        Redirect::to("/console/sign-in").into_response(),
        session_cookie::clear_cookie(&console.origin),
    )
}

fn with_cookie(mut response: Response, cookie: Option<HeaderValue>) -> Response {
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

pub(super) async fn enrol(
    State(console): State<Arc<Console>>,
    _request: ConsoleRequest,
) -> Response {
    response::html(&EnrolPage {
        page: Page::signed_out(&console, "Enrol a passkey"),
        label: "",
    })
}

pub(super) async fn begin_enrolment(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    let body: BeginEnrolmentBody = response::parse_json(&headers, &body)?;
    let code = Secret::new(body.code);
    let options = console.broker.begin_enrolment(request.route.name, &code)?;
    Ok(response::json(&EnrolmentOptionsBody {
        challenge: to_base64url(&options.challenge),
        rp_id: &console.broker.relying_party().id,
        rp_name: format!("Dipylon {}", console.broker.settings().realm),
        user: to_base64url(&options.user),
        name: &options.name,
        exclude: &options.exclude,
    }))
}

pub(super) async fn finish_enrolment(
    State(console): State<Arc<Console>>,
    request: ConsoleRequest,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ConsoleError> {
    let body: FinishEnrolmentBody = response::parse_json(&headers, &body)?;
    let code = Secret::new(body.code);
    let registration = Registration {
        client_data_json: from_base64url("client_data_json", &body.client_data_json)?,
        attestation_object: from_base64url("attestation_object", &body.attestation_object)?,
    };
    let enrolled = console
        .broker
        .finish_enrolment(request.route.name, &code, &registration, &body.label)
        .await?;
    Ok(response::json(&EnrolledBody {
        person: enrolled.person.to_string(),
        confirmation_code: enrolled.code.to_string(),
        confirmers: enrolled
            .confirmers
            .iter()
            .map(ToString::to_string)
            .collect(),
    }))
}

/// The form that confirms a passkey.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfirmForm {
    code: String,
}

/// Confirms the passkey whose code its person read out.
pub(super) async fn confirm(
    State(console): State<Arc<Console>>,
    Path(person): Path<String>,
    request: ConsoleRequest,
    form: Result<Form<ConfirmForm>, FormRejection>,
) -> Result<Response, ConsoleError> {
    console.broker.signed_in_user(&request.context)?;
    let person = PersonId::parse(&person).at("id")?;
    let Form(ConfirmForm { code }) =
        form.map_err(|_| ParseError::new("body", "expected a form with the field `code`"))?;
    let code = ConfirmationCode::parse(&code)?;
    let confirmed = console
        .broker
        .confirm_passkey_by_code(&request.context, person.clone(), code);
    confirmed.await?;
    Ok(Redirect::to(&format!("/console/approvers?confirmed={person}")).into_response())
}
