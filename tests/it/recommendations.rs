//! Autonomy: an advisory agent recommends, people decide, and another agent executes; a supervised agent needs people where the bundle
//! says so, also where its rules allow the action.

use std::collections::BTreeMap;
use std::sync::Arc;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon::policy::{BundleFiles, PolicyBundle};
use dipylon_sdk::card::AccessRequestStatus;
use dipylon_sdk::client::TokenOutcome;
use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::model::*;

use crate::support::served_broker::{ServedBroker, token_request};
use crate::support::*;

/// The assistant with a task, and the responder with another.
struct Pair {
    b: TestBroker,
    assistant: TestAgent,
    recommends_in: TaskId,
    responder: TestAgent,
    executes_in: TaskId,
}

fn ask(task: TaskId, action: &Action, key: &str) -> RequestTokenInput {
    RequestTokenInput {
        task,
        action: action.clone(),
        ttl: 300,
        reason: None,
        idempotency_key: IdempotencyKey::parse(key).expect("key"),
        wait_ms: 0,
        evidence: None,
        executor: None,
        recommendation: None,
    }
}

impl Pair {
    async fn start() -> Self {
        Self::with(TestBroker::start().await).await
    }

    async fn with(b: TestBroker) -> Self {
        let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
        Self {
            recommends_in: b.open_task(&assistant).await,
            executes_in: b.open_task(&responder).await,
            b,
            assistant,
            responder,
        }
    }

    async fn recommend(&self, key: &str) -> Result<TokenReply, Refusal> {
        let input = ask(self.recommends_in, &disable("ann"), key);
        self.b.request_with(&self.assistant, input).await
    }

    async fn execute_in(
        &self,
        agent: &TestAgent,
        task: TaskId,
        id: AccessRequestId,
        key: &str,
    ) -> Result<TokenReply, Refusal> {
        let input = RequestTokenInput {
            recommendation: Some(id),
            ..ask(task, &disable("ann"), key)
        };
        self.b.request_with(agent, input).await
    }

    async fn execute(&self, id: AccessRequestId, key: &str) -> Result<TokenReply, Refusal> {
        self.execute_in(&self.responder, self.executes_in, id, key)
            .await
    }

    /// Recommended and approved.
    async fn approved(&self) -> AccessRequestId {
        let id = self.recommend("r").await.pending().access_request;
        self.b.approve("dana", id, "one-security").await;
        id
    }

    fn listed(&self) -> Vec<AccessRequestId> {
        let method = "dipylon.v1.TaskService/ListRecommendations";
        let call = self.b.call(method, &self.responder.key, None, None);
        let listed = self.b.broker.list_recommendations(&call, self.executes_in);
        let id = |(view, _): &(AccessView, Timestamp)| view.request.opened.access_request;
        listed.expect("listed").iter().map(id).collect()
    }
}

