//! Repeated calls: a client that repeats a call with one idempotency key, one use id or one vote statement gets what the first
//! call made, also when all of them arrive at once, and also after the task has ended.

use std::sync::Arc;

use dipylon::broker::RequestTokenInput;
use dipylon_sdk::client::{AgentClient, OpenTaskRequest, TokenOutcome};
use dipylon_sdk::model::*;
use dipylon_sdk::validator::ValidationError;

use crate::concurrency::at_once;
use crate::end_to_end::present;
use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::*;

const REPEATS: usize = 50;

/// A single-use token for an approved action.
async fn single_use_token(b: &TestBroker, agent: &TestAgent, task: TaskId) -> Secret {
    let ann = disable("ann");
    let ask = || b.request_token(agent, task, &ann, 300, "single-use");
    let id = ask().await.pending().access_request;
    b.approve("maria", id, "one-security").await;
    ask().await.token().token
}

fn entries_of(b: &TestBroker, kind: &str) -> usize {
    let (_, head) = b.broker.show().position();
    (0..=head)
        .filter_map(|index| b.broker.journal().entry(index).expect("reads"))
        .filter(|stored| stored.text.contains(&format!("\"kind\":\"{kind}\"")))
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_repeats_of_a_token_request_get_one_grant() {
    let s = ServedBroker::start().await;
    // Without retries: the broker itself must not answer CONFLICT.
    let agent = AgentClient::new(s.endpoint().with_retry_ms(0), s.evidence("triage"), None);
    let opening = OpenTaskRequest {
        purpose: "contain INC-8841".into(),
        max_duration_s: 600,
        idempotency_key: None,
        heartbeat_s: None,
    };
    let task = Arc::new(agent.open_task(&opening).await.expect("opens"));
    let repeat = || {
        let task = task.clone();
        async move {
            task.request_token(&token_request(read_case(), "-one"))
                .await
        }
    };
    let outcomes = at_once((0..REPEATS).map(|_| repeat()).collect()).await;
    let mut tokens = Vec::new();
    for outcome in outcomes {
        match outcome.expect("answered") {
            TokenOutcome::Token(token) => tokens.push(token.jti()),
            other => panic!("not a token: {other:?}"),
        }
    }
    tokens.dedup();
    assert_eq!(tokens.len(), 1, "every repetition gets the same grant");
    assert_eq!(s.broker.show().grants_of_task(&task.id()).len(), 1);

    // The same for an access request: one is opened, and every call waits for it.
    let ask = || {
        let task = task.clone();
        async move {
            task.request_token(&token_request(disable("ann"), "_two"))
                .await
        }
    };
    let mut requests = Vec::new();
    for outcome in at_once((0..REPEATS).map(|_| ask()).collect()).await {
        match outcome.expect("answered") {
            TokenOutcome::Pending(pending) => requests.push(pending.access_request_id()),
            other => panic!("not pending: {other:?}"),
        }
    }
    requests.dedup();
    assert_eq!(requests.len(), 1);
    assert_eq!(s.broker.show().requests_of_task(&task.id()).len(), 1);
    crate::support::invariants::check(&s.dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_repeats_in_process_get_one_answer() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");

    let open = || {
        let (b, triage) = (b.clone(), triage.clone());
        async move { b.try_open_task(&triage, "contain INC-8841", "-open").await }
    };
    let opened = at_once((0..REPEATS).map(|_| open()).collect()).await;
    let mut tasks: Vec<_> = opened
        .into_iter()
        .map(|reply| reply.expect("opens").task.task)
        .collect();
    tasks.dedup();
    assert_eq!(tasks.len(), 1, "one task");
    assert_eq!(entries_of(&b, "TaskOpened"), 1);
    let task = tasks[0];

    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "single-use")
        .await
        .pending()
        .access_request;
    let begun = b
        .begin_vote("maria", id, "one-security", Verdict::Approve)
        .await
        .expect("begun");
    let vote = || {
        let (b, statement) = (b.clone(), begun.statement.clone());
        async move { b.cast_vote("maria", id, &statement).await }
    };
    for cast in at_once((0..REPEATS).map(|_| vote()).collect()).await {
        assert_eq!(cast.expect("the vote is recorded").request.votes.len(), 1);
    }
    assert_eq!(entries_of(&b, "VoteCast"), 1, "one vote");
    assert_eq!(entries_of(&b, "VoteRefused"), 0);

    let token = b
        .request_token(&triage, task, &disable("ann"), 300, "single-use")
        .await
        .token()
        .token;
    let spend = || {
        let (b, token) = (b.clone(), token.clone());
        async move { b.consume("idp", &token, "-use").await }
    };
    let consumed: Vec<_> = at_once((0..REPEATS).map(|_| spend()).collect())
        .await
        .into_iter()
        .map(|consumed| consumed.expect("an answer"))
        .collect();
    let spent = |outcome| consumed.iter().filter(|c| c.outcome == outcome).count();
    assert_eq!(spent(UseOutcome::Spent), 1, "exactly one call may act");
    assert_eq!(spent(UseOutcome::Repeated), REPEATS - 1);
    assert!(
        consumed
            .iter()
            .all(|c| c.index == consumed[0].index && c.uses_left == Some(0))
    );
    assert_eq!(entries_of(&b, "TokenConsumed"), 1);
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_call_whose_client_is_gone_holds_nobody_up() {
    let b = Arc::new(TestBroker::start().await);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    for round in 0..20 {
        let key = format!("r-{round}");
        let ask = || {
            let (b, triage, key) = (b.clone(), triage.clone(), key.clone());
            tokio::spawn(async move {
                b.request_token(&triage, task, &read_case(), 300, &key)
                    .await
            })
        };
        let gone: Vec<_> = (0..4).map(|_| ask()).collect();
        let waiting: Vec<_> = (0..4).map(|_| ask()).collect();
        for call in &gone {
            call.abort();
        }
        let mut tokens = Vec::new();
        for call in waiting {
            tokens.push(call.await.expect("joined").token().issued.jti);
        }
        tokens.dedup();
        assert_eq!(tokens.len(), 1);
        for call in gone {
            let _aborted_or_answered = call.await;
        }
    }
    assert_eq!(b.broker.show().grants_of_task(&task).len(), 20);
    b.check_invariants();
}

#[tokio::test]
async fn a_repeated_use_gets_its_former_answer_after_the_end() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let token = single_use_token(&b, &triage, task).await;
    let spent = b.consume("idp", &token, "use-1").await.expect("spends");
    assert_eq!(
        (spent.outcome, spent.uses_left),
        (UseOutcome::Spent, Some(0))
    );
    let same = |consumed: dipylon::broker::Consumed| {
        assert_eq!(consumed.outcome, UseOutcome::Repeated);
        assert_eq!(
            (consumed.jti, consumed.uses_left, consumed.index),
            (spent.jti, spent.uses_left, spent.index)
        );
    };
    let inactive = [
        ("idp", "use-2", "a use that was not spent"),
        ("cases", "use-1", "another validator"),
    ];
    same(b.consume("idp", &token, "use-1").await.expect("repeats"));
    b.complete_task(&triage, task).await.expect("ends");
    same(
        b.consume("idp", &token, "use-1")
            .await
            .expect("after the end of the task"),
    );
    b.manual_clock.advance_millis(3_600_000);
    same(
        b.consume("idp", &token, "use-1")
            .await
            .expect("after the expiry of the token"),
    );
    let before = b.broker.show().position();
    let b = b.restart(dipylon::journal::FaultInjection::default()).await;
    same(
        b.consume("idp", &token, "use-1")
            .await
            .expect("after a restart"),
    );
    for (validator, use_id, why) in inactive {
        let refused = refused(b.consume(validator, &token, use_id).await);
        assert_eq!(refused, Reason::TokenInactive, "{why}");
    }
    assert_eq!(entries_of(&b, "TokenConsumed"), 1);
    assert_eq!(b.broker.show().position(), before, "no entry");
    // Another token's text with this token's id is still no token.
    let forged = Secret::new(format!("{}A", token.expose_secret()));
    assert_eq!(
        refused(b.consume("idp", &forged, "use-1").await),
        Reason::TokenInactive
    );
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_of_one_validator_one_acts() {
    let s = ServedBroker::start().await;
    let task = s.task("triage").await;
    let pending = match task
        .request_token(&token_request(disable("ann"), "r"))
        .await
    {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    };
    crate::end_to_end::approve(&s.approver("maria"), pending, "one-security").await;
    let token = match task
        .request_token(&token_request(disable("ann"), "r"))
        .await
    {
        Ok(TokenOutcome::Token(token)) => token,
        other => panic!("not a token: {other:?}"),
    };
    // Two servers, each with a replay cache of its own, get the same request.
    let (first, second) = (s.validator("idp", IDP).await, s.validator("idp", IDP).await);
    let request = crate::end_to_end::PresentedRequest::new(&token);
    let (at_first, at_second) = (
        request
            .present(&first, &disable("ann"))
            .await
            .expect("authorized"),
        request
            .present(&second, &disable("ann"))
            .await
            .expect("authorized"),
    );
    assert_eq!(
        at_first.use_id(),
        at_second.use_id(),
        "derived from the proof"
    );
    let use_id = at_first.use_id().to_string();
    let consumed = first.consume(at_first, &use_id).await.expect("spends");
    let position = consumed.position().expect("an entry");
    assert_eq!(
        second.consume(at_second, &use_id).await.err(),
        Some(ValidationError::UseRepeated { position })
    );
    // Another request with the same token is another use, and there is none left.
    let other = present(&second, &token, &disable("ann"))
        .await
        .expect("authorized");
    assert_ne!(other.use_id().to_string(), use_id);
    let use_id = other.use_id().to_string();
    assert_eq!(
        second.consume(other, &use_id).await.err(),
        Some(ValidationError::UsesExhausted)
    );
}

/// The end of a task as its agent is told it: the same for every call, before and after the entry, and after a restart.
#[tokio::test]
async fn the_end_of_a_task_is_told_with_its_cause() {
    #[derive(Clone, Copy, Debug)]
    enum End {
        Completed,
        Deadline,
        Lease,
        Operator,
        Suspended,
        Frozen,
        Policy,
    }
    for (end, why) in [
        (End::Completed, "its agent completed it"),
        (End::Deadline, "its deadline passed"),
        (End::Lease, "a heartbeat was missed"),
        (End::Operator, "an operator ended it"),
        (End::Suspended, "its agent was suspended"),
        (
            End::Frozen,
            "an operator froze its agent, its owner or everything",
        ),
        (End::Policy, "the policy no longer allows it"),
    ] {
        let b = TestBroker::start().await;
        let agent = b.agent("triage");
        let heartbeat = matches!(end, End::Lease).then_some(60);
        let opened = b
            .open_task_with(&agent, "work", "open", heartbeat)
            .await
            .expect("opens");
        let task = opened.task.task;
        b.request_token(&agent, task, &read_case(), 60, "granted")
            .await
            .token();
        b.request_token(&agent, task, &disable("ann"), 60, "pending")
            .await
            .pending();
        let mut at = b.now();
        match end {
            End::Completed => drop(b.complete_task(&agent, task).await.expect("ends")),
            End::Deadline => {
                b.manual_clock.advance_millis(3_700_000);
                at = opened.task.deadline;
            }
            End::Lease => {
                b.manual_clock.advance_millis(75_500);
                at = opened.lease_until.expect("a lease");
            }
            End::Operator => {
                let call = b.person_call("dipylon.v1.GovernanceService/EndTask", "olga");
                let input = dipylon::broker::EndTaskInput {
                    task,
                    outcome: None,
                };
                b.broker
                    .end_task_as_operator(&call, input)
                    .await
                    .expect("ends");
            }
            End::Suspended => drop(b.suspend("triage").await.expect("suspends")),
            End::Frozen => drop(b.freeze("agent/triage").await.expect("freezes")),
            End::Policy => {
                let without = b.env.policy_with("agents.toml", |text| {
                    text.replace("/agent/triage", "/agent/other")
                });
                b.apply_policy(without).await.expect("applied");
            }
        }
        let expected = format!("the task ended at {at}: {why}");
        let told = async |b: &TestBroker| {
            for key in ["granted", "pending", "fresh"] {
                let action = if key == "pending" {
                    disable("ann")
                } else {
                    read_case()
                };
                let refusal = b
                    .request_token(&agent, task, &action, 60, key)
                    .await
                    .expect_err("ended");
                assert_eq!(refusal.reason, Reason::TaskEnded, "{end:?} {key}");
                assert_eq!(refusal.message, expected, "{end:?} {key}");
            }
            if heartbeat.is_some() {
                let refusal = b.keep_alive(&agent, task).await.expect_err("ended");
                assert_eq!(refusal.message, expected, "{end:?}");
            }
            if matches!(
                end,
                End::Completed | End::Deadline | End::Lease | End::Operator
            ) {
                let refusal = b
                    .open_task_with(&agent, "work", "open", heartbeat)
                    .await
                    .expect_err("ended");
                assert_eq!(refusal.message, expected, "{end:?}");
            }
        };
        told(&b).await;
        b.broker.maintenance_tick().await.expect("upkeep");
        told(&b).await;
        let b = b.restart(dipylon::journal::FaultInjection::default()).await;
        told(&b).await;
        b.check_invariants();
    }
}

/// A call that waits while its task ends is told why, like one that comes later.
#[tokio::test]
async fn a_waiting_request_is_told_the_end_of_its_task() {
    let b = Arc::new(TestBroker::start().await);
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    b.request_token(&agent, task, &disable("ann"), 60, "r")
        .await
        .pending();
    let waiting = {
        let b = b.clone();
        let call = b.call(
            "dipylon.v1.TaskService/RequestToken",
            &agent.key,
            Some(disable("ann").digest()),
            None,
        );
        let input = RequestTokenInput {
            task,
            action: disable("ann"),
            ttl: 60,
            reason: Some(UntrustedText::parse("reason", "phish confirmed").expect("prose")),
            idempotency_key: IdempotencyKey::parse("r").expect("key"),
            wait_ms: 60_000,
            evidence: None,
            executor: None,
            recommendation: None,
        };
        tokio::spawn(async move { b.broker.request_token(&call, input).await })
    };
    b.complete_task(&agent, task).await.expect("ends");
    let refusal = waiting.await.expect("joined").expect_err("the task ended");
    assert_eq!(refusal.reason, Reason::TaskEnded);
    assert!(
        refusal.message.ends_with("its agent completed it"),
        "{refusal}"
    );
}

/// An approval that nobody used in time is told from a request that nobody approved.
#[tokio::test]
async fn an_expired_approval_has_a_reason_of_its_own() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let ask = async |account: &str, key: &str| {
        let evidence = Some(b.svid(&agent));
        b.request_token_with_evidence(&agent, task, &disable(account), 60, key, evidence)
            .await
    };
    let approved = ask("ann", "r-1").await.pending().access_request;
    let ignored = ask("cara", "r-2").await.pending().access_request;
    b.approve("maria", approved, "one-security").await;
    let status = |id| {
        let call = b.call(
            "dipylon.v1.TaskService/GetAccessRequest",
            &agent.key,
            None,
            None,
        );
        b.broker
            .get_access_request(&call, task, id)
            .expect("found")
            .status
            .as_str()
    };
    let explained = async |id: AccessRequestId| {
        let call = b.person_call("dipylon.v1.GovernanceService/Explain", "olga");
        b.broker
            .explain(&call, &id.to_string())
            .await
            .expect("explains")
            .headline
    };
    assert_eq!((status(approved), status(ignored)), ("approved", "waiting"));
    b.manual_clock.advance_millis(15 * 60 * 1_000);
    for _before_and_after_the_entry in 0..2 {
        assert_eq!(status(approved), "approval_expired");
        assert_eq!(status(ignored), "expired");
        assert!(
            explained(approved).await.starts_with("approval_expired: "),
            "{}",
            explained(approved).await
        );
        assert!(
            explained(ignored).await.starts_with("expired: "),
            "{}",
            explained(ignored).await
        );
        let denied = ask("ann", "r-1").await.denied();
        assert_eq!(denied.why, DeniedReason::ApprovalExpired);
        assert_eq!(denied.access_request, Some(approved));
        assert_eq!(ask("cara", "r-2").await.denied().why, DeniedReason::Expired);
        b.broker.maintenance_tick().await.expect("upkeep");
    }
    b.check_invariants();
}
