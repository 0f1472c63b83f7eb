//! A yes is for what was shown: it counts while the facts of its card are those of the bundle in force, and for what the rules ask of
//! people now.

use std::collections::BTreeMap;

use dipylon::broker::*;
use dipylon_sdk::card::AccessRequestStatus;
use dipylon_sdk::model::*;

use crate::support::*;

type Files = BTreeMap<String, String>;

/// A change of a bundle, and the words for it.
type FactChange = (&'static str, &'static str, &'static str, &'static str);

/// File, text, its replacement, what changes in words.
const CHANGES: [FactChange; 9] = [
    (
        "agents.toml",
        "owner = \"dana\" ",
        "owner = \"lee\" ",
        "owner",
    ),
    (
        "agents.toml",
        "model = \"example-large-2\"",
        "model = \"example-large-3\"",
        "agent's model",
    ),
    (
        "agents.toml",
        "autonomy = \"supervised\"",
        "autonomy = \"autonomous\"",
        "agent's autonomy",
    ),
    (
        "schema.cedarschema",
        "@title(\"Disable an account\")",
        "@title(\"Close an account\")",
        "title",
    ),
    (
        "schema.cedarschema",
        "The account can no longer sign in.",
        "The account is gone.",
        "effect",
    ),
    (
        "schema.cedarschema",
        "@risk(\"medium\")",
        "@risk(\"low\")",
        "risk",
    ),
    (
        "schema.cedarschema",
        "Also end open sessions",
        "Sessions",
        "titles of parameters",
    ),
    (
        "entities.json",
        "\"Cara Cole\"",
        "\"Chief executive\"",
        "target's name",
    ),
    (
        "rules/20-guardrails.cedar",
        "Security approves every action that stops something from working.",
        "Anyone approves.",
        "rules that ask",
    ),
];

fn with(b: &TestBroker, (file, from, to, _): FactChange) -> Files {
    b.env.policy_with(file, |text| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{file}: {from}");
        changed
    })
}

async fn ask(b: &TestBroker, triage: &TestAgent, task: TaskId) -> PendingReply {
    b.request_token(triage, task, &disable("cara"), 300, "key")
        .await
        .pending()
}

/// Each fact between the yes and the mint, and between the card and the cast.
#[tokio::test]
async fn a_yes_does_not_outlive_what_it_was_given_for() {
    for change in CHANGES {
        let words = change.3;
        let b = TestBroker::start().await;
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        let id = ask(&b, &triage, task).await.access_request;
        // lee may own the agent after it.
        b.approve("maria", id, "one-security").await;
        b.apply_policy(with(&b, change)).await.expect("applied");
        let pending = ask(&b, &triage, task).await;
        assert_eq!(pending.access_request, id, "{words}");
        let void: Vec<_> = pending
            .void
            .iter()
            .map(|v| (v.voter.as_str(), &v.changed))
            .collect();
        assert_eq!(void, [("maria", &vec![words.to_owned()])], "{words}");

        // Begun for these facts, cast for others.
        let begun = b
            .begin_vote("maria", id, "one-security", Verdict::Approve)
            .await
            .expect("begun");
        b.apply_policy(b.env.policy.clone()).await.expect("applied");
        let refusal = b
            .cast_vote("maria", id, &begun.statement)
            .await
            .expect_err(words);
        assert_eq!(refusal.reason, Reason::ApprovalVoid, "{words}");
        assert!(
            refusal.message.contains(words),
            "{words}: {}",
            refusal.message
        );

        // The first yes was for what is in force again.
        let token = b
            .request_token(&triage, task, &disable("cara"), 300, "key")
            .await;
        token.token();
        b.check_invariants();
    }
}

#[tokio::test]
async fn a_void_yes_is_given_again() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = ask(&b, &triage, task).await.access_request;
    b.approve("maria", id, "one-security").await;
    b.apply_policy(with(&b, CHANGES[5])).await.expect("applied");
    ask(&b, &triage, task).await;
    b.approve("maria", id, "one-security").await;
    b.request_token(&triage, task, &disable("cara"), 300, "key")
        .await
        .token();
    b.check_invariants();
}