#[tokio::test]
async fn an_advisory_agent_recommends_and_another_executes() {
    let pair = Pair::start().await;
    let b = &pair.b;
    let id = pair.recommend("r").await.pending().access_request;
    let opened = b.broker.show().access_request(&id).expect("opened");
    let executor = opened.opened.executor().expect("a recommendation");
    assert_eq!(
        (executor.agent.as_str(), executor.owner.as_str()),
        ("responder", "maria")
    );
    // The executor's owner answers for what happens, and never decides on it.
    let refusal = b
        .vote("maria", id, "one-security", Verdict::Approve)
        .await
        .expect_err("maria owns the executor");
    assert_eq!(refusal.reason, Reason::NotEligible);
    // Before people approved it, the executor waits for them like any agent.
    assert!(pair.listed().is_empty());
    assert_eq!(pair.execute(id, "e").await.pending().access_request, id);

    b.approve("dana", id, "one-security").await;
    assert_eq!(pair.listed(), [id]);
    let recommended = pair.recommend("r").await.recommended();
    assert_eq!(
        (recommended.access_request, recommended.executor.as_str()),
        (id, "responder")
    );
    assert_eq!(recommended.jti, None);
    let issued = pair.execute(id, "e").await.token();
    assert_eq!(issued.issued.agent.as_str(), "responder");
    assert_eq!(issued.issued.consumed, Some(id));
    assert_eq!(issued.issued.cnf.jkt(), pair.responder.key.thumbprint());
    assert!(b.introspect("idp", &issued.token).await);

    // One approval, one token: the executor's own repetition gets it again, everything else does not.
    let again = pair.execute(id, "e").await.token();
    assert!(again.reissued && again.issued.jti == issued.issued.jti);
    assert_eq!(
        refused(pair.execute(id, "e-2").await),
        Reason::AccessRequestClosed
    );
    assert_eq!(
        pair.recommend("r").await.recommended().jti,
        Some(issued.issued.jti)
    );
    assert!(pair.listed().is_empty());

    // It ends with the executor's task, and not with that of the agent that recommended it.
    b.complete_task(&pair.assistant, pair.recommends_in)
        .await
        .expect("ends");
    assert!(b.introspect("idp", &issued.token).await);
    b.complete_task(&pair.responder, pair.executes_in)
        .await
        .expect("ends");
    assert!(!b.introspect("idp", &issued.token).await);
    b.check_invariants();
    let restarted = pair.b.restart(FaultInjection::default()).await;
    restarted.check_invariants();
}

#[tokio::test]
async fn who_executes_is_named_and_apart() {
    let pair = Pair::start().await;
    let b = &pair.b;
    let named = |executor: &str| RequestTokenInput {
        executor: Some(AgentId::parse(executor).expect("id")),
        ..ask(pair.recommends_in, &disable("ann"), "r")
    };
    for executor in ["triage", "assistant", "nobody"] {
        let reply = b.request_with(&pair.assistant, named(executor)).await;
        assert_eq!(refused(reply), Reason::InvalidExecutor, "{executor}");
    }
    let own = RequestTokenInput {
        task: pair.executes_in,
        ..named("responder")
    };
    let reply = b.request_with(&pair.responder, own).await;
    assert_eq!(refused(reply), Reason::InvalidExecutor);

    let id = pair.approved().await;
    // The agent itself, an agent that is not named, and nobody's id get the same as an id that does not exist.
    let input = RequestTokenInput {
        recommendation: Some(id),
        ..ask(pair.recommends_in, &disable("ann"), "r-2")
    };
    let reply = b.request_with(&pair.assistant, input).await;
    assert_eq!(refused(reply), Reason::AdvisoryAgent);
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let other = pair.execute_in(&triage, task, id, "e").await;
    assert_eq!(refused(other), Reason::NotFound);
    let unknown = AccessRequestId::from_random([7; 16]);
    assert_eq!(refused(pair.execute(unknown, "e").await), Reason::NotFound);
    // Another target is another action.
    let wider = RequestTokenInput {
        recommendation: Some(id),
        ..ask(pair.executes_in, &disable("cara"), "e")
    };
    let reply = b.request_with(&pair.responder, wider).await;
    assert_eq!(refused(reply), Reason::ApprovalOutOfScope);

    // The executor with the recommending agent's key: that of its task, or one that it has used before.
    for (n, key) in [pair.assistant.key.clone(), {
        let (key, _) = dipylon_sdk::jose::SigningKey::generate().expect("key");
        let key = Arc::new(key);
        let assistant = TestAgent {
            key: key.clone(),
            ..pair.assistant.clone()
        };
        b.open_task(&assistant).await;
        key
    }]
    .into_iter()
    .enumerate()
    {
        let with_its_key = TestAgent {
            key,
            ..pair.responder.clone()
        };
        let task = b.open_task(&with_its_key).await;
        let reply = pair
            .execute_in(&with_its_key, task, id, &format!("k-{n}"))
            .await;
        assert_eq!(refused(reply), Reason::NotAnotherAgent);
    }
    // None of these attempts cost the approval anything.
    pair.execute(id, "e").await.token();
    b.check_invariants();
}

