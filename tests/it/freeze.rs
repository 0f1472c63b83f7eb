//! Freezes, suspension and revocation: a frozen scope gets no token, its tokens end at once and for good, and no mint in
//! flight outlives a freeze.

use std::sync::Arc;

use dipylon::broker::{AccessRequestStatus, TaskFilter};
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::{ExpectReply as _, TestBroker, TestEnvironment, disable, read_case, refused};

fn cause(b: &TestBroker, task: TaskId) -> Option<EndCause> {
    b.broker
        .show()
        .task(&task)
        .expect("known")
        .ended
        .map(|e| e.cause)
}

#[tokio::test]
async fn freeze_scopes() {
    for (scope, triage_hit, reporter_hit) in [
        ("all", true, true),
        ("agent/triage", true, false),
        ("owner/dana", true, false),
        ("agent/reporter", false, true),
        ("owner/maria", false, true),
    ] {
        let b = TestBroker::start().await;
        let (triage, reporter) = (b.agent("triage"), b.agent("reporter"));
        let (task, other) = (b.open_task(&triage).await, b.open_task(&reporter).await);
        let token = b
            .request_token(&triage, task, &read_case(), 300, "t")
            .await
            .token();
        let others = b
            .request_token(&reporter, other, &read_case(), 300, "t")
            .await
            .token();
        let pending = b
            .request_token(&triage, task, &disable("ann"), 120, "p")
            .await
            .pending();

        let done = b.freeze(scope).await.expect("freezes");
        assert!(done.changed, "{scope}");
        let hit = usize::from(triage_hit) + usize::from(reporter_hit);
        assert_eq!((done.tasks, done.tokens), (hit, hit), "{scope}");
        assert_eq!(
            b.introspect("cases", &token.token).await,
            !triage_hit,
            "{scope}"
        );
        assert_eq!(
            b.introspect("cases", &others.token).await,
            !reporter_hit,
            "{scope}"
        );
        assert_eq!(
            cause(&b, task),
            triage_hit.then_some(EndCause::Frozen),
            "{scope}"
        );
        if triage_hit {
            assert_eq!(done.access_requests, 1, "{scope}");
            let vote = b.vote(
                "maria",
                pending.access_request,
                "one-security",
                Verdict::Approve,
            );
            assert_eq!(refused(vote.await), Reason::AccessRequestClosed, "{scope}");
            let again = b.try_open_task(&triage, "again", "open-2").await;
            assert_eq!(
                refused(again),
                Reason::NotAuthenticated,
                "{scope}: gate 1 is closed"
            );
        } else {
            b.try_open_task(&triage, "again", "open-2")
                .await
                .expect("other scopes are unaffected");
        }

        // Freezing again changes nothing; lifting it admits new work, and revives nothing.
        let again = b.freeze(scope).await.expect("idempotent");
        assert_eq!((again.changed, again.index), (false, done.index));
        let b = b.restart(FaultInjection::default()).await;
        assert_eq!(
            b.introspect("cases", &token.token).await,
            !triage_hit,
            "{scope}: after a restart"
        );
        b.unfreeze(scope).await.expect("lifts");
        b.unfreeze(scope).await.expect("idempotent");
        assert_eq!(
            b.introspect("cases", &token.token).await,
            !triage_hit,
            "{scope}: nothing is revived"
        );
        b.try_open_task(&b.agent("triage"), "new", "open-3")
            .await
            .expect("opens");
        b.check_invariants();
    }
}

