//! Revocation latency: the time from an acknowledged revocation until a validator on this host rejects the token.

use std::collections::BTreeMap;
use std::time::Instant;

use dipylon_sdk::client::{AccessToken, TaskHandle, TokenOutcome};
use dipylon_sdk::model::{AgentId, FreezeScope, TaskOutcome};
use dipylon_sdk::validator::{PresentedToken, RequiredAction, ValidationError, Validator};

use super::Counts;
use super::closed_loop::{nanos, percentile};
use super::report::{Report, ms};
use super::setup::{BenchSetup, unique_number};
use crate::support::served_broker::token_request;
use crate::support::{CASES, read_case};

const URL: &str = "https://cases.soc.example/cases/INC-8841";
/// Checks after a revocation before the benchmark gives up.
const CHECKS_MAX: usize = 1_000_000;

pub fn run(setup: &BenchSetup, counts: &Counts, report: &mut Report) {
    report.part("From an acknowledged revocation to the validator's rejection");
    setup.load.block_on(async {
        let validator = setup.served.validator("cases", CASES).await;
        let operator = setup.served.operator("olga");
        let (mut completed, mut suspended, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..counts.ends {
            let (task, token) = begin(setup, &validator, "triage").await;
            task.complete(TaskOutcome::Succeeded)
                .await
                .expect("completes");
            completed.push(until_refused(&validator, &token).await);
        }
        for _ in 0..counts.ends.div_ceil(4) {
            let (_task, token) = begin(setup, &validator, "reporter").await;
            let agent = AgentId::parse("reporter").expect("id");
            operator
                .suspend(&agent, "a drill")
                .await
                .expect("suspended");
            suspended.push(until_refused(&validator, &token).await);
            operator.resume(&agent).await.expect("resumed");
        }
        let scope = FreezeScope::Action(read_case().name);
        for _ in 0..counts.ends.div_ceil(4) {
            let (_task, token) = begin(setup, &validator, "reporter").await;
            operator.freeze(&scope, "a drill").await.expect("frozen");
            frozen.push(until_refused(&validator, &token).await);
            operator.unfreeze(&scope).await.expect("lifted");
        }
        for (what, times) in [
            ("the task completed", completed),
            ("the agent suspended", suspended),
            ("the action frozen", frozen),
        ] {
            let shown = format!(
                "p50 {}   p99 {}   of {}",
                ms(percentile(&times, 50)),
                ms(percentile(&times, 99)),
                times.len()
            );
            report.line(what, &shown);
        }
    });
}

async fn begin(
    setup: &BenchSetup,
    validator: &Validator,
    agent: &str,
) -> (TaskHandle, AccessToken) {
    // The returned handle ends the task; the token's own does not know of it, and goes on making proofs.
    let (task, ending) = setup.served.task_with_second_handle(agent).await;
    let order = token_request(read_case(), &format!("r-{}", unique_number()));
    let token = match task.request_token(&order).await {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    assert!(
        check(validator, &token).await.is_ok(),
        "valid before the revocation"
    );
    (ending, token)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a bench measures time; nothing is decided by it"
)]
async fn until_refused(validator: &Validator, token: &AccessToken) -> u64 {
    let acknowledged = Instant::now();
    for _ in 0..CHECKS_MAX {
        match check(validator, token).await {
            Err(ValidationError::Revoked) => return nanos(acknowledged.elapsed()),
            Ok(()) => tokio::task::yield_now().await,
            Err(other) => panic!("rejected for another reason: {other}"),
        }
    }
    panic!("never rejected");
}

async fn check(validator: &Validator, token: &AccessToken) -> Result<(), ValidationError> {
    let headers = token.headers("GET", URL).expect("headers");
    let action = read_case();
    let require = RequiredAction {
        action: action.name,
        target: action.target,
        parameters: Some(action.parameters),
    };
    let presented = PresentedToken {
        token: token.jwt().expose_secret(),
        dpop: Some(headers.dpop.expose_secret()),
        method: "GET",
        url: URL,
        openings: &BTreeMap::new(),
    };
    validator.check(&presented, &require).await.map(drop)
}
