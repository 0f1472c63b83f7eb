//! End-to-end tests through real sockets: agents, approvers, operators and resource servers use only the client libraries.

use std::collections::BTreeMap;
use std::time::Duration;

use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{AccessToken, ApproverClient, Error, TokenOutcome};
use dipylon_sdk::model::*;
use dipylon_sdk::validator::{
    Authorized, PresentedToken, RequiredAction, ValidationError, Validator,
};

use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::{CASES, IDP, disable, read_case};

const URL: &str = "https://cases.soc.example/cases/INC-8841";

/// One HTTP request with a token, its proof signed once.
pub struct PresentedRequest {
    jwt: String,
    proof: Secret,
}

impl PresentedRequest {
    pub fn new(token: &AccessToken) -> Self {
        let headers = token.headers("GET", URL).expect("headers");
        let authorization = headers.authorization.expose_secret();
        let jwt = authorization
            .strip_prefix("DPoP ")
            .expect("scheme")
            .to_owned();
        Self {
            jwt,
            proof: headers.dpop,
        }
    }

    /// Sends it to a server with this validator.
    pub async fn present(
        &self,
        validator: &Validator,
        action: &Action,
    ) -> Result<Authorized, ValidationError> {
        let require = RequiredAction {
            action: action.name.clone(),
            target: action.target.clone(),
            parameters: Some(action.parameters.clone()),
        };
        let presented = PresentedToken {
            token: &self.jwt,
            dpop: Some(self.proof.expose_secret()),
            method: "GET",
            url: URL,
            openings: &BTreeMap::new(),
        };
        validator.check(&presented, &require).await
    }
}

pub async fn present(
    validator: &Validator,
    token: &AccessToken,
    action: &Action,
) -> Result<Authorized, ValidationError> {
    PresentedRequest::new(token)
        .present(validator, action)
        .await
}

/// Approves an access request as its approver read it.
pub async fn approve(approver: &ApproverClient, id: AccessRequestId, profile: &str) {
    let card = approver.card(id).await.expect("card");
    let seen = ReviewedCard {
        card: &card,
        realm: &Realm::parse("test").expect("realm"),
        profile: &ProfileName::parse(profile).expect("profile"),
        verdict: Verdict::Approve,
        narrowing: Narrowing::default(),
        comment: None,
    };
    approver.vote(&seen).await.expect("votes");
}

fn token(outcome: Result<TokenOutcome, Error>) -> AccessToken {
    match outcome {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    }
}

