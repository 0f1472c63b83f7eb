//! The brake: what is frozen gets nothing, what it had is dead at once and for good, and a mint in flight does not slip by.

use std::sync::Arc;

use dipylon::broker::{AccessRequestStatus, TaskFilter};
use dipylon::journal::Faults;
use dipylon::model::*;

use crate::harness::{Expect as _, TestBroker, World, disable, read_case, refused};

fn cause(b: &TestBroker, task: TaskId) -> Option<EndCause> {
    b.broker
        .state()
        .task(&task)
        .expect("known")
        .ended
        .map(|e| e.cause)
}

#[tokio::test]
async fn each_scope_ends_what_it_names_and_nothing_else() {
    for (scope, triage_hit, reporter_hit) in [
        ("all", true, true),
        ("agent/triage", true, false),
        ("owner/dana", true, false),
        ("agent/reporter", false, true),
        ("owner/maria", false, true),
    ] {
        let b = TestBroker::start().await;
        let (triage, reporter) = (b.agent("triage"), b.agent("reporter"));
        let (task, other) = (b.open(&triage).await, b.open(&reporter).await);
        let token = b.ask(&triage, task, &read_case(), 300, "t").await.token();
        let others = b
            .ask(&reporter, other, &read_case(), 300, "t")
            .await
            .token();
        let pending = b
            .ask(&triage, task, &disable("ann"), 120, "p")
            .await
            .pending();

        let done = b.freeze(scope).await.expect("freezes");
        assert!(done.changed, "{scope}");
        let hit = usize::from(triage_hit) + usize::from(reporter_hit);
        assert_eq!((done.tasks, done.tokens), (hit, hit), "{scope}");
        assert_eq!(b.introspect("cases", &token.token), !triage_hit, "{scope}");
        assert_eq!(
            b.introspect("cases", &others.token),
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
            let again = b.try_open(&triage, "again", "open-2").await;
            assert_eq!(
                refused(again),
                Reason::NotAuthenticated,
                "{scope}: gate 1 is closed"
            );
        } else {
            b.try_open(&triage, "again", "open-2")
                .await
                .expect("the others go on");
        }

        // Again is nothing new; lifting it lets new work begin, and brings nothing back.
        let again = b.freeze(scope).await.expect("idempotent");
        assert_eq!((again.changed, again.index), (false, done.index));
        let b = b.restart(Faults::default()).await;
        assert_eq!(
            b.introspect("cases", &token.token),
            !triage_hit,
            "{scope}: after a restart"
        );
        b.unfreeze(scope).await.expect("lifts");
        b.unfreeze(scope).await.expect("idempotent");
        assert_eq!(
            b.introspect("cases", &token.token),
            !triage_hit,
            "{scope}: nothing comes back"
        );
        b.try_open(&b.agent("triage"), "new", "open-3")
            .await
            .expect("opens");
        b.check();
    }
}

