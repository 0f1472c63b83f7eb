//! Token lifecycle in the broker: both gates, mint, use, revocation, expiry.

use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::*;

#[tokio::test]
async fn token_ends_with_its_task() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let reply = b
        .request_token(&triage, task, &read_case(), 300, "r-1")
        .await
        .token();
    assert_eq!(reply.issued.exp - reply.issued.iat, 300);
    assert!(b.introspect("cases", &reply.token).await);
    assert!(
        !b.introspect("idp", &reply.token).await,
        "inactive for another validator"
    );
    let report = b.complete_task(&triage, task).await.expect("completes");
    assert_eq!(
        (report.cause, report.revoked, report.tokens),
        (EndCause::Completed, 1, vec![reply.issued.jti])
    );
    assert!(!b.introspect("cases", &reply.token).await);
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 300, "r-2")
                .await
        ),
        Reason::TaskEnded
    );
    let again = b.complete_task(&triage, task).await.expect("idempotent");
    assert_eq!(again.index, report.index);
    let b = b.restart(FaultInjection::default()).await;
    assert!(
        !b.introspect("cases", &reply.token).await,
        "inactive after a restart"
    );
    b.check_invariants();
}

#[tokio::test]
async fn retry_returns_the_same_token() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let first = b
        .request_token(&triage, task, &read_case(), 300, "r-1")
        .await
        .token();
    b.manual_clock.advance_millis(20_000);
    let again = b
        .request_token(&triage, task, &read_case(), 300, "r-1")
        .await
        .token();
    assert!(again.reissued);
    assert_eq!(again.issued, first.issued, "the same jti, the same claims");
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 299, "r-1")
                .await
        ),
        Reason::IdempotencyKeyReused
    );
    assert_eq!(
        refused(
            b.request_token(&triage, task, &disable("ann"), 300, "r-1")
                .await
        ),
        Reason::IdempotencyKeyReused
    );
    b.manual_clock.advance_millis(281_000);
    let refreshed = b.svid(&triage);
    let expired = b
        .request_token_with_evidence(&triage, task, &read_case(), 300, "r-1", Some(refreshed))
        .await;
    assert_eq!(
        refused(expired),
        Reason::TokenNoLongerValid,
        "an expired grant is not reissued"
    );

    // OpenTask is idempotent too, for the same purpose under the same key.
    let same = b
        .try_open_task(&triage, "contain INC-8841", "open-1")
        .await
        .expect("the same task");
    assert_eq!(same.task.task, task);
    assert_eq!(
        refused(b.try_open_task(&triage, "something else", "open-1").await),
        Reason::IdempotencyKeyReused
    );
    b.check_invariants();
}

#[tokio::test]
async fn gate_1_errors_are_indistinguishable() {
    let b = TestBroker::start().await;
    let stranger = b.agent("stranger");
    let refusal = b
        .try_open_task(&stranger, "x", "open-1")
        .await
        .expect_err("not registered");
    assert_eq!(
        (refusal.reason, refusal.gives_nonce),
        (Reason::NotAuthenticated, false)
    );
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    // Another key for an existing task: indistinguishable from an unknown task.
    let thief = TestAgent {
        key: b.agent("triage").key,
        ..triage.clone()
    };
    let theirs = b
        .request_token(&thief, task, &read_case(), 60, "r-1")
        .await
        .expect_err("not its task");
    let none = b
        .request_token(
            &thief,
            TaskId::from_random([7; 16]),
            &read_case(),
            60,
            "r-1",
        )
        .await
        .expect_err("none");
    assert_eq!(
        (theirs.reason, none.reason),
        (Reason::NotFound, Reason::NotFound)
    );
    // With stale evidence the broker asks for fresh evidence, then continues.
    b.manual_clock.advance_millis(301_000);
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 60, "r-1")
                .await
        ),
        Reason::EvidenceStale
    );
    let shown = b.svid(&triage);
    b.request_token_with_evidence(&triage, task, &read_case(), 60, "r-1", Some(shown))
        .await
        .token();
    b.request_token(&triage, task, &read_case(), 60, "r-2")
        .await
        .token();
    // Another agent's evidence is not accepted for this task.
    let other = b.svid(&b.agent("reporter"));
    assert_eq!(
        refused(
            b.request_token_with_evidence(&triage, task, &read_case(), 60, "r-3", Some(other))
                .await
        ),
        Reason::NotAuthenticated
    );
    b.check_invariants();
}

#[tokio::test]
async fn policy_tightened_before_mint_denies() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let read = b
        .request_token(&triage, task, &read_case(), 300, "r-0")
        .await
        .token();
    let id = b
        .request_token(&triage, task, &disable("ann"), 300, "r-1")
        .await
        .pending()
        .access_request;
    b.approve("maria", id, "one-security").await;
    let tight = b.env.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-disabling\") forbid (principal, action == Action::\"account.disable\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n")
    });
    let applied = b.apply_policy(tight).await.expect("applied");
    assert!(applied.changed);
    assert_eq!(
        applied.revoked.requests, 1,
        "the access request is closed: the action is forbidden"
    );
    assert_eq!(
        b.request_token(&triage, task, &disable("ann"), 300, "r-1")
            .await
            .denied()
            .why,
        DeniedReason::ForbiddenByRule
    );
    assert!(
        b.introspect("cases", &read.token).await,
        "a token that is still allowed stays active"
    );
    let shut = b.env.policy_with("rules/20-guardrails.cedar", |text| {
        format!("{text}\n@id(\"no-reading\") forbid (principal, action == Action::\"case.read\", resource) when {{ context.evidence.verified_age < duration(\"365d\") }};\n")
    });
    assert_eq!(
        b.apply_policy(shut).await.expect("applied").revoked.grants,
        1
    );
    assert!(
        !b.introspect("cases", &read.token).await,
        "a token that is no longer allowed has ended"
    );
    b.apply_policy(b.env.policy.clone()).await.expect("applied");
    assert!(
        !b.introspect("cases", &read.token).await,
        "and stays ended when the rules are restored"
    );
    b.check_invariants();
}