const OLD_TASKS_NEED_TWO: &str = "\n@id(\"old-tasks-need-two\")\n@why(\"An old task takes two people.\")\n@step_up(\"two-security\")\nforbid (principal, action == Action::\"account.disable\", resource)\nwhen { context.task.age > duration(\"5m\") }\nunless { context.approvals.contains(StepUp::\"two-security\") };\n";

/// A rule on the task's age asks for two people later: the request says so, and the first yes does not do for it.
#[tokio::test]
async fn what_a_request_needs_is_asked_anew_when_time_changes_it() {
    let mut env = TestEnvironment::new();
    let rules = env
        .policy
        .get_mut("rules/20-guardrails.cedar")
        .expect("rules");
    rules.push_str(OLD_TASKS_NEED_TWO);
    let b = TestBroker::start_with(env, Default::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = ask(&b, &triage, task).await.access_request;
    b.approve("maria", id, "one-security").await;
    b.manual_clock.advance_millis(301_000);
    // People hear it without the agent's asking.
    b.broker.maintenance_tick().await.expect("a tick");
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "lee");
    let card = b.broker.card(&call, &id).expect("a card");
    assert_eq!(card.status, AccessRequestStatus::Waiting);
    assert!(
        card.rules
            .iter()
            .any(|rule| rule.id == "old-tasks-need-two")
    );
    let needs: Vec<_> = card.needs.iter().map(|n| n.profile.name.as_str()).collect();
    assert!(needs.contains(&"two-security"), "{needs:?}");
    b.approve("lee", id, "two-security").await;
    let evidence = b.svid(&triage);
    let asked = b
        .request_token_with_evidence(&triage, task, &disable("cara"), 300, "key", Some(evidence))
        .await;
    assert_eq!(asked.pending().access_request, id);
    b.approve("maria", id, "two-security").await;
    b.request_token(&triage, task, &disable("cara"), 300, "key")
        .await
        .token();
    b.check_invariants();
}

/// The same where nobody has looked since: a vote for what the card showed is refused, and what is asked now is on record.
#[tokio::test]
async fn a_vote_is_for_what_is_asked_at_that_moment() {
    let mut env = TestEnvironment::new();
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    rules.expect("rules").push_str(OLD_TASKS_NEED_TWO);
    let b = TestBroker::start_with(env, Default::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = ask(&b, &triage, task).await.access_request;
    let begun = b
        .begin_vote("lee", id, "one-security", Verdict::Approve)
        .await
        .expect("begun");
    b.manual_clock.advance_millis(301_000);
    let refusal = b
        .begin_vote("maria", id, "one-security", Verdict::Approve)
        .await;
    let refusal = refusal.expect_err("the rules ask for more");
    assert_eq!(refusal.reason, Reason::ApprovalVoid);
    let why = "the approvals that it requires have changed";
    assert!(refusal.message.contains(why), "{}", refusal.message);
    let late = b.cast_vote("lee", id, &begun.statement).await;
    assert!(late.is_err());
    b.approve("lee", id, "two-security").await;
    b.check_invariants();
}

/// A yes beyond the quorum is refused before it is signed.
#[tokio::test]
async fn only_open_profiles_take_a_yes() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = ask(&b, &triage, task).await.access_request;
    let begun = b
        .begin_vote("lee", id, "one-security", Verdict::Approve)
        .await
        .expect("begun");
    b.approve("maria", id, "one-security").await;
    let more = b
        .begin_vote("lee", id, "one-security", Verdict::Approve)
        .await;
    assert_eq!(refused(more), Reason::NotEligible);
    let more = b.cast_vote("lee", id, &begun.statement).await;
    assert_eq!(refused(more), Reason::NotEligible);
    // A no still ends it.
    let view = b
        .vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("denied");
    assert_eq!(view.status, AccessRequestStatus::Denied);
    b.check_invariants();
}

