//! The resource server's process: an identity provider with three accounts and a case system with one case. The validator
//! checks each request offline, and a limited use is consumed before anything changes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::child;
use crate::cli::error::{CliError, io_error};
use crate::client::{Identity, random_name};
use crate::keys;
use crate::model::{ActionName, Audience, Param, ParseError, Target};
use crate::validator::{
    Authorized, PresentedToken, RequiredAction, ValidationError, Validator, ValidatorConfig,
};

/// The audiences of the example.
pub(super) const IDP: &str = "https://idp.soc.example";
pub(super) const CASES: &str = "https://cases.soc.example";

#[derive(Debug, Args)]
pub(in crate::cli) struct ResourceChild {
    #[arg(long)]
    broker: String,
    #[arg(long)]
    idp_key: PathBuf,
    #[arg(long)]
    cases_key: PathBuf,
}

struct Server {
    url: String,
    idp: Validator,
    cases: Validator,
    /// Whether each account can sign in.
    accounts: Mutex<BTreeMap<String, bool>>,
}

/// The resource server takes no instructions: it ends when stdin does.
#[derive(Debug, Deserialize)]
struct NoInstruction {}

pub(in crate::cli) async fn run(args: ResourceChild) -> Result<ExitCode, CliError> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .map_err(io_error("listen"))?;
    let url = format!(
        "http://{}",
        listener.local_addr().map_err(io_error("listen"))?
    );
    let validator = async |audience: &str, key: PathBuf| {
        let identity = Identity::Key(Arc::new(keys::read(&key)?));
        let config = ValidatorConfig::new(
            &args.broker,
            &args.broker,
            Audience::parse(audience)?,
            identity,
        );
        Validator::connect(config)
            .await
            .map_err(|e| CliError::failed(e.to_string()))
    };
    let server = Arc::new(Server {
        url: url.clone(),
        idp: validator(IDP, args.idp_key).await?,
        cases: validator(CASES, args.cases_key).await?,
        accounts: Mutex::new(
            ["ann", "bob", "cara"]
                .map(|name| (name.to_owned(), true))
                .into(),
        ),
    });
    let router = Router::new()
        .route("/accounts", get(accounts))
        .route("/accounts/{id}/disable", post(disable))
        .route("/cases/{id}", get(case))
        .with_state(server);
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    let result = child::serve(
        json!({ "url": url }),
        tokio::io::stdin(),
        async |NoInstruction {}| Ok(json!({})),
    )
    .await;
    serving.abort();
    result
}

/// The accounts, for the demo's output: a real server would require a token here too.
async fn accounts(State(server): State<Arc<Server>>) -> Response {
    json_response(
        StatusCode::OK,
        &json!(
            *server
                .accounts
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        ),
    )
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.to_string(),
    )
        .into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Disable {
    end_sessions: bool,
}

async fn disable(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let Ok(body) = serde_json::from_slice::<Disable>(&body) else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let parameters = BTreeMap::from([("end_sessions".to_owned(), Param::Bool(body.end_sessions))]);
    let path = format!("/accounts/{id}/disable");
    let authorized = match server
        .authorize(
            &server.idp,
            &headers,
            ("POST", &path),
            ("account.disable", "Account", &id),
            parameters,
        )
        .await
    {
        Ok(authorized) => authorized,
        Err(rejection) => return rejection,
    };
    let Ok(use_id) = random_name() else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let consumed = match server
        .idp
        .consume(authorized, &format!("use-{use_id}"))
        .await
    {
        Ok(consumed) => consumed,
        Err(error) => return reject(&error),
    };
    let mut accounts = server
        .accounts
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    match accounts.get_mut(&id) {
        Some(enabled) => {
            *enabled = false;
            json_response(
                StatusCode::OK,
                &json!({ "account": id, "enabled": false, "uses_left": consumed.uses_left() }),
            )
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn case(
    State(server): State<Arc<Server>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let path = format!("/cases/{id}");
    match server
        .authorize(
            &server.cases,
            &headers,
            ("GET", &path),
            ("case.read", "Case", &id),
            BTreeMap::new(),
        )
        .await
    {
        Ok(_) if id == "INC-8841" => json_response(
            StatusCode::OK,
            &json!({ "case": id, "title": "Sign-ins from two continents" }),
        ),
        Ok(_) => StatusCode::NOT_FOUND.into_response(),
        Err(rejection) => rejection,
    }
}

impl Server {
    /// Checks the request's token against the action this server is about to perform.
    async fn authorize(
        &self,
        validator: &Validator,
        headers: &HeaderMap,
        (method, path): (&str, &str),
        (action, kind, id): (&str, &str, &str),
        parameters: BTreeMap<String, Param>,
    ) -> Result<Authorized, Response> {
        let require = || -> Result<RequiredAction, ParseError> {
            Ok(RequiredAction {
                action: ActionName::parse(action)?,
                target: Target::parse(kind, id)?,
                parameters: Some(parameters),
            })
        };
        let require = require().map_err(|_| StatusCode::BAD_REQUEST.into_response())?;
        let Some(token) =
            single_header(headers, "authorization").and_then(|value| value.strip_prefix("DPoP "))
        else {
            return Err((
                StatusCode::UNAUTHORIZED,
                [(header::WWW_AUTHENTICATE, "DPoP algs=\"ES256\"")],
            )
                .into_response());
        };
        let url = format!("{}{path}", self.url);
        let presented = PresentedToken {
            token,
            dpop: single_header(headers, "dpop"),
            method,
            url: &url,
            openings: &BTreeMap::new(),
        };
        validator
            .check(&presented, &require)
            .await
            .map_err(|error| reject(&error))
    }
}

/// The value of a header that is present exactly once.
fn single_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    if values.next().is_some() {
        None
    } else {
        first.to_str().ok()
    }
}

fn reject(error: &ValidationError) -> Response {
    let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = json_response(status, &json!({ "error": error.to_string() }));
    if let Some(challenge) = error
        .www_authenticate()
        .and_then(|text| HeaderValue::from_str(&text).ok())
    {
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}
