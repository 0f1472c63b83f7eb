//! Concurrency: a hundred calls at once, and single-use operations succeed exactly once.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::support::*;
use dipylon::broker::{Refusal, RequestTokenInput, TokenReply};
use dipylon_sdk::model::*;
use tokio::task::JoinSet;

const MANY: usize = 100;

/// Runs the futures concurrently on several threads.
pub async fn at_once<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    jobs: Vec<F>,
) -> Vec<T> {
    let gate = Arc::new(tokio::sync::Barrier::new(jobs.len()));
    let mut set = JoinSet::new();
    for job in jobs {
        let gate = gate.clone();
        set.spawn(async move {
            gate.wait().await;
            job.await
        });
    }
    set.join_all().await
}

async fn approved(b: &TestBroker, agent: &TestAgent) -> (TaskId, AccessRequestId) {
    let task = b.open_task(agent).await;
    let id = b
        .request_token(agent, task, &disable("ann"), 300, "first")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    (task, id)
}

fn token_call(
    b: &Arc<TestBroker>,
    agent: &TestAgent,
    task: TaskId,
    request: String,
) -> impl Future<Output = Result<TokenReply, Refusal>> + use<> {
    let (b, agent) = (b.clone(), agent.clone());
    async move {
        b.request_token(&agent, task, &disable("ann"), 300, &request)
            .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_mints_one_wins() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let (task, id) = approved(&b, &triage).await;
    let replies = at_once(
        (0..MANY)
            .map(|n| token_call(&b, &triage, task, format!("r-{n}")))
            .collect(),
    )
    .await;
    let tokens: Vec<_> = replies
        .iter()
        .filter(|r| matches!(r, Ok(TokenReply::Token(_))))
        .collect();
    assert_eq!(tokens.len(), 1, "one approval, one grant");
    assert!(replies.iter().all(|r| match r {
        Ok(TokenReply::Token(_) | TokenReply::Pending(_)) => true,
        Ok(TokenReply::Recommended(_) | TokenReply::Denied(_)) => false,
        Err(refusal) => refusal.reason == Reason::Conflict,
    }));
    let grants = b.broker.show().grants_of_task(&task);
    assert_eq!((grants.len(), grants[0].issued.consumed), (1, Some(id)));
    // The other calls join one new access request.
    assert!(b.broker.show().pending_requests(b.now()).len() <= 1);
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_consumes_one_wins() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let (task, _) = approved(&b, &triage).await;
    let token = b
        .request_token(&triage, task, &disable("ann"), 300, "r")
        .await
        .token()
        .token;
    let spend = |use_id: String| {
        let (b, token) = (b.clone(), token.clone());
        async move { b.consume("idp", &token, &use_id).await }
    };
    let results = at_once((0..MANY).map(|n| spend(format!("use-{n}"))).collect()).await;
    assert_eq!(
        results.iter().filter(|r| r.is_ok()).count(),
        1,
        "one use is spent once"
    );
    assert!(
        results
            .iter()
            .all(|r| r.as_ref().is_ok_and(|c| c.uses_left == Some(0))
                || r.as_ref().is_err_and(|e| e.reason == Reason::UsesExhausted))
    );
    assert_eq!(b.broker.show().grants_of_task(&task)[0].uses.len(), 1);

    let (task, _) = {
        let task = b
            .try_open_task(&triage, "second", "open-2")
            .await
            .expect("opens")
            .task
            .task;
        let id = b
            .request_token(&triage, task, &disable("ann"), 300, "first")
            .await
            .pending()
            .access_request;
        b.approve("lee", id, "one-security").await;
        (task, id)
    };
    let token = b
        .request_token(&triage, task, &disable("ann"), 300, "first")
        .await
        .token()
        .token;
    let same = |_| {
        let (b, token) = (b.clone(), token.clone());
        async move { b.consume("idp", &token, "the-use").await }
    };
    let before = b.broker.show().position().1;
    let results = at_once((0..MANY).map(same).collect()).await;
    let answers: Vec<_> = results.into_iter().map(|r| r.expect("an answer")).collect();
    let same: BTreeSet<_> = answers.iter().map(|c| (c.uses_left, c.index)).collect();
    assert_eq!(same.len(), 1, "one use_id, one answer: {answers:?}");
    let spent = answers.iter().filter(|c| c.outcome == UseOutcome::Spent);
    assert_eq!(spent.count(), 1, "one call may act: {answers:?}");
    assert_eq!(b.broker.show().position().1, before + 1, "one entry");
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_dpop_replay_and_shared_nonce() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let method = "dipylon.v1.TaskService/RequestToken";
    let ask = |n: usize| RequestTokenInput {
        task,
        action: read_case(),
        ttl: 60,
        reason: None,
        idempotency_key: IdempotencyKey::parse(&format!("r-{n}")).expect("id"),
        wait_ms: 0,
        evidence: None,
        executor: None,
        recommendation: None,
    };
    let copied = b
        .call(method, &triage.key, Some(read_case().digest()), None)
        .proof;
    let jobs = (0..MANY).map(|n| {
        let (b, mut call, ask) = (b.clone(), b.call(method, &triage.key, None, None), ask(n));
        call.proof = copied.clone();
        async move { b.broker.request_token(&call, ask).await }
    });
    let results = at_once(jobs.collect()).await;
    assert_eq!(
        results.iter().filter(|r| r.is_ok()).count(),
        1,
        "a proof is used once"
    );
    assert!(
        results
            .iter()
            .filter_map(|r| r.as_ref().err())
            .all(|e| e.reason == Reason::NotAuthenticated)
    );

    let nonce = b.broker.nonce();
    let jobs = (0..MANY).map(|n| {
        let call = b.call_with_nonce(
            method,
            &triage.key,
            Some(read_case().digest()),
            None,
            &nonce,
        );
        let (b, ask) = (b.clone(), ask(MANY + n));
        async move { b.broker.request_token(&call, ask).await }
    });
    let results = at_once(jobs.collect()).await;
    assert!(
        results
            .iter()
            .all(|r| matches!(r, Ok(TokenReply::Token(_)))),
        "a nonce serves many proofs"
    );
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_mint_after_revocation() {
    for round in 0..6 {
        let b = Arc::new(TestBroker::start().await);
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        let mints = (0..40).map(|n| {
            let (b, triage) = (b.clone(), triage.clone());
            tokio::spawn(async move {
                let reply = b
                    .request_token(&triage, task, &read_case(), 60, &format!("r-{n}"))
                    .await;
                // The index at the reply: a revocation acknowledged before the request must refuse it.
                (reply, b.broker.show().position().1)
            })
        });
        let mints: Vec<_> = mints.collect();
        let ended = match round % 3 {
            0 => b
                .complete_task(&triage, task)
                .await
                .map(|report| report.index),
            1 => b.suspend("triage").await.map(|(_, index)| index),
            _ => {
                let shut = b.env.policy_with("rules/20-guardrails.cedar", |t| {
                    format!("{t}\n@id(\"no-reading\") forbid (principal, action == Action::\"case.read\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n")
                });
                b.apply_policy(shut)
                    .await
                    .map(|_| b.broker.show().position().1)
            }
        };
        ended.expect("acknowledged");
        let late = b
            .request_token(&triage, task, &read_case(), 60, "late")
            .await;
        assert!(
            !matches!(late, Ok(TokenReply::Token(_))),
            "minted after the revocation was acknowledged"
        );
        for mint in mints {
            if let (Ok(TokenReply::Token(reply)), _) = mint.await.expect("joined") {
                assert!(
                    !b.introspect("cases", &reply.token).await,
                    "a token from before the revocation is inactive"
                );
            }
        }
        b.check_invariants();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_votes_one_outcome() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r")
        .await
        .pending()
        .access_request;
    let vote = |n: usize| {
        let b = b.clone();
        let (name, verdict) = if n % 10 == 9 {
            ("lee", Verdict::Deny)
        } else {
            ("maria", Verdict::Approve)
        };
        async move {
            b.vote(name, id, "one-security", verdict)
                .await
                .map(|_| verdict)
        }
    };
    let results = at_once((0..50).map(vote).collect()).await;
    assert!(
        results
            .iter()
            .filter(|r| matches!(r, Ok(Verdict::Approve)))
            .count()
            <= 1
    );
    assert_eq!(
        results
            .iter()
            .filter(|r| matches!(r, Ok(Verdict::Deny)))
            .count(),
        1
    );
    assert_eq!(
        b.request_token(&triage, task, &disable("ann"), 300, "r")
            .await
            .denied()
            .why,
        DeniedReason::DeniedByApprover
    );
    b.check_invariants();
}
