//! An agent: opens a task, requests a token for one action, calls the resource server with it, and completes the task.
//!
//! With a development broker (`dipylon serve --dev` prints its URL) and the example `resource_server`:
//!
//! ```text
//! dipylon dev svid --agent triage --out svid
//! DIPYLON_URL=http://127.0.0.1:7700 EVIDENCE=svid CASES_URL=http://127.0.0.1:8080 \
//!   cargo run --package dipylon-sdk --example agent
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use dipylon_sdk::client::{
    AccessToken, AgentClient, Endpoint, EvidenceSource, OpenTaskRequest, TaskHandle, TokenOutcome,
    TokenRequest,
};
use dipylon_sdk::model::{Action, ActionName, Audience, Target, TaskOutcome};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

#[tokio::main(flavor = "current_thread")]
#[allow(dead_code, reason = "the integration tests call read_case")]
async fn main() -> Result<(), Box<dyn Error>> {
    let broker = std::env::var("DIPYLON_URL")?;
    let evidence = EvidenceSource::File(PathBuf::from(std::env::var("EVIDENCE")?));
    let cases = std::env::var("CASES_URL")?;
    println!(
        "{}",
        read_case(&broker, evidence, &cases, "INC-8841").await?
    );
    Ok(())
}

/// Reads one case, in a task of its own that ends with the call, whether it succeeds or fails.
pub async fn read_case(
    broker: &str,
    evidence: EvidenceSource,
    cases: &str,
    case: &str,
) -> Result<String, Box<dyn Error>> {
    let agent = AgentClient::new(Endpoint::connect(broker)?, evidence, None);
    let task = agent
        .open_task(&OpenTaskRequest {
            purpose: format!("summarize {case}"),
            max_duration_s: 600,
            idempotency_key: None,
            heartbeat_s: None, // with one, call TaskHandle::keep_alive about three times in that time
        })
        .await?;
    let result = read_in_task(&task, cases, case).await;
    let outcome = if result.is_ok() {
        TaskOutcome::Succeeded
    } else {
        TaskOutcome::Failed
    };
    task.complete(outcome).await?;
    result
}

async fn read_in_task(
    task: &TaskHandle,
    cases: &str,
    case: &str,
) -> Result<String, Box<dyn Error>> {
    let action = Action {
        name: ActionName::parse("case.read")?,
        target: Target::parse("Case", case)?,
        parameters: BTreeMap::new(),
        audience: Audience::parse("https://cases.soc.example")?,
    };
    let request = TokenRequest {
        reason: "the analyst asked for a summary".to_owned(),
        wait_s: 60,
        ..TokenRequest::new(action, 300)
    };
    let token: AccessToken = match task.request_token(&request).await? {
        TokenOutcome::Token(token) => token,
        TokenOutcome::Pending(pending) => {
            return Err(format!("approval is pending: {}", pending.match_phrase()).into());
        }
        TokenOutcome::Recommended(recommended) => {
            return Err(format!("{} executes it", recommended.executor()).into());
        }
        TokenOutcome::Denied(denial) => return Err(denial.reason_str().into()),
    };

    let url = format!("{cases}/cases/{case}");
    let headers = token.headers("GET", &url)?; // a new proof for each request
    let request = Request::get(&url)
        .header("authorization", headers.authorization.expose_secret())
        .header("dpop", headers.dpop.expose_secret())
        .body(Empty::<Bytes>::new())?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let body = String::from_utf8(body.to_vec())?;
    if status.is_success() {
        Ok(body)
    } else {
        Err(format!("the resource server answered {status}: {body}").into())
    }
}