#[tokio::test]
async fn frozen_action_ends_tokens_and_requests_not_tasks() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let reading = b
        .request_token(&agent, task, &read_case(), 300, "r")
        .await
        .token();
    let ask = b
        .request_token(&agent, task, &disable("ann"), 120, "ann")
        .await
        .pending();
    b.approve("maria", ask.access_request, "one-security").await;
    let disabling = b
        .request_token(&agent, task, &disable("ann"), 120, "ann")
        .await
        .token();
    let waiting = b
        .request_token(&agent, task, &disable("cara"), 120, "cara")
        .await
        .pending();
    b.approve("maria", waiting.access_request, "one-security")
        .await;

    let done = b.freeze("action/account.disable").await.expect("freezes");
    assert_eq!((done.tasks, done.tokens, done.access_requests), (0, 1, 1));
    assert!(
        !b.introspect("idp", &disabling.token).await,
        "its token has ended"
    );
    assert!(
        b.introspect("cases", &reading.token).await,
        "another action's token is active"
    );
    assert_eq!(
        refused(b.consume("idp", &disabling.token, "u").await),
        Reason::TokenInactive
    );
    // The approval is void: its request was closed.
    let denied = b
        .request_token(&agent, task, &disable("cara"), 120, "cara")
        .await
        .denied();
    assert_eq!(denied.why, DeniedReason::Frozen);
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "maria");
    let card = b
        .broker
        .card(&call, &waiting.access_request)
        .expect("a card");
    assert_eq!(card.status, AccessRequestStatus::Ended);
    assert_eq!(
        refused(
            b.request_token(&agent, task, &disable("ann"), 120, "ann")
                .await
        ),
        Reason::TokenNoLongerValid
    );

    b.unfreeze("action/account.disable").await.expect("lifts");
    assert!(
        !b.introspect("idp", &disabling.token).await,
        "nothing is revived"
    );
    b.request_token(&agent, task, &disable("cara"), 120, "cara-2")
        .await
        .pending();
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn freeze_beats_mint_in_flight() {
    for scope in ["all", "agent/triage", "owner/dana", "action/case.read"] {
        let b = Arc::new(TestBroker::start().await);
        let agent = Arc::new(b.agent("triage"));
        let task = b.open_task(&agent).await;
        let minting: Vec<_> = (0..60)
            .map(|i| {
                let (b, agent) = (b.clone(), agent.clone());
                tokio::spawn(async move {
                    b.request_token(&agent, task, &read_case(), 300, &format!("r-{i}"))
                        .await
                })
            })
            .collect();
        b.freeze(scope).await.expect("freezes");
        for mint in minting {
            if let Ok(dipylon::broker::TokenReply::Token(reply)) = mint.await.expect("no panic") {
                assert!(
                    !b.introspect("cases", &reply.token).await,
                    "{scope}: the token outlived the freeze"
                );
            }
        }
        // The invariants show that no grant follows the freeze in the journal.
        b.check_invariants();
    }
}

#[tokio::test]
async fn frozen_owner_includes_former_agents() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let token = b
        .request_token(&triage, task, &read_case(), 300, "t")
        .await
        .token();
    // The agent is transferred; tasks opened under dana still belong to her.
    let files = b.env.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"lee\"", 1)
    });
    b.apply_policy(files).await.expect("applies");
    assert!(b.introspect("cases", &token.token).await, "still allowed");
    b.freeze("owner/dana").await.expect("freezes");
    assert!(!b.introspect("cases", &token.token).await);
    // The agent is lee's now, and lee is not frozen.
    b.try_open_task(&triage, "again", "open-2")
        .await
        .expect("opens");
    b.freeze("owner/lee").await.expect("freezes");
    assert_eq!(
        refused(b.try_open_task(&triage, "x", "open-3").await),
        Reason::NotAuthenticated
    );
    b.check_invariants();
}

#[tokio::test]
async fn unknown_scopes_are_rejected() {
    let b = TestBroker::start().await;
    let before = b.broker.show().position().1;
    for scope in ["agent/unknown", "owner/unknown", "action/no.such"] {
        assert_eq!(refused(b.freeze(scope).await), Reason::NotFound, "{scope}");
        assert_eq!(
            refused(b.unfreeze(scope).await),
            Reason::NotFound,
            "{scope}"
        );
    }
    assert_eq!(b.broker.show().position().1, before, "no entry was written");
}