/// Two profiles that three people could satisfy, of whom one is the owner: nobody waits for what cannot come.
#[tokio::test]
async fn a_request_that_nobody_can_approve_any_more_ends() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let isolate = action("host.isolate", "Host", "lab-7", IDP, &[]);
    let _ = isolate;
    let id = ask(&b, &triage, task).await.access_request;
    for name in ["maria", "lee"] {
        b.revoke_keys_of(name, None).await.expect("revoked");
    }
    b.manual_clock.advance_millis(3_000);
    b.broker.maintenance_tick().await.expect("a tick");
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "olga");
    assert_eq!(
        b.broker.card(&call, &id).expect("a card").status,
        AccessRequestStatus::Ended
    );
    let denied = b
        .request_token(&triage, task, &disable("cara"), 300, "key")
        .await;
    assert_eq!(denied.denied().why, DeniedReason::NoEligibleApprover);
    b.check_invariants();
}

/// A rule and an attribute that a card has no room for are facts by their digest.
#[tokio::test]
async fn what_a_card_has_no_room_for_is_a_fact_too() {
    let mut env = TestEnvironment::new();
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    let rules = rules.expect("rules");
    for n in 0..20 {
        rules.push_str(&format!(
            "\n@id(\"more-{n:02}\")\n@why(\"Reason {n}.\")\n@step_up(\"one-security\")\nforbid (principal, action == Action::\"account.disable\", resource)\nunless {{ context.approvals.contains(StepUp::\"one-security\") }};\n"
        ));
    }
    let b = TestBroker::start_with(env, Default::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let id = ask(&b, &triage, task).await.access_request;
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "lee");
    let card = b.broker.card(&call, &id).expect("a card");
    let shown = &card.rules.last().expect("rules");
    assert_eq!(shown.id, "…");
    assert!(
        shown
            .why
            .starts_with("5 more rules, too long for a card: SHA-256 "),
        "{}",
        shown.why
    );
    b.approve("maria", id, "one-security").await;
    let last = (
        "rules/20-guardrails.cedar",
        "Reason 19.",
        "Anyone may.",
        "rules that ask",
    );
    b.apply_policy(with(&b, last)).await.expect("applied");
    let pending = ask(&b, &triage, task).await;
    assert_eq!(pending.void[0].changed, ["rules that ask"]);
    b.check_invariants();
}

/// A request that needs nobody any more is in nobody's inbox, and its agent gets the token.
#[tokio::test]
async fn a_need_that_time_takes_away_leaves_the_inbox() {
    let mut env = TestEnvironment::new();
    let rules = env.policy.get_mut("rules/20-guardrails.cedar");
    rules.expect("rules").push_str(
        "\n@id(\"new-tasks-need-one\")\n@why(\"A new task takes a person.\")\n@step_up(\"one-security\")\nforbid (principal, action == Action::\"case.read\", resource)\nwhen { context.task.age < duration(\"5m\") }\nunless { context.approvals.contains(StepUp::\"one-security\") };\n",
    );
    let b = TestBroker::start_with(env, Default::default()).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let asked = b
        .request_token(&triage, task, &read_case(), 300, "key")
        .await;
    let id = asked.pending().access_request;
    let inbox = |name: &str| {
        let call = b.person_call("dipylon.v1.ApprovalService/ListAccessRequests", name);
        let page = b.broker.inbox(&call, &first_inbox_page());
        page.expect("a page").total
    };
    assert_eq!((inbox("maria"), inbox("olga")), (1, 1));
    b.manual_clock.advance_millis(301_000);
    b.broker.maintenance_tick().await.expect("a tick");
    assert_eq!((inbox("maria"), inbox("olga")), (0, 0));
    let call = b.person_call("dipylon.v1.ApprovalService/GetCard", "olga");
    let card = b.broker.card(&call, &id).expect("a card");
    let text = dipylon_sdk::card::render_terminal(
        &card,
        b.now(),
        100,
        dipylon_sdk::card::LongValues::Full,
    );
    assert!(text.contains("nobody any more"), "{text}");
    let evidence = b.svid(&triage);
    let asked = b
        .request_token_with_evidence(&triage, task, &read_case(), 300, "key", Some(evidence))
        .await;
    asked.token();
    b.check_invariants();
}