#[tokio::test]
async fn suspension_ends_everything_for_good() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let reply = b
        .request_token(&triage, task, &read_case(), 300, "r-1")
        .await
        .token();
    assert_eq!(b.suspend("triage").await.expect("suspends").0, 1);
    assert!(!b.introspect("cases", &reply.token).await);
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 300, "r-2")
                .await
        ),
        Reason::TaskEnded
    );
    assert_eq!(
        refused(b.try_open_task(&triage, "again", "open-2").await),
        Reason::NotAuthenticated
    );
    b.resume("triage").await.expect("resumes");
    assert!(
        !b.introspect("cases", &reply.token).await,
        "nothing is revived"
    );
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), 300, "r-2")
                .await
        ),
        Reason::TaskEnded
    );
    b.try_open_task(&triage, "again", "open-2")
        .await
        .expect("it may open a new task");
    b.check_invariants();
}

#[tokio::test]
async fn unknown_actions_are_journaled() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let before = b.broker.show().position().1;
    for (action, reason) in [
        (
            action("account.delete", "Account", "ann", IDP, &[]),
            Reason::UnknownAction,
        ),
        (disable("nobody"), Reason::UnknownTarget),
        (
            action(
                "account.disable",
                "Case",
                "INC-8841",
                IDP,
                &[("end_sessions", Param::Bool(true))],
            ),
            Reason::UnknownTarget,
        ),
        (
            action(
                "account.disable",
                "Account",
                "ann",
                "https://evil.example",
                &[("end_sessions", Param::Bool(true))],
            ),
            Reason::UnknownAudience,
        ),
        (
            action("account.disable", "Account", "ann", IDP, &[]),
            Reason::InvalidParameters,
        ),
        (
            action(
                "account.disable",
                "Account",
                "ann",
                IDP,
                &[("end_sessions", Param::Int(1))],
            ),
            Reason::InvalidParameters,
        ),
    ] {
        assert_eq!(
            refused(b.request_token(&triage, task, &action, 300, "r-1").await),
            reason,
            "{action:?}"
        );
    }
    assert_eq!(
        b.broker.show().position().1,
        before + 6,
        "every refusal after gate 1 is journaled"
    );
    assert_eq!(
        refused(b.request_token(&triage, task, &read_case(), 0, "r-1").await),
        Reason::InvalidTtl
    );
    assert_eq!(
        refused(
            b.request_token(&triage, task, &read_case(), -5, "r-1")
                .await
        ),
        Reason::InvalidTtl
    );
    // Outside the ceiling; then an explicit forbid.
    let reporter = b.agent("reporter");
    let theirs = b.open_task(&reporter).await;
    assert_eq!(
        b.request_token(&reporter, theirs, &disable("ann"), 60, "r-1")
            .await
            .denied()
            .why,
        DeniedReason::OutsideCeiling
    );
    assert_eq!(
        b.request_token(&triage, task, &disable("break-glass"), 60, "r-9")
            .await
            .denied()
            .why,
        DeniedReason::ForbiddenByRule
    );
    // A repeated denial writes no entry.
    let at = b.broker.show().position().1;
    b.request_token(&triage, task, &disable("break-glass"), 60, "r-9")
        .await
        .denied();
    assert_eq!(b.broker.show().position().1, at);
    b.check_invariants();
}

#[tokio::test]
async fn sensitive_parameters_are_committed_not_stored() {
    let b = TestBroker::start().await;
    let triage = b.agent("triage");
    let task = b.open_task(&triage).await;
    let canary = "CANARY-the-password-is-xyzzy";
    let note = action(
        "case.note",
        "Case",
        "INC-8841",
        CASES,
        &[("text", Param::Str(canary.to_owned()))],
    );
    let reply = b
        .request_token(&triage, task, &note, 300, "r-1")
        .await
        .token();
    let payload = reply
        .token
        .expose_secret()
        .split('.')
        .nth(1)
        .expect("payload")
        .to_owned();
    use base64::Engine as _;
    let payload = String::from_utf8(
        base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(payload)
            .expect("base64"),
    )
    .expect("text");
    assert!(
        !payload.contains("CANARY") && payload.contains("$commitment"),
        "{payload}"
    );
    let opening = &reply.openings.as_ref().expect("openings").parameters["text"];
    assert!(payload.contains(&opening.commitment().to_string()));
    let journal = dipylon::journal::JournalReader::open(&b.dir).expect("journal");
    let mut entries = 0;
    journal
        .read_all(|stored| {
            entries += 1;
            assert!(
                !stored.text.contains("CANARY") && !stored.text.contains("phish confirmed"),
                "{}",
                stored.text
            );
            assert!(!stored.text.contains(reply.token.expose_secret()));
            Ok(())
        })
        .expect("readable");
    assert!(entries > 4);
    // A retry returns the same commitment openings.
    assert_eq!(
        b.request_token(&triage, task, &note, 300, "r-1")
            .await
            .token()
            .openings,
        reply.openings
    );
    b.check_invariants();
}