#[tokio::test]
async fn a_frozen_action_ends_its_tokens_and_questions_while_the_tasks_go_on() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    let reading = b.ask(&agent, task, &read_case(), 300, "r").await.token();
    let ask = b
        .ask(&agent, task, &disable("ann"), 120, "ann")
        .await
        .pending();
    b.yes("maria", ask.access_request, "one-security").await;
    let disabling = b
        .ask(&agent, task, &disable("ann"), 120, "ann")
        .await
        .token();
    let waiting = b
        .ask(&agent, task, &disable("cara"), 120, "cara")
        .await
        .pending();
    b.yes("maria", waiting.access_request, "one-security").await;

    let done = b.freeze("action/account.disable").await.expect("freezes");
    assert_eq!((done.tasks, done.tokens, done.access_requests), (0, 1, 1));
    assert!(!b.introspect("idp", &disabling.token), "its token is dead");
    assert!(
        b.introspect("cases", &reading.token),
        "another action's lives"
    );
    assert_eq!(
        refused(b.consume("idp", &disabling.token, "u").await),
        Reason::TokenInactive
    );
    // The yes that was there is void: the request it was for is over.
    let denied = b
        .ask(&agent, task, &disable("cara"), 120, "cara")
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
        refused(b.ask(&agent, task, &disable("ann"), 120, "ann").await),
        Reason::TokenDead
    );

    b.unfreeze("action/account.disable").await.expect("lifts");
    assert!(!b.introspect("idp", &disabling.token), "nothing comes back");
    b.ask(&agent, task, &disable("cara"), 120, "cara-2")
        .await
        .pending();
    b.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_mint_in_flight_slips_past_a_freeze() {
    for scope in ["all", "agent/triage", "owner/dana", "action/case.read"] {
        let b = Arc::new(TestBroker::start().await);
        let agent = Arc::new(b.agent("triage"));
        let task = b.open(&agent).await;
        let minting: Vec<_> = (0..60)
            .map(|i| {
                let (b, agent) = (b.clone(), agent.clone());
                tokio::spawn(async move {
                    b.ask(&agent, task, &read_case(), 300, &format!("r-{i}"))
                        .await
                })
            })
            .collect();
        b.freeze(scope).await.expect("freezes");
        for mint in minting {
            if let Ok(dipylon::broker::TokenReply::Token(given)) = mint.await.expect("no panic") {
                assert!(
                    !b.introspect("cases", &given.token),
                    "{scope}: it outlived the freeze"
                );
            }
        }
        // The journal alone shows that no grant stands behind the freeze.
        b.check();
    }
}

#[tokio::test]
async fn an_owner_is_frozen_with_every_agent_that_is_or_was_theirs() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let token = b.ask(&triage, task, &read_case(), 300, "t").await.token();
    // Dana hands the agent over; what was opened in her name still answers to her.
    let files = b.world.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"lee\"", 1)
    });
    b.apply(files).await.expect("applies");
    assert!(b.introspect("cases", &token.token), "still allowed");
    b.freeze("owner/dana").await.expect("freezes");
    assert!(!b.introspect("cases", &token.token));
    // The agent is Lee's by now, and Lee is not frozen.
    b.try_open(&triage, "again", "open-2").await.expect("opens");
    b.freeze("owner/lee").await.expect("freezes");
    assert_eq!(
        refused(b.try_open(&triage, "x", "open-3").await),
        Reason::NotAuthenticated
    );
    b.check();
}

#[tokio::test]
async fn names_that_nothing_has_are_refused() {
    let b = TestBroker::start().await;
    let before = b.broker.state().position().1;
    for scope in ["agent/nobody", "owner/nobody", "action/no.such"] {
        assert_eq!(refused(b.freeze(scope).await), Reason::NotFound, "{scope}");
        assert_eq!(
            refused(b.unfreeze(scope).await),
            Reason::NotFound,
            "{scope}"
        );
    }
    assert_eq!(b.broker.state().position().1, before, "nothing was entered");
}

#[tokio::test]
async fn one_token_is_revoked_and_its_task_goes_on() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
    let one = b.ask(&agent, task, &read_case(), 300, "one").await.token();
    let two = b.ask(&agent, task, &read_case(), 300, "two").await.token();
    let done = b.revoke(one.issued.jti).await.expect("revokes");
    assert!(done.changed && done.index.is_some());
    assert!(!b.introspect("cases", &one.token));
    assert!(b.introspect("cases", &two.token));
    assert_eq!(
        refused(b.ask(&agent, task, &read_case(), 300, "one").await),
        Reason::TokenDead
    );
    let again = b.revoke(one.issued.jti).await.expect("idempotent");
    assert_eq!((again.changed, again.index), (false, done.index));
    b.complete(&agent, task).await.expect("ends");
    let over = b.revoke(two.issued.jti).await.expect("says why");
    assert_eq!((over.changed, over.cause), (false, EndCause::Completed));
    let stranger = TokenId::from_random([7; 16]);
    assert_eq!(refused(b.revoke(stranger).await), Reason::NotFound);
    b.check();
}