fn pending(outcome: Result<TokenOutcome, Error>) -> AccessRequestId {
    match outcome {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn task_lifecycle_end_to_end() {
    let s = ServedBroker::start().await;
    let validator = s.validator("cases", CASES).await;
    // Completed by another process: this one goes on presenting its token.
    let (task, completing) = s.task_with_second_handle("triage").await;
    let read = token(task.request_token(&token_request(read_case(), "r-1")).await);
    present(&validator, &read, &read_case())
        .await
        .expect("admitted");
    let another = crate::support::action("case.read", "Case", "INC-8850", CASES, &[]);
    assert!(
        matches!(
            present(&validator, &read, &another).await,
            Err(ValidationError::TargetMismatch)
        ),
        "another target"
    );

    let report = completing
        .complete(TaskOutcome::Succeeded)
        .await
        .expect("completes");
    assert_eq!(
        (report.cause.as_str(), report.tokens_revoked),
        ("completed", 1)
    );
    let learnt = tokio::time::timeout(
        Duration::from_secs(5),
        validator.wait_for_position(report.position),
    )
    .await;
    learnt.expect("a subscribed validator learns of the revocation");
    assert!(matches!(
        present(&validator, &read, &read_case()).await,
        Err(ValidationError::Revoked)
    ));
    assert!(
        !validator
            .introspect(read.jwt().expose_secret())
            .await
            .expect("may ask")
            .active
    );

    let s = s.restart().await;
    let validator = s.validator("cases", CASES).await;
    assert!(
        matches!(
            present(&validator, &read, &read_case()).await,
            Err(ValidationError::Revoked)
        ),
        "still after a restart"
    );
    crate::support::invariants::check(&s.dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_up_while_the_agent_waits() {
    let s = ServedBroker::start().await;
    let validator = s.validator("idp", IDP).await;
    let task = s.task("triage").await;
    let id = pending(
        task.request_token(&token_request(disable("ann"), "r-1"))
            .await,
    );
    let waiting = {
        let mut order = token_request(disable("ann"), "r-1");
        order.wait_s = 30;
        async move {
            task.request_token(&order)
                .await
                .map(|outcome| (outcome, task))
        }
    };
    let waiting = tokio::spawn(waiting);
    let maria = s.approver("maria");
    assert_eq!(maria.access_requests().await.expect("lists").len(), 1);
    let card = maria.card(id).await.expect("card");
    assert_eq!(card.title, "Disable an account");
    let realm = Realm::parse("test").expect("realm");
    let profile = ProfileName::parse("one-security").expect("profile");
    let seen = ReviewedCard {
        card: &card,
        realm: &realm,
        profile: &profile,
        verdict: Verdict::Approve,
        narrowing: Narrowing {
            max_ttl: Some(120),
            max_uses: None,
        },
        comment: None,
    };
    maria.vote(&seen).await.expect("votes");
    let (outcome, task) = waiting.await.expect("joined").expect("decided");
    let issued = token(Ok(outcome));
    assert_eq!(issued.uses(), Some(1));
    let admitted = present(&validator, &issued, &disable("ann"))
        .await
        .expect("admitted");
    let spent = validator.consume(admitted, "use-1").await.expect("spends");
    assert_eq!(spent.uses_left(), Some(0));
    let again = present(&validator, &issued, &disable("ann"))
        .await
        .expect("valid offline");
    assert!(
        matches!(
            validator.consume(again, "use-2").await,
            Err(ValidationError::UsesExhausted)
        ),
        "a second use"
    );
    let replayed = s.validator("cases", CASES).await;
    assert!(
        matches!(
            present(&replayed, &issued, &disable("ann")).await,
            Err(ValidationError::Token(_))
        ),
        "for another audience"
    );
    drop(task);
    crate::support::invariants::check(&s.dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operator_actions_and_explain() {
    let s = ServedBroker::start().await;
    let validator = s.validator("cases", CASES).await;
    let task = s.task("triage").await;
    let read = token(task.request_token(&token_request(read_case(), "r-1")).await);
    let olga = s.operator("olga");
    let suspended = olga
        .suspend(&AgentId::parse("triage").expect("id"), "odd requests")
        .await
        .expect("suspends");
    validator.wait_for_position(suspended.position).await;
    assert!(
        matches!(
            present(&validator, &read, &read_case()).await,
            Err(ValidationError::Revoked)
        ),
        "the agent-wide revocation holds"
    );
    let refused = task
        .request_token(&token_request(read_case(), "r-2"))
        .await
        .expect_err("ended");
    assert_eq!(refused.reason(), Some(Reason::TaskEnded));
    let why = olga
        .explain(refused.correlation().expect("a correlation id"))
        .await
        .expect("explains");
    assert!(why.headline.contains("TASK_ENDED"), "{why:?}");
    let why = olga
        .explain(&read.decision_id().to_string())
        .await
        .expect("explains");
    assert!(
        why.lines
            .iter()
            .any(|l| l.label == "allowed by rule" && l.text.contains("soc-acts-at-home")),
        "{why:?}"
    );
    assert_eq!(why.entries.len(), 1);
    olga.resume(&AgentId::parse("triage").expect("id"))
        .await
        .expect("resumes");
    let fresh = s.task("triage").await;
    let read = token(
        fresh
            .request_token(&token_request(read_case(), "r-1"))
            .await,
    );
    present(&validator, &read, &read_case())
        .await
        .expect("a token issued after the event is valid: position, not time");
    let ended = olga.end_task(fresh.id()).await.expect("ends");
    assert_eq!(ended.cause, "operator");

    let mut files = s.env.policy.clone();
    files.insert(
        "rules/30-typo.cedar".into(),
        "@id(\"x\") @stepup(\"one-security\") forbid (principal, action, resource);".into(),
    );
    let bad = olga
        .apply_policy_bundle(&files)
        .await
        .expect_err("the whole bundle is refused");
    assert_eq!(bad.reason(), Some(Reason::InvalidPolicyBundle));
    assert!(
        bad.to_string().contains("stepup") && bad.to_string().contains("30-typo"),
        "{bad}"
    );
    let mut keyless = s.env.policy.clone();
    keyless.insert(
        "people.toml".into(),
        crate::support::soc()["people.toml"].clone(),
    );
    assert_eq!(
        olga.apply_policy_bundle(&keyless)
            .await
            .expect_err("a bundle without operators is refused")
            .reason(),
        Some(Reason::InvalidPolicyBundle)
    );
    let maria = s.operator("maria");
    assert_eq!(
        maria
            .apply_policy_bundle(&s.env.policy)
            .await
            .expect_err("no operator")
            .reason(),
        Some(Reason::NotPermitted)
    );
}