#[tokio::test]
async fn revoking_one_token_keeps_its_task() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    let first = b
        .request_token(&agent, task, &read_case(), 300, "one")
        .await
        .token();
    let second = b
        .request_token(&agent, task, &read_case(), 300, "two")
        .await
        .token();
    let done = b.revoke(first.issued.jti).await.expect("revokes");
    assert!(done.changed && done.index.is_some());
    assert!(!b.introspect("cases", &first.token).await);
    assert!(b.introspect("cases", &second.token).await);
    assert_eq!(
        refused(
            b.request_token(&agent, task, &read_case(), 300, "one")
                .await
        ),
        Reason::TokenNoLongerValid
    );
    let again = b.revoke(first.issued.jti).await.expect("idempotent");
    assert_eq!((again.changed, again.index), (false, done.index));
    b.complete_task(&agent, task).await.expect("ends");
    let ended = b.revoke(second.issued.jti).await.expect("reports the end");
    assert_eq!((ended.changed, ended.cause), (false, EndCause::Completed));
    let stranger = TokenId::from_random([7; 16]);
    assert_eq!(refused(b.revoke(stranger).await), Reason::NotFound);
    b.check_invariants();
}

#[tokio::test]
async fn pinned_agent_key_is_enforced() {
    let b = TestBroker::start().await;
    let (pinned, thief) = (b.agent("triage"), b.agent("triage"));
    let task = b.open_task(&thief).await;
    let token = b
        .request_token(&thief, task, &read_case(), 300, "t")
        .await
        .token();
    let jkt = pinned.key.public().thumbprint().to_string();
    let files = b.env.policy_with("agents.toml", |t| {
        t.replacen(
            "groups = [\"soc\"]",
            &format!("groups = [\"soc\"]\njkt = \"{jkt}\""),
            1,
        )
    });
    let applied = b.apply_policy(files).await.expect("applies");
    assert_eq!(
        applied.revoked.tasks, 1,
        "the task of another key has ended"
    );
    assert!(!b.introspect("cases", &token.token).await);
    // The same evidence with another key fails gate 1.
    assert_eq!(
        refused(b.try_open_task(&thief, "x", "open-2").await),
        Reason::NotAuthenticated
    );
    let task = b
        .try_open_task(&pinned, "x", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    b.request_token(&pinned, task, &read_case(), 300, "t")
        .await
        .token();
    b.check_invariants();
    let call = b.person_call("dipylon.v1.GovernanceService/GetAgent", "olga");
    let view = b
        .broker
        .get_agent(&call, &AgentId::parse("triage").expect("id"))
        .expect("known");
    assert_eq!(
        view.registered
            .expect("registered")
            .jkt
            .expect("pinned")
            .to_string(),
        jkt
    );
    let bad = b.env.policy_with("agents.toml", |t| {
        t.replacen(
            "groups = [\"soc\"]",
            "groups = [\"soc\"]\njkt = \"short\"",
            1,
        )
    });
    assert_eq!(
        refused(b.apply_policy(bad).await),
        Reason::InvalidPolicyBundle
    );
}

#[tokio::test]
async fn freeze_is_enforced_before_it_is_durable() {
    for scope in ["all", "agent/triage", "owner/dana", "action/case.read"] {
        let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let faults = FaultInjection {
            disk_full: Some(full.clone()),
            ..FaultInjection::default()
        };
        let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
        let agent = b.agent("triage");
        let task = b.open_task(&agent).await;
        let token = b
            .request_token(&agent, task, &read_case(), 300, "t")
            .await
            .token();
        full.store(true, std::sync::atomic::Ordering::SeqCst);
        let refusal = b.freeze(scope).await.expect_err(scope);
        assert_eq!(refusal.reason, Reason::JournalUnavailable, "{scope}");
        assert!(
            refusal.message.contains("enforced on this broker"),
            "{scope}"
        );
        assert!(
            !b.introspect("cases", &token.token).await,
            "{scope}: refused here at once"
        );
        full.store(false, std::sync::atomic::Ordering::SeqCst);
        let ask = b
            .request_token(&agent, task, &read_case(), 300, "t-2")
            .await;
        assert!(
            !matches!(ask, Ok(dipylon::broker::TokenReply::Token(_))),
            "{scope}: {ask:?}"
        );
        assert_eq!(
            refused(b.unfreeze(scope).await),
            Reason::JournalUnavailable,
            "{scope}"
        );
        b.broker.maintenance_tick().await.expect("upkeep");
        assert_eq!(b.broker.pending_revocations(), 0, "{scope}");
        assert_eq!(b.broker.show().freezes().len(), 1, "{scope}");
        b.check_invariants();
    }
}

#[tokio::test]
async fn operators_list_tasks_and_agents() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let mut tasks = Vec::new();
    for i in 0..5 {
        b.manual_clock.advance_millis(10);
        let opened = b
            .try_open_task(&agent, &format!("purpose {i}"), &format!("r{i}"))
            .await;
        tasks.push(opened.expect("opens").task.task);
    }
    b.request_token(&agent, tasks[4], &read_case(), 300, "t")
        .await
        .token();
    b.request_token(&agent, tasks[4], &disable("ann"), 120, "p")
        .await
        .pending();
    b.complete_task(&agent, tasks[2]).await.expect("ends");
    let call =
        |method: &str| b.person_call(&format!("dipylon.v1.GovernanceService/{method}"), "olga");
    let list = |filter: TaskFilter| {
        b.broker
            .list_tasks(&call("ListTasks"), &filter)
            .expect("lists")
    };
    let ids = |filter| -> Vec<TaskId> { list(filter).iter().map(|v| v.task.opened.task).collect() };
    let all = TaskFilter {
        max: 100,
        ..TaskFilter::default()
    };
    assert_eq!(
        ids(all.clone()),
        [tasks[4], tasks[3], tasks[1], tasks[0]],
        "newest first"
    );
    let row = &list(all.clone())[0];
    assert_eq!(
        (row.tokens_active, row.access_requests_waiting, row.ended),
        (1, 1, None)
    );
    let first = TaskFilter {
        max: 2,
        ended: true,
        ..all.clone()
    };
    assert_eq!(ids(first.clone()), [tasks[4], tasks[3]]);
    let next = TaskFilter {
        after: Some(list(first.clone())[1].cursor()),
        ..first
    };
    assert_eq!(ids(next), [tasks[2], tasks[1]], "the page after");
    let other = TaskFilter {
        agent: Some(AgentId::parse("reporter").expect("id")),
        ..all
    };
    assert_eq!(ids(other), []);

    b.suspend("triage").await.expect("suspends");
    b.freeze("owner/maria").await.expect("freezes");
    let agents = b
        .broker
        .list_agents(&call("ListAgents"), None, 100)
        .expect("lists");
    let shown: Vec<_> = agents
        .iter()
        .map(|a| (a.id.as_str(), a.suspended, a.frozen.len(), a.tasks_running))
        .collect();
    assert_eq!(
        shown,
        [
            ("assistant", false, 0, 0),
            ("reporter", false, 1, 0),
            ("responder", false, 1, 0),
            ("triage", true, 0, 0)
        ]
    );
    let after = AgentId::parse("reporter").expect("id");
    let page = b
        .broker
        .list_agents(&call("ListAgents"), Some(&after), 100)
        .expect("lists");
    assert_eq!(page.len(), 2);
    // An approver without the operator role is refused.
    let call = b.person_call("dipylon.v1.GovernanceService/ListTasks", "maria");
    let refusal = b.broker.list_tasks(&call, &TaskFilter::default());
    assert_eq!(refused(refusal), Reason::NotPermitted);
}