#[tokio::test]
async fn a_pinned_key_is_the_only_one_that_opens_tasks() {
    let b = TestBroker::start().await;
    let (pinned, thief) = (b.agent("triage"), b.agent("triage"));
    let task = b.open(&thief).await;
    let token = b.ask(&thief, task, &read_case(), 300, "t").await.token();
    let jkt = pinned.key.public().thumbprint().to_string();
    let files = b.world.policy_with("agents.toml", |t| {
        t.replacen(
            "groups = [\"soc\"]",
            &format!("groups = [\"soc\"]\njkt = \"{jkt}\""),
            1,
        )
    });
    let applied = b.apply(files).await.expect("applies");
    assert_eq!(
        applied.swept.tasks, 1,
        "what another key had opened is over"
    );
    assert!(!b.introspect("cases", &token.token));
    // The very same evidence, another key: gate 1.
    assert_eq!(
        refused(b.try_open(&thief, "x", "open-2").await),
        Reason::NotAuthenticated
    );
    let task = b
        .try_open(&pinned, "x", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    b.ask(&pinned, task, &read_case(), 300, "t").await.token();
    b.check();
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
    let bad = b.world.policy_with("agents.toml", |t| {
        t.replacen(
            "groups = [\"soc\"]",
            "groups = [\"soc\"]\njkt = \"short\"",
            1,
        )
    });
    assert_eq!(refused(b.apply(bad).await), Reason::InvalidPolicyBundle);
}

#[tokio::test]
async fn a_freeze_that_cannot_be_written_holds_here_at_once_and_is_written_later() {
    for scope in ["all", "agent/triage", "owner/dana", "action/case.read"] {
        let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let faults = Faults {
            full: Some(full.clone()),
            ..Faults::default()
        };
        let b = TestBroker::start_with(World::new(), faults).await;
        let agent = b.agent("triage");
        let task = b.open(&agent).await;
        let token = b.ask(&agent, task, &read_case(), 300, "t").await.token();
        full.store(true, std::sync::atomic::Ordering::SeqCst);
        let refusal = b.freeze(scope).await.expect_err(scope);
        assert_eq!(refusal.reason, Reason::JournalUnavailable, "{scope}");
        assert!(refusal.told.contains("holds on this broker"), "{scope}");
        assert!(
            !b.introspect("cases", &token.token),
            "{scope}: refused here at once"
        );
        full.store(false, std::sync::atomic::Ordering::SeqCst);
        let ask = b.ask(&agent, task, &read_case(), 300, "t-2").await;
        assert!(
            !matches!(ask, Ok(dipylon::broker::TokenReply::Token(_))),
            "{scope}: {ask:?}"
        );
        assert_eq!(
            refused(b.unfreeze(scope).await),
            Reason::JournalUnavailable,
            "{scope}"
        );
        b.broker.upkeep_once().await.expect("written by now");
        assert_eq!(b.broker.unwritten_ends(), 0, "{scope}");
        assert_eq!(b.broker.state().freezes().len(), 1, "{scope}");
        b.check();
    }
}

#[tokio::test]
async fn operators_see_tasks_and_agents_as_they_stand() {
    let b = TestBroker::start().await;
    let agent = b.agent("triage");
    let mut tasks = Vec::new();
    for i in 0..5 {
        b.hand.advance_millis(10);
        let opened = b
            .try_open(&agent, &format!("purpose {i}"), &format!("r{i}"))
            .await;
        tasks.push(opened.expect("opens").task.task);
    }
    b.ask(&agent, tasks[4], &read_case(), 300, "t")
        .await
        .token();
    b.ask(&agent, tasks[4], &disable("ann"), 120, "p")
        .await
        .pending();
    b.complete(&agent, tasks[2]).await.expect("ends");
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
        "the newest first"
    );
    let row = &list(all.clone())[0];
    assert_eq!(
        (row.tokens_live, row.access_requests_waiting, row.over),
        (1, 1, None)
    );
    let first = TaskFilter {
        max: 2,
        ended: true,
        ..all.clone()
    };
    assert_eq!(ids(first.clone()), [tasks[4], tasks[3]]);
    let next = TaskFilter {
        after: Some(tasks[3]),
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
    assert_eq!(shown, [("reporter", false, 1, 0), ("triage", true, 0, 0)]);
    let after = AgentId::parse("reporter").expect("id");
    let page = b
        .broker
        .list_agents(&call("ListAgents"), Some(&after), 100)
        .expect("lists");
    assert_eq!(page.len(), 1);
    // An approver who is no operator sees none of it.
    let call = b.person_call("dipylon.v1.GovernanceService/ListTasks", "maria");
    let refusal = b.broker.list_tasks(&call, &TaskFilter::default());
    assert_eq!(refused(refusal), Reason::NotPermitted);
}

#[tokio::test]
async fn an_agent_handed_to_a_frozen_owner_is_frozen_with_them() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    let token = b.ask(&triage, task, &read_case(), 300, "t").await.token();
    b.freeze("owner/maria").await.expect("freezes");
    assert!(b.introspect("cases", &token.token), "dana's agent goes on");
    let files = b.world.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"maria\"", 1)
    });
    let applied = b.apply(files).await.expect("applies");
    assert_eq!(applied.swept.tasks, 1);
    assert!(!b.introspect("cases", &token.token));
    assert_eq!(cause(&b, task), Some(EndCause::Frozen));
    b.check();
}

