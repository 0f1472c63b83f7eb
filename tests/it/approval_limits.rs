//! `[approvals]` limits: pending requests, back-off and quarantine after denials, dwell time, request size.

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::passkey_votes::{high_risk_with_approvals, pending_request, with_approvals};
use crate::support::*;

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
async fn denials_back_off_then_suspend() {
    let env = with_approvals(
        "dwell = \"off\"\nback_off = [\"1m\", \"5m\"]\nquarantine = 3\nquarantine_within = \"10m\"",
    );
    let (b, triage, task, mut id) = pending_request(env).await;
    let again = async |name: &str, request: &str| {
        b.request_token(&triage, task, &disable(name), 300, request)
            .await
    };
    for (n, wait_ms) in [(2, 60_000_u32), (3, 300_000)] {
        b.vote("maria", id, "one-security", Verdict::Deny)
            .await
            .expect("a denial");
        let request = format!("r-{n}");
        let refusal = again("cara", &request).await.expect_err("too soon");
        assert_eq!(refusal.reason, Reason::DenialBackoff);
        assert_eq!(
            refusal.retry_after.expect("when").as_millis(),
            u128::from(wait_ms)
        );
        // Actions without step-up are unaffected.
        b.request_token(&triage, task, &read_case(), 300, &format!("read-{n}"))
            .await
            .token();
        b.manual_clock.advance_millis(wait_ms - 1);
        assert_eq!(
            refused(again("cara", &request).await),
            Reason::DenialBackoff
        );
        b.manual_clock.advance_millis(1);
        let reply = b
            .request_token_with_evidence(
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
        .request_token(&triage, task, &read_case(), 300, "read-4")
        .await
        .token();
    assert!(b.introspect("cases", &live.token).await);
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("the third denial");
    assert!(
        !b.introspect("cases", &live.token).await,
        "its tokens have ended"
    );
    assert!(
        b.broker
            .show()
            .is_suspended(&AgentId::parse("triage").expect("id"))
    );
    assert!(b.try_open_task(&triage, "go on", "open-2").await.is_err());
    // An operator resumes it, and its denials no longer count.
    let call = b.person_call("dipylon.v1.GovernanceService/ResumeAgent", "olga");
    b.broker
        .resume_agent(&call, AgentId::parse("triage").expect("id"))
        .await
        .expect("resumed");
    let task = b
        .try_open_task(&triage, "go on", "open-3")
        .await
        .expect("opens")
        .task
        .task;
    b.request_token(&triage, task, &disable("cara"), 300, "r-9")
        .await
        .pending();
    b.check_invariants();
}

#[tokio::test]
async fn pending_limit_is_shared_per_owner() {
    let env = with_approvals("dwell = \"off\"\npending_per_agent = 2\npending_per_owner = 3");
    let (b, triage, task, _) = pending_request(env).await;
    let isolate = action("host.isolate", "Host", "web-1", IDP, &[]);
    b.request_token(&triage, task, &disable("cara"), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(b.request_token(&triage, task, &isolate, 300, "r-3").await),
        Reason::TooManyPending,
        "two pending per agent"
    );
    // Another agent of the same owner may open one more.
    let files = b.env.policy_with("agents.toml", |text| {
        let second = text
            .split("[[agent]]")
            .nth(1)
            .expect("triage")
            .replace("triage", "second");
        format!("{text}\n[[agent]]{second}")
    });
    b.apply_policy(files).await.expect("applied");
    let second = b.agent("second");
    let other = b.open_task(&second).await;
    b.request_token(&second, other, &disable("cara"), 300, "s-1")
        .await
        .pending();
    assert_eq!(
        refused(b.request_token(&second, other, &isolate, 300, "s-2").await),
        Reason::TooManyPending,
        "three pending per owner"
    );
    b.complete_task(&triage, task).await.expect("done");
    b.request_token(&second, other, &isolate, 300, "s-2")
        .await
        .pending();
    b.check_invariants();
}

#[tokio::test]
async fn high_risk_approval_requires_dwell_time() {
    let env = high_risk_with_approvals("dwell = \"3s\"");
    let b = TestBroker::start_with(env, FaultInjection::default()).await;
    b.enrol_voters(&["maria", "lee"]).await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let asked = b
        .request_token(&triage, task, &disable("ann"), 900, "r-1")
        .await;
    let id = asked.pending().access_request;
    let look = |name: &str| {
        let call = b.person_call("dipylon.v1.ApprovalService/GetCard", name);
        b.broker.card(&call, &id)
    };
    let begin = async || {
        b.begin_vote("maria", id, "one-security", Verdict::Approve)
            .await
    };
    let refusal = begin().await.expect_err("the card was not read");
    assert_eq!(refusal.reason, Reason::DwellRequired);
    look("maria").expect("a card");
    look("lee").expect("a card");
    b.manual_clock.advance_millis(2_999);
    look("maria").expect("reading again does not restart the dwell time");
    let refusal = begin().await.expect_err("too soon");
    assert_eq!(
        (refusal.reason, refusal.retry_after),
        (
            Reason::DwellRequired,
            Some(std::time::Duration::from_millis(1))
        )
    );
    b.manual_clock.advance_millis(1);
    assert!(begin().await.is_ok());
    // A denial needs no dwell time.
    b.vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("a denial");
    b.check_invariants();
}

#[tokio::test]
async fn opens_and_late_cancellations_trigger_backoff() {
    // Each opened request counts, whatever its outcome.
    let (b, triage, task, mut id) = pending_request(with_approvals(
        "opens_per_minute = 3\nback_off = [\"5m\"]\nquarantine = 0",
    ))
    .await;
    for n in 2..=3 {
        cancel(&b, &triage, task, id).await;
        id = b
            .request_token(&triage, task, &disable("ann"), 300, &format!("r-{n}"))
            .await
            .pending()
            .access_request;
    }
    cancel(&b, &triage, task, id).await;
    assert_eq!(
        refused(
            b.request_token(&triage, task, &disable("ann"), 300, "r-4")
                .await
        ),
        Reason::DenialBackoff
    );
    b.manual_clock.advance_millis(60_000);
    id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-4")
        .await
        .pending()
        .access_request;
    // Cancelled while an approver has begun to vote, it counts like a denial.
    b.begin_vote("maria", id, "one-security", Verdict::Deny)
        .await
        .expect("begun");
    cancel(&b, &triage, task, id).await;
    b.manual_clock.advance_millis(60_000);
    let refusal = b
        .request_token(&triage, task, &disable("ann"), 300, "r-5")
        .await
        .expect_err("too soon");
    assert_eq!(
        (refusal.reason, refusal.retry_after),
        (
            Reason::DenialBackoff,
            Some(std::time::Duration::from_secs(240))
        )
    );
    let b = b.restart(FaultInjection::default()).await;
    let shown = Some(b.svid(&triage));
    let again = b
        .request_token_with_evidence(&triage, task, &disable("ann"), 300, "r-5", shown)
        .await;
    assert_eq!(
        refused(again),
        Reason::DenialBackoff,
        "back-off survives a restart"
    );
    b.check_invariants();
}

#[tokio::test]
async fn oversized_actions_are_rejected() {
    let mut env = TestEnvironment::new();
    let schema = env.policy.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace(
        "end_sessions: Bool",
        "end_sessions: Bool, notes?: Set<String>",
    );
    let (b, triage, task, _) = pending_request(env).await;
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
    b.request_token(&triage, task, &with_notes(3), 300, "r-2")
        .await
        .pending();
    assert_eq!(
        refused(
            b.request_token(&triage, task, &with_notes(17), 300, "r-3")
                .await
        ),
        Reason::InvalidParameters
    );
    b.check_invariants();
}