#[tokio::test]
async fn agent_transferred_to_frozen_owner_is_frozen() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let token = b
        .request_token(&triage, task, &read_case(), 300, "t")
        .await
        .token();
    b.freeze("owner/maria").await.expect("freezes");
    assert!(
        b.introspect("cases", &token.token).await,
        "dana's agent is unaffected"
    );
    let files = b.env.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"maria\"", 1)
    });
    let applied = b.apply_policy(files).await.expect("applies");
    assert_eq!(applied.revoked.tasks, 1);
    assert!(!b.introspect("cases", &token.token).await);
    assert_eq!(cause(&b, task), Some(EndCause::Frozen));
    b.check_invariants();
}

#[tokio::test]
async fn owner_at_task_opening_cannot_vote() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    // Opened under dana, now lee's: neither may approve.
    let files = b.env.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"lee\"", 1)
    });
    b.apply_policy(files).await.expect("applies");
    let pending = b
        .request_token(&triage, task, &disable("ann"), 120, "p")
        .await
        .pending();
    for owner in ["dana", "lee"] {
        let vote = b.vote(
            owner,
            pending.access_request,
            "one-security",
            Verdict::Approve,
        );
        assert_eq!(refused(vote.await), Reason::NotEligible, "{owner}");
    }
    b.approve("maria", pending.access_request, "one-security")
        .await;
    b.request_token(&triage, task, &disable("ann"), 120, "p")
        .await
        .token();
    b.check_invariants();
}

