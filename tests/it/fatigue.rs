//! How often people are asked has a bound, and what wears them out has a price.

use dipylon::journal::FaultInjection;
use dipylon::model::*;

use super::harness::*;
use super::step_up::{asked, with_approvals};

async fn cancel(b: &TestBroker, agent: &TestAgent, task: TaskId, id: AccessRequestId) {
    let call = b.call(
        "dipylon.v1.TaskService/CancelAccessRequest",
        &agent.key,
        None,
        None,
    );
    b.broker
        .cancel_access_request(&call, task, id)
        .await
        .expect("cancelled");
}

#[tokio::test]
async fn noes_make_an_agent_wait_and_too_many_take_it_out_of_service() {
    let world = with_approvals(
        "dwell = \"off\"\nback_off = [\"1m\", \"5m\"]\nquarantine = 3\nquarantine_within = \"10m\"",
    );
    let (b, triage, task, mut id) = asked(world).await;
    let again =
        async |name: &str, request: &str| b.ask(&triage, task, &disable(name), 300, request).await;
    for (n, wait_ms) in [(2, 60_000_u32), (3, 300_000)] {
        b.vote("maria", id, "one-security", Verdict::Deny)
            .await
            .expect("a no");
        let request = format!("r-{n}");
        let refusal = again("cara", &request).await.expect_err("too soon");
        assert_eq!(refusal.reason, Reason::BackOff);
        assert_eq!(
            refusal.retry_after.expect("when").as_millis(),
            u128::from(wait_ms)
        );
        // What needs nobody goes on.
        b.ask(&triage, task, &read_case(), 300, &format!("read-{n}"))
            .await
            .token();
        b.hand.advance_millis(wait_ms - 1);
        assert_eq!(refused(again("cara", &request).await), Reason::BackOff);
        b.hand.advance_millis(1);
        let reply = b
            .ask_showing(
                &triage,
                task,
                &disable("cara"),
                300,
                &request,
                Some(b.svid(&triage)),
            )
            .await;
        id = reply.pending().access_request;
    }
    let live = b
        .ask(&triage, task, &read_case(), 300, "read-4")
        .await
        .token();
    assert!(b.introspect("cases", &live.token));
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("the third no");
    assert!(!b.introspect("cases", &live.token), "what it had has ended");
    assert!(
        b.broker
            .state()
            .agent_status(&AgentId::parse("triage").expect("id"))
            .value
            .suspended
    );
    assert!(b.try_open(&triage, "go on", "open-2").await.is_err());
    // An operator lets it operate again, and it begins with a clean slate.
    let call = b.person_call("dipylon.v1.GovernanceService/ResumeAgent", "olga");
    b.broker
        .resume_agent(&call, AgentId::parse("triage").expect("id"))
        .await
        .expect("resumed");
    let task = b
        .try_open(&triage, "go on", "open-3")
        .await
        .expect("opens")
        .task
        .task;
    b.ask(&triage, task, &disable("cara"), 300, "r-9")
        .await
        .pending();
    b.check();
}

#[tokio::test]
async fn an_owners_agents_share_what_may_wait() {
    let world = with_approvals("dwell = \"off\"\npending_per_agent = 2\npending_per_owner = 3");
    let (b, triage, task, _) = asked(world).await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    b.ask(&triage, task, &disable("cara"), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(b.ask(&triage, task, &isolate, 300, "r-3").await),
        Reason::TooManyPending,
        "two of one agent"
    );
    // Another agent of the same owner has one left.
    let files = b.world.policy_with("agents.toml", |text| {
        let second = text
            .split("[[agent]]")
            .nth(1)
            .expect("triage")
            .replace("triage", "second");
        format!("{text}\n[[agent]]{second}")
    });
    b.apply(files).await.expect("applied");
    let second = b.agent("second");
    let other = b.open(&second).await;
    b.ask(&second, other, &disable("cara"), 300, "s-1")
        .await
        .pending();
    assert_eq!(
        refused(b.ask(&second, other, &isolate, 300, "s-2").await),
        Reason::TooManyPending,
        "three of one owner"
    );
    b.complete(&triage, task).await.expect("done");
    b.ask(&second, other, &isolate, 300, "s-2").await.pending();
    b.check();
}