/// The executor's owner when its task was opened does not decide for it later, either.
#[tokio::test]
async fn votes_of_whoever_opened_the_executors_task_do_not_count() {
    let env = TestEnvironment::new();
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let of_lee = b.env.policy_with("agents.toml", |text| {
        let (head, tail) = text.split_once("id = \"responder\"").expect("responder");
        format!(
            "{head}id = \"responder\"{}",
            tail.replacen("owner = \"maria\"", "owner = \"lee\"", 1)
        )
    });
    let of_maria = b.env.policy.clone();
    b.apply_policy(of_lee).await.expect("applied");
    let pair = Pair::with(b).await;
    pair.b.apply_policy(of_maria).await.expect("applied");
    let id = pair.recommend("r").await.pending().access_request;
    pair.b.approve("lee", id, "one-security").await;
    let view = pair.b.broker.show().access_request(&id).expect("opened");
    assert_eq!(view.votes.len(), 1);
    pair.recommend("r").await.recommended();
    // lee owned the responder when this task was opened: the vote does not count for it, and a later task of it gets the token.
    let refusal = pair.execute(id, "e").await.expect_err("lee opened it");
    assert_eq!(refusal.reason, Reason::NotAnotherAgent);
    assert!(
        refusal.message.contains("open a new task"),
        "{}",
        refusal.message
    );
    let later = pair
        .b
        .try_open_task(&pair.responder, "contain", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    pair.execute_in(&pair.responder, later, id, "e-2")
        .await
        .token();
    pair.b.check_invariants();
}

/// A task that was opened while the recommending agent's owner owned the executor does not execute, whoever owns the executor now.
#[tokio::test]
async fn owners_differ_at_the_openings_of_the_tasks_too() {
    let b = TestBroker::start().await;
    let of_olga = b.env.policy_with("agents.toml", |text| {
        let (head, responder) = text.split_once("id = \"responder\"").expect("responder");
        let (responder, assistant) = responder
            .split_once("id = \"assistant\"")
            .expect("assistant");
        let responder = responder.replacen("owner = \"maria\"", "owner = \"olga\"", 1);
        let assistant = assistant.replacen("owner = \"olga\"", "owner = \"lee\"", 1);
        format!("{head}id = \"responder\"{responder}id = \"assistant\"{assistant}")
    });
    let today = b.env.policy.clone();
    b.apply_policy(of_olga).await.expect("applied");
    let pair = Pair::with(b).await;
    pair.b.apply_policy(today).await.expect("applied");
    let id = pair.approved().await;
    let refusal = pair.execute(id, "e").await.expect_err("olga opened it");
    assert_eq!(refusal.reason, Reason::NotAnotherAgent);
    assert!(refusal.message.contains("owner"), "{}", refusal.message);
    pair.b.check_invariants();
}

/// A recommendation ends with the agent that made it, with its executor's listing, and by one denial.
#[tokio::test]
async fn what_ends_a_recommendation_before_it_is_executed() {
    let pair = Pair::start().await;
    let id = pair.approved().await;
    pair.b
        .complete_task(&pair.assistant, pair.recommends_in)
        .await
        .expect("ends");
    assert!(pair.listed().is_empty());
    assert_eq!(
        refused(pair.execute(id, "e").await),
        Reason::AccessRequestClosed
    );

    let pair = Pair::start().await;
    let id = pair.approved().await;
    pair.b.suspend("assistant").await.expect("suspended");
    assert_eq!(
        refused(pair.execute(id, "e").await),
        Reason::AccessRequestClosed
    );

    let pair = Pair::start().await;
    let id = pair.recommend("r").await.pending().access_request;
    pair.execute(id, "e").await.pending();
    pair.b
        .vote("dana", id, "one-security", Verdict::Deny)
        .await
        .expect("denied");
    assert_eq!(
        pair.recommend("r").await.denied().why,
        DeniedReason::DeniedByApprover
    );
    assert_eq!(
        pair.execute(id, "e").await.denied().why,
        DeniedReason::DeniedByApprover
    );

    // Today's bundle decides who may execute: a token that was handed over ends with the listing, too.
    let pair = Pair::start().await;
    let id = pair.approved().await;
    let issued = pair.execute(id, "e").await.token();
    let waiting = pair.recommend("r-2").await;
    assert!(waiting.is_ok());
    let other = pair.b.env.policy_with("agents.toml", |text| {
        text.replace("executors = [\"responder\"]", "executors = [\"triage\"]")
    });
    pair.b.apply_policy(other).await.expect("applied");
    assert!(!pair.b.introspect("idp", &issued.token).await);
    let after = pair.b.broker.show().pending_requests(pair.b.now());
    assert!(after.is_empty(), "{after:?}");
    pair.b.check_invariants();
}

/// While an executor is stopped nothing is recommended to it: what people approved meanwhile would be there when it is resumed.
#[tokio::test]
async fn nothing_is_recommended_to_a_stopped_executor() {
    for stop in ["suspension", "agent/responder", "owner/maria"] {
        let pair = Pair::start().await;
        let id = pair.approved().await;
        let b = &pair.b;
        match stop {
            "suspension" => drop(b.suspend("responder").await.expect("suspended")),
            scope => drop(b.freeze(scope).await.expect("frozen")),
        }
        for key in ["r", "r-2"] {
            let again = pair.recommend(key).await;
            assert_eq!(refused(again), Reason::ExecutorStopped, "{stop} {key}");
        }
        assert!(b.broker.show().pending_requests(b.now()).is_empty());
        match stop {
            "suspension" => drop(b.resume("responder").await.expect("resumed")),
            scope => drop(b.unfreeze(scope).await.expect("lifted")),
        }
        // The one before the stop stays closed.
        let late = pair.execute(id, "e").await;
        assert!(late.is_err(), "{stop}");
        pair.recommend("r").await.pending();
        b.check_invariants();
    }
}

/// An idempotency key of the executor is for one recommendation, or for a request of its own.
#[tokio::test]
async fn an_idempotency_key_is_for_one_recommendation() {
    let pair = Pair::start().await;
    let (b, responder) = (&pair.b, &pair.responder);
    let own = ask(pair.executes_in, &disable("ann"), "own");
    let id = pair.approved().await;
    b.request_with(responder, own).await.pending();
    // The own request does not become the execution, and the other way round.
    let reused = Reason::IdempotencyKeyReused;
    assert_eq!(refused(pair.execute(id, "own").await), reused);
    pair.execute(id, "e").await.token();
    let plain = ask(pair.executes_in, &disable("ann"), "e");
    assert_eq!(refused(b.request_with(responder, plain).await), reused);
    let second = pair.recommend("another").await.pending().access_request;
    b.approve("dana", second, "one-security").await;
    assert_eq!(refused(pair.execute(second, "e").await), reused);
    assert_eq!(pair.listed(), [second]);
    let third = pair.execute(second, "e-2").await.token();
    assert_eq!(third.issued.consumed, Some(second));
    pair.b.check_invariants();
}

/// A hand-over rests on what the rules allow both agents at the moment of the execution, and on no freeze in between.
#[tokio::test]
async fn the_rules_are_asked_about_both_agents_at_the_execution() {
    let until = "@id(\"advice-ends\") forbid (principal == Agent::\"assistant\", action == Action::\"account.disable\", resource) \
         when { context.task.age >= duration(\"2m\") };";
    let b = TestBroker::start().await;
    let files = b
        .env
        .policy_with("rules/30-more.cedar", |_| until.to_owned());
    b.apply_policy(files).await.expect("applied");
    let pair = Pair::with(b).await;
    let id = pair.approved().await;
    pair.b.manual_clock.advance_millis(120_000);
    let denied = pair.execute(id, "e").await.denied();
    assert_eq!(denied.why, DeniedReason::RecommenderNotAllowed);
    let rules: Vec<_> = denied.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert_eq!(rules, ["advice-ends"]);
    pair.b.check_invariants();

    // What was approved before a freeze or suspension of the executor counts no more after it.
    for stop in ["agent/responder", "owner/maria", "all", "suspend"] {
        let pair = Pair::start().await;
        let id = pair.approved().await;
        if stop == "suspend" {
            pair.b.suspend("responder").await.expect("suspended");
            pair.b.resume("responder").await.expect("resumed");
        } else {
            pair.b.freeze(stop).await.expect("frozen");
            pair.b.unfreeze(stop).await.expect("lifted");
        }
        let later = pair.b.try_open_task(&pair.responder, "contain", "open-2");
        let later = later.await.expect("opens").task.task;
        let executed = pair.execute_in(&pair.responder, later, id, "e").await;
        assert_eq!(refused(executed), Reason::AccessRequestClosed, "{stop}");
        pair.b.check_invariants();
    }
}

/// Every idempotency key that heard of the approval gets the same answer after the execution: nothing is recommended twice.
#[tokio::test]
async fn a_repeated_recommendation_is_answered_from_the_record() {
    let pair = Pair::start().await;
    let id = pair.approved().await;
    pair.recommend("r-2").await.recommended();
    let issued = pair.execute(id, "e").await.token();
    for key in ["r", "r-2"] {
        let again = pair.recommend(key).await.recommended();
        assert_eq!(
            (again.access_request, again.jti),
            (id, Some(issued.issued.jti))
        );
    }
    // What people decided is the history of the agent that recommends, and not of the one that executes.
    let stats = pair.b.broker.show();
    let of = |agent: &str| {
        let (agent, action) = (AgentId::parse(agent).expect("id"), &disable("ann").name);
        stats
            .stats()
            .action_stats(&agent, action)
            .map(|stats| (stats.requested, stats.approved))
    };
    assert_eq!((of("assistant"), of("responder")), (Some((1, 1)), None));
    pair.b.check_invariants();
}

/// An agent that becomes advisory loses what it holds, and what it waits for.
#[tokio::test]
async fn an_agent_that_becomes_advisory_holds_nothing() {
    let b = TestBroker::start().await;
    let reporter = b.agent("reporter");
    let task = b.open_task(&reporter).await;
    let reading = read_case();
    let issued = b.request_token(&reporter, task, &reading, 300, "r");
    let issued = issued.await.token();
    assert!(b.introspect("cases", &issued.token).await);
    let advisory = b.env.policy_with("agents.toml", |text| {
        text.replace(
            "autonomy = \"autonomous\"\n",
            "autonomy = \"advisory\"\nexecutors = [\"triage\"]\n",
        )
    });
    b.apply_policy(advisory.clone()).await.expect("applied");
    assert!(!b.introspect("cases", &issued.token).await);
    let task = b
        .try_open_task(&reporter, "read", "open-2")
        .await
        .expect("opens");
    let asked = b.request_token(&reporter, task.task.task, &reading, 300, "r-2");
    let id = asked.await.pending().access_request;
    let view = b.broker.show().access_request(&id).expect("opened");
    assert_eq!(view.required_profiles()[0].name.as_str(), "one-passkey");
    b.check_invariants();
}

/// A token that people approved ends with the autonomy, too, though their approval would lift what is asked of an advisory agent.
#[tokio::test]
async fn an_approved_token_ends_when_its_agent_becomes_advisory() {
    let mut env = TestEnvironment::new();
    // As many people stay who may decide when the executor's owner does not count either.
    env.policy = env.policy_with("agents.toml", |text| text.replacen("dana", "olga", 1));
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let ask = async || {
        b.request_token(&triage, task, &disable("ann"), 300, "r")
            .await
    };
    let id = ask().await.pending().access_request;
    b.approve("lee", id, "one-security").await;
    let issued = ask().await.token();
    assert!(b.introspect("idp", &issued.token).await);
    let advisory = b.env.policy_with("agents.toml", |text| {
        text.replacen(
            "autonomy = \"supervised\"",
            "autonomy = \"advisory\"\nexecutors = [\"responder\"] #",
            1,
        )
    });
    b.apply_policy(advisory).await.expect("applied");
    assert!(!b.introspect("idp", &issued.token).await);
    b.check_invariants();
}

/// The executor's task is older than the recommending agent's, and the rules ask more people of such a task: it is no part of what people
/// agreed to.
#[tokio::test]
async fn what_only_the_executors_call_needs_is_not_approved() {
    let old = "@id(\"old-tasks\") @step_up(\"one-passkey\") forbid (principal == Agent::\"responder\", action == Action::\"account.disable\", resource) \
         when { context.task.age >= duration(\"5m\") } unless { context.approvals.contains(StepUp::\"one-passkey\") };";
    let mut env = TestEnvironment::new();
    env.policy
        .insert("rules/90-old.cedar".to_owned(), old.to_owned());
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    let mut pair = Pair::with(b).await;
    pair.b.manual_clock.advance_millis(300_000);
    let fresh = pair.b.try_open_task(&pair.assistant, "watch", "open-2");
    pair.recommends_in = fresh.await.expect("opens").task.task;
    let id = pair.approved().await;
    let denied = pair.execute(id, "e").await.denied();
    assert_eq!(denied.why, DeniedReason::ExecutorNotAllowed);
    pair.b.check_invariants();
}

/// A supervised agent needs people for what the bundle marks; any approval that its rules ask for answers it.
#[tokio::test]
async fn a_supervised_agent_needs_people_where_the_bundle_says() {
    let b = TestBroker::start().await;
    let end_sessions = action("session.end", "Account", "ann", IDP, &[]);
    let marked = b.env.policy_with("agents.toml", |text| {
        text.replace(
            "supervised = { access",
            "supervised = { \"session.end\" = \"one-security\", destructive = \"one-passkey\", access",
        )
    });
    let marked = {
        let mut files = marked;
        // What the example says of a session's end is other than this bundle's.
        files.remove("tests.toml");
        files
    };
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    b.request_token(&triage, task, &end_sessions, 60, "before")
        .await
        .token();
    b.apply_policy(marked).await.expect("applied");
    let task = b
        .try_open_task(&triage, "contain", "open-2")
        .await
        .expect("opens")
        .task
        .task;
    let pending = b
        .request_token(&triage, task, &end_sessions, 60, "after")
        .await
        .pending();
    let rules: Vec<_> = pending.rules.iter().map(|rule| rule.id.as_str()).collect();
    assert!(
        rules.contains(&"autonomy-supervised-session.end"),
        "{rules:?}"
    );
    b.approve("maria", pending.access_request, "one-security")
        .await;
    b.request_token(&triage, task, &end_sessions, 60, "after")
        .await
        .token();
    // The rules ask one person for this one already: nobody else is asked.
    let disabling = b
        .request_token(&triage, task, &disable("ann"), 60, "r")
        .await
        .pending();
    let needs: Vec<_> = disabling
        .needs
        .iter()
        .map(|need| need.profile.name.as_str())
        .collect();
    assert_eq!(needs, ["one-security"]);
    b.check_invariants();
}

fn load(files: BTreeMap<String, String>) -> Result<PolicyBundle, dipylon::policy::BundleError> {
    PolicyBundle::load(&BundleFiles::new(files).expect("files"))
}

#[test]
fn bundles_that_do_not_enforce_autonomy_are_refused() {
    let cases: [(&str, &str, &str); 10] = [
        (
            "advisory = \"one-passkey\"  ",
            "",
            "\"assistant\" is advisory, and nothing says who decides",
        ),
        (
            "supervised = { access = \"two-security\" } ",
            "",
            "\"triage\" is supervised, and nothing says for which actions",
        ),
        (
            "supervised = { access =",
            "supervised = { acess =",
            "\"acess\" is no action or group of the catalogue (did you mean \"access\"?)",
        ),
        (
            "advisory = \"one-passkey\"",
            "advisory = \"one-pass\"",
            "\"one-pass\" is not a profile of people.toml",
        ),
        (
            "executors = [\"responder\"]",
            "",
            "\"assistant\" is advisory, and no agent may execute",
        ),
        (
            "executors = [\"responder\"]",
            "executors = [\"assistant\"]",
            "an agent does not execute its own recommendations",
        ),
        (
            "executors = [\"responder\"]",
            "executors = [\"respond\"]",
            "\"respond\" is no agent of this file",
        ),
        (
            "executors = [\"responder\"]",
            "executors = [\"reporter\"]",
            "\"reporter\" may request none of the actions",
        ),
        (
            "owner = \"olga\" ",
            "owner = \"maria\" ",
            "\"responder\" has the same owner, \"maria\"",
        ),
        (
            "autonomy = \"autonomous\"\n",
            "autonomy = \"autonomous\"\nexecutors = [\"triage\"]\n",
            "\"reporter\" has executors, and only an advisory agent has any",
        ),
    ];
    let env = TestEnvironment::new();
    for (from, to, expected) in cases {
        let files = env.policy_with("agents.toml", |text| {
            assert!(text.contains(from), "{from}");
            text.replacen(from, to, 1)
        });
        let refused = load(files);
        let error = refused.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    // A name that is no group reaches no rule, however the rest reads.
    let mut files = env.policy_with("agents.toml", |text| {
        text.replacen("access =", "\"a\\\") forbid (((((\" =", 1)
    });
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    schema.push_str("entity");
    let error = load(files).expect_err("refused").to_string();
    assert!(!error.contains("the broker's rule"), "{error}");
    // Votes by key would not count for what the assistant may recommend.
    let mut files = TestEnvironment::with_high_risk().policy;
    let agents = files.get_mut("agents.toml").expect("agents");
    *agents = agents.replace("advisory = \"one-passkey\"", "advisory = \"one-security\"");
    let error = load(files).expect_err("refused").to_string();
    let expected = "\"autonomy-advisory\"";
    assert!(
        error.contains(expected) && error.contains("host.isolate"),
        "{error}"
    );
    let both = env.policy_with("agents.toml", |text| {
        let text = text.replacen("owner = \"olga\" ", "owner = \"maria\" ", 1);
        text.replace("[autonomy]", "[autonomy]\nsame_owner_executors = true")
    });
    load(both).expect("the bundle says that they may");
}

/// Over gRPC, with a receipt and an audit that prove it again.
#[tokio::test]
async fn a_recommendation_over_grpc() {
    let s = ServedBroker::start().await;
    let recommends = s.task_for("assistant", "watch INC-8841").await;
    let order = token_request(disable("ann"), "r");
    let TokenOutcome::Pending(pending) = recommends.request_token(&order).await.expect("asked")
    else {
        panic!("people decide");
    };
    let id = pending.access_request_id();
    let card = s.approver("dana").card(id).await.expect("card");
    let shown = card.requester.agent().and_then(|by| by.executor.clone());
    assert_eq!(shown.expect("an executor").id.as_str(), "responder");
    let profile = ProfileName::parse("one-security").expect("profile");
    let review = ReviewedCard {
        card: &card,
        realm: &Realm::parse("test").expect("realm"),
        profile: &profile,
        verdict: Verdict::Approve,
        narrowing: Narrowing::default(),
        comment: None,
    };
    s.approver("dana").vote(&review).await.expect("approves");
    let TokenOutcome::Recommended(recommended) =
        recommends.request_token(&order).await.expect("asked")
    else {
        panic!("an advisory agent gets no token");
    };
    assert_eq!(recommended.executor().as_str(), "responder");

    let executes = s.task_for("responder", "contain INC-8841").await;
    let listed = executes.recommendations().await.expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].status, Some(AccessRequestStatus::Approved));
    let mut order = token_request(listed[0].action.clone().expect("its action"), "e");
    order.recommendation = Some(id);
    let TokenOutcome::Token(token) = executes.request_token(&order).await.expect("asked") else {
        panic!("people approved it");
    };
    let receipt = s.operator("olga").token_receipt(token.jti()).await;
    let receipt = receipt.expect("the broker verifies its own receipt");
    assert!(receipt.contains("recommendation"));
    let explained = s.operator("olga").explain(&token.jti().to_string()).await;
    let explained = explained.expect("explained");
    let line = |label: &str| explained.lines.iter().find(|line| line.label == label);
    assert!(line("recommended by").is_some_and(|line| line.text.starts_with("assistant of olga")));
}