#[tokio::test]
async fn pending_freeze_cannot_be_lifted() {
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let faults = FaultInjection {
        disk_full: Some(full.clone()),
        ..FaultInjection::default()
    };
    let b = TestBroker::start_with(TestEnvironment::new(), faults).await;
    let agent = b.agent("triage");
    let task = b.open_task(&agent).await;
    full.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        refused(b.suspend("triage").await),
        Reason::JournalUnavailable
    );
    full.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(
        refused(b.resume("triage").await),
        Reason::JournalUnavailable
    );
    // Frozen again, it is journaled at once, and can then be lifted.
    b.suspend("triage").await.expect("suspends");
    assert_eq!(b.broker.pending_revocations(), 0);
    b.resume("triage").await.expect("resumes");
    b.broker.maintenance_tick().await.expect("upkeep");
    assert!(
        !b.broker
            .show()
            .is_suspended(&AgentId::parse("triage").expect("id"))
    );
    assert_eq!(cause(&b, task), Some(EndCause::Suspended));
    b.check_invariants();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_keep_alives_and_ends_leave_no_lease() {
    for round in 0..6 {
        let b = Arc::new(TestBroker::start().await);
        let agent = Arc::new(b.agent("triage"));
        let mut tasks = Vec::new();
        for i in 0..40 {
            let opened = b
                .open_task_with(&agent, "work", &format!("r{i}"), Some(60))
                .await;
            tasks.push(opened.expect("opens").task.task);
        }
        b.manual_clock.advance_millis(31_000);
        let calls: Vec<_> = tasks
            .iter()
            .map(|task| {
                let (b, agent, task) = (b.clone(), agent.clone(), *task);
                tokio::spawn(async move { b.keep_alive(&agent, task).await })
            })
            .collect();
        // Keep-alives are batched for 20 ms: the ends come before, among and after them.
        tokio::time::sleep(std::time::Duration::from_millis(4 * round)).await;
        match round % 2 {
            0 => drop(b.suspend("triage").await.expect("suspends")),
            _ => drop(b.freeze("owner/dana").await.expect("freezes")),
        }
        for call in calls {
            let _answer = call.await.expect("no panic");
        }
        b.manual_clock.advance_millis(600_000);
        assert_eq!(
            b.broker.show().canonical_snapshot()["deadlines"],
            serde_json::json!([]),
            "an ended task has no lease"
        );
        b.check_invariants();
    }
}