#[tokio::test]
async fn whoever_owned_the_agent_when_its_task_was_opened_never_counts() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open(&triage).await;
    // Opened in dana's name, lee's by now: neither may say yes.
    let files = b.world.policy_with("agents.toml", |t| {
        t.replacen("owner = \"dana\"", "owner = \"lee\"", 1)
    });
    b.apply(files).await.expect("applies");
    let pending = b
        .ask(&triage, task, &disable("ann"), 120, "p")
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
    b.yes("maria", pending.access_request, "one-security").await;
    b.ask(&triage, task, &disable("ann"), 120, "p")
        .await
        .token();
    b.check();
}

#[tokio::test]
async fn what_waits_to_be_written_cannot_be_lifted_before_it_is() {
    let full = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let faults = Faults {
        full: Some(full.clone()),
        ..Faults::default()
    };
    let b = TestBroker::start_with(World::new(), faults).await;
    let agent = b.agent("triage");
    let task = b.open(&agent).await;
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
    // Ordered again it is written at once, and then lifted for good.
    b.suspend("triage").await.expect("suspends");
    assert_eq!(b.broker.unwritten_ends(), 0);
    b.resume("triage").await.expect("resumes");
    b.broker.upkeep_once().await.expect("nothing is left");
    assert!(
        !b.broker
            .state()
            .standing(&AgentId::parse("triage").expect("id"))
            .value
            .suspended
    );
    assert_eq!(cause(&b, task), Some(EndCause::Suspended));
    b.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn signs_of_life_and_ends_at_once_leave_nothing_behind() {
    for round in 0..6 {
        let b = Arc::new(TestBroker::start().await);
        let agent = Arc::new(b.agent("triage"));
        let mut tasks = Vec::new();
        for i in 0..40 {
            let opened = b
                .open_with(&agent, "work", &format!("r{i}"), Some(60))
                .await;
            tasks.push(opened.expect("opens").task.task);
        }
        b.hand.advance_millis(31_000);
        let calls: Vec<_> = tasks
            .iter()
            .map(|task| {
                let (b, agent, task) = (b.clone(), agent.clone(), *task);
                tokio::spawn(async move { b.keep_alive(&agent, task).await })
            })
            .collect();
        // Signs of life are gathered for 20 ms: the end comes before, among and after them.
        tokio::time::sleep(std::time::Duration::from_millis(4 * round)).await;
        match round % 2 {
            0 => drop(b.suspend("triage").await.expect("suspends")),
            _ => drop(b.freeze("owner/dana").await.expect("freezes")),
        }
        for call in calls {
            let _answer = call.await.expect("no panic");
        }
        b.hand.advance_millis(600_000);
        assert_eq!(
            b.broker.state().due_by(b.now(), 1_000),
            [],
            "nothing is due of what is over"
        );
        b.check();
    }
}
