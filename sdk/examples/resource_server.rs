//! A resource server: an axum service that checks the token of each request offline before it acts.
//!
//! With a development broker (`dipylon serve --dev` prints its URL and its directory, which has the key of `cases`):
//!
//! ```text
//! DIPYLON_URL=http://127.0.0.1:7700 KEY=~/.dipylon/dev/dev/cases.pem \
//!   cargo run --package dipylon-sdk --example resource_server
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use dipylon_sdk::client::Identity;
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::{ActionName, Audience, Target};
use dipylon_sdk::validator::{
    PresentedToken, RequiredAction, ValidationError, Validator, ValidatorConfig,
};

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code, reason = "the integration tests call router")]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = std::env::var("DIPYLON_URL")?;
    let key = SigningKey::from_pem(&std::fs::read_to_string(std::env::var("KEY")?)?)?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    let external_url = format!("http://{}", listener.local_addr()?);
    println!("listening on {external_url}");
    axum::serve(listener, router(&broker, key, external_url).await?).await?;
    Ok(())
}

struct Cases {
    validator: Validator,
    /// The URL that clients use. Proofs are compared with it, never with the `Host` of a request.
    external_url: String,
}

/// The service: `GET /cases/ID` for the action `case.read` on `Case::"ID"`.
pub async fn router(
    broker: &str,
    key: SigningKey,
    external_url: String,
) -> Result<Router, Box<dyn Error>> {
    let audience = Audience::parse("https://cases.soc.example")?;
    let identity = Identity::Key(Arc::new(key));
    let config = ValidatorConfig::new(broker, broker, audience, identity);
    let cases = Cases {
        validator: Validator::connect(config).await?,
        external_url,
    };
    Ok(Router::new()
        .route("/cases/{id}", get(read_case))
        .with_state(Arc::new(cases)))
}

async fn read_case(
    State(cases): State<Arc<Cases>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    match authorize(&cases, &id, &headers).await {
        Ok(agent) => format!("{id}: credential phishing, read by {agent}\n").into_response(),
        Err(error) => {
            let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::UNAUTHORIZED);
            let mut response = (status, format!("{error}\n")).into_response();
            if let Some(value) = error.www_authenticate().and_then(|v| v.parse().ok()) {
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, value);
            }
            response
        }
    }
}

/// Checks token, proof, revocation and action, and consumes a use where the token has a limit. Returns the agent's id.
async fn authorize(
    cases: &Cases,
    id: &str,
    headers: &HeaderMap,
) -> Result<String, ValidationError> {
    let text = |name| single_header(headers, name);
    let token = text("authorization").and_then(|value| value.strip_prefix("DPoP "));
    let presented = PresentedToken {
        token: token.unwrap_or_default(),
        dpop: text("dpop"),
        method: "GET",
        url: &format!("{}/cases/{id}", cases.external_url),
        openings: &BTreeMap::new(), // `case.read` has no sensitive parameters
    };
    let parse = |_| ValidationError::TargetMismatch;
    let required = RequiredAction {
        action: ActionName::parse("case.read").map_err(parse)?,
        target: Target::parse("Case", id).map_err(parse)?,
        parameters: Some(BTreeMap::new()),
    };
    let authorized = cases.validator.check(&presented, &required).await?;
    let agent = authorized.agent_id().to_string();
    // The same request at two servers of this service has the same use id: one of them consumes the use and may act, the
    // other gets `UseRepeated` and must not.
    let use_id = authorized.use_id().to_string();
    cases.validator.consume(authorized, &use_id).await?;
    Ok(agent)
}

/// A header that must be there exactly once (RFC 9449 §4.3).
fn single_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