#[tokio::test]
async fn a_yes_to_high_risk_takes_a_look_at_the_card_first() {
    let mut world = with_approvals("dwell = \"3s\"");
    let schema = world.policy.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace("@risk(\"medium\")", "@risk(\"high\")");
    let (b, _, _, id) = asked(world).await;
    let look = |name: &str| {
        let call = b.person_call("dipylon.v1.ApprovalService/GetCard", name);
        b.broker.card(&call, &id)
    };
    let begin = async || b.begin("maria", id, "one-security", Verdict::Approve).await;
    let refusal = begin().await.expect_err("nothing was read");
    assert_eq!(refusal.reason, Reason::TooSoon);
    look("maria").expect("a card");
    look("lee").expect("a card");
    b.hand.advance_millis(2_999);
    look("maria").expect("looking again does not begin anew");
    let refusal = begin().await.expect_err("too soon");
    assert_eq!(
        (refusal.reason, refusal.retry_after),
        (Reason::TooSoon, Some(std::time::Duration::from_millis(1)))
    );
    b.hand.advance_millis(1);
    assert!(begin().await.is_ok());
    // A no needs no look.
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("a no");
    b.check();
}

#[tokio::test]
async fn asking_and_taking_back_has_a_price() {
    // Each opening counts, whatever becomes of it.
    let (b, triage, task, mut id) = asked(with_approvals(
        "opens_per_minute = 3\nback_off = [\"5m\"]\nquarantine = 0",
    ))
    .await;
    for n in 2..=3 {
        cancel(&b, &triage, task, id).await;
        id = b
            .ask(&triage, task, &disable("ann"), 300, &format!("r-{n}"))
            .await
            .pending()
            .access_request;
    }
    cancel(&b, &triage, task, id).await;
    assert_eq!(
        refused(b.ask(&triage, task, &disable("ann"), 300, "r-4").await),
        Reason::BackOff
    );
    b.hand.advance_millis(60_000);
    id = b
        .ask(&triage, task, &disable("ann"), 300, "r-4")
        .await
        .pending()
        .access_request;
    // Taken back while somebody is about to answer, it weighs like a no.
    b.begin("maria", id, "one-security", Verdict::Deny)
        .await
        .expect("begun");
    cancel(&b, &triage, task, id).await;
    b.hand.advance_millis(60_000);
    let refusal = b
        .ask(&triage, task, &disable("ann"), 300, "r-5")
        .await
        .expect_err("too soon");
    assert_eq!(
        (refusal.reason, refusal.retry_after),
        (Reason::BackOff, Some(std::time::Duration::from_secs(240)))
    );
    let b = b.restart(FaultInjection::default()).await;
    let shown = Some(b.svid(&triage));
    let again = b
        .ask_showing(&triage, task, &disable("ann"), 300, "r-5", shown)
        .await;
    assert_eq!(refused(again), Reason::BackOff, "a restart forgets nothing");
    b.check();
}

#[tokio::test]
async fn nobody_is_asked_about_what_nobody_could_read() {
    let mut world = World::new();
    let schema = world.policy.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "end_sessions: Bool",
        "end_sessions: Bool, notes?: Set<String>",
    );
    let (b, triage, task, _) = asked(world).await;
    let with_notes = |lines: usize| {
        let parameters = [
            ("end_sessions", Param::Bool(true)),
            (
                "notes",
                Param::Set(
                    (10..10 + lines)
                        .map(|n| Param::Str(format!("{n}{}", "x".repeat(998))))
                        .collect(),
                ),
            ),
        ];
        action("account.disable", "Account", "cara", IDP, &parameters)
    };
    b.ask(&triage, task, &with_notes(3), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(b.ask(&triage, task, &with_notes(17), 300, "r-3").await),
        Reason::WrongParameters
    );
    b.check();
}
